//! The rules of the file system, one file per group of operations, each a function of a transaction.
//!
//! Owns what POSIX and Linux ask of names and inodes. Must not see caches, records or clients. Permission checks are the
//! kernel's; everything else that follows from who asks (setgid, ACL inheritance, killed privileges) is here.

mod attr;
mod create;
mod dir;
mod names;
mod open;
mod rename;
mod xattr;

pub(crate) use attr::{drop_caps, kill_suidgid, moves_atime};
pub(crate) use open::reap;

use crate::layout::InodeRow;
use crate::op::{Access, Op, Reply, open_flags};
use crate::txn::{Res, Txn};
use smallvec::SmallVec;
use wire::Ino;

/// Inodes that an operation touches.
pub type Touched = SmallVec<[(Ino, Access); 4]>;

/// Totals that the shell knows.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks that users may take.
    pub available: u64,
    /// Bytes in a block.
    pub block_size: u32,
    /// Bytes by which unapplied rows may grow in memory before what makes rows is ENOSPC; what removes them goes on. 0: the
    /// namespace's own room is used up.
    pub room: u64,
    /// What [`Namespace::applied_bytes`](crate::Namespace::applied_bytes) said before `room` was measured.
    pub since: u64,
}

impl Default for Space {
    fn default() -> Self {
        Self { blocks: 0, free: 0, available: 0, block_size: 0, room: u64::MAX, since: 0 }
    }
}

/// Runs one operation.
pub(crate) fn run(t: &mut Txn<'_>, op: &Op<'_>, space: &Space) -> Res<Reply> {
    match *op {
        Op::Lookup { dir, name } => names::lookup(t, dir, name),
        Op::GetAttr { ino } => Ok(Reply::Attr(t.inode(ino)?.attr(ino))),
        Op::SetAttr { ino, set } => attr::set(t, ino, &set),
        Op::ReadLink { ino } => names::read_link(t, ino),
        Op::Create(ref c) => create::create(t, c),
        Op::Link { ino, dir, name } => names::link(t, ino, dir, name),
        Op::Unlink { dir, name } => names::unlink(t, dir, name),
        Op::Rmdir { dir, name } => names::rmdir(t, dir, name),
        Op::Rename { dir, name, new_dir, new_name, flags } => {
            rename::rename(t, (dir, name), (new_dir, new_name), flags)
        }
        Op::Open { ino, flags } => open::open(t, ino, flags),
        Op::Close { ino, handle } => open::close(t, ino, handle),
        Op::ReadDir { dir, cookie, max, plus } => dir::read(t, dir, cookie, max, plus),
        Op::GetXattr { ino, name } => xattr::get(t, ino, name),
        Op::SetXattr { ino, name, value, flags } => xattr::set(t, ino, name, value, flags),
        Op::ListXattr { ino } => xattr::list(t, ino),
        Op::RemoveXattr { ino, name } => xattr::remove(t, ino, name),
        Op::StatFs => Ok(Reply::StatFs(stat_fs(space, t.numbers.inodes))),
    }
}

/// Does it need new room in the namespace?
pub(crate) fn grows(op: &Op<'_>) -> bool {
    match op {
        Op::Create(_) | Op::Link { .. } | Op::SetXattr { .. } => true,
        Op::Rename { name, new_name, .. } => new_name.len() > name.len(),
        _ => false,
    }
}

/// Does it change anything that is logged? Read-only operations run on a damaged namespace too.
pub(crate) fn mutates(op: &Op<'_>) -> bool {
    match op {
        Op::Lookup { .. }
        | Op::GetAttr { .. }
        | Op::ReadLink { .. }
        | Op::ReadDir { .. }
        | Op::GetXattr { .. }
        | Op::ListXattr { .. }
        | Op::StatFs
        | Op::Close { .. } => false,
        Op::Open { flags, .. } => flags & open_flags::TRUNC != 0,
        _ => true,
    }
}

/// One inode per free block is what free space could hold: an inode, its name and its log share a block.
pub(crate) fn stat_fs(s: &Space, inodes: u64) -> wire::StatFs {
    wire::StatFs {
        blocks: s.blocks.into(),
        free: s.free.into(),
        available: s.available.into(),
        files: inodes.saturating_add(s.available).into(),
        files_free: s.available.into(),
        block_size: s.block_size.into(),
        name_max: (crate::limits::NAME_MAX as u32).into(),
    }
}

/// The inodes that an operation reads and changes.
pub(crate) fn touches(t: &Txn<'_>, op: &Op<'_>) -> Res<Touched> {
    use Access::{Modify, Read};
    let mut out = Touched::new();
    let child = |dir: Ino, name: &[u8], how: Access, out: &mut Touched| -> Res<Option<InodeRow>> {
        let Some(row) = t.try_inode(dir)?.filter(InodeRow::is_dir) else { return Ok(None) };
        let (ino, row) = match name {
            b"." => (dir, row),
            b".." => (row.parent.into(), row),
            _ => match t.entry(dir, &row, name)? {
                Some(e) => {
                    let ino = e.ino.into();
                    let Some(row) = t.try_inode(ino)? else { return Ok(None) };
                    (ino, row)
                }
                None => return Ok(None),
            },
        };
        out.push((ino, how));
        Ok(Some(row))
    };
    match *op {
        Op::Lookup { dir, name } => {
            out.push((dir, Read));
            child(dir, name, Read, &mut out)?;
        }
        Op::Create(ref c) => {
            out.push((c.dir, if c.tmpfile { Read } else { Modify }));
            if !c.tmpfile && !c.excl {
                let cut = c.open.is_some_and(|f| f & open_flags::TRUNC != 0);
                child(c.dir, c.name, if cut { Modify } else { Read }, &mut out)?;
            }
        }
        Op::Link { ino, dir, name: _ } => out.extend([(dir, Modify), (ino, Modify)]),
        Op::Unlink { dir, name } | Op::Rmdir { dir, name } => {
            out.push((dir, Modify));
            child(dir, name, Modify, &mut out)?;
        }
        Op::Rename { dir, name, new_dir, new_name, flags: _ } => {
            out.push((dir, Modify));
            child(dir, name, Modify, &mut out)?;
            out.push((new_dir, Modify));
            child(new_dir, new_name, Modify, &mut out)?;
        }
        Op::SetAttr { ino, .. } | Op::SetXattr { ino, .. } | Op::RemoveXattr { ino, .. } => {
            out.push((ino, Modify));
        }
        Op::Open { ino, flags } => {
            out.push((ino, if flags & open_flags::TRUNC != 0 { Modify } else { Read }));
        }
        Op::GetAttr { ino } | Op::ReadLink { ino } | Op::GetXattr { ino, .. } | Op::ListXattr { ino } => {
            out.push((ino, Read));
        }
        Op::ReadDir { dir, .. } => out.push((dir, Read)),
        Op::Close { .. } | Op::StatFs => {}
    }
    // One entry per inode, the stronger access.
    out.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    out.dedup_by_key(|(ino, _)| *ino);
    Ok(out)
}
