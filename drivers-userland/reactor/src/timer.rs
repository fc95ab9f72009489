//! Timers: an indexed heap, so a timer that is dropped leaves at once and memory follows the live ones.

use crate::core::Core;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

#[derive(Debug)]
struct Entry {
    deadline: Instant,
    /// Order among equal deadlines: first made, first fired.
    sequence: u64,
    /// Index in the heap; `FIRED` once it left it.
    position: usize,
    waker: Option<Waker>,
}

const FIRED: usize = usize::MAX;

/// Pending timers, soonest first.
#[derive(Default)]
pub(crate) struct Timers {
    heap: Vec<u32>,
    entries: Vec<Entry>,
    free: Vec<u32>,
    sequence: u64,
}

impl Timers {
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.first().map(|&id| self.entries[id as usize].deadline)
    }

    pub(crate) fn insert(&mut self, deadline: Instant, waker: Waker) -> u32 {
        self.sequence += 1;
        let entry =
            Entry { deadline, sequence: self.sequence, position: self.heap.len(), waker: Some(waker) };
        let id = match self.free.pop() {
            Some(id) => {
                self.entries[id as usize] = entry;
                id
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        };
        self.heap.push(id);
        self.up(self.heap.len() - 1);
        id
    }

    /// Renews the waker of a timer; true where it has fired.
    pub(crate) fn poll(&mut self, id: u32, waker: &Waker) -> bool {
        let entry = &mut self.entries[id as usize];
        if entry.position == FIRED {
            return true;
        }
        match &mut entry.waker {
            Some(old) => old.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        false
    }

    /// Forgets a timer, fired or not.
    pub(crate) fn remove(&mut self, id: u32) -> Option<Waker> {
        let position = self.entries[id as usize].position;
        if position != FIRED {
            self.unlink(position);
        }
        self.free.push(id);
        self.entries[id as usize].waker.take()
    }

    /// Fires the next timer that is due.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Waker> {
        loop {
            if self.next()? > now {
                return None;
            }
            let id = self.heap[0];
            self.unlink(0);
            if let Some(waker) = self.entries[id as usize].waker.take() {
                return Some(waker);
            }
        }
    }

    fn unlink(&mut self, position: usize) {
        let id = self.heap.swap_remove(position);
        self.entries[id as usize].position = FIRED;
        if position < self.heap.len() {
            self.entries[self.heap[position] as usize].position = position;
            self.down(position);
            self.up(position);
        }
    }

    fn before(&self, a: usize, b: usize) -> bool {
        let key = |at: usize| {
            let entry = &self.entries[self.heap[at] as usize];
            (entry.deadline, entry.sequence)
        };
        key(a) < key(b)
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.entries[self.heap[a] as usize].position = a;
        self.entries[self.heap[b] as usize].position = b;
    }

    fn up(&mut self, mut at: usize) {
        while at > 0 && self.before(at, (at - 1) / 2) {
            self.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    }

    fn down(&mut self, mut at: usize) {
        loop {
            let mut least = at;
            for child in [2 * at + 1, 2 * at + 2] {
                if child < self.heap.len() && self.before(child, least) {
                    least = child;
                }
            }
            if least == at {
                return;
            }
            self.swap(at, least);
            at = least;
        }
    }
}

/// The present time.
pub fn now() -> Instant {
    #[cfg(feature = "sim")]
    if let Some(sim) = crate::sim::current() {
        return sim.now();
    }
    Instant::now()
}

/// The time of day, for what people and files are told; it may jump.
pub fn wall_clock() -> SystemTime {
    #[cfg(feature = "sim")]
    if let Some(time) = crate::sim::wall_clock() {
        return time;
    }
    SystemTime::now()
}

/// Ends after `duration`.
pub fn sleep(duration: Duration) -> Sleep {
    // A duration beyond the clock's range is as good as for ever: 30 years.
    let far = Duration::from_secs(30 * 365 * 86_400);
    let now = now();
    Sleep::until(now.checked_add(duration).unwrap_or_else(|| now + far))
}

/// Ends at `deadline`.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep::until(deadline)
}

/// Future of [`sleep`].
#[must_use = "does nothing unless awaited"]
pub struct Sleep {
    deadline: Instant,
    timer: Option<(Rc<Core>, u32)>,
}

impl Sleep {
    fn until(deadline: Instant) -> Sleep {
        Sleep { deadline, timer: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some((core, id)) = &self.timer {
            let fired = core.timers.borrow_mut().poll(*id, cx.waker());
            return if fired { Poll::Ready(()) } else { Poll::Pending };
        }
        if self.deadline <= now() {
            return Poll::Ready(());
        }
        let core = Core::current();
        let id = core.timers.borrow_mut().insert(self.deadline, cx.waker().clone());
        self.timer = Some((core, id));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((core, id)) = self.timer.take() {
            let waker = core.timers.borrow_mut().remove(id);
            drop(waker);
        }
    }
}

/// The time ended first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the time limit passed")]
pub struct Elapsed;

/// Runs `future` for at most `duration`, then drops it.
pub async fn timeout<T>(duration: Duration, future: impl Future<Output = T>) -> Result<T, Elapsed> {
    let mut future = pin!(future);
    let mut limit = pin!(sleep(duration));
    std::future::poll_fn(|cx| {
        if let Poll::Ready(value) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(value));
        }
        limit.as_mut().poll(cx).map(|()| Err(Elapsed))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn timers_fire_in_order_whatever_is_removed(
            delays in prop::collection::vec(0_u64..50, 1..80),
            removed in prop::collection::vec(any::<usize>(), 0..40),
        ) {
            let start = Instant::now();
            let mut timers = Timers::default();
            let mut model: Vec<(u64, usize, u32)> = delays
                .iter()
                .enumerate()
                .map(|(n, &delay)| {
                    (delay, n, timers.insert(start + Duration::from_secs(delay), Waker::noop().clone()))
                })
                .collect();
            for pick in removed {
                if !model.is_empty() {
                    let (_, _, id) = model.remove(pick % model.len());
                    timers.remove(id);
                }
            }
            model.sort_unstable();
            for (delay, _, _) in model {
                prop_assert_eq!(timers.next(), Some(start + Duration::from_secs(delay)));
                prop_assert!(timers.pop_due(start + Duration::from_secs(delay)).is_some());
            }
            prop_assert!(timers.next().is_none());
        }
    }
}
