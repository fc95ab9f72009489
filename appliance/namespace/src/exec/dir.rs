//! Listing directories, a page at a time, in the order of cookies.

use crate::kv::{Key, KeyRange};
use crate::layout;
use crate::limits::{PAGE_BYTES_MAX, PAGE_ENTRIES_MAX};
use crate::op::{DirEntry, ENTRY_ATTR_COST, ENTRY_COST, Reply};
use crate::txn::{Res, Stop, Txn, bad};
use crate::view::Miss;
use wire::{Errno, FileKind, Ino};

const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

struct Page {
    entries: Vec<DirEntry>,
    room: u32,
    plus: bool,
}

impl Page {
    fn take(&mut self, ino: Ino, cookie: u64, kind: FileKind, name: &[u8]) -> bool {
        let cost = ENTRY_COST + name.len() as u32 + if self.plus { ENTRY_ATTR_COST } else { 0 };
        if cost > self.room || self.entries.len() >= PAGE_ENTRIES_MAX {
            return false;
        }
        self.room -= cost;
        self.entries.push(DirEntry { ino, cookie, kind, name: name.into(), attr: None });
        true
    }
}

pub(super) fn read(t: &Txn<'_>, dir: Ino, cookie: u64, max: u32, plus: bool) -> Res<Reply> {
    let row = t.dir(dir)?;
    let mut page = Page { entries: Vec::new(), room: max.min(PAGE_BYTES_MAX), plus };
    let parent = row.parent.into();
    let mut full = cookie < DOT && !page.take(dir, DOT, FileKind::Directory, b".");
    full = full || cookie < DOT_DOT && !page.take(parent, DOT_DOT, FileKind::Directory, b"..");
    if !full && row.entries.get() > 0 {
        full = list(t, dir, cookie, &mut page)?;
    }
    if full && page.entries.is_empty() {
        // Not even one entry fits: an endless loop if it were answered with an empty page.
        return Err(Errno::EINVAL.into());
    }
    if plus {
        add_attributes(t, &mut page.entries)?;
    }
    Ok(Reply::DirPage { entries: page.entries, eof: !full })
}

/// True where an entry did not fit.
fn list(t: &Txn<'_>, dir: Ino, cookie: u64, page: &mut Page) -> Res<bool> {
    let mut full = false;
    let mut damaged = None;
    let range = KeyRange::after_cookie(dir, cookie.max(DOT_DOT));
    t.scan(&range, PAGE_ENTRIES_MAX, |key, value| {
        let position = key.rest().and_then(|r| r.try_into().ok()).map(u64::from_be_bytes);
        let decoded = layout::cookie(value);
        let (Some(position), Ok((c, name))) = (position, decoded) else {
            damaged = Some(bad(key, decoded.err().unwrap_or("key of a position is too short")));
            return false;
        };
        let kind = FileKind::from_dirent_type(c.kind).unwrap_or(FileKind::Regular);
        full = !page.take(c.ino.into(), position, kind, name);
        !full
    })?;
    match damaged {
        Some(stop) => Err(stop),
        None => Ok(full),
    }
}

/// Attributes of all entries; whatever is unknown is asked for at once.
fn add_attributes(t: &Txn<'_>, entries: &mut [DirEntry]) -> Res<()> {
    let mut miss = Miss::default();
    for e in entries.iter_mut().filter(|e| e.cookie > DOT_DOT) {
        match t.try_inode(e.ino) {
            Ok(row) => e.attr = row.map(|r| r.attr(e.ino)),
            Err(Stop::Miss(_)) => miss.keys.push(Key::inode(e.ino)),
            Err(other) => return Err(other),
        }
    }
    if miss.is_empty() { Ok(()) } else { Err(miss.into()) }
}
