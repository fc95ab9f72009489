//! Which slot of an arena is free: size classes over spans, as plain index arithmetic.
//!
//! The arena is cut into spans of [`SPAN`] bytes. A span belongs to no class, or to one, and is then cut into
//! slots of that class; once all its slots are free it belongs to no class again, so memory moves between
//! sizes. This module never sees an address and contains no unsafe code.

use crate::ALIGN;

/// Slot sizes in bytes. The last holds a 1 MiB chunk and a 64 KiB margin for headers and checksums.
pub const CLASS_SIZES: [usize; CLASSES] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, (1 << 20) + (64 << 10)];
/// Largest length that an arena serves.
pub const MAX_ALLOC: usize = CLASS_SIZES[CLASSES - 1];
pub(crate) const CLASSES: usize = 5;
/// Bytes in a span: one slot of the largest class, which every smaller class but 256 KiB divides evenly.
pub(crate) const SPAN: usize = MAX_ALLOC;
/// Slots are named by the number of their first granule.
const GRANULES: u32 = (SPAN / ALIGN) as u32;
const WORDS: usize = (GRANULES as usize).div_ceil(64);
/// End of a list.
pub(crate) const NONE: u32 = u32::MAX;
const FREE: u8 = u8::MAX;

const _: () = assert!(SPAN.is_multiple_of(ALIGN) && GRANULES == 272);

#[derive(Clone, Copy)]
struct Span {
    class: u8,
    used: u16,
    /// One bit for each free slot.
    bits: [u64; WORDS],
    prev: u32,
    next: u32,
}

/// A slot that was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) granule: u32,
    pub(crate) class: u8,
}

/// Free lists of one arena.
pub(crate) struct Slots {
    bytes: usize,
    spans: Box<[Span]>,
    /// Per class: spans of it with at least one free slot.
    partial: [u32; CLASSES],
    /// Whole spans of no class.
    free: u32,
    /// The last span where it is shorter than the others; it serves only the classes that fit.
    tail: Option<u32>,
}

/// The smallest class that holds `len` bytes.
pub(crate) fn class_of(len: usize) -> Option<usize> {
    CLASS_SIZES.iter().position(|&size| len <= size)
}

impl Slots {
    pub(crate) fn new(bytes: usize) -> Slots {
        let spans = bytes.div_ceil(SPAN);
        let empty = Span { class: FREE, used: 0, bits: [0; WORDS], prev: NONE, next: NONE };
        let mut slots = Slots {
            bytes,
            spans: vec![empty; spans].into_boxed_slice(),
            partial: [NONE; CLASSES],
            free: NONE,
            tail: None,
        };
        for span in (0..spans as u32).rev() {
            slots.give_span(span);
        }
        slots
    }

    /// A slot of `class`, or of the next larger class that has one.
    pub(crate) fn alloc(&mut self, class: usize) -> Option<Slot> {
        (class..CLASSES).find_map(|class| self.take(class))
    }

    /// Takes back a slot; its class tells what became free.
    pub(crate) fn free(&mut self, granule: u32) -> usize {
        let number = granule / GRANULES;
        let span = &mut self.spans[number as usize];
        let class = span.class as usize;
        let index = (granule % GRANULES) as usize / (CLASS_SIZES[class] / ALIGN);
        let was_full = span.bits == [0; WORDS];
        debug_assert!(span.bits[index / 64] & (1 << (index % 64)) == 0, "slot {granule} is free already");
        span.bits[index / 64] |= 1 << (index % 64);
        span.used -= 1;
        let empty = span.used == 0;
        if was_full && !empty {
            self.link(class, number);
        }
        if empty {
            if !was_full {
                self.unlink(class, number);
            }
            self.give_span(number);
        }
        class
    }

    fn take(&mut self, class: usize) -> Option<Slot> {
        if self.partial[class] == NONE {
            let span = self.claim(class)?;
            self.link(class, span);
        }
        let number = self.partial[class];
        let span = &mut self.spans[number as usize];
        let word = span.bits.iter().position(|&bits| bits != 0)?;
        let bit = span.bits[word].trailing_zeros();
        span.bits[word] &= span.bits[word] - 1;
        span.used += 1;
        if span.bits == [0; WORDS] {
            self.unlink(class, number);
        }
        let index = (word * 64) as u32 + bit;
        let granule = number * GRANULES + index * (CLASS_SIZES[class] / ALIGN) as u32;
        Some(Slot { granule, class: class as u8 })
    }

    /// Gives an unused span to `class`, the short one first.
    fn claim(&mut self, class: usize) -> Option<u32> {
        let number = match self.tail {
            Some(tail) if self.count(tail, class) > 0 => {
                self.tail = None;
                tail
            }
            _ if self.free != NONE => {
                let head = self.free;
                self.free = self.spans[head as usize].next;
                head
            }
            _ => return None,
        };
        let count = self.count(number, class);
        let span = &mut self.spans[number as usize];
        span.class = class as u8;
        for (word, bits) in span.bits.iter_mut().enumerate() {
            *bits = match count.saturating_sub(word * 64) {
                0 => 0,
                n if n >= 64 => u64::MAX,
                n => (1 << n) - 1,
            };
        }
        Some(number)
    }

    fn give_span(&mut self, number: u32) {
        let short = self.span_bytes(number) < SPAN;
        let next = self.free;
        let span = &mut self.spans[number as usize];
        span.class = FREE;
        span.prev = NONE;
        if short {
            span.next = NONE;
            self.tail = Some(number);
        } else {
            span.next = next;
            self.free = number;
        }
    }

    fn span_bytes(&self, number: u32) -> usize {
        (self.bytes - number as usize * SPAN).min(SPAN)
    }

    fn count(&self, number: u32, class: usize) -> usize {
        self.span_bytes(number) / CLASS_SIZES[class]
    }

    fn link(&mut self, class: usize, number: u32) {
        let head = self.partial[class];
        if head != NONE {
            self.spans[head as usize].prev = number;
        }
        let span = &mut self.spans[number as usize];
        span.prev = NONE;
        span.next = head;
        self.partial[class] = number;
    }

    fn unlink(&mut self, class: usize, number: u32) {
        let Span { prev, next, .. } = self.spans[number as usize];
        if prev == NONE {
            self.partial[class] = next;
        } else {
            self.spans[prev as usize].next = next;
        }
        if next != NONE {
            self.spans[next as usize].prev = prev;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Step {
        Alloc(usize),
        Free(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..CLASSES).prop_map(Step::Alloc),
            2 => any::<usize>().prop_map(Step::Free),
        ]
    }

    fn drain(slots: &mut Slots, class: usize) -> Vec<u32> {
        std::iter::from_fn(|| slots.alloc(class).map(|slot| slot.granule)).collect()
    }

    proptest! {
        #[test]
        fn slots_never_overlap_and_all_memory_comes_back(
            bytes in (1_usize..6 * GRANULES as usize).prop_map(|granules| granules * ALIGN),
            steps in prop::collection::vec(step(), 0..400),
        ) {
            let mut slots = Slots::new(bytes);
            let mut live: BTreeMap<u32, usize> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Alloc(class) => {
                        let Some(slot) = slots.alloc(class) else { continue };
                        let size = CLASS_SIZES[slot.class as usize];
                        prop_assert!(slot.class as usize >= class);
                        let start = slot.granule as usize * ALIGN;
                        prop_assert!(start + size <= bytes);
                        if let Some((&before, &len)) = live.range(..=slot.granule).next_back() {
                            prop_assert!(before as usize * ALIGN + len <= start);
                        }
                        if let Some((&after, _)) = live.range(slot.granule..).next() {
                            prop_assert!(start + size <= after as usize * ALIGN);
                        }
                        live.insert(slot.granule, size);
                    }
                    Step::Free(pick) if !live.is_empty() => {
                        let granule = *live.keys().nth(pick % live.len()).expect("index is in range");
                        let size = live.remove(&granule).expect("the key was just listed");
                        prop_assert_eq!(CLASS_SIZES[slots.free(granule)], size);
                    }
                    Step::Free(_) => {}
                }
            }
            for granule in live.into_keys() {
                slots.free(granule);
            }
            prop_assert_eq!(drain(&mut slots, 0).len(), bytes / ALIGN);
        }
    }

    #[test]
    fn an_idle_arena_serves_every_class_in_turn() {
        let mut slots = Slots::new(3 * SPAN);
        for (class, &size) in CLASS_SIZES.iter().enumerate() {
            let all = drain(&mut slots, class);
            assert_eq!(all.len(), 3 * (SPAN / size));
            for granule in all {
                slots.free(granule);
            }
        }
    }

    #[test]
    fn a_short_arena_falls_to_what_fits() {
        let mut slots = Slots::new(2 * ALIGN);
        assert_eq!(slots.alloc(1), None);
        assert_eq!(slots.alloc(0).map(|slot| slot.class), Some(0));
    }
}
