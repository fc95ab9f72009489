//! One operation in the making: reads through the view, gathers writes. Dropped without a trace unless it is finished.
//!
//! Owns the helpers that all operations share: typed rows, entries of directories, links, numbers. Must not change the view.

use crate::kv::{Counter, Key, KeyRange, Table};
use crate::layout::{self, BadRow, DentryRow, FreeRow, InodeRow};
use crate::limits;
use crate::op::{Effect, OpCtx};
use crate::opens::Opens;
use crate::record::Seq;
use crate::view::{Miss, RangeMiss, View};
use smallvec::SmallVec;
use std::cell::Cell;
use wire::{Errno, FileKind, Ino, ObjectId, Timestamp};
use zerocopy::IntoBytes;

/// Why an operation did not come to its end.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Fetch, then again.
    Miss(Miss),
    /// The answer is this error.
    Errno(Errno),
    /// A row is damaged.
    Bad(BadRow),
}

impl From<Errno> for Stop {
    fn from(e: Errno) -> Self {
        Self::Errno(e)
    }
}
impl From<Miss> for Stop {
    fn from(m: Miss) -> Self {
        Self::Miss(m)
    }
}

pub(crate) type Res<T> = Result<T, Stop>;

/// Numbers handed out and the persisted ceilings above them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Numbers {
    pub(crate) ino: Span,
    pub(crate) object: Span,
    pub(crate) free: Span,
    /// Inodes in use.
    pub(crate) inodes: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Span {
    pub(crate) next: u64,
    pub(crate) ceiling: u64,
}

/// Rows to write; `None` deletes.
pub(crate) type Writes = Vec<(Key, Option<Box<[u8]>>)>;

/// An open that takes effect with the operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewOpen {
    pub(crate) ino: Ino,
    pub(crate) handle: u64,
    pub(crate) flags: u32,
}

pub(crate) struct Txn<'v> {
    pub(crate) view: &'v View,
    pub(crate) opens: &'v Opens,
    pub(crate) ctx: OpCtx,
    pub(crate) numbers: Numbers,
    pub(crate) writes: Writes,
    pub(crate) effects: SmallVec<[Effect; 2]>,
    /// Directories that had no names before this operation.
    pub(crate) new_dirs: SmallVec<[Ino; 1]>,
    pub(crate) open: Option<NewOpen>,
    pub(crate) close: Option<u64>,
    depends: Cell<Seq>,
}

impl<'v> Txn<'v> {
    pub(crate) fn new(view: &'v View, opens: &'v Opens, numbers: Numbers, ctx: OpCtx) -> Self {
        Self {
            view,
            opens,
            ctx,
            numbers,
            writes: Vec::new(),
            effects: SmallVec::new(),
            new_dirs: SmallVec::new(),
            open: None,
            close: None,
            depends: Cell::new(0),
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.ctx.now
    }
    /// The last record among those that were read.
    pub(crate) fn depends(&self) -> Seq {
        self.depends.get()
    }
    pub(crate) fn depend(&self, seq: Seq) {
        self.depends.set(self.depends.get().max(seq));
    }

    pub(crate) fn get(&self, key: &Key) -> Res<Option<&[u8]>> {
        if let Some((_, v)) = self.writes.iter().rev().find(|(k, _)| k == key) {
            return Ok(v.as_deref());
        }
        let (v, seq) = self.view.get(key)?;
        self.depend(seq);
        Ok(v)
    }

    pub(crate) fn put(&mut self, key: Key, value: &[u8]) {
        self.write(key, Some(value.into()));
    }
    pub(crate) fn delete(&mut self, key: Key) {
        self.write(key, None);
    }
    fn write(&mut self, key: Key, value: Option<Box<[u8]>>) {
        match self.writes.iter_mut().find(|(k, _)| *k == key) {
            Some((_, v)) => *v = value,
            None => self.writes.push((key, value)),
        }
    }

    /// Rows of a range as the records left them. What this operation writes is not among them.
    pub(crate) fn scan(
        &self,
        range: &KeyRange,
        limit: usize,
        each: impl FnMut(&Key, &[u8]) -> bool,
    ) -> Res<()> {
        let seq = self.view.scan(range, limit, each)?;
        self.depend(seq);
        Ok(())
    }

    /// An inode, if there is one.
    pub(crate) fn try_inode(&self, ino: Ino) -> Res<Option<InodeRow>> {
        let key = Key::inode(ino);
        match self.get(&key)? {
            Some(v) => Ok(Some(layout::inode(v).map_err(|why| bad(&key, why))?)),
            None => Ok(None),
        }
    }
    /// An inode; ESTALE if it is gone.
    pub(crate) fn inode(&self, ino: Ino) -> Res<InodeRow> {
        Ok(self.try_inode(ino)?.ok_or(Errno::ESTALE)?)
    }
    /// A directory, perhaps removed.
    pub(crate) fn dir(&self, ino: Ino) -> Res<InodeRow> {
        let row = self.inode(ino)?;
        if row.is_dir() { Ok(row) } else { Err(Errno::ENOTDIR.into()) }
    }
    /// A directory that may get entries.
    pub(crate) fn live_dir(&self, ino: Ino) -> Res<InodeRow> {
        let row = self.dir(ino)?;
        if row.nlink.get() == 0 { Err(Errno::ENOENT.into()) } else { Ok(row) }
    }
    pub(crate) fn put_inode(&mut self, ino: Ino, row: &InodeRow) {
        self.put(Key::inode(ino), row.as_bytes());
    }

    /// What a name means.
    pub(crate) fn entry(&self, dir: Ino, row: &InodeRow, name: &[u8]) -> Res<Option<DentryRow>> {
        let key = Key::dentry(dir, name);
        let written = self.writes.iter().any(|(k, _)| *k == key);
        if row.entries.get() == 0 && !written {
            // The row that says so may be an unapplied one; its record was counted when it was read.
            return Ok(None);
        }
        let found = match self.get(&key) {
            Err(Stop::Miss(mut miss)) => {
                if row.entries.get() <= limits::PREFETCH_DIR && !self.view.has_filter(dir) {
                    let range = KeyRange::of(Table::Dentry, dir.0);
                    miss.ranges.push(RangeMiss { range, limit: 2 * limits::PREFETCH_DIR as usize });
                }
                return Err(Stop::Miss(miss));
            }
            other => other?,
        };
        match found {
            Some(v) => Ok(Some(layout::dentry(v).map_err(|why| bad(&key, why))?)),
            None => Ok(None),
        }
    }

    /// Adds a name under a fresh cookie. Times are the caller's.
    pub(crate) fn add_entry(&mut self, dir: Ino, row: &mut InodeRow, name: &[u8], ino: Ino, kind: FileKind) {
        if row.entries.get() == 0 && !self.view.has_filter(dir) {
            self.new_dirs.push(dir);
        }
        let cookie = row.next_cookie.get();
        row.next_cookie = (cookie + 1).into();
        row.entries = (row.entries.get() + 1).into();
        self.set_entry(dir, cookie, name, ino, kind);
    }

    /// Lets a name at a known position mean something (else).
    pub(crate) fn set_entry(&mut self, dir: Ino, cookie: u64, name: &[u8], ino: Ino, kind: FileKind) {
        let (d, c) = layout::encode_entry(ino, kind, cookie, name);
        self.put(Key::dentry(dir, name), d.as_bytes());
        self.put(Key::cookie(dir, cookie), &c);
    }

    /// Removes a name. Times are the caller's.
    pub(crate) fn remove_entry(&mut self, dir: Ino, row: &mut InodeRow, name: &[u8], entry: &DentryRow) {
        row.entries = row.entries.get().saturating_sub(1).into();
        self.delete(Key::dentry(dir, name));
        self.delete(Key::cookie(dir, entry.cookie.get()));
    }

    fn number(&mut self, which: Counter) -> u64 {
        let span = match which {
            Counter::Ino => &mut self.numbers.ino,
            Counter::Object => &mut self.numbers.object,
            _ => &mut self.numbers.free,
        };
        let n = span.next;
        span.next += 1;
        if span.next > span.ceiling {
            span.ceiling = n + limits::RESERVE;
            let ceiling = span.ceiling;
            self.put(Key::counter(which), &ceiling.to_le_bytes());
        }
        n
    }
    pub(crate) fn new_ino(&mut self) -> Ino {
        Ino(self.number(Counter::Ino))
    }
    pub(crate) fn new_object(&mut self) -> ObjectId {
        ObjectId(self.number(Counter::Object))
    }
    fn count_inodes(&mut self, n: i64) {
        self.numbers.inodes = self.numbers.inodes.saturating_add_signed(n);
        let inodes = self.numbers.inodes;
        self.put(Key::counter(Counter::Inodes), &inodes.to_le_bytes());
    }
    /// Writes a new inode and counts it.
    pub(crate) fn add_inode(&mut self, ino: Ino, row: &InodeRow) {
        self.put_inode(ino, row);
        self.count_inodes(1);
    }

    /// One link less. The last one takes the inode along, unless it is open.
    pub(crate) fn drop_link(&mut self, ino: Ino, row: &mut InodeRow) -> Res<()> {
        let links = if row.is_dir() { i64::from(row.nlink.get()) } else { 1 };
        row.add_links(-links);
        row.changed(self.now());
        if row.nlink.get() > 0 {
            self.put_inode(ino, row);
            return Ok(());
        }
        if self.opens.is_open(ino) {
            self.put_inode(ino, row);
            self.put(Key::orphan(ino), &[]);
            return Ok(());
        }
        self.destroy(ino, row)
    }

    /// Takes an inode and all that belongs to it out of the file system.
    pub(crate) fn destroy(&mut self, ino: Ino, row: &InodeRow) -> Res<()> {
        if row.xattr_list.get() > 0 {
            let mut keys = Vec::new();
            self.scan(&KeyRange::of(Table::Xattr, ino.0), limits::RECORD_ROWS_MAX, |k, _| {
                keys.push(k.clone());
                true
            })?;
            self.writes.extend(keys.into_iter().map(|k| (k, None)));
        }
        if row.kind() == FileKind::Symlink {
            self.delete(Key::symlink(ino));
        }
        self.drop_object(ino, row);
        self.delete(Key::inode(ino));
        self.clear_mark(ino);
        self.count_inodes(-1);
        self.effects.push(Effect::Gone { ino });
        Ok(())
    }

    /// The inode's row and its object's map are written by this record: nothing lazy is left.
    pub(crate) fn clear_mark(&mut self, ino: Ino) {
        if self.view.lazy.get(&ino).is_some_and(|l| l.mark != 0) {
            self.delete(Key::dirty(ino));
        }
    }

    /// Writes the pages of the chunk map that were changed lazily.
    fn write_lazy_pages(&mut self, ino: Ino) {
        let Some(lazy) = self.view.lazy.get(&ino) else { return };
        for key in &lazy.keys {
            if key.table() == Some(Table::ChunkMap)
                && let Some(v) = self.view.lazy_value(key)
            {
                self.put(key.clone(), v);
            }
        }
    }

    /// Gives a whole body of data to the free list.
    pub(crate) fn drop_object(&mut self, ino: Ino, row: &InodeRow) {
        if !row.has_chunks() {
            return;
        }
        let entry = self.add_free(ino, row, FreeRow::WHOLE, 0);
        self.effects.push(Effect::Free { entry });
    }

    /// Gives the end of a body of data to the free list.
    pub(crate) fn cut_object(&mut self, ino: Ino, row: &InodeRow, keep: u64) {
        if !row.has_chunks() {
            return;
        }
        let entry = self.add_free(ino, row, FreeRow::CUT, keep);
        let (object, from) = (row.object(), row.size.get());
        self.effects.push(Effect::Truncate { entry, ino, object, from, to: keep });
    }

    fn add_free(&mut self, ino: Ino, row: &InodeRow, kind: u16, keep: u64) -> u64 {
        self.write_lazy_pages(ino);
        let entry = self.number(Counter::Free);
        let free = FreeRow {
            layout: layout::LAYOUT.into(),
            kind: kind.into(),
            map_pages: row.map_pages,
            object: row.object,
            chunks: row.chunks,
            keep: keep.into(),
            from: row.size,
            ino: ino.into(),
        };
        self.put(Key::free(entry), free.as_bytes());
        entry
    }
}

/// A row that does not decode.
pub(crate) fn bad(key: &Key, why: &'static str) -> Stop {
    Stop::Bad(BadRow { key: format!("{key:?}"), why })
}

/// Is it a name that may be created, moved or removed?
pub(crate) fn check_name(name: &[u8]) -> Res<()> {
    if name.is_empty() {
        return Err(Errno::ENOENT.into());
    }
    if name.len() > limits::NAME_MAX {
        return Err(Errno::ENAMETOOLONG.into());
    }
    if name.iter().any(|b| *b == 0 || *b == b'/') { Err(Errno::EINVAL.into()) } else { Ok(()) }
}
