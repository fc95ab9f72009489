//! The database itself: opening, applying records, reading at start, giving space back.
//!
//! Owns redb's tables. Must not wait for anything but the volume; threads and retries are the applier's.

use super::Error;
use crate::kv::{Key, KeyRange};
use crate::ns::Boot;
use crate::record::{Record, Seq};
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, TableError,
};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
pub(super) const APPLIED: &str = "applied";
/// Bytes of all keys and values.
const LIVE: &str = "live";

/// Pages are half full at worst, and a commit needs as much again: below so many times its rows a volume has no space to spare.
const WASTE: u64 = 4;
/// Rows beyond which nothing is tidied: fetches wait while it goes on, and a kill in the midst of it makes the next start read
/// all of them. A second or two.
const TIDY_MOST: u64 = 64 << 20;

/// How large the database is. Its threads and the shell look at it at any time.
#[derive(Debug)]
pub struct Size {
    volume: AtomicU64,
    /// `u64::MAX`: not known.
    rows: AtomicU64,
    /// Both after the volume was last tidied: done again only once it has grown or half of the rows are gone.
    tidied: [AtomicU64; 2],
}

impl Default for Size {
    fn default() -> Self {
        Self { volume: AtomicU64::new(0), rows: AtomicU64::new(u64::MAX), tidied: [0, 0].map(AtomicU64::new) }
    }
}

impl Size {
    /// Bytes of the volume.
    #[must_use]
    pub fn volume(&self) -> u64 {
        self.volume.load(Ordering::Acquire)
    }

    /// Bytes of all keys and values; `None` where an older version made the database.
    #[must_use]
    pub fn rows(&self) -> Option<u64> {
        Some(self.rows.load(Ordering::Acquire)).filter(|n| *n != u64::MAX)
    }

    /// Is giving space back worth the work? A volume of up to `enough` bytes is let be.
    #[must_use]
    pub fn wasteful(&self, enough: u64) -> bool {
        let (volume, Some(rows)) = (self.volume(), self.rows()) else { return false };
        let [v, r] = self.tidied.each_ref().map(|n| n.load(Ordering::Acquire));
        rows <= TIDY_MOST && volume > enough.max(WASTE * rows) && (volume > v || rows < r / 2)
    }

    fn tidied(&self) {
        let [v, r] = &self.tidied;
        v.store(self.volume(), Ordering::Release);
        r.store(self.rows().unwrap_or(0), Ordering::Release);
    }
}

/// Records of one commit at most: bounds its memory.
pub(super) const COMMIT_RECORDS: usize = 1 << 16;
/// The same however often commits fail: a small one needs little room on a full device.
const COMMIT_LEAST: usize = 16;

/// How many records the next commit takes: few after one that failed, then more and more.
#[derive(Clone, Copy)]
pub(super) struct Pace(usize);

impl Default for Pace {
    fn default() -> Self {
        Self(COMMIT_RECORDS)
    }
}

impl Pace {
    /// The records of the next commit.
    pub(super) fn part<'a>(&self, batch: &'a [Record], applied: Seq) -> &'a [Record] {
        let rest = batch.get(batch.partition_point(|r| r.seq() <= applied)..).unwrap_or_default();
        rest.get(..self.0).unwrap_or(rest)
    }

    pub(super) fn succeeded(&mut self) {
        self.0 = (self.0 * 2).min(COMMIT_RECORDS);
    }

    /// A commit failed, of at most `records`.
    pub(super) fn failed(&mut self, records: usize) {
        self.0 = (self.0.min(records) / 8).max(COMMIT_LEAST);
    }
}

pub(super) struct Base {
    pub(super) db: Database,
    size: Arc<Size>,
}

pub(super) fn db<E: Into<redb::Error>>(e: E) -> Error {
    Error::Database(Box::new(e.into()))
}

/// redb answers some damage with a panic: to us that is an error like others, the database is dropped and opened again.
pub(super) fn guard<T>(f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or_else(|e| {
        let text = e.downcast_ref::<&str>().map(|s| (*s).to_owned());
        let text = text.or_else(|| e.downcast_ref::<String>().cloned());
        Err(Error::Panicked(text.unwrap_or_else(|| "no reason given".into())))
    })
}

#[derive(Debug)]
struct Volume(Box<dyn StorageBackend>, Arc<Size>);

impl StorageBackend for Volume {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)?;
        self.1.volume.store(len, Ordering::Release);
        Ok(())
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

/// Whether a record comes after `last`, which then is its number; one that is held already does not.
pub(super) fn follows(last: &mut Seq, r: &Record) -> Result<bool, Error> {
    if r.seq() <= *last {
        return Ok(false);
    }
    if r.seq() != *last + 1 {
        return Err(Error::Gap { expected: *last + 1, found: r.seq() });
    }
    *last = r.seq();
    Ok(true)
}

impl Base {
    pub(super) fn open(
        volume: Box<dyn StorageBackend>,
        cache: usize,
        size: Arc<Size>,
    ) -> Result<(Self, Seq), Error> {
        size.volume.store(volume.len()?, Ordering::Release);
        guard(|| {
            let volume = Volume(volume, size.clone());
            let db = Database::builder().set_cache_size(cache).create_with_backend(volume).map_err(db)?;
            let base = Self { db, size };
            let applied = base.applied()?;
            Ok((base, applied))
        })
    }

    pub(super) fn applied(&self) -> Result<Seq, Error> {
        let txn = self.db.begin_read().map_err(db)?;
        let meta = match txn.open_table(META) {
            Ok(t) => t,
            Err(TableError::TableDoesNotExist(_)) => return Ok(0),
            Err(e) => return Err(db(e)),
        };
        let live = meta.get(LIVE).map_err(db)?.map_or(u64::MAX, |v| v.value());
        self.size.rows.store(live, Ordering::Release);
        Ok(meta.get(APPLIED).map_err(db)?.map_or(0, |v| v.value()))
    }

    /// Rows of the tables that are always in memory.
    pub(super) fn boot(&self, applied: Seq) -> Result<Boot, Error> {
        let mut boot = Boot { applied, rows: Vec::new() };
        let txn = self.db.begin_read().map_err(db)?;
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

    /// Applies records in one commit. Those that the database holds are skipped.
    pub(super) fn apply<'a>(
        &self,
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
        let mut txn = self.db.begin_write().map_err(db)?;
        txn.set_durability(Durability::Immediate).map_err(db)?;
        txn.set_quick_repair(true);
        let live = {
            let mut table = txn.open_table(ROWS).map_err(db)?;
            let mut meta = txn.open_table(META).map_err(db)?;
            let new = meta.get(APPLIED).map_err(db)?.is_none();
            let before = meta.get(LIVE).map_err(db)?.map(|v| v.value());
            let (mut put, mut gone) = (0, 0);
            for (key, value) in rows {
                let old = match value {
                    Some(v) => table.insert(key, v).map_err(db)?,
                    None => table.remove(key).map_err(db)?,
                };
                put += value.map_or(0, |v| key.len() + v.len()) as u64;
                gone += old.map_or(0, |v| key.len() + v.value().len()) as u64;
            }
            let live = before.or(new.then_some(0)).map(|b| (b + put).saturating_sub(gone));
            if let Some(live) = live {
                meta.insert(LIVE, live).map_err(db)?;
            }
            meta.insert(APPLIED, last).map_err(db)?;
            live
        };
        txn.commit().map_err(db)?;
        self.size.rows.store(live.unwrap_or(u64::MAX), Ordering::Release);
        Ok(last)
    }

    /// Moves everything to the front of the volume and cuts it off behind.
    pub(super) fn compact(mut self) -> Result<Self, Error> {
        guard(move || {
            self.db.compact().map_err(db)?;
            // Its commits don't record what is free; after one that does a kill costs no full scan.
            let mut txn = self.db.begin_write().map_err(db)?;
            txn.set_durability(Durability::Immediate).map_err(db)?;
            txn.set_quick_repair(true);
            txn.commit().map_err(db)?;
            self.size.tidied();
            Ok(self)
        })
    }
}

/// Makes the database of a new file system on an empty volume.
pub fn format(volume: Box<dyn StorageBackend>, records: &[Record]) -> Result<Seq, Error> {
    let (base, at) = Base::open(volume, 1 << 20, Arc::default())?;
    guard(move || base.apply(at, records))
}
