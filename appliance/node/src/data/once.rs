//! Each data request once: the last request of every slot, and what an earlier life of the daemon did of it.
//!
//! Owns whether a request runs, waits for an earlier run of its own, or is only told what that did. Within a life the answers
//! are here. Over a restart a write and the pieces of an append are known by the shards, which store a request in the record of its
//! effect; what changes many chunks has its answer in the namespace. Must not change a file.

use super::*;
use chunkstore::Written;
use namespace::Reply;

/// Channel of the second piece of an append that goes over the end of a chunk: where one shard has both chunks, the pieces
/// must not look like repeats of each other.
const SECOND: u16 = 0x8000;
const _: () = assert!(wire::limits::MAX_SLOTS < SECOND && Slot::IDEMPOTENT.0 > SECOND);

/// What a request did: where in the file, and how much. Zeros where its answer does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) offset: u64,
    pub(super) len: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Running,
    Ended(Result<Kept, Status>),
}

/// The last data request of a slot, as long as this daemon lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Last {
    /// No two runs share it.
    run: u64,
    sequence: u64,
    state: State,
}

/// What is to be done with a request.
pub(super) enum Begun<D: BlockDevice> {
    /// Run it. `first` of its slot in this life of the daemon: an earlier life may have carried it out.
    Run { ending: Ending<D>, first: bool },
    /// It was carried out, and ended so.
    Repeat(Result<Kept, Status>),
}

/// Notes how the slot's request ended; forgets it where it was given up.
pub(super) struct Ending<D: BlockDevice> {
    data: Data<D>,
    at: (ClientId, Slot),
    run: u64,
}

impl<D: BlockDevice> Ending<D> {
    pub(super) fn end(self, result: Result<Kept, Status>) {
        // The slot may be another session's by now.
        let mut last = self.data.0.last.borrow_mut();
        if let Some(l) = last.get_mut(&self.at).filter(|l| l.run == self.run) {
            l.state = State::Ended(result);
        }
        drop(last);
    }
}

impl<D: BlockDevice> Drop for Ending<D> {
    fn drop(&mut self) {
        let mut last = self.data.0.last.borrow_mut();
        if last.get(&self.at).is_some_and(|l| l.run == self.run && matches!(l.state, State::Running)) {
            last.remove(&self.at);
        }
        drop(last);
        self.data.0.ended.notify_all();
    }
}

impl<D: BlockDevice> Data<D> {
    /// Takes the slot for a request: waits for an earlier run of the same one, tells whether it was carried out.
    pub(super) async fn begin(&self, header: &Header) -> Result<Begun<D>, Status> {
        let at = (header.client, header.slot);
        if header.slot == Slot::IDEMPOTENT {
            return Err(Status::Malformed);
        }
        let first = loop {
            let ended = self.0.ended.notified();
            let found = self.0.last.borrow().get(&at).copied();
            match found {
                Some(l) if l.sequence > header.sequence => return Err(Status::BadSequence),
                Some(Last { state: State::Running, .. }) => ended.await,
                Some(Last { sequence, state: State::Ended(result), .. }) if sequence == header.sequence => {
                    return Ok(Begun::Repeat(result));
                }
                found => break found.is_none(),
            }
        };
        let run = self.meta().new_id().0;
        let last = Last { run, sequence: header.sequence, state: State::Running };
        self.0.last.borrow_mut().insert(at, last);
        let ending = Ending { data: self.clone(), at, run };
        let request = header.id();
        let replayed = self.meta().machine_mut(|m| {
            let replayed = m.namespace().replayed(request);
            if replayed == Replayed::New {
                m.namespace().slot_used(request);
            }
            replayed
        });
        match replayed {
            Replayed::New => Ok(Begun::Run { ending, first }),
            Replayed::Bad => Err(Status::BadSequence),
            Replayed::Repeat { outcome, depends_on } => {
                let kept = match *outcome {
                    Ok(Reply::Done) => Ok(Kept::default()),
                    Ok(Reply::Count(len)) => Ok(Kept { offset: 0, len }),
                    Err(e) => Err(Status::Errno(e)),
                    // The answer of another kind of request.
                    Ok(_) => return Err(Status::BadSequence),
                };
                self.durable(depends_on).await?;
                ending.end(kept);
                Ok(Begun::Repeat(kept))
            }
        }
    }

    /// Forgets the slots of a client that is gone.
    pub(crate) fn forget(&self, client: ClientId) {
        self.0.last.borrow_mut().retain(|(c, _), _| *c != client);
    }

    /// A request that was carried out is asked again because its answer was lost: what the file is now, nothing done. Others
    /// may have changed the file since.
    pub(super) async fn as_it_is(&self, header: &Header, ino: Ino) -> Result<(Attr, Grant), Status> {
        let part = Part { ino, access: Access::Read, object: None, alone: false, cache: false };
        let (admitted, _inside) = self.admit(header, smallvec![part]).await?;
        self.durable(admitted.depends_on).await?;
        one(&admitted)
    }

    /// Did an earlier life of the daemon carry out this write?
    pub(super) async fn was_written(&self, header: &Header, key: ChunkKey) -> Result<bool, Status> {
        let store = &self.meta().store;
        let shard = shard_of(key, store.shards()).0;
        Ok(self.stored(header, shard, header.slot.0).await?.is_some())
    }

    /// What an earlier life of the daemon wrote of this append: its piece in the first chunk, and that in the next.
    pub(super) async fn appended_before(&self, header: &Header) -> Result<[Option<Written>; 2], Status> {
        let mut found = [None; 2];
        for shard in 0..self.meta().store.shards() {
            for (piece, channel) in found.iter_mut().zip([header.slot.0, header.slot.0 | SECOND]) {
                let written = self.stored(header, shard, channel).await?;
                *piece = piece.or(written.map(|w| w.extent));
            }
        }
        Ok(found)
    }

    /// What a shard has stored of this very request.
    async fn stored(
        &self,
        header: &Header,
        shard: u16,
        channel: u16,
    ) -> Result<Option<WriteOutcome>, Status> {
        let last = self.meta().store.last_request(shard, header.client.0, channel).await;
        let last = last.map_err(|e| Status::Errno(e.errno))?;
        Ok(last.filter(|(seq, _)| *seq == header.sequence).and_then(|(_, o)| WriteOutcome::decode(&o)))
    }
}

/// The stamp of a change of now that is stored with its request.
pub(super) fn stamp_of(header: &Header) -> Stamp {
    let (client, channel, sequence) = (header.client.0, header.slot.0, header.sequence);
    Stamp { request: Some(chunkstore::RequestId { client, channel, sequence }), ..stamp() }
}

/// Likewise, for the second piece of an append.
pub(super) fn second_stamp_of(header: &Header) -> Stamp {
    let mut stamp = stamp_of(header);
    if let Some(id) = &mut stamp.request {
        id.channel |= SECOND;
    }
    stamp
}

/// The stamp of a change of now that may be done twice.
pub(super) fn stamp() -> Stamp {
    let time = u64::try_from(wall().nanos()).unwrap_or_default();
    Stamp { time, request: None, class: Class::User, min_length: 0 }
}
