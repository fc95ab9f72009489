//! Where to cut a log whose tail may not have reached the device whole.
//!
//! Pure. Given the groups that were found and, for the blocks they wrote, which contents are wrong, it chooses
//! the longest prefix whose state is intact. `docs/chunkstore.md` has the argument why nothing flushed and
//! nothing acknowledged before a mere process kill is ever cut.

use crate::record::Record;
use rustc_hash::FxHashMap;

/// A block that an unsure group wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) block: u64,
    pub(crate) crc: u32,
    /// Last record of the group that wrote it.
    pub(crate) from: u64,
    /// Last record of the group that freed it again, or the maximum.
    pub(crate) until: u64,
}

/// Lists what must be read to trust the groups after `flushed`; each group is its last record's sequence and
/// its records.
pub(crate) fn unsure<'a>(
    groups: impl Iterator<Item = (u64, &'a [(u64, Record)])>,
    flushed: u64,
) -> Vec<Written> {
    let mut all: Vec<Written> = Vec::new();
    let mut latest: FxHashMap<u64, usize> = FxHashMap::default();
    for (last, records) in groups.filter(|(last, _)| *last > flushed) {
        for (_, record) in records {
            let Record::Update(update) = record else { continue };
            for block in update.frees.iter().flat_map(|r| r.start..r.start + u64::from(r.count)) {
                if let Some(i) = latest.remove(&block) {
                    all[i].until = last;
                }
            }
            let mut crcs = update.crcs.iter();
            for run in update.runs.iter().filter(|r| r.is_data()) {
                for (block, crc) in (run.at..run.at + u64::from(run.count)).zip(&mut crcs) {
                    latest.insert(block, all.len());
                    all.push(Written { block, crc: *crc, from: last, until: u64::MAX });
                }
            }
        }
    }
    all
}

/// The last record to keep: the latest end of a group at which no wrong block is referred to. `lasts` are the
/// ends of the groups in order.
pub(crate) fn cut(lasts: &[u64], flushed: u64, wrong: &[Written]) -> u64 {
    let good = |c: u64| !wrong.iter().any(|w| w.from <= c && c < w.until);
    lasts.iter().rev().copied().find(|&c| c <= flushed || good(c)).unwrap_or(flushed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Key;
    use crate::record::{Length, MapRun, Update};
    use crate::zones::Run;
    use smallvec::smallvec;

    fn write(at: u64, free: Option<u64>) -> (u64, Record) {
        let update = Update {
            key: Key { object: 1, index: 0 },
            delete: false,
            length: Length::Raise(0),
            time: 0,
            runs: smallvec![MapRun { block: 0, count: 1, at }],
            crcs: smallvec![at as u32],
            frees: free.map(|start| Run { start, count: 1 }).into_iter().collect(),
            request: None,
        };
        (0, Record::Update(Box::new(update)))
    }

    #[test]
    fn a_block_freed_and_reused_does_not_cut_what_was_flushed() {
        // 5 is written by group 1, freed by group 2, and reused after a flush that no header tells of; the
        // reusing group itself was lost.
        let groups = [(1, vec![write(5, None)]), (2, vec![write(6, Some(5))]), (3, vec![write(7, Some(6))])];
        let all = unsure(groups.iter().map(|(l, r)| (*l, r.as_slice())), 0);
        let wrong: Vec<Written> = all.iter().copied().filter(|w| w.block == 5).collect();
        assert_eq!(wrong, [Written { block: 5, crc: 5, from: 1, until: 2 }]);
        assert_eq!(cut(&[1, 2, 3], 0, &wrong), 3);
        let torn: Vec<Written> = all.iter().copied().filter(|w| w.block == 7).collect();
        assert_eq!(cut(&[1, 2, 3], 0, &torn), 2);
        let both: Vec<Written> = all.iter().copied().filter(|w| w.block != 7).collect();
        assert_eq!(cut(&[1, 2, 3], 0, &both), 3);
        assert_eq!(cut(&[1, 2], 0, &both), 0);
        assert_eq!(cut(&[1, 2], 2, &both), 2, "never below what was flushed");
    }
}
