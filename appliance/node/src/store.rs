//! The shards of the device, wherever their cores are: one set of calls for local and remote ones.
//!
//! Owns the way to a shard. A shard of this core is called directly; another core's gets the job by mail, the payload
//! moves with it. Must not know files: names of chunks come in, bytes and outcomes go out.

use crate::admission::Door;
use chunkstore::{
    BlockDevice, ChunkStat, Error, Extent, Key, ReadOutcome, ScrubOptions, ScrubReport, Shard, ShardStats,
    Stamp, WriteOutcome,
};
use hugepages::Bytes;
use reactor::mail;
use reactor::sync::oneshot;
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use wire::{ChunkKey, Errno, shard_of};

/// Jobs under way to one other core; beyond it callers wait.
const MAIL: usize = 4096;

/// What went wrong, as it travels between cores.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct StoreError {
    /// What the client is told.
    pub(crate) errno: Errno,
    /// The request is older than its slot's last.
    pub(crate) stale: bool,
    /// The bytes on the device are not those that were written.
    pub(crate) damaged: bool,
    /// For the log.
    pub(crate) text: String,
}

impl From<Error> for StoreError {
    fn from(e: Error) -> Self {
        let errno = match &e {
            Error::NoSpace => Errno::ENOSPC,
            Error::ReadOnly { .. } => Errno::EROFS,
            Error::Invalid(_) => Errno::EINVAL,
            _ => Errno::EIO,
        };
        let damaged = matches!(e, Error::BadBlock { .. } | Error::Read { .. } | Error::Damaged { .. });
        Self { errno, stale: matches!(e, Error::StaleRequest { .. }), damaged, text: e.to_string() }
    }
}

impl StoreError {
    /// The core of the shard is gone: the daemon is stopping.
    fn stopped() -> Self {
        Self {
            errno: Errno::EIO,
            stale: false,
            damaged: false,
            text: "the core of this shard has stopped".to_owned(),
        }
    }
}

/// A call of a shard.
#[derive(Debug)]
pub(crate) enum Job {
    Read {
        key: Key,
        offset: u32,
        len: u32,
    },
    Write {
        key: Key,
        offset: u32,
        data: Bytes,
        stamp: Stamp,
    },
    Truncate {
        key: Key,
        length: u32,
        stamp: Stamp,
    },
    Punch {
        key: Key,
        offset: u32,
        len: u32,
        stamp: Stamp,
    },
    Zero {
        key: Key,
        offset: u32,
        len: u32,
        stamp: Stamp,
    },
    Preallocate {
        key: Key,
        offset: u32,
        len: u32,
        stamp: Stamp,
    },
    Delete {
        key: Key,
        stamp: Stamp,
    },
    Extents {
        key: Key,
    },
    LastRequest {
        client: u64,
        channel: u16,
    },
    Clients,
    Forget {
        client: u64,
    },
    List,
    Scrub {
        step: usize,
        options: ScrubOptions,
    },
    Stats,
    Stop,
    /// To a core instead of one of its shards: nothing follows.
    End,
    #[cfg(test)]
    Panic,
}

/// What a step of scrubbing found, as it travels between cores.
#[derive(Debug, Default)]
pub(crate) struct Scrubbed {
    pub(crate) chunks: u64,
    pub(crate) data_blocks: u64,
    pub(crate) metadata_blocks: u64,
    pub(crate) metadata_damaged: u64,
    pub(crate) bad_chunks: u64,
    /// Chunks that can't be read, and why.
    pub(crate) bad: Vec<(Key, String)>,
    /// Metadata that is bad in both copies.
    pub(crate) lost: Vec<String>,
}

impl From<ScrubReport> for Scrubbed {
    fn from(r: ScrubReport) -> Self {
        Self {
            chunks: r.chunks,
            data_blocks: r.data_blocks,
            metadata_blocks: r.metadata_blocks,
            metadata_damaged: r.metadata_damaged,
            bad_chunks: r.bad_chunks.len() as u64,
            bad: r.bad_chunks.into_iter().map(|(key, e)| (key, e.to_string())).collect(),
            lost: r.lost,
        }
    }
}

/// Its result.
#[derive(Debug)]
pub(crate) enum Done {
    Read(ReadOutcome),
    Changed(WriteOutcome),
    Extents(Vec<Extent>),
    LastRequest(Option<(u64, Vec<u8>)>),
    Clients(Vec<u64>),
    Listed(Vec<(Key, ChunkStat)>),
    Scrubbed(Scrubbed),
    Stats(Box<ShardStats>),
    Nothing,
}

/// Runs a job on a shard of this core.
pub(crate) async fn run_job<D: BlockDevice>(shard: &Shard<D>, job: Job) -> Result<Done, StoreError> {
    Ok(match job {
        Job::Read { key, offset, len } => Done::Read(shard.read(key, offset, len).await?),
        Job::Write { key, offset, data, stamp } => {
            Done::Changed(shard.write(key, offset, data, &stamp).await?)
        }
        Job::Truncate { key, length, stamp } => Done::Changed(shard.truncate(key, length, &stamp).await?),
        Job::Punch { key, offset, len, stamp } => Done::Changed(shard.punch(key, offset, len, &stamp).await?),
        Job::Zero { key, offset, len, stamp } => {
            Done::Changed(shard.zero(key, offset, len, true, &stamp).await?)
        }
        Job::Preallocate { key, offset, len, stamp } => {
            Done::Changed(shard.preallocate(key, offset, len, &stamp).await?)
        }
        Job::Delete { key, stamp } => Done::Changed(shard.delete(key, &stamp).await?),
        Job::Extents { key } => Done::Extents(shard.extents(key).await?),
        Job::LastRequest { client, channel } => Done::LastRequest(shard.last_request(client, channel)),
        Job::Clients => Done::Clients(shard.clients()),
        Job::Forget { client } => {
            shard.forget_client(client).await?;
            Done::Nothing
        }
        Job::List => {
            let mut all = Vec::new();
            shard.for_each_chunk(|key, stat| all.push((key, stat))).await;
            Done::Listed(all)
        }
        Job::Scrub { step, options } => Done::Scrubbed(shard.scrub_step(step, options).await?.into()),
        Job::Stats => Done::Stats(Box::new(shard.stats())),
        Job::Stop => {
            shard.stop().await?;
            Done::Nothing
        }
        Job::End => Done::Nothing,
        #[cfg(test)]
        #[expect(clippy::panic, reason = "it is what the test asks for")]
        Job::Panic => panic!("asked for by a test"),
    })
}

/// A job on its way to another core.
pub(crate) struct Letter {
    pub(crate) shard: u16,
    pub(crate) job: Job,
    pub(crate) number: u64,
    pub(crate) back: mail::Sender<(u64, Result<Done, StoreError>)>,
}

enum Home<D> {
    Here(Shard<D>),
    There(mail::Sender<Letter>),
}

type Waiting = FxHashMap<u64, oneshot::Sender<Result<Done, StoreError>>>;

struct Inner<D> {
    homes: Vec<Home<D>>,
    waiting: RefCell<Waiting>,
    number: Cell<u64>,
    back: mail::Sender<(u64, Result<Done, StoreError>)>,
}

/// All shards of the device as one core sees them; clones are cheap.
pub(crate) struct Store<D> {
    inner: Rc<Inner<D>>,
    door: Option<Rc<Door>>,
}

impl<D> Clone for Store<D> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner), door: self.door.clone() }
    }
}

/// Where a shard is, for [`Store::new`].
pub(crate) enum Place<D> {
    /// On this core.
    Here(Shard<D>),
    /// On the core that reads this mail.
    There(mail::Sender<Letter>),
}

impl<D: BlockDevice> Store<D> {
    /// The shards in order of their numbers. Spawns the task that takes answers of other cores.
    pub(crate) fn new(places: Vec<Place<D>>) -> Self {
        let (back, mut answers) = mail::channel(MAIL);
        let home = |p| match p {
            Place::Here(s) => Home::Here(s),
            Place::There(m) => Home::There(m),
        };
        let homes = places.into_iter().map(home).collect();
        let inner = Inner { homes, waiting: RefCell::default(), number: Cell::new(0), back };
        let store = Self { inner: Rc::new(inner), door: None };
        let weak = Rc::downgrade(&store.inner);
        drop(reactor::spawn(async move {
            while let Some((number, result)) = answers.recv().await {
                let Some(inner) = weak.upgrade() else { return };
                let waiter = inner.waiting.borrow_mut().remove(&number);
                if let Some(waiter) = waiter {
                    let _ = waiter.send(result);
                }
            }
        }));
        store
    }

    /// The same shards, as long as `door` is open: after that, calls never end.
    pub(crate) fn behind(&self, door: &Rc<Door>) -> Self {
        Self { inner: Rc::clone(&self.inner), door: Some(Rc::clone(door)) }
    }

    /// Shards of the device.
    pub(crate) fn shards(&self) -> u16 {
        self.inner.homes.len() as u16
    }

    async fn call(&self, shard: u16, job: Job) -> Result<Done, StoreError> {
        let _visit = match &self.door {
            Some(door) => Some(door.enter().await),
            None => None,
        };
        match &self.inner.homes[usize::from(shard)] {
            Home::Here(s) => run_job(s, job).await,
            Home::There(mail) => {
                let number = self.inner.number.get();
                self.inner.number.set(number + 1);
                let (give, take) = oneshot::channel();
                self.inner.waiting.borrow_mut().insert(number, give);
                let letter = Letter { shard, job, number, back: self.inner.back.clone() };
                if mail.send(letter).await.is_err() {
                    self.inner.waiting.borrow_mut().remove(&number);
                    return Err(StoreError::stopped());
                }
                take.await.unwrap_or_else(|_| Err(StoreError::stopped()))
            }
        }
    }

    fn place(&self, key: ChunkKey) -> (u16, Key) {
        (shard_of(key, self.shards()).0, Key { object: key.object.0, index: key.index })
    }

    async fn change(&self, key: ChunkKey, job: impl FnOnce(Key) -> Job) -> Result<WriteOutcome, StoreError> {
        let (shard, key) = self.place(key);
        match self.call(shard, job(key)).await? {
            Done::Changed(outcome) => Ok(outcome),
            _ => Err(StoreError::stopped()),
        }
    }

    /// Reads a range of a chunk.
    pub(crate) async fn read(&self, key: ChunkKey, offset: u32, len: u32) -> Result<ReadOutcome, StoreError> {
        let (shard, key) = self.place(key);
        match self.call(shard, Job::Read { key, offset, len }).await? {
            Done::Read(outcome) => Ok(outcome),
            _ => Err(StoreError::stopped()),
        }
    }

    /// Writes within a chunk.
    pub(crate) async fn write(
        &self,
        key: ChunkKey,
        offset: u32,
        data: Bytes,
        stamp: Stamp,
    ) -> Result<WriteOutcome, StoreError> {
        self.change(key, |key| Job::Write { key, offset, data, stamp }).await
    }

    /// Cuts a chunk.
    pub(crate) async fn truncate(
        &self,
        key: ChunkKey,
        length: u32,
        stamp: Stamp,
    ) -> Result<WriteOutcome, StoreError> {
        self.change(key, |key| Job::Truncate { key, length, stamp }).await
    }

    /// Makes a hole.
    pub(crate) async fn punch(
        &self,
        key: ChunkKey,
        offset: u32,
        len: u32,
        stamp: Stamp,
    ) -> Result<WriteOutcome, StoreError> {
        self.change(key, |key| Job::Punch { key, offset, len, stamp }).await
    }

    /// Zeroes a range and keeps blocks behind it.
    pub(crate) async fn zero(
        &self,
        key: ChunkKey,
        offset: u32,
        len: u32,
        stamp: Stamp,
    ) -> Result<WriteOutcome, StoreError> {
        self.change(key, |key| Job::Zero { key, offset, len, stamp }).await
    }

    /// Gives blocks to the holes of a range.
    pub(crate) async fn preallocate(
        &self,
        key: ChunkKey,
        offset: u32,
        len: u32,
        stamp: Stamp,
    ) -> Result<WriteOutcome, StoreError> {
        self.change(key, |key| Job::Preallocate { key, offset, len, stamp }).await
    }

    /// Removes a chunk.
    pub(crate) async fn delete(&self, key: ChunkKey, stamp: Stamp) -> Result<WriteOutcome, StoreError> {
        self.change(key, |key| Job::Delete { key, stamp }).await
    }

    /// Ranges of a chunk that have blocks.
    pub(crate) async fn extents(&self, key: ChunkKey) -> Result<Vec<Extent>, StoreError> {
        let (shard, key) = self.place(key);
        match self.call(shard, Job::Extents { key }).await? {
            Done::Extents(extents) => Ok(extents),
            _ => Err(StoreError::stopped()),
        }
    }

    /// What a shard has stored as the last request of a slot: its sequence and outcome.
    pub(crate) async fn last_request(
        &self,
        shard: u16,
        client: u64,
        channel: u16,
    ) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
        match self.call(shard, Job::LastRequest { client, channel }).await? {
            Done::LastRequest(last) => Ok(last),
            _ => Err(StoreError::stopped()),
        }
    }

    /// Clients of whose requests a shard has stored something.
    pub(crate) async fn clients(&self, shard: u16) -> Result<Vec<u64>, StoreError> {
        match self.call(shard, Job::Clients).await? {
            Done::Clients(clients) => Ok(clients),
            _ => Err(StoreError::stopped()),
        }
    }

    /// Drops what the shards have stored of a client's requests.
    pub(crate) async fn forget(&self, client: u64) -> Result<(), StoreError> {
        for shard in 0..self.shards() {
            self.call(shard, Job::Forget { client }).await?;
        }
        Ok(())
    }

    /// Every chunk of one shard.
    pub(crate) async fn list(&self, shard: u16) -> Result<Vec<(Key, ChunkStat)>, StoreError> {
        match self.call(shard, Job::List).await? {
            Done::Listed(all) => Ok(all),
            _ => Err(StoreError::stopped()),
        }
    }

    /// One step of scrubbing a shard.
    pub(crate) async fn scrub(
        &self,
        shard: u16,
        step: usize,
        options: ScrubOptions,
    ) -> Result<Scrubbed, StoreError> {
        match self.call(shard, Job::Scrub { step, options }).await? {
            Done::Scrubbed(found) => Ok(found),
            _ => Err(StoreError::stopped()),
        }
    }

    /// Figures of all shards.
    pub(crate) async fn stats(&self) -> Vec<ShardStats> {
        let mut all = Vec::new();
        for shard in 0..self.shards() {
            if let Ok(Done::Stats(stats)) = self.call(shard, Job::Stats).await {
                all.push(*stats);
            }
        }
        all
    }

    /// Checkpoints and ends every shard.
    pub(crate) async fn stop(&self) -> Result<(), StoreError> {
        let mut result = Ok(());
        for shard in 0..self.shards() {
            result = result.and(self.call(shard, Job::Stop).await.map(drop));
        }
        result
    }
}

/// Serves the mail of a core that owns some shards, until it is told to end or no sender is left.
pub(crate) async fn serve<D: BlockDevice>(
    shards: FxHashMap<u16, Shard<D>>,
    mut letters: mail::Receiver<Letter>,
) {
    while let Some(Letter { shard, job, number, back }) = letters.recv().await {
        if matches!(job, Job::End) {
            return;
        }
        let Some(shard) = shards.get(&shard).cloned() else { continue };
        drop(reactor::spawn(async move {
            let result = run_job(&shard, job).await;
            let _ = back.send((number, result)).await;
        }));
    }
}

/// Tells a core to end.
pub(crate) async fn end(letters: &mail::Sender<Letter>) {
    let (back, _) = mail::channel(1);
    // One that has ended already hears nothing.
    let _ = letters.send(Letter { shard: 0, job: Job::End, number: 0, back }).await;
}

/// A channel of letters to a core.
pub(crate) fn letters() -> (mail::Sender<Letter>, mail::Receiver<Letter>) {
    mail::channel(MAIL)
}
