//! Where each block of a write goes: the runs of the new map and the device writes they need, joined where they touch.
//!
//! Must not allocate space: it hands out what was allocated for it.

use super::*;

/// Lays new contents onto allocated blocks and collects what the record says.
pub(super) struct Layout<'a> {
    pub(super) space: BlocksOf<'a>,
    pub(super) runs: SmallVec<[MapRun; 2]>,
    pub(super) frees: Runs,
    pub(super) data: Data,
    /// Where the last data write came from: segment start and bytes, so that neighbours are written at once.
    pub(super) last: Option<(u32, u32)>,
    pub(super) delta: i32,
}

impl<'a> Layout<'a> {
    pub(super) fn new(space: &'a Runs) -> Layout<'a> {
        let blocks: fn(&Run) -> Range<u64> = |r| r.start..r.start + u64::from(r.count);
        Layout {
            space: space.iter().flat_map(blocks),
            runs: SmallVec::new(),
            frees: Runs::new(),
            data: Data::new(),
            last: None,
            delta: 0,
        }
    }

    /// Block `i` of a segment, mapped to `old` until now.
    pub(super) fn place(
        &mut self,
        segment: &Segment,
        i: u32,
        old: crate::leaf::Slot,
        mut free: impl FnMut(&mut Runs, u64),
    ) {
        let block = segment.first + i;
        let in_place = old.is_unwritten() && !matches!(segment.fill, Fill::Hole);
        if !old.is_hole() && !in_place {
            free(&mut self.frees, old.block());
            self.delta -= 1;
        }
        let at = match &segment.fill {
            Fill::Hole => {
                if !old.is_hole() {
                    self.map(block, 0);
                }
                return;
            }
            _ if in_place => old.block(),
            _ => {
                self.delta += 1;
                // `new_blocks` counted the same blocks.
                self.space.next().unwrap_or_default()
            }
        };
        match &segment.fill {
            Fill::Data(bytes) => {
                self.map(block, at);
                self.write(segment.first, i, at, bytes);
            }
            _ if in_place => {}
            _ => self.map(block, at | UNWRITTEN),
        }
    }

    fn map(&mut self, block: u32, at: u64) {
        if let Some(last) = self.runs.last_mut()
            && u32::from(last.block + last.count) == block
            && (if last.at == 0 { at == 0 } else { at == last.at + u64::from(last.count) })
        {
            last.count += 1;
            return;
        }
        self.runs.push(MapRun { block: block as u16, count: 1, at });
    }

    fn write(&mut self, first: u32, i: u32, at: u64, bytes: &Bytes) {
        let range = |from: u32, to: u32| bytes.slice(from as usize * BLOCK..to as usize * BLOCK);
        if let (Some((start, from)), Some((place, data))) = (self.last, self.data.last_mut())
            && start == first
            && *place + data.len() as u64 == offset(at)
            && from + (data.len() / BLOCK) as u32 == i
        {
            *data = range(from, i + 1);
            return;
        }
        self.data.push((offset(at), range(i, i + 1)));
        self.last = Some((first, i));
    }
}
