//! Lazy updates: what writes and reads of data change in the inode, in memory at once, logged within a second.
//!
//! Owns size, times, blocks and chunk map of files being written. A mark in the log says which inodes may be newer than
//! their rows; after a crash these are rebuilt from what the shards hold. Must not touch data.
//!
//! Invariant: a shard writes only when the mark of the inode is on the device; a mark is cleared only when no write is under
//! way, the inode's row is logged and the data that it speaks of is flushed. So a start finds every write that a shard has.

use crate::exec;
use crate::kv::{Key, KeyRange, Table};
use crate::layout::{self, INLINE_CHUNKS, InodeRow, PAGE_BYTES, PAGE_CHUNKS, Page};
use crate::limits::{BATCH_BYTES, FILE_MAX, LAZY_ROWS_MAX, LOST_CHANGES};
use crate::ns::Namespace;
use crate::op::{OpCtx, Reply};
use crate::record::{Record, Seq};
use crate::txn::Writes;
use crate::view::Miss;
use std::collections::BTreeMap;
use wire::{Attr, CHUNK_SIZE, ClientId, Errno, Ino, ObjectId, Timestamp};
use zerocopy::IntoBytes;

/// A write that a shard has completed.
#[derive(Clone, Copy, Debug)]
pub struct Wrote {
    /// The file.
    pub ino: Ino,
    /// Body of data that was written to.
    pub object: ObjectId,
    /// Chunk.
    pub index: u32,
    /// Byte offset in the file behind the last byte written; the size grows to it. 0 leaves the size alone.
    pub end: u64,
    /// Change of the chunk's use, in units of 512 bytes.
    pub blocks_delta: i64,
    /// The server's clock.
    pub time: Timestamp,
    /// Clear set-user-ID and set-group-ID.
    pub kill_suidgid: bool,
}

/// Result of a lazy update.
#[derive(Clone, Debug)]
pub struct Updated {
    /// Attributes now.
    pub attr: Attr,
    /// For the log: a mark, or the row when it can't wait.
    pub record: Option<Record>,
    /// The write may be acknowledged when everything up to here is on the device.
    pub depends_on: Seq,
}

/// Why a lazy update was not made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LazyError {
    /// Fetch these rows, call again.
    #[error("rows must be fetched first")]
    Miss(Miss),
    /// The object is no longer the inode's: delete the chunk that was written to it, answer `StaleObject`.
    #[error("the body of data is no longer the file's")]
    StaleObject,
    /// Answer this.
    #[error("{0}")]
    Errno(Errno),
}

impl From<Miss> for LazyError {
    fn from(m: Miss) -> Self {
        Self::Miss(m)
    }
}

/// A chunk as its shard knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkFact {
    /// Index in the object.
    pub index: u32,
    /// Valid bytes from the chunk's start.
    pub len: u32,
    /// Last write.
    pub mtime: Timestamp,
    /// Units of 512 bytes in use.
    pub blocks: u64,
}

/// Result of a rebuild.
#[derive(Clone, Debug)]
pub struct Rebuilt {
    /// For the log, in order.
    pub records: Vec<Record>,
    /// Chunks that the row named and no shard holds: written shortly before a power loss and never flushed.
    pub missing: Vec<u32>,
}

enum Slot {
    Inline,
    Page(u32),
}

fn slot(index: u32) -> Slot {
    if index < INLINE_CHUNKS { Slot::Inline } else { Slot::Page(index / PAGE_CHUNKS) }
}

fn bit(index: u32) -> (usize, u8) {
    let i = index % PAGE_CHUNKS;
    ((i / 8) as usize, 1 << (i % 8))
}

impl Namespace {
    fn row(&mut self, ino: Ino) -> Result<(Option<InodeRow>, Seq), LazyError> {
        let key = Key::inode(ino);
        let (value, seq) = self.view.get(&key)?;
        match value.map(layout::inode) {
            None => Ok((None, seq)),
            Some(Ok(row)) => Ok((Some(row), seq)),
            Some(Err(why)) => self.broken(&key, why),
        }
    }

    fn broken<T>(&mut self, key: &Key, why: &'static str) -> Result<T, LazyError> {
        self.damaged(layout::BadRow { key: format!("{key:?}"), why });
        Err(LazyError::Errno(Errno::EIO))
    }

    fn data_row(&mut self, ino: Ino, object: ObjectId) -> Result<(InodeRow, Seq), LazyError> {
        match self.row(ino)? {
            (Some(row), seq) if row.is_file() && row.object() == object => Ok((row, seq)),
            _ => Err(LazyError::StaleObject),
        }
    }

    /// Attributes of a file that still has this body of data.
    pub fn attr_of(&mut self, ino: Ino, object: ObjectId) -> Result<Attr, LazyError> {
        Ok(self.data_row(ino, object)?.0.attr(ino))
    }

    fn is_marked(&self, ino: Ino) -> bool {
        self.view.lazy.get(&ino).is_some_and(|l| l.mark != 0)
    }

    /// Before a write of data: is the object still the file's, and is the inode marked? The shard writes only once the record,
    /// if any, is on the device: a chunk of an unmarked inode would not be found after a crash. The mark stays at least until
    /// [`Namespace::write_ended`], which must follow a success in any case.
    pub fn prepare_write(&mut self, ino: Ino, object: ObjectId) -> Result<Updated, LazyError> {
        if !self.damage().is_empty() {
            return Err(LazyError::Errno(Errno::EROFS));
        }
        let (row, seq) = self.data_row(ino, object)?;
        let record = (!self.is_marked(ino)).then(|| self.log(vec![(Key::dirty(ino), Some(Box::default()))]));
        *self.writing.entry(ino).or_default() += 1;
        let mark = self.view.lazy.get(&ino).map_or(0, |l| l.mark);
        Ok(Updated { attr: row.attr(ino), record, depends_on: seq.max(mark) })
    }

    /// A write that was prepared is told of, or failed.
    pub fn write_ended(&mut self, ino: Ino) {
        if let Some(n) = self.writing.get_mut(&ino) {
            *n -= 1;
            if *n == 0 {
                self.writing.remove(&ino);
            }
        }
    }

    /// A shard has completed a write (or a punch or zeroing, with `end` 0).
    pub fn wrote(&mut self, w: &Wrote) -> Result<Updated, LazyError> {
        if w.end > FILE_MAX {
            return Err(LazyError::Errno(Errno::EFBIG));
        }
        let (mut row, seq) = self.data_row(w.ino, w.object)?;
        let page = self.set_chunk(&mut row, w.index)?;
        row.size = row.size.get().max(w.end).into();
        row.blocks = row.blocks.get().saturating_add_signed(w.blocks_delta).into();
        row.modified(w.time);
        let killed = w.kill_suidgid && exec::kill_suidgid(&mut row);
        if killed || row.has(InodeRow::FLAG_CAPS) {
            return self.write_now(w, row, page.as_ref());
        }
        let record =
            (!self.is_marked(w.ino)).then(|| self.log(vec![(Key::dirty(w.ino), Some(Box::default()))]));
        let mut depends_on = record.as_ref().map_or(seq, Record::seq);
        self.stamp += 1;
        if let Some((key, page)) = page {
            self.view.set_lazy(w.ino, key, Box::from(&page[..]), self.stamp);
        }
        self.view.set_lazy(w.ino, Key::inode(w.ino), row.as_bytes().into(), self.stamp);
        if let Some(l) = self.view.lazy.get(&w.ino) {
            depends_on = depends_on.max(l.mark);
            if l.keys.len() > LAZY_ROWS_MAX && record.is_none() {
                let record = self.commit_one(w.ino);
                depends_on = record.as_ref().map_or(depends_on, Record::seq);
                return Ok(Updated { attr: row.attr(w.ino), record, depends_on });
            }
        }
        Ok(Updated { attr: row.attr(w.ino), record, depends_on })
    }

    /// A change that must not be lost with the process: privileges are gone when the write is acknowledged.
    fn write_now(
        &mut self,
        w: &Wrote,
        mut row: InodeRow,
        page: Option<&(Key, Page)>,
    ) -> Result<Updated, LazyError> {
        let marked = self.is_marked(w.ino);
        let done = self.transact(&OpCtx::plain(ClientId(0), w.time), |t| {
            exec::drop_caps(t, w.ino, &mut row)?;
            if let Some((key, page)) = page {
                t.put(key.clone(), page);
            }
            t.put_inode(w.ino, &row);
            if !marked {
                t.put(Key::dirty(w.ino), &[]);
            }
            Ok(Reply::Done)
        })?;
        self.stamp += 1;
        if let Some(l) = self.view.lazy.get_mut(&w.ino) {
            l.stamp = self.stamp;
        }
        Ok(Updated { attr: row.attr(w.ino), record: done.record, depends_on: done.depends_on })
    }

    /// Notes that a chunk exists; gives the page of the map that changed.
    fn set_chunk(&mut self, row: &mut InodeRow, index: u32) -> Result<Option<(Key, Page)>, LazyError> {
        match slot(index) {
            Slot::Inline => {
                row.chunks = (row.chunks.get() | 1 << index).into();
                Ok(None)
            }
            Slot::Page(n) => {
                let key = Key::chunk_map(row.object(), n);
                let mut page = if n < row.map_pages.get() { self.page(&key)? } else { [0; PAGE_BYTES] };
                row.map_pages = row.map_pages.get().max(n + 1).into();
                let (byte, bit) = bit(index);
                if page[byte] & bit != 0 {
                    return Ok(None);
                }
                page[byte] |= bit;
                Ok(Some((key, page)))
            }
        }
    }

    fn page(&mut self, key: &Key) -> Result<Page, LazyError> {
        let found = self.view.get(key)?.0.map(layout::page);
        match found {
            None => Ok([0; PAGE_BYTES]),
            Some(Ok(page)) => Ok(page),
            Some(Err(why)) => self.broken(key, why),
        }
    }

    /// A change of space alone: blocks that a truncation or a scrub gave back. The record, if any, is a mark.
    pub fn add_blocks(
        &mut self,
        ino: Ino,
        object: ObjectId,
        delta: i64,
    ) -> Result<Option<Record>, LazyError> {
        if delta == 0 {
            return Ok(None);
        }
        let (mut row, _) = self.data_row(ino, object)?;
        row.blocks = row.blocks.get().saturating_add_signed(delta).into();
        let record = (!self.is_marked(ino)).then(|| self.log(vec![(Key::dirty(ino), Some(Box::default()))]));
        self.stamp += 1;
        self.view.set_lazy(ino, Key::inode(ino), row.as_bytes().into(), self.stamp);
        Ok(record)
    }

    /// A write that was carried out before a restart is repeated: privileges that it took away may have come back.
    pub fn drop_privileges(&mut self, ino: Ino, time: Timestamp) -> Result<Option<Record>, LazyError> {
        let done = self.transact(&OpCtx::plain(ClientId(0), time), |t| {
            let Some(mut row) = t.try_inode(ino)?.filter(InodeRow::is_file) else { return Ok(Reply::Done) };
            if exec::kill_suidgid(&mut row) || row.has(InodeRow::FLAG_CAPS) {
                exec::drop_caps(t, ino, &mut row)?;
                row.changed(time);
                t.put_inode(ino, &row);
            }
            Ok(Reply::Done)
        })?;
        Ok(done.record)
    }

    /// A file or directory was read: moves the access time by the rule of relatime, in memory. True where it moved.
    pub fn accessed(&mut self, ino: Ino, time: Timestamp) -> Result<bool, LazyError> {
        let (row, _) = self.row(ino)?;
        let Some(mut row) = row.filter(|r| exec::moves_atime(r, time)) else { return Ok(false) };
        if !self.damage().is_empty() {
            return Ok(false);
        }
        row.atime = time;
        self.stamp += 1;
        self.view.set_lazy(ino, Key::inode(ino), row.as_bytes().into(), self.stamp);
        Ok(true)
    }

    /// Logs the lazy updates of one inode (fsync, last close). Its mark stays until [`Namespace::clear_marks`].
    pub fn commit_dirty(&mut self, ino: Ino) -> Option<Record> {
        self.commit_one(ino)
    }

    fn commit_one(&mut self, ino: Ino) -> Option<Record> {
        let writes = self.lazy_rows(ino);
        (!writes.is_empty()).then(|| self.log(writes))
    }

    pub(crate) fn lazy_rows(&self, ino: Ino) -> Writes {
        let Some(lazy) = self.view.lazy.get(&ino) else { return Writes::new() };
        lazy.keys.iter().filter_map(|k| Some((k.clone(), Some(self.view.lazy_value(k)?.into())))).collect()
    }

    /// Logs all lazy updates (each second, syncfs, stop), several inodes in a record.
    pub fn commit_all_dirty(&mut self) -> Vec<Record> {
        let inos: Vec<Ino> =
            self.view.lazy.iter().filter(|(_, l)| !l.keys.is_empty()).map(|(i, _)| *i).collect();
        let mut records = Vec::new();
        let mut batch = Writes::new();
        let mut bytes = 0;
        for ino in inos {
            let rows = self.lazy_rows(ino);
            bytes += rows.iter().map(|(k, v)| k.len() + v.as_ref().map_or(0, |v| v.len()) + 8).sum::<usize>();
            batch.extend(rows);
            if bytes > BATCH_BYTES {
                records.push(self.log(core::mem::take(&mut batch)));
                bytes = 0;
            }
        }
        if !batch.is_empty() {
            records.push(self.log(batch));
        }
        records
    }

    /// Number of the last lazy update; taken before a flush, given to [`Namespace::clear_marks`] after it.
    #[must_use]
    pub fn lazy_stamp(&self) -> u64 {
        self.stamp
    }

    /// After a flush of data and log: clears the marks of inodes to which no write is under way and whose last lazy update
    /// is not newer than `stamp` and stands in the log.
    pub fn clear_marks(&mut self, stamp: u64) -> Vec<Record> {
        let settled = |(ino, l): &(&Ino, &crate::view::Lazy)| {
            l.mark != 0 && l.keys.is_empty() && l.stamp <= stamp && !self.writing.contains_key(ino)
        };
        let keys: Vec<Key> = self.view.lazy.iter().filter(settled).map(|(i, _)| Key::dirty(*i)).collect();
        let batches = keys.chunks(1024);
        batches.map(|b| self.log(b.iter().map(|k| (k.clone(), None)).collect())).collect()
    }

    /// After a restart: inodes that must be rebuilt before their data is served; up to `limit` above `after`.
    pub fn dirty_inodes(&self, after: Ino, limit: usize) -> Result<Vec<Ino>, Miss> {
        self.list_inos(Table::Dirty, after, limit)
    }

    /// Body of data of a file, for asking the shards; `None` where there is nothing to rebuild.
    pub fn object_of(&mut self, ino: Ino) -> Result<Option<ObjectId>, LazyError> {
        Ok(self.row(ino)?.0.filter(InodeRow::is_file).map(|r| r.object()))
    }

    /// Sets size, times, blocks and chunk map by what the shards hold, and clears the mark. Truncations of the free list
    /// come first. Sizes only grow: every shrinking was logged.
    pub fn rebuild(
        &mut self,
        ino: Ino,
        facts: impl IntoIterator<Item = ChunkFact>,
    ) -> Result<Rebuilt, LazyError> {
        let Some(mut row) = self.row(ino)?.0.filter(InodeRow::is_file) else {
            return Ok(Rebuilt {
                records: vec![self.log(vec![(Key::dirty(ino), None)])],
                missing: Vec::new(),
            });
        };
        let old_pages = self.pages(&row)?;
        let mut pages: BTreeMap<u32, Page> = BTreeMap::new();
        let (old_inline, mut inline, mut blocks, mut last) = (row.chunks.get(), 0_u64, 0_u64, row.ctime);
        for f in facts {
            match slot(f.index) {
                Slot::Inline => inline |= 1 << f.index,
                Slot::Page(n) => {
                    let (byte, bit) = bit(f.index);
                    pages.entry(n).or_insert([0; PAGE_BYTES])[byte] |= bit;
                }
            }
            // A chunk without bytes only has blocks behind the end of the file.
            if f.len > 0 {
                let end = u64::from(f.index) * CHUNK_SIZE + u64::from(f.len).min(CHUNK_SIZE);
                row.size = row.size.get().max(end).into();
            }
            blocks = blocks.saturating_add(f.blocks);
            last = last.max(f.mtime);
        }
        let mut missing: Vec<u32> = layout::inline_chunks(old_inline & !inline).collect();
        for (n, old) in &old_pages {
            let new = pages.get(n);
            missing.extend(layout::page_chunks(*n, old).filter(|i| {
                let (byte, bit) = bit(*i);
                new.is_none_or(|p| p[byte] & bit == 0)
            }));
        }
        if last > row.ctime {
            row.modified(last);
        }
        // What memory counted is not known, and clients tell old answers from new ones by it.
        row.change = row.change.get().saturating_add(LOST_CHANGES).into();
        row.blocks = blocks.into();
        row.chunks = inline.into();
        row.map_pages = pages.keys().next_back().map_or(0, |n| n + 1).into();
        let records = self.log_rebuilt(ino, &row, &old_pages, &pages);
        Ok(Rebuilt { records, missing })
    }

    /// Pages first, the row and the mark last: a crash in between only means another rebuild.
    fn log_rebuilt(
        &mut self,
        ino: Ino,
        row: &InodeRow,
        old: &BTreeMap<u32, Page>,
        new: &BTreeMap<u32, Page>,
    ) -> Vec<Record> {
        let mut records = Vec::new();
        let mut writes: Writes = Vec::new();
        let gone = old.keys().filter(|n| !new.contains_key(n)).map(|n| (*n, None));
        let set =
            new.iter().filter(|(n, p)| old.get(n) != Some(p)).map(|(n, p)| (*n, Some(Box::from(&p[..]))));
        for (n, page) in gone.chain(set) {
            writes.push((Key::chunk_map(row.object(), n), page));
            if writes.len() * PAGE_BYTES > BATCH_BYTES {
                records.push(self.log(core::mem::take(&mut writes)));
            }
        }
        writes.push((Key::inode(ino), Some(row.as_bytes().into())));
        writes.push((Key::dirty(ino), None));
        records.push(self.log(writes));
        records
    }

    /// All pages of a file's map.
    fn pages(&mut self, row: &InodeRow) -> Result<BTreeMap<u32, Page>, LazyError> {
        let mut out = BTreeMap::new();
        let mut damaged = None;
        if row.map_pages.get() > 0 {
            self.view.scan(&KeyRange::of(Table::ChunkMap, row.object().0), 1024, |key, value| {
                match (page_number(key), layout::page(value)) {
                    (Some(n), Ok(page)) => {
                        out.insert(n, page);
                    }
                    (_, e) => damaged = Some((key.clone(), e.err().unwrap_or("key is too short"))),
                }
                damaged.is_none()
            })?;
        }
        match damaged {
            Some((key, why)) => self.broken(&key, why),
            None => Ok(out),
        }
    }

    /// Does the file say that this chunk exists? A shard that has not got it has lost it: an error, never a hole.
    pub fn has_chunk(&mut self, ino: Ino, index: u32) -> Result<bool, LazyError> {
        let Some(row) = self.row(ino)?.0 else { return Ok(false) };
        match slot(index) {
            Slot::Inline => Ok(row.chunks.get() >> index & 1 == 1),
            Slot::Page(n) if n >= row.map_pages.get() => Ok(false),
            Slot::Page(n) => {
                let (byte, bit) = bit(index);
                Ok(self.page(&Key::chunk_map(row.object(), n))?[byte] & bit != 0)
            }
        }
    }

    /// The first chunk from `from` on that exists (SEEK_DATA, reading ahead), `None` where there is none.
    pub fn next_chunk(&mut self, ino: Ino, from: u32) -> Result<Option<u32>, LazyError> {
        let Some(row) = self.row(ino)?.0 else { return Ok(None) };
        if from < INLINE_CHUNKS {
            let rest = row.chunks.get() >> from;
            if rest != 0 {
                return Ok(Some(from + rest.trailing_zeros()));
            }
        }
        let from = from.max(INLINE_CHUNKS);
        let first = from / PAGE_CHUNKS;
        if first >= row.map_pages.get() {
            return Ok(None);
        }
        let mut range = KeyRange::of(Table::ChunkMap, row.object().0);
        range.start = Key::chunk_map(row.object(), first);
        let mut found = None;
        self.view.scan(&range, 64, |key, value| {
            if let (Some(n), Ok(page)) = (page_number(key), layout::page(value)) {
                found = layout::page_chunks(n, &page).find(|i| *i >= from);
            }
            found.is_none()
        })?;
        // A page that only memory has is in no listing.
        let lazy = self.view.lazy.get(&ino).into_iter().flat_map(|l| &l.keys);
        for key in lazy.filter(|k| range.contains(k)) {
            if let (Some(n), Some(Ok(page))) = (page_number(key), self.view.lazy_value(key).map(layout::page))
            {
                let first = layout::page_chunks(n, &page).find(|i| *i >= from);
                found = found.into_iter().chain(first).min();
            }
        }
        Ok(found)
    }

    /// The first chunk from `from` on that does not exist (SEEK_HOLE).
    pub fn next_gap(&mut self, ino: Ino, from: u32) -> Result<u32, LazyError> {
        let Some(row) = self.row(ino)?.0 else { return Ok(from) };
        let mut at = from;
        if at < INLINE_CHUNKS {
            at += (row.chunks.get() >> at).trailing_ones();
            if at < INLINE_CHUNKS {
                return Ok(at);
            }
            at = INLINE_CHUNKS;
        }
        while at / PAGE_CHUNKS < row.map_pages.get() {
            let n = at / PAGE_CHUNKS;
            let page = self.page(&Key::chunk_map(row.object(), n))?;
            let gap = (at % PAGE_CHUNKS..PAGE_CHUNKS).find(|i| page[(i / 8) as usize] >> (i % 8) & 1 == 0);
            match gap {
                Some(i) => return Ok(n * PAGE_CHUNKS + i),
                None if n == u32::MAX / PAGE_CHUNKS => return Ok(u32::MAX),
                None => at = (n + 1) * PAGE_CHUNKS,
            }
        }
        Ok(at)
    }
}

fn page_number(key: &Key) -> Option<u32> {
    Some(u32::from_be_bytes(key.rest()?.try_into().ok()?))
}
