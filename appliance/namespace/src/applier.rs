//! The threads beside redb: one applies records in order and commits, one answers fetches from snapshots.
//!
//! Owns the database. Must not interpret rows beyond following a name to its inode. This is the only part of the crate that
//! blocks and has threads: redb's storage backend is synchronous. Answers go through one callback of the shell, which has to
//! hand them to its own thread without waiting.
//!
//! A backend error latches redb's `PreviousIo`: the database is then closed, opened again, and the records that were not
//! committed are applied again. They are kept until their commit has returned, so nothing is lost to an error that passes.

mod base;
mod direct;
mod fetch;
mod rows;
mod snapshot;

pub use base::{Size, format};
pub use direct::Direct;
pub use rows::{AllRows, amend, dump, look};

use crate::ns::Boot;
use crate::record::{Record, Seq};
use crate::view::{Fetched, Miss};
use base::{Base, COMMIT_RECORDS, Pace, guard};
use redb::StorageBackend;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// How the applier works.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Commit as soon as so many records wait.
    pub batch_records: usize,
    /// Commit what waits after so long.
    pub batch_delay: Duration,
    /// Records that may wait; beyond, [`Applier::submit`] refuses.
    pub queue_records: usize,
    /// Bytes of records that may wait.
    pub queue_bytes: usize,
    /// Fetches that may wait.
    pub queue_fetches: usize,
    /// redb's own page cache, in bytes.
    pub cache_bytes: usize,
    /// Free space of the database's volume is given back when nothing was asked for so long.
    pub tidy_after: Duration,
    /// A volume of up to so many bytes is let be.
    pub tidy_above: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            batch_records: 1000,
            batch_delay: Duration::from_secs(1),
            queue_records: 1 << 16,
            queue_bytes: 64 << 20,
            queue_fetches: 1 << 14,
            cache_bytes: 64 << 20,
            tidy_after: Duration::from_secs(3),
            // What a small file system needs anyway.
            tidy_above: 4 << 20,
        }
    }
}

/// What the applier tells the shell, from its own threads.
#[derive(Debug)]
pub enum Event {
    /// The database holds every record up to here, durably: give it to `Namespace::applied`, free the log up to it.
    Applied(Seq),
    /// Answer to the fetch of this number.
    Fetched {
        /// The fetch's number.
        id: u64,
        /// Rows for `Namespace::fetched`.
        rows: Fetched,
    },
    /// A fetch failed again and again, over several openings of the database: the rows can't be read. Answer EIO.
    FetchFailed {
        /// The fetch's number.
        id: u64,
        /// The error.
        error: String,
    },
    /// The database failed; it is opened again until that works. Nothing is lost meanwhile, but the log fills.
    Failed {
        /// The error.
        error: String,
        /// Failures in a row.
        attempts: u32,
    },
    /// It works again.
    Recovered,
}

/// Why the database can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The volume beneath it.
    #[error("the volume of the namespace can't be opened: {0}")]
    Volume(#[from] io::Error),
    /// redb.
    #[error("the database of the namespace: {0}; if it stays so, run `claudefs fsck`")]
    Database(#[source] Box<redb::Error>),
    /// redb gave up on what it read: damage that it has no error for.
    #[error("the database of the namespace is damaged: {0}; run `claudefs fsck`")]
    Panicked(String),
    /// A row does not belong there.
    #[error("the database of the namespace holds a key that fits no table: {0}; run `claudefs fsck`")]
    Key(String),
    /// A record is missing.
    #[error("record {found} was given to the applier where {expected} should follow")]
    Gap {
        /// Number that should have come.
        expected: Seq,
        /// Number that came.
        found: Seq,
    },
    /// A look at the rows of a running daemon ended early.
    #[error("the database is wanted by others: look again")]
    Wanted,
}

/// The applier can take no more now: wait for [`Event::Applied`] or [`Event::Fetched`].
#[derive(Debug, thiserror::Error)]
#[error("the applier's queue is full")]
pub struct Full<T>(pub T);

/// Opens the volume that redb lives on; called at start and after each failure.
pub type OpenVolume = Box<dyn FnMut() -> io::Result<Box<dyn StorageBackend>> + Send>;

#[derive(Default)]
struct Queue {
    records: VecDeque<Record>,
    bytes: usize,
    oldest: Option<Instant>,
    flush: bool,
    fetches: VecDeque<(u64, Miss)>,
    stop: bool,
    /// A read failed: close and open again.
    reopen: bool,
    /// `None` while it is opened again.
    base: Option<Arc<Base>>,
}

struct Shared {
    config: Config,
    size: Arc<Size>,
    queue: Mutex<Queue>,
    writer: Condvar,
    reader: Condvar,
    notify: Box<dyn Fn(Event) + Send + Sync>,
}

impl Shared {
    /// A panic elsewhere leaves the queue whole: every change of it is one assignment or push.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn tell(&self, e: Event) {
        (self.notify)(e);
    }
}

/// Handle of the two threads. Dropping it stops them after what was submitted is committed.
pub struct Applier {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// The last look at all rows.
    looker: Mutex<Option<JoinHandle<()>>>,
}

impl core::fmt::Debug for Applier {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Applier").field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}

impl Applier {
    /// Opens the database and starts the threads. `notify` is called on them.
    pub fn start(
        config: Config,
        mut open: OpenVolume,
        notify: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<(Self, Boot), Error> {
        let size = Arc::<Size>::default();
        let (base, at) = Base::open(open()?, config.cache_bytes, size.clone())?;
        let boot = guard(|| base.boot(at))?;
        let queue = Queue { base: Some(Arc::new(base)), ..Queue::default() };
        let shared = Arc::new(Shared {
            config,
            size,
            queue: Mutex::new(queue),
            writer: Condvar::new(),
            reader: Condvar::new(),
            notify: Box::new(notify),
        });
        let mut me = Self { shared: shared.clone(), threads: Vec::new(), looker: Mutex::default() };
        let w = Writer { shared: shared.clone(), open, applied: at, pace: Pace::default(), untidy: 0 };
        me.threads.push(std::thread::Builder::new().name("ns-apply".into()).spawn(move || w.run())?);
        me.threads
            .push(std::thread::Builder::new().name("ns-fetch".into()).spawn(move || fetch::run(&shared))?);
        Ok((me, boot))
    }

    /// Hands over the next record. Its number is one more than that of the one before.
    pub fn submit(&self, record: Record) -> Result<(), Full<Record>> {
        let c = &self.shared.config;
        let mut q = self.shared.lock();
        if q.records.len() >= c.queue_records || q.bytes >= c.queue_bytes {
            return Err(Full(record));
        }
        q.bytes += record.bytes().len();
        q.oldest.get_or_insert_with(Instant::now);
        q.records.push_back(record);
        // The writer looks by itself when the oldest has waited long enough.
        if q.records.len() == 1 || q.records.len() == c.batch_records {
            self.shared.writer.notify_one();
        }
        Ok(())
    }

    /// Asks for rows; [`Event::Fetched`] brings them.
    pub fn fetch(&self, id: u64, miss: Miss) -> Result<(), Full<Miss>> {
        let mut q = self.shared.lock();
        if q.fetches.len() >= self.shared.config.queue_fetches {
            return Err(Full(miss));
        }
        q.fetches.push_back((id, miss));
        self.shared.reader.notify_one();
        Ok(())
    }

    /// Commits what waits now: the log is nearly full, or the daemon stops.
    pub fn flush(&self) {
        self.shared.lock().flush = true;
        self.shared.writer.notify_one();
    }

    /// The database's sizes, as they are at any time.
    #[must_use]
    pub fn size(&self) -> Arc<Size> {
        self.shared.size.clone()
    }

    /// Records that wait for a commit to begin.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.lock().records.len()
    }
}

impl Drop for Applier {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.writer.notify_all();
        self.shared.reader.notify_all();
        let looker = self.looker.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        for t in self.threads.drain(..).chain(looker) {
            // A thread that panicked has said so on its own.
            let _ = t.join();
        }
    }
}

enum Work {
    Commit(Vec<Record>),
    /// Give back what the volume has too much of.
    Tidy,
}

struct Writer {
    shared: Arc<Shared>,
    open: OpenVolume,
    applied: Seq,
    pace: Pace,
    /// Attempts to give space back that failed in a row: each makes the next come later.
    untidy: u32,
}

impl Writer {
    fn run(mut self) {
        while let Some(work) = self.work() {
            match work {
                Work::Commit(batch) => self.commit(&batch),
                Work::Tidy => self.tidy(),
            }
        }
        self.shared.lock().base = None;
    }

    /// Waits for enough records, for the delay, for a flush, for a quiet moment or for the end.
    fn work(&self) -> Option<Work> {
        let c = self.shared.config;
        let mut q = self.shared.lock();
        loop {
            if q.reopen {
                q.reopen = false;
                drop(q);
                self.close();
                return Some(Work::Commit(Vec::new()));
            }
            let age = q.oldest.map(|t| t.elapsed());
            let due = age.is_some_and(|a| a >= c.batch_delay);
            let enough = q.records.len() >= c.batch_records || due || q.flush || q.stop;
            if enough && !q.records.is_empty() {
                let n = q.records.len().min(COMMIT_RECORDS);
                let batch: Vec<_> = q.records.drain(..n).collect();
                q.bytes -= batch.iter().map(|r| r.bytes().len()).sum::<usize>();
                if q.records.is_empty() {
                    q.oldest = None;
                    q.flush = false;
                }
                return Some(Work::Commit(batch));
            }
            if q.stop {
                return None;
            }
            q.flush = false;
            q = match age {
                None if q.base.is_some() && self.shared.size.wasteful(c.tidy_above) => {
                    let after = c.tidy_after * (1 << self.untidy.min(10));
                    let waited = self.shared.writer.wait_timeout(q, after);
                    let (q, time) = waited.unwrap_or_else(PoisonError::into_inner);
                    let quiet = q.records.is_empty() && q.fetches.is_empty() && !(q.stop || q.reopen);
                    if time.timed_out() && quiet {
                        return Some(Work::Tidy);
                    }
                    q
                }
                None => self.shared.writer.wait(q).unwrap_or_else(PoisonError::into_inner),
                Some(a) => {
                    let left = c.batch_delay.saturating_sub(a);
                    self.shared.writer.wait_timeout(q, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Commits, however often it takes; gives up only when the shell stops.
    fn commit(&mut self, batch: &[Record]) {
        let mut attempts = 0_u32;
        loop {
            let base = self.shared.lock().base.clone();
            let part = self.pace.part(batch, self.applied);
            let opened = base.is_none();
            let result = match base {
                Some(base) => guard(|| base.apply(self.applied, part)),
                None => self.reopen(),
            };
            match result {
                Ok(at) => {
                    self.applied = at;
                    if opened && batch.last().is_some_and(|r| r.seq() > at) {
                        // Nothing shows yet that it works.
                        continue;
                    }
                    self.pace.succeeded();
                    if attempts > 0 {
                        attempts = 0;
                        self.shared.tell(Event::Recovered);
                    }
                    self.shared.tell(Event::Applied(at));
                    if batch.last().is_none_or(|r| r.seq() <= at) {
                        return;
                    }
                }
                Err(e) => {
                    attempts += 1;
                    self.pace.failed(part.len());
                    tracing::warn!(error = %e, attempts, "the namespace database failed, opening it again");
                    self.shared.tell(Event::Failed { error: e.to_string(), attempts });
                    self.close();
                    if !self.pause(attempts) {
                        return;
                    }
                }
            }
        }
    }

    /// Takes the database away once the reader has let go of it.
    fn alone(&self) -> Option<Base> {
        let mut base = self.shared.lock().base.take()?;
        loop {
            match Arc::try_unwrap(base) {
                Ok(base) => return Some(base),
                Err(shared) => {
                    base = shared;
                    std::thread::yield_now();
                }
            }
        }
    }

    fn close(&self) {
        drop(self.alone());
    }

    fn reopen(&mut self) -> Result<Seq, Error> {
        let volume = (self.open)()?;
        let (base, at) = Base::open(volume, self.shared.config.cache_bytes, self.shared.size.clone())?;
        self.hand_out(base);
        Ok(at)
    }

    fn hand_out(&self, base: Base) {
        self.shared.lock().base = Some(Arc::new(base));
        self.shared.reader.notify_one();
    }

    /// Fetches wait meanwhile; there were none when it began.
    fn tidy(&mut self) {
        let Some(base) = self.alone() else { return };
        let before = self.shared.size.volume();
        match base.compact() {
            Ok(base) => {
                self.untidy = 0;
                self.hand_out(base);
                let after = self.shared.size.volume();
                tracing::info!(before, after, "the namespace database gave space back");
            }
            Err(e) => {
                self.untidy += 1;
                tracing::warn!(error = %e, "the namespace database was not compacted, opening it again");
                self.shared.lock().reopen = true;
            }
        }
    }

    /// Waits before another attempt. False: the shell stops and some attempts have failed.
    fn pause(&self, attempts: u32) -> bool {
        let wait = RETRY_FIRST.saturating_mul(1 << attempts.min(8)).min(RETRY_MAX);
        let until = Instant::now() + wait;
        let mut q = self.shared.lock();
        loop {
            if q.stop && attempts > 3 {
                return false;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || q.stop {
                return true;
            }
            q = self.shared.writer.wait_timeout(q, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests;
