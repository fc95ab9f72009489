//! Open and close. An open keeps an unlinked inode alive.

use crate::exec::attr;
use crate::kv::Key;
use crate::layout::InodeRow;
use crate::op::{Reply, open_flags};
use crate::txn::{NewOpen, Res, Txn};
use wire::{Attr, Errno, Ino};

pub(super) fn open(t: &mut Txn<'_>, ino: Ino, flags: u32) -> Res<Reply> {
    let row = t.inode(ino)?;
    let (attr, handle) = open_file(t, ino, row, flags)?;
    Ok(Reply::Opened { attr, handle })
}

/// Opens, cutting to zero where asked.
pub(super) fn open_file(t: &mut Txn<'_>, ino: Ino, mut row: InodeRow, flags: u32) -> Res<(Attr, u64)> {
    if flags & !open_flags::ALL != 0 {
        return Err(Errno::EINVAL.into());
    }
    if row.is_dir() && flags & (open_flags::WRITE | open_flags::TRUNC) != 0 {
        return Err(Errno::EISDIR.into());
    }
    let handle = hold(t, ino, flags)?;
    if flags & open_flags::TRUNC != 0 && row.is_file() {
        attr::cut_to_zero(t, ino, &mut row)?;
        if flags & open_flags::KILL_SUIDGID != 0 {
            attr::kill_suidgid(&mut row);
        }
        attr::drop_caps(t, ino, &mut row)?;
        row.modified(t.now());
        t.put_inode(ino, &row);
    }
    Ok((row.attr(ino), handle))
}

/// Registers an open with the operation.
pub(super) fn hold(t: &mut Txn<'_>, ino: Ino, flags: u32) -> Res<u64> {
    if flags & !open_flags::ALL != 0 {
        return Err(Errno::EINVAL.into());
    }
    if t.opens.is_full(t.ctx.request.client) {
        return Err(Errno::ENFILE.into());
    }
    let handle = t.opens.next();
    t.open = Some(NewOpen { ino, handle, flags });
    Ok(handle)
}

pub(super) fn close(t: &mut Txn<'_>, ino: Ino, handle: u64) -> Res<Reply> {
    let client = t.ctx.request.client;
    match t.opens.get(client, handle) {
        None => return Ok(Reply::Done),
        Some((held, _)) if held != ino => return Err(Errno::EBADF.into()),
        Some(_) => {}
    }
    t.close = Some(handle);
    if t.opens.is_last(client, handle).is_some() {
        reap(t, ino)?;
    }
    Ok(Reply::Done)
}

/// The last open of an inode goes: without links it goes too.
pub(crate) fn reap(t: &mut Txn<'_>, ino: Ino) -> Res<()> {
    if let Some(row) = t.try_inode(ino)?
        && row.nlink.get() == 0
    {
        t.delete(Key::orphan(ino));
        t.destroy(ino, &row)?;
    }
    Ok(())
}
