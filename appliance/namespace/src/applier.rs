//! The threads beside redb: one applies records in order and commits, one answers fetches from snapshots.
//!
//! Owns the database. Must not interpret rows beyond following a name to its inode. This is the only part of the crate that
//! blocks and has threads: redb's storage backend is synchronous. Answers go through one callback of the shell, which has to
//! hand them to its own thread without waiting.
//!
//! A backend error latches redb's `PreviousIo`: the database is then closed, opened again, and the records that were not
//! committed are applied again. They are kept until their commit has returned, so nothing is lost to an error that passes.

use crate::kv::{Key, KeyRange};
use crate::ns::Boot;
use crate::record::{Record, Seq};
use crate::view::{Fetched, Miss};
use redb::{Database, Durability, ReadableDatabase, StorageBackend, TableDefinition, TableError};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const APPLIED: &str = "applied";

/// Fetches answered from one snapshot.
const FETCH_BATCH: usize = 64;
/// Records of one commit at most: bounds its memory.
const COMMIT_RECORDS: usize = 1 << 16;
/// Openings of the database after which a fetch that still fails is given up.
const FETCH_ATTEMPTS: u32 = 4;
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
}

impl Default for Config {
    fn default() -> Self {
        Self {
            batch_records: 1000,
            batch_delay: Duration::from_secs(1),
            queue_records: 1 << 17,
            queue_bytes: 128 << 20,
            queue_fetches: 1 << 14,
            cache_bytes: 64 << 20,
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

fn db<E: Into<redb::Error>>(e: E) -> Error {
    Error::Database(Box::new(e.into()))
}

/// redb answers some damage with a panic: to us that is an error like others, the database is dropped and opened again.
fn guard<T>(f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or_else(|e| {
        let text = e.downcast_ref::<&str>().map(|s| (*s).to_owned());
        let text = text.or_else(|| e.downcast_ref::<String>().cloned());
        Err(Error::Panicked(text.unwrap_or_else(|| "no reason given".into())))
    })
}

/// The applier can take no more now: wait for [`Event::Applied`] or [`Event::Fetched`].
#[derive(Debug, thiserror::Error)]
#[error("the applier's queue is full")]
pub struct Full<T>(pub T);

/// Opens the volume that redb lives on; called at start and after each failure.
pub type OpenVolume = Box<dyn FnMut() -> io::Result<Box<dyn StorageBackend>> + Send>;

#[derive(Debug)]
struct Volume(Box<dyn StorageBackend>);

impl StorageBackend for Volume {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}

fn open_db(volume: Box<dyn StorageBackend>, cache: usize) -> Result<(Database, Seq), Error> {
    guard(|| {
        let base =
            Database::builder().set_cache_size(cache).create_with_backend(Volume(volume)).map_err(db)?;
        let applied = applied(&base)?;
        Ok((base, applied))
    })
}

fn applied(base: &Database) -> Result<Seq, Error> {
    let txn = base.begin_read().map_err(db)?;
    match txn.open_table(META) {
        Ok(t) => Ok(t.get(APPLIED).map_err(db)?.map_or(0, |v| v.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(0),
        Err(e) => Err(db(e)),
    }
}

/// Rows of the tables that are always in memory.
fn boot(base: &Database, applied: Seq) -> Result<Boot, Error> {
    let mut boot = Boot { applied, rows: Vec::new() };
    let txn = base.begin_read().map_err(db)?;
    let rows = match txn.open_table(ROWS) {
        Ok(t) => t,
        Err(TableError::TableDoesNotExist(_)) => return Ok(boot),
        Err(e) => return Err(db(e)),
    };
    for table in Boot::TABLES {
        let range = KeyRange::table(table);
        for row in rows.range::<&[u8]>(range.start.bytes()..range.end.bytes()).map_err(db)? {
            let (k, v) = row.map_err(db)?;
            let key = Key::raw(k.value());
            if !key.validate() {
                return Err(Error::Key(format!("{key:?}")));
            }
            boot.rows.push((key, v.value().into()));
        }
    }
    Ok(boot)
}

/// Whether a record comes after `last`, which then is its number; one that is held already does not.
fn follows(last: &mut Seq, r: &Record) -> Result<bool, Error> {
    if r.seq() <= *last {
        return Ok(false);
    }
    if r.seq() != *last + 1 {
        return Err(Error::Gap { expected: *last + 1, found: r.seq() });
    }
    *last = r.seq();
    Ok(true)
}

/// Applies records in one commit. Those that the database holds are skipped.
fn apply<'a>(
    base: &Database,
    applied: Seq,
    records: impl IntoIterator<Item = &'a Record>,
) -> Result<Seq, Error> {
    let mut last = applied;
    // The last value of a row is enough; in key order pages are touched once.
    let mut rows: BTreeMap<&[u8], Option<&[u8]>> = BTreeMap::new();
    for r in records {
        if follows(&mut last, r)? {
            rows.extend(r.rows());
        }
    }
    if last == applied {
        return Ok(last);
    }
    let mut txn = base.begin_write().map_err(db)?;
    txn.set_durability(Durability::Immediate).map_err(db)?;
    txn.set_quick_repair(true);
    {
        let mut table = txn.open_table(ROWS).map_err(db)?;
        for (key, value) in rows {
            match value {
                Some(v) => drop(table.insert(key, v).map_err(db)?),
                None => drop(table.remove(key).map_err(db)?),
            }
        }
        txn.open_table(META).map_err(db)?.insert(APPLIED, last).map_err(db)?;
    }
    txn.commit().map_err(db)?;
    Ok(last)
}

/// Makes the database of a new file system on an empty volume.
pub fn format(volume: Box<dyn StorageBackend>, records: &[Record]) -> Result<Seq, Error> {
    let (base, at) = open_db(volume, 1 << 20)?;
    guard(move || apply(&base, at, records))
}

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
    base: Option<Arc<Database>>,
}

struct Shared {
    config: Config,
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
        let (base, at) = open_db(open()?, config.cache_bytes)?;
        let boot = guard(|| boot(&base, at))?;
        let queue = Queue { base: Some(Arc::new(base)), ..Queue::default() };
        let shared = Arc::new(Shared {
            config,
            queue: Mutex::new(queue),
            writer: Condvar::new(),
            reader: Condvar::new(),
            notify: Box::new(notify),
        });
        let mut me = Self { shared: shared.clone(), threads: Vec::new(), looker: Mutex::default() };
        let w = Writer { shared: shared.clone(), open, applied: at };
        me.threads.push(std::thread::Builder::new().name("ns-apply".into()).spawn(move || w.run())?);
        me.threads.push(std::thread::Builder::new().name("ns-fetch".into()).spawn(move || read(&shared))?);
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

struct Writer {
    shared: Arc<Shared>,
    open: OpenVolume,
    applied: Seq,
}

impl Writer {
    fn run(mut self) {
        while let Some(batch) = self.batch() {
            self.commit(&batch);
        }
        self.shared.lock().base = None;
    }

    /// Waits for enough records, for the delay, for a flush or for the end.
    fn batch(&self) -> Option<Vec<Record>> {
        let c = self.shared.config;
        let mut q = self.shared.lock();
        loop {
            if q.reopen {
                q.reopen = false;
                drop(q);
                self.close();
                return Some(Vec::new());
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
                return Some(batch);
            }
            if q.stop {
                return None;
            }
            q.flush = false;
            q = match age {
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
            let result = match base {
                Some(base) => guard(|| apply(&base, self.applied, batch)),
                None => self.reopen(),
            };
            match result {
                Ok(at) => {
                    self.applied = at;
                    if attempts > 0 {
                        attempts = 0;
                        self.shared.tell(Event::Recovered);
                    }
                    if batch.last().is_none_or(|r| r.seq() <= at) {
                        return self.shared.tell(Event::Applied(at));
                    }
                }
                Err(e) => {
                    attempts += 1;
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

    /// Lets go of the database once the reader has.
    fn close(&self) {
        let base = self.shared.lock().base.take();
        let Some(mut base) = base else { return };
        loop {
            match Arc::try_unwrap(base) {
                Ok(_) => return,
                Err(shared) => {
                    base = shared;
                    std::thread::yield_now();
                }
            }
        }
    }

    fn reopen(&mut self) -> Result<Seq, Error> {
        let (base, at) = open_db((self.open)()?, self.shared.config.cache_bytes)?;
        let mut q = self.shared.lock();
        q.base = Some(Arc::new(base));
        self.shared.reader.notify_one();
        Ok(at)
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

fn read(shared: &Shared) {
    let mut batch: Vec<(u64, Miss)> = Vec::new();
    let mut failures = 0;
    loop {
        let base = {
            let mut q = shared.lock();
            loop {
                if q.stop {
                    return;
                }
                if let (Some(base), true) = (&q.base, !(q.fetches.is_empty() && batch.is_empty())) {
                    let base = base.clone();
                    let n = q.fetches.len().min(FETCH_BATCH - batch.len().min(FETCH_BATCH));
                    batch.extend(q.fetches.drain(..n));
                    break base;
                }
                q = shared.reader.wait(q).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let Err(error) = guard(|| answer(shared, &base, &mut batch)) else {
            failures = 0;
            continue;
        };
        drop(base);
        failures += 1;
        if failures >= FETCH_ATTEMPTS
            && let Some((id, _)) = batch.pop()
        {
            failures = 0;
            shared.tell(Event::FetchFailed { id, error: error.to_string() });
        }
        shared.lock().reopen = true;
        shared.writer.notify_one();
        let q = shared.lock();
        drop(shared.reader.wait_timeout(q, RETRY_FIRST).unwrap_or_else(PoisonError::into_inner));
    }
}

/// Answers fetches from one snapshot; those that were answered leave the batch.
fn answer(shared: &Shared, base: &Database, batch: &mut Vec<(u64, Miss)>) -> Result<(), Error> {
    let snapshot = Snapshot::of(base)?;
    while let Some((id, miss)) = batch.last() {
        let (id, out) = (*id, snapshot.fetch(miss)?);
        batch.pop();
        shared.tell(Event::Fetched { id, rows: out });
    }
    Ok(())
}

mod direct;
mod rows;
mod snapshot;
#[cfg(test)]
mod tests;

pub use direct::Direct;
pub use rows::{AllRows, amend, dump, look};
use snapshot::Snapshot;
