//! Lookup, links, and taking names away.

use crate::kv::Key;
use crate::layout::InodeRow;
use crate::limits::LINK_MAX;
use crate::op::Reply;
use crate::txn::{Res, Txn, check_name};
use wire::{Errno, FileKind, Ino};

pub(super) fn lookup(t: &Txn<'_>, dir: Ino, name: &[u8]) -> Res<Reply> {
    let row = t.dir(dir)?;
    let ino = match name {
        b"." => dir,
        b".." => row.parent.into(),
        _ => {
            check_name(name)?;
            t.entry(dir, &row, name)?.ok_or(Errno::ENOENT)?.ino.into()
        }
    };
    Ok(Reply::Entry(t.inode(ino)?.attr(ino)))
}

pub(super) fn read_link(t: &Txn<'_>, ino: Ino) -> Res<Reply> {
    if t.inode(ino)?.kind() != FileKind::Symlink {
        return Err(Errno::EINVAL.into());
    }
    let target = t.get(&Key::symlink(ino))?.ok_or(Errno::EIO)?;
    Ok(Reply::Bytes(target.into()))
}

pub(super) fn link(t: &mut Txn<'_>, ino: Ino, dir: Ino, name: &[u8]) -> Res<Reply> {
    check_name(name)?;
    let mut row = t.inode(ino)?;
    let mut parent = t.live_dir(dir)?;
    if row.is_dir() {
        return Err(Errno::EPERM.into());
    }
    if matches!(name, b"." | b"..") || t.entry(dir, &parent, name)?.is_some() {
        return Err(Errno::EEXIST.into());
    }
    if row.nlink.get() == 0 {
        if !row.has(InodeRow::FLAG_TMPFILE) {
            return Err(Errno::ENOENT.into());
        }
        row.set_flag(InodeRow::FLAG_TMPFILE, false);
        t.delete(Key::orphan(ino));
    }
    if row.nlink.get() >= LINK_MAX {
        return Err(Errno::EMLINK.into());
    }
    row.add_links(1);
    row.changed(t.now());
    parent.modified(t.now());
    t.add_entry(dir, &mut parent, name, ino, row.kind());
    t.put_inode(dir, &parent);
    t.put_inode(ino, &row);
    Ok(Reply::Entry(row.attr(ino)))
}

pub(super) fn unlink(t: &mut Txn<'_>, dir: Ino, name: &[u8]) -> Res<Reply> {
    let mut parent = t.dir(dir)?;
    if matches!(name, b"." | b"..") {
        return Err(Errno::EISDIR.into());
    }
    check_name(name)?;
    let entry = t.entry(dir, &parent, name)?.ok_or(Errno::ENOENT)?;
    let ino = entry.ino.into();
    let mut row = t.inode(ino)?;
    if row.is_dir() {
        return Err(Errno::EISDIR.into());
    }
    t.remove_entry(dir, &mut parent, name, &entry);
    parent.modified(t.now());
    t.put_inode(dir, &parent);
    t.drop_link(ino, &mut row)?;
    Ok(Reply::Removed { ino, nlink: row.nlink.get() })
}

pub(super) fn rmdir(t: &mut Txn<'_>, dir: Ino, name: &[u8]) -> Res<Reply> {
    let mut parent = t.dir(dir)?;
    match name {
        b"." => return Err(Errno::EINVAL.into()),
        b".." => return Err(Errno::ENOTEMPTY.into()),
        _ => check_name(name)?,
    }
    let entry = t.entry(dir, &parent, name)?.ok_or(Errno::ENOENT)?;
    let ino = entry.ino.into();
    let mut row = t.inode(ino)?;
    if !row.is_dir() {
        return Err(Errno::ENOTDIR.into());
    }
    if row.entries.get() > 0 {
        return Err(Errno::ENOTEMPTY.into());
    }
    t.remove_entry(dir, &mut parent, name, &entry);
    parent.add_links(-1);
    parent.modified(t.now());
    t.put_inode(dir, &parent);
    t.drop_link(ino, &mut row)?;
    Ok(Reply::Removed { ino, nlink: 0 })
}
