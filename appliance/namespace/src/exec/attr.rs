//! Changing attributes: mode, owner, size, times, and what follows from each.

use crate::acl::{self, Acl};
use crate::kv::Key;
use crate::layout::InodeRow;
use crate::limits::FILE_MAX;
use crate::op::Reply;
use crate::txn::{Res, Txn, bad};
use wire::{CHUNK_SIZE, Errno, FileKind, Ino, SetAttr, SetTime, Timestamp};

const S_ISUID: u32 = 0o4000;
const S_ISGID: u32 = 0o2000;
const S_IXGRP: u32 = 0o010;
/// Name of the attribute that carries file capabilities.
pub(super) const CAPS: &[u8] = b"security.capability";
const DAY: i64 = 86_400;

pub(super) fn set(t: &mut Txn<'_>, ino: Ino, set: &SetAttr) -> Res<Reply> {
    let mut row = t.inode(ino)?;
    if *set == SetAttr::default() {
        return Ok(Reply::Attr(row.attr(ino)));
    }
    let now = t.now();
    if let Some(size) = set.size {
        resize(t, ino, &mut row, size)?;
        row.mtime = now;
        drop_caps(t, ino, &mut row)?;
    }
    let owner = set.uid.is_some() || set.gid.is_some();
    if owner {
        row.uid = set.uid.map_or(row.uid, Into::into);
        row.gid = set.gid.map_or(row.gid, Into::into);
    }
    if (owner || set.kill_suidgid) && !row.is_dir() {
        kill_suidgid(&mut row);
    }
    if owner {
        drop_caps(t, ino, &mut row)?;
    }
    if let Some(mode) = set.mode {
        chmod(t, ino, &mut row, mode)?;
    }
    let time = |s: SetTime| match s {
        SetTime::At(t) => t,
        SetTime::Now => now,
    };
    row.atime = set.atime.map_or(row.atime, time);
    row.mtime = set.mtime.map_or(row.mtime, time);
    row.changed(now);
    t.put_inode(ino, &row);
    Ok(Reply::Attr(row.attr(ino)))
}

/// Permission bits, and the ACL that they stand for.
fn chmod(t: &mut Txn<'_>, ino: Ino, row: &mut InodeRow, mode: u32) -> Res<()> {
    row.mode = (row.mode.get() & !0o7777 | mode & 0o7777).into();
    if !row.has(InodeRow::FLAG_ACL) {
        return Ok(());
    }
    let key = Key::xattr(ino, acl::ACCESS);
    let stored = t.get(&key)?.map(Acl::parse);
    match stored {
        Some(Ok(Some(mut a))) => {
            a.chmod(mode);
            t.put(key, &a.encode());
            Ok(())
        }
        _ => Err(bad(&key, "the stored ACL is missing or invalid")),
    }
}

/// Clears set-user-ID, and set-group-ID where the group may execute (without that bit it means mandatory locking).
pub(crate) fn kill_suidgid(row: &mut InodeRow) -> bool {
    let old = row.mode.get();
    let mut mode = old & !S_ISUID;
    if mode & S_IXGRP != 0 {
        mode &= !S_ISGID;
    }
    row.mode = mode.into();
    mode != old
}

/// File capabilities do not survive a change of contents or owner.
pub(crate) fn drop_caps(t: &mut Txn<'_>, ino: Ino, row: &mut InodeRow) -> Res<()> {
    if row.has(InodeRow::FLAG_CAPS) {
        row.set_flag(InodeRow::FLAG_CAPS, false);
        row.xattr_list = row.xattr_list.get().saturating_sub(CAPS.len() as u32 + 1).into();
        t.delete(Key::xattr(ino, CAPS));
    }
    Ok(())
}

/// Cuts or extends. Extending only changes the size: what is not written reads as zeros.
fn resize(t: &mut Txn<'_>, ino: Ino, row: &mut InodeRow, size: u64) -> Res<()> {
    match row.kind() {
        FileKind::Regular => {}
        FileKind::Directory => return Err(Errno::EISDIR.into()),
        _ => return Err(Errno::EINVAL.into()),
    }
    if size > FILE_MAX {
        return Err(Errno::EFBIG.into());
    }
    if size == 0 {
        return cut_to_zero(t, ino, row);
    }
    if size < row.size.get() {
        let first = size / CHUNK_SIZE;
        if row.map_pages.get() > 0 || (first < 64 && row.chunks.get() >> first != 0) {
            t.cut_object(ino, row, size);
        }
        let keep = size.div_ceil(CHUNK_SIZE);
        if keep < 64 {
            row.chunks = (row.chunks.get() & ((1 << keep) - 1)).into();
        }
    }
    row.size = size.into();
    Ok(())
}

/// A fresh body of data; the old one goes to the free list as a whole.
pub(super) fn cut_to_zero(t: &mut Txn<'_>, ino: Ino, row: &mut InodeRow) -> Res<()> {
    if row.has_chunks() {
        t.drop_object(ino, row);
        row.object = t.new_object().into();
        row.chunks = 0.into();
        row.map_pages = 0.into();
        t.clear_mark(ino);
    }
    row.blocks = 0.into();
    row.size = 0.into();
    Ok(())
}

/// Does a read at `now` move the access time (mount(8), relatime)?
#[must_use]
pub(crate) fn moves_atime(row: &InodeRow, now: Timestamp) -> bool {
    row.atime <= row.mtime || row.atime <= row.ctime || now.sec().saturating_sub(row.atime.sec()) >= DAY
}
