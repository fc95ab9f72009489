//! Opening a shard: the checkpoint's pages, then the log from its anchor, cut where it is not whole.

use super::{Core, Counters, Inner, Pages, RECORDS_LIMIT, Reads, Shard, ShardOptions, offset};
use crate::crc::crc32c;
use crate::device::BlockDevice;
use crate::error::Error;
use crate::flush::{Flusher, Member, Mended, Shared};
use crate::gate::Gate;
use crate::group::Owner;
use crate::index::{BUCKETS, Index, Key, Map};
use crate::layout::{BLOCK, Layout};
use crate::leaf::Leaf;
use crate::locks::Locks;
use crate::log::{Config, LogWriter, Past};
use crate::nslog::{read_roots, repair_root};
use crate::page::{self, Kind, MAX_CHAIN, ZONE_PAGES};
use crate::record::{Length, Record};
use crate::recovery::{self, Written};
use crate::requests::{Requests, page_of};
use crate::ring::Ring;
use crate::root::{self, PAGES, PagePtr};
use crate::scan::{self, Found, Scan};
use crate::signal::{Spawner, Waiters, join_all};
use crate::zones::{Run, Zones};
use hugepages::Buf;
use rustc_hash::FxHashSet;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

/// Most blocks of a group of a shard's log.
pub(crate) const MAX_GROUP: u64 = 16;
/// Reads under way at once while opening.
const WIDTH: usize = 32;
/// Records whose leaves are loaded together during replay.
const BATCH: usize = 512;

const _: () = assert!(crate::record::MAX_RECORD + 128 < MAX_GROUP as usize * BLOCK);

/// A decoded log: each group's last record and its records but for empty ones.
type Groups = Vec<(u64, Vec<(u64, Record)>)>;

struct Opening<'d, D> {
    device: &'d D,
    shared: Arc<Shared>,
    layout: Layout,
    owner: Owner,
    core: Core,
    /// Chunks whose map is bad in both copies while the log changes it, and the first error.
    lost: FxHashSet<Key>,
    why: Option<Error>,
}

/// A page read from the device.
struct Loaded {
    chain: Vec<[u64; 2]>,
    /// Sequence and payload of each block.
    blocks: Vec<(u64, Vec<u8>)>,
}

impl<D: BlockDevice> Shard<D> {
    pub(crate) async fn open(
        device: D,
        flusher: Flusher<D>,
        spawner: Spawner,
        number: u16,
        options: ShardOptions,
    ) -> Result<Shard<D>, Error> {
        let shared = Arc::clone(flusher.shared());
        let layout = shared.layout.clone();
        let owner = Owner { tag: shared.tag, owner: number };
        let core = Core {
            index: Index::new(),
            zones: Zones::new(layout.clone()),
            requests: Requests::new(),
            applied: 0,
            pages: Pages::new(),
            freed: VecDeque::new(),
            waiting: 0,
            returned: VecDeque::new(),
            unreferred: Vec::new(),
            writing: Vec::new(),
        };
        let mut opening = Opening {
            device: &device,
            shared: Arc::clone(&shared),
            layout: layout.clone(),
            owner,
            core,
            lost: FxHashSet::default(),
            why: None,
        };
        let chosen = read_roots(&device, &layout, owner).await?;
        repair_root(&device, &shared, owner, &chosen).await?;
        let root = chosen.root;
        opening.load_pages(&root.pages).await?;
        let rings = layout.shard_log(number);
        let mut scan = Scan::new(&device, owner, rings, MAX_GROUP, shared.clean);
        let mut groups = Groups::new();
        let name = || format!("the log of shard {number}");
        let mut found = scan
            .walk(root.anchor, root.incarnation, root.generation, |group| {
                let records = (group.header.first..).zip(group.records()).filter(|(_, r)| !r.is_empty());
                let records = records.map(|(seq, r)| Ok((seq, Record::decode(r)?)));
                let records =
                    records.collect::<Result<_, _>>().map_err(|why: &str| Error::damaged(name(), why))?;
                groups.push((group.header.last(), records));
                Ok(())
            })
            .await?;
        scan.reaches(&root, &found)?;
        let flushed = found.iter().map(|f| f.header.flushed).fold(root.flushed, u64::max);
        scan.mended(flushed).for_each(|m| shared.damage.mended(m));
        let keep = opening.cut(&groups, flushed).await?;
        let cut = cut_to(&mut found, &mut groups, keep);
        let ended = cut || !found.last().is_some_and(|f| f.empty);
        opening.core.applied = root.anchor.next - 1;
        opening.replay(groups).await?;
        opening.finish()?;
        let Opening { core, why, .. } = opening;
        let mut ring = Ring::new(rings[0].blocks, root.anchor);
        found.iter().for_each(|f| ring.push(f.start, f.blocks, &f.header, f.crc));
        let config = Config {
            owner,
            rings,
            max_group: MAX_GROUP,
            mark: usize::from(number),
            incarnation: shared.incarnation,
        };
        let arena = options.arena.clone();
        let log = LogWriter::new(
            device.clone(),
            flusher.clone(),
            spawner.clone(),
            arena,
            config,
            Past { ring, root: &root, real: scan::last_real(&root, &found) },
        );
        log.open(ended).await?;
        let shard = Shard(Rc::new(Inner {
            device,
            layout: layout.clone(),
            number,
            owner,
            flusher,
            shared,
            spawner,
            options,
            log,
            locks: Locks::default(),
            gate: Gate::new(RECORDS_LIMIT),
            channels: Locks::default(),
            core: RefCell::new(core),
            reads: Rc::new(Reads::default()),
            checkpointing: Cell::new(false),
            checkpoints_done: Cell::new(0),
            root: Cell::new((root.generation, chosen.slot)),
            takes: Cell::new(0),
            trimming: Cell::new(0),
            freeing: Cell::new(0),
            released: Cell::new(0),
            repairs: Cell::new(0),
            refused: Cell::new(false),
            flushing: Cell::new(false),
            read_only: RefCell::new(None),
            waiters: Waiters::default(),
            zeros: Buf::heap(layout.chunk_size as usize).freeze(),
            counters: Counters::default(),
        }));
        if let Some(error) = why {
            shard.fail(&error);
        }
        shard.0.flusher.join(Rc::downgrade(&shard.0) as std::rc::Weak<dyn Member>);
        shard.0.shared.pool.opened();
        let limit = shard.leaf_limit();
        shard.0.core.borrow_mut().index.evict(limit, |_| false);
        (shard.0.spawner)(Box::pin(shard.clone().once_open()));
        Ok(shard)
    }
}

/// Drops the groups after record `keep`; true if there were any.
fn cut_to(found: &mut Vec<Found>, groups: &mut Groups, keep: u64) -> bool {
    let n = groups.partition_point(|(last, _)| *last <= keep);
    if n < groups.len() {
        tracing::info!(groups = groups.len() - n, "the log's tail was not whole and is cut");
    }
    let cut = n < groups.len();
    groups.truncate(n);
    found.truncate(n);
    cut
}

impl<D: BlockDevice> Opening<'_, D> {
    fn damaged(&self, what: &str, why: impl Into<String>) -> Error {
        Error::damaged(format!("{what} of shard {}", self.owner.owner), why)
    }

    fn mended(&self, what: &str, block: u64) {
        let what = format!("{what} of shard {}", self.owner.owner);
        self.shared.damage.mended(Mended { what, block, unfinished: false });
    }

    async fn load_pages(&mut self, pointers: &[PagePtr]) -> Result<(), Error> {
        let used = pointers.iter().enumerate().filter(|(_, p)| !root::is_empty(**p));
        let numbers: Vec<usize> = used.map(|(n, _)| n).collect();
        for (number, pointer) in pointers.iter().enumerate().filter(|(_, p)| root::is_empty(**p)) {
            self.core.pages.seq[number] = pointer[1];
        }
        // Zones and requests come last in the root; their order among each other does not matter.
        for numbers in numbers.chunks(PAGES / 8) {
            let pages = join_all(numbers.iter().map(|&n| self.load_page(n, pointers[n])), WIDTH).await;
            let pages: Vec<Loaded> = pages.into_iter().collect::<Result<_, _>>()?;
            for (&number, page) in numbers.iter().zip(pages) {
                self.take_page(number, page)?;
            }
        }
        Ok(())
    }

    async fn load_page(&self, number: usize, pointer: PagePtr) -> Result<Loaded, Error> {
        let mut page = Loaded { chain: Vec::new(), blocks: Vec::new() };
        let mut next = pointer;
        while next != [0, 0] {
            let ordinal = page.chain.len();
            if ordinal >= MAX_CHAIN {
                return Err(self.damaged(&format!("page {number}"), "its chain does not end"));
            }
            page.chain.push(next);
            let (seq, after, payload) = self.load_block(number, ordinal, next).await?;
            page.blocks.push((seq, payload));
            next = after;
        }
        Ok(page)
    }

    /// Reads one block of a page from either place and repairs the first from the second.
    async fn load_block(
        &self,
        number: usize,
        ordinal: usize,
        places: [u64; 2],
    ) -> Result<(u64, [u64; 2], Vec<u8>), Error> {
        let mut why = String::new();
        for (copy, at) in places.into_iter().enumerate() {
            let (result, buf) = self.device.read(offset(at), Buf::heap(BLOCK)).await;
            let link = match &result {
                Ok(()) => page::decode(self.owner, number, ordinal, &buf).map_err(str::to_owned),
                Err(e) => Err(e.to_string()),
            };
            match link {
                Ok(link) => {
                    let out = (link.seq, link.next, link.payload.to_vec());
                    if copy == 1 {
                        self.mended(&format!("page {number}"), places[0]);
                        tracing::warn!(shard = self.owner.owner, block = places[0], why, "page repaired");
                        let repaired = self.device.write(offset(places[0]), buf.freeze()).await;
                        repaired.map_err(Error::io("repairing a checkpoint page"))?;
                    }
                    return Ok(out);
                }
                Err(e) => why = e,
            }
        }
        let what = format!("page {number} at blocks {} and {}", places[0], places[1]);
        Err(self.damaged(&what, why))
    }

    fn take_page(&mut self, number: usize, page: Loaded) -> Result<(), Error> {
        let core = &mut self.core;
        core.pages.seq[number] = page.blocks.first().map_or(0, |(seq, _)| *seq);
        for (_, payload) in &page.blocks {
            match Kind::of(number) {
                Kind::Index(bucket) => page::entries(bucket, payload, |key, entry| {
                    if core.index.load(key, entry) { Ok(()) } else { Err("a chunk stands there twice") }
                }),
                Kind::Zones(p) => page::zones(p, self.layout.zone_blocks, payload, |zone, class, state| {
                    if core.zones.add(zone, class, Some(state), true) {
                        Ok(())
                    } else {
                        Err("a zone stands there twice")
                    }
                }),
                Kind::Requests(_) => page::requests(payload, |id, outcome| core.requests.set(id, outcome)),
            }
            .map_err(|why| Error::damaged(format!("page {number} of shard {}", self.owner.owner), why))?;
        }
        core.pages.chain[number] = page.chain;
        Ok(())
    }

    /// Verifies what the groups after `flushed` wrote; gives the last record to keep.
    async fn cut(&self, groups: &Groups, flushed: u64) -> Result<u64, Error> {
        let lasts: Vec<u64> = groups.iter().map(|(last, _)| *last).collect();
        let mut unsure = recovery::unsure(groups.iter().map(|(l, r)| (*l, r.as_slice())), flushed);
        unsure.sort_unstable_by_key(|w| w.block);
        // A MiB at a time, where blocks follow each other.
        let mut spans: Vec<&[Written]> = Vec::new();
        let mut rest = unsure.as_slice();
        while let Some(first) = rest.first() {
            let mut last = first.block;
            let n = rest.iter().take_while(|w| {
                let near = w.block <= last + 1 && w.block < first.block + 256;
                last = w.block;
                near
            });
            let (span, tail) = rest.split_at(n.count().max(1));
            spans.push(span);
            rest = tail;
        }
        let wrong = join_all(spans.into_iter().map(|span| self.verify(span)), WIDTH).await;
        Ok(recovery::cut(&lasts, flushed, &wrong.concat()))
    }

    /// The blocks of a span of neighbours whose contents are not what was written.
    async fn verify(&self, span: &[Written]) -> Vec<Written> {
        let (Some(first), Some(last)) = (span.first(), span.last()) else { return Vec::new() };
        let len = (last.block - first.block + 1) as usize * BLOCK;
        let in_zones = first.block >= self.layout.zones.start;
        if !in_zones {
            return span.to_vec();
        }
        let (result, buf) = self.device.read(offset(first.block), Buf::heap(len)).await;
        if result.is_err() {
            // One bad block must not take its neighbours with it.
            return self.verify_one_by_one(span).await;
        }
        let wrong = |w: &&Written| {
            let at = (w.block - first.block) as usize * BLOCK;
            crc32c(&buf[at..at + BLOCK]) != w.crc
        };
        span.iter().filter(wrong).copied().collect()
    }

    async fn verify_one_by_one(&self, span: &[Written]) -> Vec<Written> {
        let mut wrong = Vec::new();
        for written in span {
            let (result, buf) = self.device.read(offset(written.block), Buf::heap(BLOCK)).await;
            if result.is_err() || crc32c(&buf) != written.crc {
                wrong.push(*written);
            }
        }
        wrong
    }

    async fn replay(&mut self, groups: Groups) -> Result<(), Error> {
        let mut records = Vec::new();
        let mut last = self.core.applied;
        for (end, group) in groups {
            records.extend(group);
            last = end;
        }
        for batch in records.chunks(BATCH) {
            self.load_leaves(batch).await?;
            for (seq, record) in batch {
                self.replay_one(*seq, record)?;
            }
        }
        self.core.applied = last;
        Ok(())
    }

    async fn load_leaves(&mut self, batch: &[(u64, Record)]) -> Result<(), Error> {
        let mut wanted: Vec<(Key, [u64; 2])> = batch
            .iter()
            .filter_map(|(_, record)| match record {
                Record::Update(u) => Some((u.key, self.core.index.absent_leaf(u.key)?)),
                _ => None,
            })
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        let read = wanted.iter().map(|(key, disk)| self.load_leaf(*key, *disk));
        let leaves = join_all(read, WIDTH).await;
        for ((key, _), leaf) in wanted.into_iter().zip(leaves) {
            match leaf {
                Ok(leaf) => self.core.index.install(key, leaf),
                // One chunk is lost, all others can be read.
                Err(error @ Error::Damaged { .. }) => {
                    self.lost.insert(key);
                    self.why.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn load_leaf(&self, key: Key, disk: [u64; 2]) -> Result<Box<Leaf>, Error> {
        let mut why = String::new();
        for (copy, at) in disk.into_iter().enumerate() {
            let (result, buf) = self.device.read(offset(at), Buf::heap(BLOCK)).await;
            match result
                .map_err(|e| e.to_string())
                .and_then(|()| Leaf::decode(&buf, key, self.owner.tag).map_err(str::to_owned))
            {
                Ok(leaf) => {
                    if copy == 1 {
                        self.mended(&format!("the map of chunk {key}"), disk[0]);
                        let repaired = self.device.write(offset(disk[0]), buf.freeze()).await;
                        repaired.map_err(Error::io("repairing a map"))?;
                    }
                    return Ok(leaf);
                }
                Err(e) => why = e,
            }
        }
        Err(self.damaged(&format!("the map of chunk {key} at blocks {} and {}", disk[0], disk[1]), why))
    }

    /// Applies a record to the pages that don't reflect it yet.
    fn replay_one(&mut self, seq: u64, record: &Record) -> Result<(), Error> {
        let owner = self.owner.owner;
        let bad = |why: &str| Error::damaged(format!("record {seq} of shard {owner}"), why);
        let core = &mut self.core;
        let newer = |core: &Core, kind: Kind| seq > core.pages.seq[kind.page()];
        let zones = |zone: u32| Kind::Zones(zone as usize % ZONE_PAGES);
        match record {
            Record::ZoneTake { zone, class } => {
                if newer(core, zones(*zone)) {
                    if !core.zones.add(*zone, *class, None, true) {
                        return Err(bad("takes a zone that is owned"));
                    }
                    core.pages.touch(zones(*zone));
                }
            }
            Record::ZoneReturn { zone } => {
                if newer(core, zones(*zone)) {
                    core.zones.remove(*zone);
                    core.pages.touch(zones(*zone));
                }
            }
            Record::Forget { client } => {
                for page in 0..crate::requests::REQUEST_PAGES {
                    if newer(core, Kind::Requests(page)) && core.requests.forget(*client, page) {
                        core.pages.touch(Kind::Requests(page));
                    }
                }
            }
            Record::Update(update) => {
                let bucket = Kind::Index(crate::index::bucket_of(update.key));
                if newer(core, bucket) {
                    if let Length::Raise(n) | Length::Set(n) = update.length
                        && n > self.layout.chunk_size
                    {
                        return Err(bad("sets a length beyond the chunk"));
                    }
                    let lost = !update.delete && self.lost.contains(&update.key);
                    if !lost && let Some(leaf) = core.index.apply(update) {
                        core.unreferred.extend(leaf);
                    }
                    core.pages.touch(bucket);
                }
                let maps = update.runs.iter().filter(|r| r.at != 0);
                let maps = maps.map(|r| (r.at & !crate::leaf::UNWRITTEN, u32::from(r.count), true));
                // Freed first: a block written in place is mapped by a record that frees nothing of it.
                let frees = update.frees.iter().map(|r| (r.start, r.count, false));
                for (start, count, used) in frees.chain(maps) {
                    for block in start..start.saturating_add(u64::from(count)) {
                        let Some(zone) = core.zones.zone_of(block) else {
                            return Err(bad("names a block outside the zones"));
                        };
                        if newer(core, zones(zone)) {
                            let run = Run { start: block, count: 1 };
                            if !core.zones.owns(run) {
                                return Err(bad("names a block of a zone that is not owned"));
                            }
                            core.zones.set_state(run, used);
                            core.pages.touch(zones(zone));
                        }
                    }
                }
                if let Some((id, outcome)) = &update.request
                    && newer(core, Kind::Requests(page_of(id.client, id.channel)))
                {
                    core.requests.set(*id, outcome);
                    core.pages.touch(Kind::Requests(page_of(id.client, id.channel)));
                }
            }
        }
        Ok(())
    }

    /// Works out which blocks are busy and claims the zones.
    fn finish(&mut self) -> Result<(), Error> {
        let core = &mut self.core;
        core.zones.rebuild();
        let mut metadata: Vec<u64> = core.pages.chain.iter().flatten().flatten().copied().collect();
        metadata.extend(&core.unreferred);
        for bucket in 0..BUCKETS {
            let leaves = core.index.bucket(bucket).values().filter_map(|e| match e.map {
                Map::Leaf { disk, .. } if disk != [0, 0] => Some(disk),
                _ => None,
            });
            metadata.extend(leaves.flatten());
        }
        for start in metadata {
            let run = Run { start, count: 1 };
            if !core.zones.owns(run) || !core.zones.set_busy(run) {
                let what = format!("metadata block {start} of shard {}", self.owner.owner);
                return Err(Error::damaged(what, "it is used for something else"));
            }
        }
        for (zone, z) in core.zones.iter() {
            if !self.shared.pool.claim(zone, z.class) {
                let what = format!("zone {zone} of shard {}", self.owner.owner);
                return Err(Error::damaged(what, "it is beyond the device or another's"));
            }
        }
        Ok(())
    }
}
