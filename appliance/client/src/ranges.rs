//! A small set of byte ranges of one file, aligned outwards to pages.
//!
//! Bounded: beyond [`MAX_RANGES`] it becomes one range that covers all, which is more than was asked for but never less.

use smallvec::SmallVec;
use std::ops::Range;

/// Pages of the kernel's cache in bytes.
pub(crate) const PAGE: u64 = 4096;

/// More ranges than this become one: invalidating too much only costs a read.
const MAX_RANGES: usize = 64;

/// Sorted, disjoint, not touching.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges(SmallVec<[Range<u64>; 4]>);

/// The range widened to whole pages.
pub(crate) fn pages(offset: u64, len: u64) -> Range<u64> {
    let end = offset.saturating_add(len);
    offset - offset % PAGE..end.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX)
}

impl Ranges {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Adds a range; an empty one changes nothing.
    pub(crate) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let from = self.0.partition_point(|r| r.end < range.start);
        let to = self.0.partition_point(|r| r.start <= range.end);
        let merged = self.0[from..to].iter().fold(range, |a, b| a.start.min(b.start)..a.end.max(b.end));
        self.0.drain(from..to);
        self.0.insert(from, merged);
        if self.0.len() > MAX_RANGES {
            let hull = self.0[0].start..self.0[self.0.len() - 1].end;
            self.0.clear();
            self.0.push(hull);
        }
    }
    /// Takes a range out.
    pub(crate) fn remove(&mut self, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.0 = self
            .0
            .iter()
            .flat_map(|r| [r.start..r.end.min(range.start), r.start.max(range.end)..r.end])
            .filter(|r| !r.is_empty())
            .collect();
    }
    pub(crate) fn into_inner(self) -> SmallVec<[Range<u64>; 4]> {
        self.0
    }
}

impl FromIterator<Range<u64>> for Ranges {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(iter: I) -> Self {
        let mut set = Self::default();
        iter.into_iter().for_each(|r| set.insert(r));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_as_a_set(steps in prop::collection::vec((any::<bool>(), 0u64..40, 0u64..12), 0..40)) {
            let (mut set, mut model) = (Ranges::default(), BTreeSet::new());
            for (add, start, len) in steps {
                let range = start..start + len;
                if add {
                    set.insert(range.clone());
                    model.extend(range);
                } else {
                    set.remove(&range);
                    model.retain(|x| !range.contains(x));
                }
                prop_assert_eq!(set.0.iter().flat_map(Clone::clone).collect::<BTreeSet<_>>(), model.clone());
                prop_assert!(set.0.windows(2).all(|w| w[0].end <= w[1].start));
            }
        }
    }

    #[test]
    fn too_many_ranges_become_one() {
        let set: Ranges = (0..100).map(|i| i * 10..i * 10 + 1).collect();
        assert!(set.0.len() <= MAX_RANGES);
        assert_eq!(set.0.first().map(|r| r.start), Some(0));
        assert_eq!(set.0.last().map(|r| r.end), Some(991));
    }

    #[test]
    fn pages_cover() {
        assert_eq!(pages(5000, 10), 4096..8192);
        assert_eq!(pages(u64::MAX - 5, 5), (u64::MAX - u64::MAX % PAGE)..u64::MAX);
    }
}
