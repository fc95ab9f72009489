//! All rows of a database, for those who look at many: fsck, and the search for a file's path.
//!
//! Must not write. A look at the database of a running daemon has a thread of its own and ends early when the database is
//! wanted otherwise.

use super::base::{Base, ROWS, db, follows, guard};
use super::{Applier, Error, Queue, Shared};
use crate::kv::{Key, KeyRange};
use crate::record::{Record, Seq};
use redb::{ReadableDatabase, StorageBackend, TableError};
use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::ops::Bound::{Excluded, Included};
use std::sync::{Arc, PoisonError};

/// Memory that redb may use for pages while all rows are read.
const CACHE: usize = 16 << 20;
/// Rows between two looks at whether the database is wanted.
const POLITE: usize = 1024;

type Later = BTreeMap<Box<[u8]>, Option<Box<[u8]>>>;

/// The rows of one moment.
pub struct AllRows {
    table: Option<redb::ReadOnlyTable<&'static [u8], &'static [u8]>>,
    /// What records behind the database's last say.
    later: Later,
    /// A running daemon's, which may want its database back.
    daemon: Option<Arc<Shared>>,
}

impl core::fmt::Debug for AllRows {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("AllRows").field("later", &self.later.len()).finish_non_exhaustive()
    }
}

impl AllRows {
    fn new(base: &Base, later: Later, daemon: Option<Arc<Shared>>) -> Result<Self, Error> {
        let txn = base.db.begin_read().map_err(db)?;
        let table = match txn.open_table(ROWS) {
            Ok(table) => Some(table),
            Err(TableError::TableDoesNotExist(_)) => None,
            Err(e) => return Err(db(e)),
        };
        Ok(Self { table, later, daemon })
    }

    /// One row.
    pub fn get(&self, key: &Key) -> Result<Option<Box<[u8]>>, Error> {
        if let Some(value) = self.later.get(key.bytes()) {
            return Ok(value.clone());
        }
        let Some(table) = &self.table else { return Ok(None) };
        Ok(table.get(key.bytes()).map_err(db)?.map(|v| v.value().into()))
    }

    /// Calls `each` for the rows of a range in key order until it says no.
    pub fn scan(&self, range: &KeyRange, mut each: impl FnMut(&[u8], &[u8]) -> bool) -> Result<(), Error> {
        let bounds = range.start.bytes()..range.end.bytes();
        let mut later = self.later.range::<[u8], _>((Included(bounds.start), Excluded(bounds.end)));
        let mut next = later.next();
        if let Some(table) = &self.table {
            for (n, row) in table.range::<&[u8]>(bounds).map_err(db)?.enumerate() {
                if n % POLITE == 0 && self.wanted() {
                    return Err(Error::Wanted);
                }
                let (key, value) = row.map_err(db)?;
                let key = key.value();
                if !put_before(&mut later, &mut next, Some(key), &mut each) {
                    return Ok(());
                }
                match next {
                    Some((k, value)) if **k == *key => {
                        let go_on = value.as_ref().is_none_or(|v| each(key, v));
                        next = later.next();
                        if !go_on {
                            return Ok(());
                        }
                    }
                    _ if !each(key, value.value()) => return Ok(()),
                    _ => {}
                }
            }
        }
        put_before(&mut later, &mut next, None, &mut each);
        Ok(())
    }

    /// Calls `each` for every row.
    pub fn all(&self, each: impl FnMut(&[u8], &[u8]) -> bool) -> Result<(), Error> {
        self.scan(&KeyRange { start: Key::raw(&[]), end: Key::raw(&[u8::MAX; 16]) }, each)
    }

    fn wanted(&self) -> bool {
        let busy = |q: &Queue| q.stop || q.reopen || q.base.is_none();
        self.daemon.as_ref().is_some_and(|d| busy(&d.lock()))
    }
}

type LaterRow<'a> = Option<(&'a Box<[u8]>, &'a Option<Box<[u8]>>)>;

/// Gives the later rows below `key`; false where `each` has seen enough.
fn put_before<'a>(
    later: &mut Range<'a, Box<[u8]>, Option<Box<[u8]>>>,
    next: &mut LaterRow<'a>,
    key: Option<&[u8]>,
    each: &mut impl FnMut(&[u8], &[u8]) -> bool,
) -> bool {
    while let Some((k, value)) = *next {
        if key.is_some_and(|key| **k >= *key) {
            return true;
        }
        *next = later.next();
        if value.as_ref().is_some_and(|v| !each(k, v)) {
            return false;
        }
    }
    true
}

/// Opens a database that nobody serves and shows it with the records that follow it, whose last number goes with it. Nothing
/// is written but what redb mends after an unclean end.
pub fn look<T>(
    volume: Box<dyn StorageBackend>,
    records: &[Record],
    look: impl FnOnce(&AllRows, Seq) -> Result<T, Error>,
) -> Result<T, Error> {
    let (base, mut last) = Base::open(volume, CACHE, Arc::default())?;
    let mut later = Later::new();
    for r in records {
        if follows(&mut last, r)? {
            later.extend(r.rows().map(|(k, v)| (k.into(), v.map(Into::into))));
        }
    }
    guard(move || {
        let rows = AllRows::new(&base, later, None)?;
        look(&rows, last)
    })
}

/// Applies records to a database that nobody serves, in one commit.
pub fn amend(volume: Box<dyn StorageBackend>, records: &[Record]) -> Result<Seq, Error> {
    let (base, at) = Base::open(volume, CACHE, Arc::default())?;
    guard(move || base.apply(at, records))
}

/// Calls `each` for every row in key order.
pub fn dump(volume: Box<dyn StorageBackend>, mut each: impl FnMut(&[u8], &[u8])) -> Result<Seq, Error> {
    look(volume, &[], |rows, at| {
        rows.all(|k, v| {
            each(k, v);
            true
        })?;
        Ok(at)
    })
}

impl Applier {
    /// Shows the committed rows on a thread of its own. False where somebody looks already or the database is being
    /// opened again: nothing was done, try later.
    pub fn look(&self, look: impl FnOnce(Result<&AllRows, Error>) + Send + 'static) -> bool {
        let mut looker = self.looker.lock().unwrap_or_else(PoisonError::into_inner);
        if looker.as_ref().is_some_and(|l| !l.is_finished()) {
            return false;
        }
        let base = self.shared.lock().base.clone();
        let Some(base) = base else { return false };
        let shared = Arc::clone(&self.shared);
        let run = move || {
            let rows = guard(|| {
                base.applied()?;
                AllRows::new(&base, Later::new(), Some(shared))
            });
            // Held until the look has ended: redb closes the volume with its last handle.
            match rows {
                Ok(rows) => look(Ok(&rows)),
                Err(e) => look(Err(e)),
            }
            drop(base);
        };
        let started = std::thread::Builder::new().name("ns-look".into()).spawn(run);
        *looker = started.ok();
        looker.is_some()
    }
}
