//! The records that make the rows of a namespace fit together again, as far as nothing has to be guessed.

use super::Report;
use super::report::{Field, Fix};
use crate::applier::{AllRows, Error};
use crate::kv::{Key, KeyRange, Table};
use crate::layout::{self, InodeRow};
use crate::limits::{BATCH_BYTES, FIRST_COOKIE};
use crate::record::{Record, Seq};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use wire::{FileKind, Ino};
use zerocopy::IntoBytes;

/// AllRows of one record.
const ROWS_AT_ONCE: usize = 1000;

/// Records behind `after` that correct what `report` calls fixable. Empty where there is nothing to correct.
///
/// # Errors
/// The database can't be read.
pub fn corrections(rows: &AllRows, report: &Report, after: Seq) -> Result<Vec<Record>, Error> {
    let mut work = Work { rows, out: BTreeMap::new() };
    let mut dirs = BTreeSet::new();
    for fix in &report.fixes {
        match fix {
            Fix::Row(key, value) => drop(work.out.insert(key.clone(), value.clone())),
            Fix::Inode(ino, field) => work.inode(*ino, *field)?,
            Fix::Listing(dir) => drop(dirs.insert(*dir)),
        }
    }
    for dir in dirs {
        work.listing(dir)?;
    }
    Ok(work.records(after))
}

struct Work<'a> {
    rows: &'a AllRows,
    /// What is to be written.
    out: BTreeMap<Key, Option<Box<[u8]>>>,
}

impl Work<'_> {
    fn inode_row(&self, ino: u64) -> Result<Option<InodeRow>, Error> {
        let key = Key::inode(Ino(ino));
        let value = match self.out.get(&key) {
            Some(value) => value.clone(),
            None => self.rows.get(&key)?,
        };
        Ok(value.and_then(|v| layout::inode(&v).ok()))
    }

    fn put_inode(&mut self, ino: u64, row: &InodeRow) {
        self.out.insert(Key::inode(Ino(ino)), Some(row.as_bytes().into()));
    }

    fn inode(&mut self, ino: u64, field: Field) -> Result<(), Error> {
        let Some(mut row) = self.inode_row(ino)? else { return Ok(()) };
        match field {
            Field::Links(n) => row.nlink = n.into(),
            Field::Entries(n) => row.entries = n.into(),
            Field::XattrList(n) => row.xattr_list = n.into(),
            Field::Parent(dir) => row.parent = dir.into(),
            Field::Blocks(n) => row.blocks = n.into(),
        }
        self.put_inode(ino, &row);
        Ok(())
    }

    /// Every name gets a position of its own and the kind of its inode; positions that no name has stay.
    fn listing(&mut self, dir: u64) -> Result<(), Error> {
        let Some(mut row) = self.inode_row(dir)? else { return Ok(()) };
        let mut names: Vec<(Vec<u8>, u64, u64)> = Vec::new();
        self.rows.scan(&KeyRange::of(Table::Dentry, dir), |key, value| {
            if let Ok(d) = layout::dentry(value) {
                names.push((key[9..].to_vec(), d.ino.get(), d.cookie.get()));
            }
            true
        })?;
        let mut used = HashSet::new();
        let highest = names.iter().map(|(_, _, cookie)| *cookie).filter(|c| *c < u64::MAX / 2).max();
        let mut next = row.next_cookie.get().max(highest.unwrap_or(0) + 1).max(FIRST_COOKIE);
        for (name, ino, cookie) in names {
            let good = (FIRST_COOKIE..next).contains(&cookie) && used.insert(cookie);
            let cookie = if good {
                cookie
            } else {
                used.insert(next);
                next += 1;
                next - 1
            };
            let Some(kind) = self.kind(ino)? else { continue };
            let (entry, position) = layout::encode_entry(Ino(ino), kind, cookie, &name);
            self.out.insert(Key::dentry(Ino(dir), &name), Some(entry.as_bytes().into()));
            self.out.insert(Key::cookie(Ino(dir), cookie), Some(position.into()));
        }
        row.next_cookie = next.into();
        self.put_inode(dir, &row);
        Ok(())
    }

    fn kind(&self, ino: u64) -> Result<Option<FileKind>, Error> {
        Ok(self.inode_row(ino)?.map(|r| r.kind()))
    }

    fn records(self, after: Seq) -> Vec<Record> {
        let mut records = Vec::new();
        let mut batch: Vec<(Key, Option<Box<[u8]>>)> = Vec::new();
        let mut bytes = 0;
        let close = |batch: &mut Vec<(Key, Option<Box<[u8]>>)>, records: &mut Vec<Record>| {
            if !batch.is_empty() {
                let seq = after + 1 + records.len() as u64;
                records.push(Record::encode(seq, batch.iter().map(|(k, v)| (k, v.as_deref()))));
                batch.clear();
            }
        };
        for (key, value) in self.out {
            bytes += key.len() + value.as_ref().map_or(0, |v| v.len());
            batch.push((key, value));
            if bytes > BATCH_BYTES || batch.len() >= ROWS_AT_ONCE {
                close(&mut batch, &mut records);
                bytes = 0;
            }
        }
        close(&mut batch, &mut records);
        records
    }
}
