//! Extended attributes (xattr(7)) and POSIX ACLs.

use crate::acl::{self, Acl};
use crate::exec::attr::CAPS;
use crate::kv::{Key, KeyRange, Table};
use crate::layout::InodeRow;
use crate::limits::{RECORD_ROWS_MAX, XATTR_LIST_MAX, XATTR_NAME_MAX, XATTR_VALUE_MAX};
use crate::op::{Reply, XATTR_ACL_KILL_SGID, XATTR_CREATE, XATTR_REPLACE};
use crate::txn::{Res, Txn};
use wire::{Errno, FileKind, Ino};

const S_ISGID: u32 = 0o2000;

/// Name spaces. Whether the caller may use one is the kernel's check.
fn check_name(name: &[u8]) -> Res<()> {
    if name.len() > XATTR_NAME_MAX {
        return Err(Errno::ERANGE.into());
    }
    if name.contains(&0) {
        return Err(Errno::EINVAL.into());
    }
    for space in [&b"user."[..], b"trusted.", b"security."] {
        if let Some(rest) = name.strip_prefix(space) {
            return if rest.is_empty() { Err(Errno::EINVAL.into()) } else { Ok(()) };
        }
    }
    if is_acl(name) { Ok(()) } else { Err(Errno::EOPNOTSUPP.into()) }
}

fn is_acl(name: &[u8]) -> bool {
    name == acl::ACCESS || name == acl::DEFAULT
}

pub(super) fn get(t: &Txn<'_>, ino: Ino, name: &[u8]) -> Res<Reply> {
    check_name(name)?;
    let row = t.inode(ino)?;
    if is_acl(name) && row.kind() == FileKind::Symlink {
        return Err(Errno::EOPNOTSUPP.into());
    }
    match find(t, ino, &row, name)? {
        Some(v) => Ok(Reply::Bytes(v.into())),
        None => Err(Errno::ENODATA.into()),
    }
}

/// An inode knows how many bytes its names take: without any there is nothing to fetch.
fn find<'t>(t: &'t Txn<'_>, ino: Ino, row: &InodeRow, name: &[u8]) -> Res<Option<&'t [u8]>> {
    if row.xattr_list.get() == 0 { Ok(None) } else { t.get(&Key::xattr(ino, name)) }
}

pub(super) fn list(t: &Txn<'_>, ino: Ino) -> Res<Reply> {
    let row = t.inode(ino)?;
    let mut out = Vec::with_capacity(row.xattr_list.get() as usize);
    if row.xattr_list.get() > 0 {
        t.scan(&KeyRange::of(Table::Xattr, ino.0), RECORD_ROWS_MAX, |key, _| {
            let name = key.rest().unwrap_or_default();
            // xattr(7): trusted attributes are for the superuser to see.
            if t.ctx.uid == 0 || !name.starts_with(b"trusted.") {
                out.extend_from_slice(name);
                out.push(0);
            }
            true
        })?;
    }
    Ok(Reply::Bytes(out.into()))
}

pub(super) fn set(t: &mut Txn<'_>, ino: Ino, name: &[u8], value: &[u8], flags: u32) -> Res<Reply> {
    check_name(name)?;
    if flags & !(XATTR_CREATE | XATTR_REPLACE | XATTR_ACL_KILL_SGID) != 0 {
        return Err(Errno::EINVAL.into());
    }
    if value.len() > XATTR_VALUE_MAX {
        return Err(Errno::E2BIG.into());
    }
    let mut row = t.inode(ino)?;
    let there = find(t, ino, &row, name)?.is_some();
    if flags & XATTR_CREATE != 0 && there {
        return Err(Errno::EEXIST.into());
    }
    if flags & XATTR_REPLACE != 0 && !there {
        return Err(Errno::ENODATA.into());
    }
    if is_acl(name) {
        set_acl(t, ino, &mut row, name, value, there)?;
        if flags & XATTR_ACL_KILL_SGID != 0 {
            row.mode = (row.mode.get() & !S_ISGID).into();
        }
    } else {
        if name == CAPS {
            row.set_flag(InodeRow::FLAG_CAPS, true);
        }
        store(t, ino, &mut row, name, value, there)?;
    }
    row.changed(t.now());
    t.put_inode(ino, &row);
    Ok(Reply::Attr(row.attr(ino)))
}

fn store(t: &mut Txn<'_>, ino: Ino, row: &mut InodeRow, name: &[u8], value: &[u8], there: bool) -> Res<()> {
    if !there {
        let list = row.xattr_list.get() + name.len() as u32 + 1;
        if list > XATTR_LIST_MAX {
            return Err(Errno::ENOSPC.into());
        }
        row.xattr_list = list.into();
    }
    t.put(Key::xattr(ino, name), value);
    Ok(())
}

fn unstore(t: &mut Txn<'_>, ino: Ino, row: &mut InodeRow, name: &[u8]) {
    row.xattr_list = row.xattr_list.get().saturating_sub(name.len() as u32 + 1).into();
    t.delete(Key::xattr(ino, name));
}

/// Sets or (by an empty one) removes an ACL. An access ACL changes the mode; one that says no more than a mode is not stored.
fn set_acl(t: &mut Txn<'_>, ino: Ino, row: &mut InodeRow, name: &[u8], value: &[u8], there: bool) -> Res<()> {
    if row.kind() == FileKind::Symlink {
        return Err(Errno::EOPNOTSUPP.into());
    }
    let parsed = if value.is_empty() { None } else { Acl::parse(value)? };
    let access = name == acl::ACCESS;
    if !access && !row.is_dir() {
        return if parsed.is_some() { Err(Errno::EACCES.into()) } else { Ok(()) };
    }
    if let (true, Some(a)) = (access, &parsed) {
        row.mode = (row.mode.get() & !0o777 | a.mode()).into();
    }
    let flag = if access { InodeRow::FLAG_ACL } else { InodeRow::FLAG_DEFAULT_ACL };
    match parsed {
        Some(a) if !access || !a.is_mode() => {
            store(t, ino, row, name, &a.encode(), there)?;
            row.set_flag(flag, true);
        }
        _ => {
            if there {
                unstore(t, ino, row, name);
            }
            row.set_flag(flag, false);
        }
    }
    Ok(())
}

pub(super) fn remove(t: &mut Txn<'_>, ino: Ino, name: &[u8]) -> Res<Reply> {
    check_name(name)?;
    let mut row = t.inode(ino)?;
    let there = find(t, ino, &row, name)?.is_some();
    if is_acl(name) {
        // The kernel removes an ACL that may not be there.
        set_acl(t, ino, &mut row, name, &[], there)?;
    } else {
        if !there {
            return Err(Errno::ENODATA.into());
        }
        if name == CAPS {
            row.set_flag(InodeRow::FLAG_CAPS, false);
        }
        unstore(t, ino, &mut row, name);
    }
    row.changed(t.now());
    t.put_inode(ino, &row);
    Ok(Reply::Attr(row.attr(ino)))
}
