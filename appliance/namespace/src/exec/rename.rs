//! Rename: moving, replacing, exchanging (rename(2), renameat2(2)).

use crate::layout::{DentryRow, InodeRow};
use crate::limits::{DEPTH_MAX, DIR_LINK_MAX};
use crate::op::{RENAME_EXCHANGE, RENAME_NOREPLACE, Reply};
use crate::txn::{Res, Txn, check_name};
use wire::{Errno, Ino, ROOT_INO};

type Name<'a> = (Ino, &'a [u8]);

struct Side<'a> {
    dir: Ino,
    name: &'a [u8],
    entry: DentryRow,
    row: InodeRow,
}

impl Side<'_> {
    fn ino(&self) -> Ino {
        self.entry.ino.into()
    }
}

pub(super) fn rename(t: &mut Txn<'_>, from: Name<'_>, to: Name<'_>, flags: u32) -> Res<Reply> {
    let (noreplace, exchange) = (flags & RENAME_NOREPLACE != 0, flags & RENAME_EXCHANGE != 0);
    if flags & !(RENAME_NOREPLACE | RENAME_EXCHANGE) != 0 || (noreplace && exchange) {
        return Err(Errno::EINVAL.into());
    }
    let dots = |n: &[u8]| matches!(n, b"." | b"..");
    if dots(from.1) || dots(to.1) {
        return Err(if noreplace && dots(to.1) { Errno::EEXIST } else { Errno::EBUSY }.into());
    }
    check_name(from.1)?;
    check_name(to.1)?;
    let src = side(t, from)?.ok_or(Errno::ENOENT)?;
    t.live_dir(to.0)?;
    let dst = side(t, to)?;
    if src.row.is_dir() && from.0 != to.0 && is_within(t, to.0, src.ino())? {
        return Err(Errno::EINVAL.into());
    }
    match dst {
        None if exchange => Err(Errno::ENOENT.into()),
        Some(_) if noreplace => Err(Errno::EEXIST.into()),
        Some(dst) if dst.ino() == src.ino() => {
            // Two names of one inode: nothing happens (POSIX rename()). Who caches names sees by the equal numbers that both stay.
            Ok(Reply::Renamed { moved: src.ino(), replaced: Some(dst.ino()) })
        }
        Some(dst) if exchange => swap(t, &src, &dst),
        dst => mv(t, &src, to, dst),
    }
}

fn side<'a>(t: &Txn<'_>, (dir, name): Name<'a>) -> Res<Option<Side<'a>>> {
    let parent = t.dir(dir)?;
    let Some(entry) = t.entry(dir, &parent, name)? else { return Ok(None) };
    let row = t.inode(entry.ino.into())?;
    Ok(Some(Side { dir, name, entry, row }))
}

/// Is `dir` the same as `top` or below it?
fn is_within(t: &Txn<'_>, dir: Ino, top: Ino) -> Res<bool> {
    let mut at = dir;
    for _ in 0..DEPTH_MAX {
        if at == top {
            return Ok(true);
        }
        if at == ROOT_INO {
            return Ok(false);
        }
        at = t.dir(at)?.parent.into();
    }
    Err(Errno::ELOOP.into())
}

fn mv(t: &mut Txn<'_>, src: &Side<'_>, to: Name<'_>, dst: Option<Side<'_>>) -> Res<Reply> {
    let (now, ino, is_dir) = (t.now(), src.ino(), src.row.is_dir());
    let (to_dir, to_name) = to;
    let same = src.dir == to_dir;
    if let Some(dst) = &dst {
        match (is_dir, dst.row.is_dir()) {
            (true, false) => return Err(Errno::ENOTDIR.into()),
            (false, true) => return Err(Errno::EISDIR.into()),
            (_, true) if dst.row.entries.get() > 0 => return Err(Errno::ENOTEMPTY.into()),
            _ => {}
        }
    }
    let mut old_parent = t.dir(src.dir)?;
    t.remove_entry(src.dir, &mut old_parent, src.name, &src.entry);
    if is_dir {
        old_parent.add_links(-1);
    }
    old_parent.modified(now);
    t.put_inode(src.dir, &old_parent);

    let mut new_parent = if same { old_parent } else { t.dir(to_dir)? };
    match &dst {
        // The name keeps its position: a listing in progress sees it once.
        Some(dst) => t.set_entry(to_dir, dst.entry.cookie.get(), to_name, ino, src.row.kind()),
        None => t.add_entry(to_dir, &mut new_parent, to_name, ino, src.row.kind()),
    }
    if is_dir && dst.is_none() {
        if new_parent.nlink.get() >= DIR_LINK_MAX {
            return Err(Errno::EMLINK.into());
        }
        new_parent.add_links(1);
    }
    if !same {
        new_parent.modified(now);
    }
    t.put_inode(to_dir, &new_parent);

    let mut row = src.row;
    if is_dir {
        row.parent = to_dir.into();
    }
    row.changed(now);
    t.put_inode(ino, &row);
    let replaced = dst.as_ref().map(Side::ino);
    if let Some(mut dst) = dst {
        t.drop_link(dst.ino(), &mut dst.row)?;
    }
    Ok(Reply::Renamed { moved: ino, replaced })
}

fn swap(t: &mut Txn<'_>, a: &Side<'_>, b: &Side<'_>) -> Res<Reply> {
    let now = t.now();
    if b.row.is_dir() && a.dir != b.dir && is_within(t, a.dir, b.ino())? {
        return Err(Errno::EINVAL.into());
    }
    t.set_entry(a.dir, a.entry.cookie.get(), a.name, b.ino(), b.row.kind());
    t.set_entry(b.dir, b.entry.cookie.get(), b.name, a.ino(), a.row.kind());
    let moved = i64::from(a.row.is_dir()) - i64::from(b.row.is_dir());
    for (dir, links) in [(a.dir, -moved), (b.dir, moved)] {
        let mut row = t.dir(dir)?;
        if a.dir != b.dir {
            row.add_links(links);
        }
        row.modified(now);
        t.put_inode(dir, &row);
    }
    for (side, dir) in [(a, b.dir), (b, a.dir)] {
        // Read again: the directory of one may be the other.
        let mut row = t.inode(side.ino())?;
        if row.is_dir() {
            row.parent = dir.into();
        }
        row.changed(now);
        t.put_inode(side.ino(), &row);
    }
    Ok(Reply::Renamed { moved: a.ino(), replaced: Some(b.ino()) })
}
