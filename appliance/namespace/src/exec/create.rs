//! New inodes of every kind.

use crate::acl::{self, Acl};
use crate::exec::open;
use crate::kv::Key;
use crate::layout::InodeRow;
use crate::limits::{DIR_LINK_MAX, FIRST_COOKIE, SYMLINK_MAX};
use crate::op::{Create, Reply};
use crate::txn::{Res, Txn, bad, check_name};
use wire::{Errno, FileKind, Ino};

const S_ISGID: u32 = 0o2000;

pub(super) fn create(t: &mut Txn<'_>, c: &Create<'_>) -> Res<Reply> {
    let kind = FileKind::from_mode(c.mode).ok_or(Errno::EINVAL)?;
    let regular = kind == FileKind::Regular;
    if (c.open.is_some() || c.tmpfile) && !regular {
        return Err(Errno::EINVAL.into());
    }
    if !c.tmpfile {
        check_name(c.name)?;
    }
    let mut parent = t.live_dir(c.dir)?;
    if !c.tmpfile {
        if matches!(c.name, b"." | b"..") {
            return Err(Errno::EEXIST.into());
        }
        if let Some(entry) = t.entry(c.dir, &parent, c.name)? {
            if c.excl || !regular {
                return Err(Errno::EEXIST.into());
            }
            return existing(t, entry.ino.into(), c.open);
        }
    }
    check_target(kind, c.target)?;
    let is_dir = kind == FileKind::Directory;
    if is_dir && parent.nlink.get() >= DIR_LINK_MAX {
        return Err(Errno::EMLINK.into());
    }
    let ino = t.new_ino();
    let mut row = fresh(t, c, kind, &parent);
    inherit_acl(t, c, ino, kind, &parent, &mut row)?;
    match kind {
        FileKind::Regular => row.object = t.new_object().into(),
        FileKind::Directory => {
            row.nlink = 2.into();
            row.parent = c.dir.into();
            row.next_cookie = FIRST_COOKIE.into();
            parent.add_links(1);
            t.new_dirs.push(ino);
        }
        FileKind::Symlink => {
            row.size = (c.target.len() as u64).into();
            t.put(Key::symlink(ino), c.target);
        }
        FileKind::CharDevice | FileKind::BlockDevice => row.rdev = c.rdev.into(),
        FileKind::Fifo | FileKind::Socket => {}
    }
    if c.tmpfile {
        row.nlink = 0.into();
        row.set_flag(InodeRow::FLAG_TMPFILE, true);
        t.put(Key::orphan(ino), &[]);
    } else {
        t.add_entry(c.dir, &mut parent, c.name, ino, kind);
        parent.modified(t.now());
        t.put_inode(c.dir, &parent);
    }
    t.add_inode(ino, &row);
    let handle = match c.open {
        Some(flags) => Some(open::hold(t, ino, flags)?),
        None => None,
    };
    Ok(Reply::Created { attr: row.attr(ino), handle, existed: false })
}

/// The name is there and that is fine: an open of what it means.
fn existing(t: &mut Txn<'_>, ino: Ino, flags: Option<u32>) -> Res<Reply> {
    let row = t.inode(ino)?;
    let (attr, handle) = match flags {
        Some(flags) if row.is_file() => {
            let (attr, handle) = open::open_file(t, ino, row, flags)?;
            (attr, Some(handle))
        }
        // What it is decides the caller's kernel: it follows links and knows devices.
        _ => (row.attr(ino), None),
    };
    Ok(Reply::Created { attr, handle, existed: true })
}

fn check_target(kind: FileKind, target: &[u8]) -> Res<()> {
    if kind != FileKind::Symlink {
        return if target.is_empty() { Ok(()) } else { Err(Errno::EINVAL.into()) };
    }
    if target.len() > SYMLINK_MAX {
        return Err(Errno::ENAMETOOLONG.into());
    }
    if target.is_empty() {
        return Err(Errno::ENOENT.into());
    }
    if target.contains(&0) { Err(Errno::EINVAL.into()) } else { Ok(()) }
}

/// Owner and group: in a setgid directory the group is the directory's, and subdirectories go on with it (inode(7)).
fn fresh(t: &Txn<'_>, c: &Create<'_>, kind: FileKind, parent: &InodeRow) -> InodeRow {
    let mut mode = kind as u32 | c.mode & 0o7777;
    let mut gid = t.ctx.gid;
    if parent.mode.get() & S_ISGID != 0 {
        gid = parent.gid.get();
        if kind == FileKind::Directory {
            mode |= S_ISGID;
        }
    }
    if kind == FileKind::Symlink {
        mode = kind as u32 | 0o777;
    }
    InodeRow::new(mode, t.ctx.uid, gid, t.now())
}

/// A default ACL of the directory takes the place of the umask; subdirectories inherit it as their own default.
fn inherit_acl(
    t: &mut Txn<'_>,
    c: &Create<'_>,
    ino: Ino,
    kind: FileKind,
    parent: &InodeRow,
    row: &mut InodeRow,
) -> Res<()> {
    if kind == FileKind::Symlink {
        return Ok(());
    }
    if !parent.has(InodeRow::FLAG_DEFAULT_ACL) {
        row.mode = (row.mode.get() & !(c.umask & 0o777)).into();
        return Ok(());
    }
    let key = Key::xattr(c.dir, acl::DEFAULT);
    let value: Option<Box<[u8]>> = t.get(&key)?.map(Into::into);
    let Some(value) = value else { return Err(bad(&key, "the directory says it has a default ACL")) };
    let Ok(Some(default)) = Acl::parse(&value) else { return Err(bad(&key, "the stored ACL is invalid")) };
    let (access, mode) = default.inherit(row.mode.get());
    row.mode = mode.into();
    let mut list = 0;
    if !access.is_mode() {
        row.set_flag(InodeRow::FLAG_ACL, true);
        list += acl::ACCESS.len() + 1;
        t.put(Key::xattr(ino, acl::ACCESS), &access.encode());
    }
    if kind == FileKind::Directory {
        row.set_flag(InodeRow::FLAG_DEFAULT_ACL, true);
        list += acl::DEFAULT.len() + 1;
        t.put(Key::xattr(ino, acl::DEFAULT), &value);
    }
    row.xattr_list = (list as u32).into();
    Ok(())
}
