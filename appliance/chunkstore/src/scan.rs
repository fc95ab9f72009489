//! Reading a log back: both copies of each group, from an anchor to the end of the chain.
//!
//! It repairs a copy from the other and tells a torn tail from damage; it does not know what records mean.

use crate::device::BlockDevice;
use crate::error::Error;
use crate::flush::Mended;
use crate::group::{self, Group, Header, Owner};
use crate::layout::{BLOCK, BLOCK_BYTES, Region};
use crate::ring::Anchor;
use crate::root::Root;
use crate::signal::join;
use hugepages::Buf;

/// Blocks read at a time.
const WINDOW: u64 = 256;
/// Blocks after the end that are searched for proof that a group is missing: 4 MiB of log, a second or more of
/// small writes, and a flush comes every second.
const PROOF: u64 = 1024;

/// A group of the chain and where it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) header: Header,
    pub(crate) crc: u32,
    pub(crate) start: u64,
    pub(crate) blocks: u64,
    /// It holds one record, and that is empty.
    pub(crate) empty: bool,
}

/// The last record of a chain that is not the log's own.
pub(crate) fn last_real(root: &Root, found: &[Found]) -> u64 {
    found.iter().rev().find(|f| !f.empty).map_or(root.anchor.next - 1, |f| f.header.last())
}

/// Reads one log.
pub(crate) struct Scan<'d, D> {
    device: &'d D,
    owner: Owner,
    rings: [Region; 2],
    max_group: u64,
    /// The end needs no proof.
    clean: bool,
    window: Option<(u64, [Buf; 2])>,
    /// Copies rewritten from the other: block, and last record of the group.
    pub(crate) repaired: Vec<(u64, u64)>,
}

impl<'d, D: BlockDevice> Scan<'d, D> {
    pub(crate) fn new(
        device: &'d D,
        owner: Owner,
        rings: [Region; 2],
        max_group: u64,
        clean: bool,
    ) -> Scan<'d, D> {
        Scan { device, owner, rings, max_group, clean, window: None, repaired: Vec::new() }
    }

    /// Makes the window cover a whole group at `at`, as far as the ring goes; gives the offset within it.
    async fn load(&mut self, at: u64, blocks: u64) -> usize {
        let end = self.rings[0].blocks;
        let need = (at + blocks).min(end);
        if let Some((start, bufs)) = &self.window
            && *start <= at
            && start + (bufs[0].len() / BLOCK) as u64 >= need
        {
            return (at - start) as usize * BLOCK;
        }
        let len = (end - at).min(blocks.max(WINDOW)) as usize * BLOCK;
        let [a, b] = self.rings.map(|r| (r.start + at) * BLOCK_BYTES);
        let (a, b) = join(self.device.read(a, Buf::heap(len)), self.device.read(b, Buf::heap(len))).await;
        // What can't be read counts as damaged; the other copy may be good.
        let usable = |(result, mut buf): (std::io::Result<()>, Buf)| {
            if result.is_err() {
                buf.fill(0);
            }
            buf
        };
        self.window = Some((at, [usable(a), usable(b)]));
        0
    }

    fn view(&self, copy: usize, offset: usize) -> Option<Group<'_>> {
        let (_, bufs) = self.window.as_ref()?;
        group::decode(self.owner, bufs[copy].get(offset..)?)
    }

    /// Walks the chain from `anchor`; `each` gets every group. Gives the groups in order.
    pub(crate) async fn walk(
        &mut self,
        anchor: Anchor,
        incarnation: u64,
        root: u64,
        mut each: impl FnMut(&Group<'_>) -> Result<(), Error>,
    ) -> Result<Vec<Found>, Error> {
        let mut at = anchor;
        let mut incarnation = incarnation;
        let mut found: Vec<Found> = Vec::new();
        'chain: loop {
            for start in [at.at, 0] {
                if start >= self.rings[0].blocks {
                    continue;
                }
                let offset = self.load(start, self.max_group).await;
                let fits = |g: &Group<'_>| {
                    let h = &g.header;
                    h.first == at.next && h.prev == at.prev && h.incarnation >= incarnation
                };
                let views = [0, 1].map(|copy| self.view(copy, offset).filter(fits));
                // Of two that differ the younger one was written over the other before a cut.
                let best = views.iter().flatten().rev().max_by_key(|g| g.header.incarnation);
                let Some(group) = best else {
                    if start == 0 {
                        break 'chain;
                    }
                    continue;
                };
                if group.header.root > root {
                    return Err(self.missing("the newest checkpoint root"));
                }
                each(group)?;
                let same = |view: &Option<Group<'_>>| view.as_ref().is_some_and(|g| g.crc == group.crc);
                let bad = views.iter().position(|view| !same(view));
                let empty = group.header.count == 1 && group.records().all(<[u8]>::is_empty);
                let place =
                    Found { header: group.header, crc: group.crc, start, blocks: group.blocks, empty };
                let bytes = bad.and_then(|bad| {
                    let (_, bufs) = self.window.as_ref()?;
                    bufs[1 - bad].get(offset..offset + group.blocks as usize * BLOCK).map(Buf::copy_of)
                });
                if let (Some(bad), Some(bytes)) = (bad, bytes) {
                    self.repair(bad, start, place.header.last(), bytes).await?;
                }
                at = Anchor { next: place.header.last() + 1, at: start + place.blocks, prev: place.crc };
                incarnation = place.header.incarnation;
                found.push(place);
                continue 'chain;
            }
            break;
        }
        if !self.clean {
            self.prove(at, incarnation, root).await?;
        }
        Ok(found)
    }

    async fn repair(&mut self, copy: usize, start: u64, last: u64, bytes: Buf) -> Result<(), Error> {
        let block = self.rings[copy].start + start;
        self.repaired.push((block, last));
        let at = block * BLOCK_BYTES;
        self.device.write(at, bytes.freeze()).await.map_err(Error::io("repairing the log"))
    }

    /// Checks that the root lies in the ring, and that the chain goes as far as it says that was flushed.
    pub(crate) fn reaches(&self, root: &Root, found: &[Found]) -> Result<(), Error> {
        if root.anchor.at > self.rings[0].blocks {
            return Err(self.missing("the place where the root says that it begins"));
        }
        let end = found.last().map_or(root.anchor.next - 1, |f| f.header.last());
        if end < root.flushed {
            return Err(self.missing(&format!("record {}", end + 1)));
        }
        Ok(())
    }

    /// What was rewritten. Behind `flushed` the copy may just not have been written before an unclean stop.
    pub(crate) fn mended(&self, flushed: u64) -> impl Iterator<Item = Mended> + '_ {
        let what = format!("the log of owner {}", self.owner.owner);
        self.repaired.iter().map(move |&(block, last)| Mended {
            what: what.clone(),
            block,
            unfinished: !self.clean && last > flushed,
        })
    }

    fn missing(&self, what: &str) -> Error {
        let [a, b] = self.rings;
        let name = format!("the log of owner {} at blocks {} and {}", self.owner.owner, a.start, b.start);
        Error::damaged(
            name,
            format!("{what} is missing although later groups or the root prove that it was written"),
        )
    }

    /// Looks after the end for a group that could only have been written after the missing one was flushed: then
    /// the end is damage, not the tail that a cut left.
    async fn prove(&mut self, end: Anchor, incarnation: u64, root: u64) -> Result<(), Error> {
        let ring = self.rings[0].blocks;
        let count = ring.min(PROOF);
        let spans = [
            (end.at.min(ring), (end.at + count).min(ring)),
            (0, count.saturating_sub(ring - end.at.min(ring))),
        ];
        for (from, to) in spans {
            let mut at = from;
            while at < to {
                let offset = self.load(at, self.max_group).await;
                let last = [0, 1].map(|copy| self.view(copy, offset));
                let mut step = 1;
                for group in last.iter().flatten() {
                    let h = &group.header;
                    step = group.blocks;
                    if h.first < end.next || h.incarnation < incarnation {
                        continue;
                    }
                    if h.root > root {
                        return Err(self.missing("the newest checkpoint root"));
                    }
                    if h.first > end.next && h.flushed >= end.next {
                        return Err(self.missing(&format!("record {}", end.next)));
                    }
                }
                at += step;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{MemDevice, MemOptions};
    use crate::local::LocalExecutor;

    #[test]
    fn of_two_different_copies_the_younger_is_taken_and_written_over_the_other() {
        // Both copies held an intact group, of different incarnations: the first won whatever its age, and they stayed different.
        let owner = Owner { tag: 5, owner: 0 };
        let rings = [Region { start: 0, blocks: 64 }, Region { start: 64, blocks: 64 }];
        for younger in [0, 1] {
            let executor = LocalExecutor::new();
            let walked = executor.run(async {
                let disk = MemDevice::new(1 << 20, MemOptions::default());
                for (copy, ring) in rings.iter().enumerate() {
                    let incarnation = 1 + u64::from(copy == younger);
                    let header = Header { first: 1, count: 1, prev: 0, incarnation, flushed: 0, root: 1 };
                    let mut buf = Buf::heap(BLOCK);
                    group::encode(owner, &header, [&[incarnation as u8; 9][..]].into_iter(), &mut buf);
                    disk.write(ring.start * BLOCK_BYTES, buf.freeze()).await.expect("writes");
                }
                let anchor = Anchor { next: 1, at: 0, prev: 0 };
                for repaired in [1, 0] {
                    let mut scan = Scan::new(&disk, owner, rings, 8, true);
                    let mut seen = Vec::new();
                    let each = |g: &Group<'_>| {
                        seen.extend(g.records().map(<[u8]>::to_vec));
                        Ok(())
                    };
                    scan.walk(anchor, 1, 1, each).await.expect("walks");
                    assert_eq!((seen, scan.repaired.len()), (vec![vec![2; 9]], repaired));
                }
            });
            walked.expect("nothing is left to run");
        }
    }
}
