//! Rows out of one snapshot of the database, with what is likely to be asked for next.

use super::Error;
use super::base::{APPLIED, META, ROWS, db};
use crate::kv::{Key, KeyRange, Table};
use crate::layout;
use crate::record::Seq;
use crate::view::{Fetched, FetchedRange, Miss, RangeMiss, listed_value};
use redb::{Database, ReadableDatabase, TableError};
use wire::{FileKind, Ino};
use zerocopy::IntoBytes;

/// Inodes read ahead with one that is asked for: they lie beside it and were often made together.
const AHEAD: usize = 8;
/// Names read ahead with one that is found: those that a listing shows after it, for programs that visit what they listed.
const NAMES_AHEAD: usize = 32;
/// Bytes of one fetched range.
const RANGE_BYTES: usize = 1 << 20;

/// The database as it was when this was made.
pub(super) struct Snapshot {
    applied: Seq,
    /// `None` where nothing was ever written.
    rows: Option<Rows>,
}

impl Snapshot {
    pub(super) fn of(base: &Database) -> Result<Self, Error> {
        let txn = base.begin_read().map_err(db)?;
        let applied = match txn.open_table(META) {
            Ok(t) => t.get(APPLIED).map_err(db)?.map_or(0, |v| v.value()),
            Err(TableError::TableDoesNotExist(_)) => 0,
            Err(e) => return Err(db(e)),
        };
        let rows = match txn.open_table(ROWS) {
            Ok(t) => Some(t),
            Err(TableError::TableDoesNotExist(_)) => None,
            Err(e) => return Err(db(e)),
        };
        Ok(Self { applied, rows })
    }

    pub(super) fn fetch(&self, miss: &Miss) -> Result<Fetched, Error> {
        let mut out = Fetched { applied: self.applied, ..Fetched::default() };
        for key in &miss.keys {
            fetch_key(self.rows.as_ref(), key, &mut out)?;
        }
        for range in &miss.ranges {
            fetch_range(self.rows.as_ref(), range, &mut out)?;
        }
        Ok(out)
    }
}

type Rows = redb::ReadOnlyTable<&'static [u8], &'static [u8]>;

fn fetch_key(rows: Option<&Rows>, key: &Key, out: &mut Fetched) -> Result<(), Error> {
    let Some(rows) = rows else {
        out.rows.push((key.clone(), None));
        return Ok(());
    };
    if key.table() == Some(Table::Inode) {
        let end = KeyRange::table(Table::Inode).end;
        let mut found = false;
        for row in rows.range::<&[u8]>(key.bytes()..end.bytes()).map_err(db)?.take(AHEAD) {
            let (k, v) = row.map_err(db)?;
            found |= k.value() == key.bytes();
            out.rows.push((Key::raw(k.value()), Some(v.value().into())));
        }
        if !found {
            out.rows.push((key.clone(), None));
        }
        return Ok(());
    }
    let value: Option<Box<[u8]>> = rows.get(key.bytes()).map_err(db)?.map(|v| v.value().into());
    if key.table() == Some(Table::Dentry)
        && let Some(Ok(entry)) = value.as_deref().map(layout::dentry)
    {
        fetch_inode(rows, entry.ino.get(), out)?;
        names_ahead(rows, key, entry.cookie.get(), out)?;
    }
    out.rows.push((key.clone(), value));
    Ok(())
}

fn fetch_inode(rows: &Rows, ino: u64, out: &mut Fetched) -> Result<(), Error> {
    let key = Key::inode(Ino(ino));
    let row = rows.get(key.bytes()).map_err(db)?.map(|v| v.value().into());
    out.rows.push((key, row));
    Ok(())
}

/// The entries behind a position: a row of the listing says all that a row of the name says.
fn names_ahead(rows: &Rows, name: &Key, cookie: u64, out: &mut Fetched) -> Result<(), Error> {
    let Some(dir) = name.id().map(Ino) else { return Ok(()) };
    let range = KeyRange::after_cookie(dir, cookie);
    for row in rows.range::<&[u8]>(range.start.bytes()..range.end.bytes()).map_err(db)?.take(NAMES_AHEAD) {
        let (k, v) = row.map_err(db)?;
        let position = Key::raw(k.value());
        let position = position.rest().and_then(|r| r.try_into().ok()).map(u64::from_be_bytes);
        if let (Some(position), Ok((c, name))) = (position, layout::cookie(v.value()))
            && let Some(kind) = FileKind::from_dirent_type(c.kind)
        {
            let (entry, _) = layout::encode_entry(c.ino.into(), kind, position, name);
            out.rows.push((Key::dentry(dir, name), Some(entry.as_bytes().into())));
            fetch_inode(rows, c.ino.get(), out)?;
        }
    }
    Ok(())
}

fn fetch_range(rows: Option<&Rows>, miss: &RangeMiss, out: &mut Fetched) -> Result<(), Error> {
    let mut got = FetchedRange { range: miss.range.clone(), rows: Vec::new() };
    let names = miss.range.start.table() == Some(Table::Dentry);
    if let Some(rows) = rows {
        let mut bytes = 0;
        for row in rows.range::<&[u8]>(miss.range.start.bytes()..miss.range.end.bytes()).map_err(db)? {
            let (k, v) = row.map_err(db)?;
            let key = Key::raw(k.value());
            let value = listed_value(&key, v.value());
            bytes += key.len() + value.len();
            if names && let Ok(entry) = layout::dentry(value) {
                fetch_inode(rows, entry.ino.get(), out)?;
            }
            let last = key.successor();
            got.rows.push((key, value.into()));
            if got.rows.len() >= miss.limit.max(1) || bytes >= RANGE_BYTES {
                got.range.end = last;
                break;
            }
        }
    }
    out.ranges.push(got);
    Ok(())
}
