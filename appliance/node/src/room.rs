//! Space that is on its way back: a change that finds none waits until what was deleted or replaced can be used again.
//!
//! The chunks of a deleted file are freed once the record that drops them is flushed, and their blocks are taken again once that is flushed in
//! turn: a round is a flush, the work on the free list, and another flush. Owns asking for a round and waiting for it. Must not free anything itself.

use crate::meta::Meta;
use crate::store::StoreError;
use chunkstore::BlockDevice;
use reactor::sync::Notify;
use std::cell::Cell;
use std::time::Duration;
use wire::Errno;

/// Longest wait for one round; one that takes longer brings nothing for now.
const LIMIT: Duration = Duration::from_secs(10);
/// Rounds in which nothing was freed before a change that waits for space is refused, although some is on its way back.
const STUCK: usize = 8;
/// Rounds at most for one change, while others delete.
const ROUNDS: usize = 256;
/// Rounds with nothing left to be freed: one makes usable what was freed, and in the other the list may just have been emptied.
const CALM: usize = 2;

/// Rounds of the flusher, and who waits for them.
#[derive(Default)]
pub(crate) struct Room {
    /// Somebody makes rounds.
    open: Cell<bool>,
    wanted: Cell<bool>,
    ask: Notify,
    begun: Cell<u64>,
    ended: Cell<u64>,
    end: Notify,
}

impl Room {
    /// Rounds are made from now on.
    pub(crate) fn open(&self) {
        self.open.set(true);
    }

    /// Ends when somebody waits for a round.
    pub(crate) async fn asked(&self) {
        loop {
            let asked = self.ask.notified();
            if self.wanted.get() {
                return;
            }
            asked.await;
        }
    }

    /// A round begins; tells whether somebody waits for it.
    pub(crate) fn begin(&self) -> bool {
        self.begun.set(self.begun.get() + 1);
        self.wanted.replace(false)
    }

    /// The round is over, whatever came of it.
    pub(crate) fn end(&self) {
        self.ended.set(self.begun.get());
        self.end.notify_all();
    }

    /// A whole round, from its beginning on.
    async fn round(&self) {
        let due = self.begun.get() + 1;
        self.wanted.set(true);
        self.ask.notify_all();
        loop {
            let end = self.end.notified();
            if self.ended.get() >= due {
                return;
            }
            end.await;
        }
    }
}

/// Runs a change, and again where it found no space while some is on its way back.
pub(crate) async fn with_room<D: BlockDevice, T>(
    meta: &Meta<D>,
    mut change: impl AsyncFnMut() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let mut result = change().await;
    if !meta.room.open.get() {
        // While the node starts, only what was replaced comes back, with a flush.
        if matches!(&result, Err(e) if e.errno == Errno::ENOSPC) && meta.log.flush().await.is_ok() {
            result = change().await;
        }
        return result;
    }
    let (mut calm, mut stuck, mut freed) = (0, 0, meta.freed.get());
    for _ in 0..ROUNDS {
        if calm == CALM || stuck == STUCK || !matches!(&result, Err(e) if e.errno == Errno::ENOSPC) {
            break;
        }
        calm = if meta.free_work.get() || meta.freeing.get() { 0 } else { calm + 1 };
        let _ = reactor::timeout(LIMIT, meta.room.round()).await;
        let before = std::mem::replace(&mut freed, meta.freed.get());
        stuck = if freed == before { stuck + 1 } else { 0 };
        result = change().await;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn a_round_that_had_begun_does_not_count() {
        let room = Room::default();
        let mut cx = Context::from_waker(Waker::noop());
        room.begin();
        let mut waits = pin!(room.round());
        assert_eq!(waits.as_mut().poll(&mut cx), Poll::Pending);
        room.end();
        assert_eq!(waits.as_mut().poll(&mut cx), Poll::Pending, "it began before");
        assert_eq!(pin!(room.asked()).poll(&mut cx), Poll::Ready(()), "another is wanted");
        room.begin();
        assert_eq!(pin!(room.asked()).poll(&mut cx), Poll::Pending);
        room.end();
        assert_eq!(waits.as_mut().poll(&mut cx), Poll::Ready(()));
    }
}
