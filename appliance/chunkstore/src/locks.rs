//! Order among changes of one chunk: ranges of blocks, first come first served.
//!
//! Changes of disjoint ranges run side by side; reads take no lock. It knows nothing of the index.

use crate::index::Key;
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// The whole chunk.
pub(crate) const WHOLE: Range<u32> = 0..u32::MAX;

#[derive(Default)]
struct Chunk {
    held: Vec<(u64, Range<u32>)>,
    waiting: VecDeque<(u64, Range<u32>, Option<Waker>)>,
    /// Highest length that writes on their way will raise the chunk to.
    length: u32,
}

#[derive(Default)]
struct Table {
    chunks: FxHashMap<Key, Chunk>,
    next: u64,
}

/// Locks of a shard's chunks.
#[derive(Clone, Default)]
pub(crate) struct Locks(Rc<RefCell<Table>>);

/// A held or awaited range; dropping it lets the next one go on.
pub(crate) struct Guard {
    locks: Locks,
    key: Key,
    id: u64,
}

fn clash(a: &Range<u32>, b: &Range<u32>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Chunk {
    fn promote(&mut self) {
        let mut i = 0;
        while i < self.waiting.len() {
            let range = self.waiting[i].1.clone();
            let blocked = self.held.iter().any(|(_, r)| clash(r, &range))
                || self.waiting.iter().take(i).any(|(_, r, _)| clash(r, &range));
            if blocked {
                i += 1;
            } else if let Some((id, range, waker)) = self.waiting.remove(i) {
                self.held.push((id, range));
                waker.inspect(Waker::wake_by_ref);
            }
        }
    }
}

impl Locks {
    /// Waits for the range.
    pub(crate) async fn lock(&self, key: Key, range: Range<u32>) -> Guard {
        let id = {
            let mut table = self.0.borrow_mut();
            table.next += 1;
            let id = table.next;
            let chunk = table.chunks.entry(key).or_default();
            chunk.waiting.push_back((id, range, None));
            chunk.promote();
            id
        };
        let guard = Guard { locks: self.clone(), key, id };
        poll_fn(|cx| {
            let mut table = self.0.borrow_mut();
            let Some(chunk) = table.chunks.get_mut(&key) else { return Poll::Ready(()) };
            match chunk.waiting.iter_mut().find(|(i, ..)| *i == id) {
                Some((_, _, waker)) => {
                    *waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                None => Poll::Ready(()),
            }
        })
        .await;
        guard
    }

    /// Whether anything holds a part of the chunk.
    pub(crate) fn held(&self, key: Key) -> bool {
        self.0.borrow().chunks.contains_key(&key)
    }
}

impl Guard {
    /// Notes the length that this holder's change raises the chunk to; gives the highest on its way.
    pub(crate) fn raise(&self, length: u32) -> u32 {
        let mut table = self.locks.0.borrow_mut();
        let Some(chunk) = table.chunks.get_mut(&self.key) else { return length };
        chunk.length = chunk.length.max(length);
        chunk.length
    }
}

impl Guard {
    /// Notes that this holder's change sets the length: what others raised it to before no longer counts.
    pub(crate) fn set(&self, length: u32) -> u32 {
        if let Some(chunk) = self.locks.0.borrow_mut().chunks.get_mut(&self.key) {
            chunk.length = length;
        }
        length
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut table = self.locks.0.borrow_mut();
        let Some(chunk) = table.chunks.get_mut(&self.key) else { return };
        chunk.held.retain(|(i, _)| *i != self.id);
        chunk.waiting.retain(|(i, ..)| *i != self.id);
        chunk.promote();
        if chunk.held.is_empty() && chunk.waiting.is_empty() {
            table.chunks.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::LocalExecutor;
    use crate::signal::yield_now;
    use std::cell::Cell;

    const KEY: Key = Key { object: 1, index: 1 };

    #[test]
    fn clashing_ranges_go_in_order_and_others_side_by_side() {
        let executor = LocalExecutor::new();
        let locks = Locks::default();
        let order = Rc::new(RefCell::new(Vec::new()));
        let open = Rc::new(Cell::new(0));
        for (name, range) in [(1, 0..4), (2, 2..6), (3, 4..8), (4, 8..9), (5, WHOLE)] {
            let (locks, order, open) = (locks.clone(), order.clone(), open.clone());
            (executor.spawner())(Box::pin(async move {
                let guard = locks.lock(KEY, range).await;
                order.borrow_mut().push(name);
                open.set(open.get() + 1);
                for _ in 0..5 {
                    yield_now().await;
                }
                open.set(open.get() - 1);
                assert!(name != 5 || open.get() == 0, "the whole chunk was not alone");
                drop(guard);
            }));
        }
        let done = order.clone();
        executor.run(async {
            while done.borrow().len() < 5 || open.get() > 0 {
                yield_now().await;
            }
        });
        assert_eq!(*order.borrow(), [1, 4, 2, 3, 5]);
        assert!(!locks.held(KEY));
    }

    #[test]
    fn a_dropped_waiter_blocks_nobody() {
        let executor = LocalExecutor::new();
        let locks = Locks::default();
        executor
            .run(async {
                let first = locks.lock(KEY, 0..1).await;
                {
                    let mut waiting = Box::pin(locks.lock(KEY, WHOLE));
                    poll_fn(|cx| {
                        assert!(waiting.as_mut().poll(cx).is_pending());
                        Poll::Ready(())
                    })
                    .await;
                }
                let second = locks.lock(KEY, 1..2).await;
                drop((first, second));
            })
            .expect("no stall");
        assert!(!locks.held(KEY));
    }
}
