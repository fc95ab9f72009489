//! Between the service's types and the protocol's: attributes, times, locks, open flags.

use crate::abi::flags::{fattr, fopen};
use crate::abi::reply::{Attr as RawAttr, AttrOut, EntryOut, StatfsOut, Statx, StatxOut, SxTime};
use crate::abi::request::{FileLock, SetattrIn};
use client::service::{
    Attr, Conflict, Errno, IoMode, LockKind, LockRange, LockRequest, LockSpace, LockType, OpenFlags, SetAttr,
    SetTime, StatFs, Timestamp,
};
use std::time::Duration;

/// Longest lifetime that a name gets, whatever the service says: see the end of [`crate::notify`]'s head.
pub const ENTRY_TTL_MAX: Duration = Duration::from_secs(60);
/// `st_blksize`: buffers of the C library have this size. Each write goes to the server, so 4 KiB would be too small; a MiB for each open stream too much.
const BLOCK_SIZE: u32 = 64 << 10;

/// Attributes as the kernel wants them.
#[must_use]
pub fn attr(a: &Attr) -> RawAttr {
    RawAttr {
        ino: a.ino.get(),
        size: a.size.get(),
        blocks: a.blocks.get(),
        // Seconds before 1970 are negative and stand as their two's complement.
        atime: a.atime.sec() as u64,
        mtime: a.mtime.sec() as u64,
        ctime: a.ctime.sec() as u64,
        atimensec: a.atime.nsec(),
        mtimensec: a.mtime.nsec(),
        ctimensec: a.ctime.nsec(),
        mode: a.mode.get(),
        nlink: a.nlink.get(),
        uid: a.uid.get(),
        gid: a.gid.get(),
        rdev: a.rdev.get(),
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// Attributes with a lifetime.
#[must_use]
pub fn attr_out(a: &Attr, ttl: Duration) -> AttrOut {
    AttrOut { attr_valid: ttl.as_secs(), attr_valid_nsec: ttl.subsec_nanos(), dummy: 0, attr: attr(a) }
}

/// A name's reply.
#[must_use]
pub fn entry_out(node: u64, a: &Attr, attr_ttl: Duration, entry_ttl: Duration) -> EntryOut {
    let entry_ttl = entry_ttl.min(ENTRY_TTL_MAX);
    EntryOut {
        nodeid: node,
        generation: 0,
        entry_valid: entry_ttl.as_secs(),
        entry_valid_nsec: entry_ttl.subsec_nanos(),
        attr_valid: attr_ttl.as_secs(),
        attr_valid_nsec: attr_ttl.subsec_nanos(),
        attr: attr(a),
    }
}

fn sx_time(t: &Timestamp) -> SxTime {
    SxTime { tv_sec: t.sec(), tv_nsec: t.nsec(), reserved: 0 }
}

/// STATX_BASIC_STATS | STATX_BTIME: what every inode has.
const STATX_MASK: u32 = 0x0FFF;

/// statx(2): the same and the birth time.
#[must_use]
pub fn statx_out(a: &Attr, ttl: Duration) -> StatxOut {
    let rdev = a.rdev.get();
    let stat = Statx {
        mask: STATX_MASK,
        blksize: BLOCK_SIZE,
        nlink: a.nlink.get(),
        uid: a.uid.get(),
        gid: a.gid.get(),
        mode: a.mode.get() as u16,
        ino: a.ino.get(),
        size: a.size.get(),
        blocks: a.blocks.get(),
        atime: sx_time(&a.atime),
        btime: sx_time(&a.btime),
        ctime: sx_time(&a.ctime),
        mtime: sx_time(&a.mtime),
        // The kernel's new_encode_dev: 8 low bits of the minor, 12 of the major, the rest of the minor.
        rdev_major: (rdev >> 8) & 0xFFF,
        rdev_minor: (rdev & 0xFF) | ((rdev >> 12) & 0xFFF00),
        ..Statx::default()
    };
    StatxOut { attr_valid: ttl.as_secs(), attr_valid_nsec: ttl.subsec_nanos(), stat, ..StatxOut::default() }
}

/// What a SETATTR asks for.
#[must_use]
pub fn set_attr(arg: &SetattrIn) -> SetAttr {
    let has = |flag: u32| arg.valid & flag != 0;
    // A request that names nothing is the kernel's way to say that set-id bits go: before fallocate(2) and copy_file_range(2) by one who may not keep
    // them, and for chown(2) with neither owner. The times and flags that come with it are of its own.
    let names_nothing =
        !has(fattr::MODE | fattr::UID | fattr::GID | fattr::SIZE | fattr::ATIME | fattr::MTIME);
    let time = |set: u32, now: u32, sec: u64, nsec: u32| match () {
        () if has(now) => Some(SetTime::Now),
        () if has(set) => Some(SetTime::At(Timestamp::new(sec as i64, nsec))),
        () => None,
    };
    SetAttr {
        mode: has(fattr::MODE).then_some(arg.mode & 0o7777),
        uid: has(fattr::UID).then_some(arg.uid),
        gid: has(fattr::GID).then_some(arg.gid),
        size: has(fattr::SIZE).then_some(arg.size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, arg.atime, arg.atimensec),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, arg.mtime, arg.mtimensec),
        kill_suidgid: has(fattr::KILL_SUIDGID) || names_nothing,
    }
}

/// Whether open(2) flags have all bits of `flag`.
#[must_use]
pub fn has_flag(flags: u32, flag: i32) -> bool {
    flags & flag as u32 == flag as u32
}

/// open(2) flags as the service wants them.
#[must_use]
pub fn open_flags(flags: u32, kill_suidgid: bool) -> OpenFlags {
    let access = flags & libc::O_ACCMODE as u32;
    OpenFlags {
        read: access != libc::O_WRONLY as u32,
        write: access != libc::O_RDONLY as u32,
        append: has_flag(flags, libc::O_APPEND),
        truncate: has_flag(flags, libc::O_TRUNC),
        direct: has_flag(flags, libc::O_DIRECT),
        kill_suidgid,
    }
}

/// Flags of the reply to an open.
///
/// An append goes around the page cache: the kernel would place it by the size that it believes in, which may be old. Cached data of earlier
/// opens is still valid when the service says [`IoMode::Cached`], so the kernel keeps it.
#[must_use]
pub fn fopen_flags(flags: u32, io: IoMode) -> u32 {
    match io {
        _ if has_flag(flags, libc::O_APPEND) => fopen::DIRECT_IO,
        IoMode::Direct => fopen::DIRECT_IO | fopen::PARALLEL_DIRECT_WRITES,
        IoMode::Cached => fopen::KEEP_CACHE,
    }
}

/// The kernel's "to the end of the file".
const OFFSET_MAX: u64 = i64::MAX as u64;

/// A lock request.
pub fn lock_request(lk: &FileLock, owner: u64, flock: bool) -> Result<LockRequest, Errno> {
    let kind = match lk.kind as i32 {
        k if k == i32::from(libc::F_RDLCK as i16) => LockType::Lock(LockKind::Read),
        k if k == i32::from(libc::F_WRLCK as i16) => LockType::Lock(LockKind::Write),
        k if k == i32::from(libc::F_UNLCK as i16) => LockType::Unlock,
        _ => return Err(Errno::EINVAL),
    };
    if lk.start > lk.end {
        return Err(Errno::EINVAL);
    }
    let end = if lk.end >= OFFSET_MAX { u64::MAX } else { lk.end };
    Ok(LockRequest {
        space: if flock { LockSpace::Flock } else { LockSpace::Posix },
        owner: client::service::LockOwner(owner),
        kind,
        range: LockRange { start: lk.start, end },
        pid: lk.pid,
    })
}

/// Answer to F_GETLK.
#[must_use]
pub fn lock_out(conflict: Option<Conflict>) -> FileLock {
    match conflict {
        None => FileLock { start: 0, end: OFFSET_MAX, kind: libc::F_UNLCK as u32, pid: 0 },
        Some(c) => FileLock {
            start: c.range.start,
            end: c.range.end.min(OFFSET_MAX),
            kind: match c.kind {
                LockKind::Read => libc::F_RDLCK as u32,
                LockKind::Write => libc::F_WRLCK as u32,
            },
            pid: c.pid,
        },
    }
}

/// Totals.
#[must_use]
pub fn statfs_out(s: &StatFs) -> StatfsOut {
    StatfsOut {
        blocks: s.blocks.get(),
        bfree: s.free.get(),
        bavail: s.available.get(),
        files: s.files.get(),
        ffree: s.files_free.get(),
        bsize: s.block_size.get(),
        frsize: s.block_size.get(),
        namelen: s.name_max.get(),
        ..StatfsOut::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_go_around_the_cache() {
        let rdwr = libc::O_RDWR as u32;
        assert_eq!(fopen_flags(rdwr, IoMode::Cached), fopen::KEEP_CACHE);
        assert_eq!(fopen_flags(rdwr | libc::O_APPEND as u32, IoMode::Cached), fopen::DIRECT_IO);
        assert_eq!(fopen_flags(rdwr, IoMode::Direct), fopen::DIRECT_IO | fopen::PARALLEL_DIRECT_WRITES);
        let flags = open_flags(libc::O_WRONLY as u32 | libc::O_TRUNC as u32, true);
        assert!(!flags.read && flags.write && flags.truncate && flags.kill_suidgid && !flags.append);
    }

    #[test]
    fn locks_to_the_end_stay_so() {
        let lk = FileLock { start: 5, end: OFFSET_MAX, kind: libc::F_WRLCK as u32, pid: 3 };
        let request = lock_request(&lk, 9, true).expect("good");
        assert_eq!((request.range.end, request.space), (u64::MAX, LockSpace::Flock));
        let out = lock_out(Some(Conflict { kind: LockKind::Write, range: request.range, pid: 3 }));
        assert_eq!(out, lk);
        assert!(lock_request(&FileLock { kind: 9, ..lk }, 9, false).is_err());
        assert!(lock_request(&FileLock { start: 6, end: 5, ..lk }, 9, false).is_err());
    }

    #[test]
    fn times_before_1970_and_devices_survive() {
        let mut a = Attr { atime: Timestamp::new(-5, 7), ..Attr::default() };
        a.rdev = 0x0010_0203_u32.into();
        assert_eq!((attr(&a).atime as i64, attr(&a).atimensec), (-5, 7));
        let sx = statx_out(&a, Duration::ZERO).stat;
        assert_eq!((sx.rdev_major, sx.rdev_minor, sx.atime.tv_sec), (2, 0x103, -5));
    }
}
