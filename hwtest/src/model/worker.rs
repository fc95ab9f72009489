//! A worker: does what it is told in its directory, with plain system calls, and answers.
//!
//! Knows nothing of the model. Its answers are what an application would see.

use super::ops::{Kind, LOCK_CELL, Locking, Mode, Op, Renaming, Reply, Space, Stat};
use crate::rng;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, FlockOperation, Gid, Mode as Bits, OFlags, RenameFlags, Timespec,
    Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Serves operations from standard input until it ends.
///
/// # Errors
/// Standard input or output fails, or a line is no operation.
pub fn serve(root: &Path) -> anyhow::Result<()> {
    rustix::process::umask(Bits::empty());
    let mut worker = Worker::new(root);
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let op: Op = serde_json::from_str(&line?)?;
        let reply = worker.run(&op);
        serde_json::to_writer(&mut out, &reply)?;
        out.write_all(b"\n")?;
        out.flush()?;
    }
    Ok(())
}

/// A directory and the files that are open.
#[derive(Debug)]
pub struct Worker {
    root: PathBuf,
    slots: HashMap<usize, File>,
}

type Result<T> = std::result::Result<T, Errno>;

impl Worker {
    /// A worker in a directory.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf(), slots: HashMap::new() }
    }

    /// Does one operation.
    pub fn run(&mut self, op: &Op) -> Reply {
        match self.attempt(op) {
            Ok(reply) => reply,
            Err(e) => Reply::Error(name_of(e)),
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(path) }
    }

    fn open(&self, path: &str, flags: OFlags) -> Result<File> {
        // A pipe without a peer must not keep the worker waiting.
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK;
        rustix::fs::open(self.at(path), flags, Bits::from_raw_mode(0o644)).map(File::from)
    }

    fn slot(&self, slot: usize) -> Result<&File> {
        self.slots.get(&slot).ok_or(Errno::BADF)
    }

    fn attempt(&mut self, op: &Op) -> Result<Reply> {
        match op {
            Op::Open { .. }
            | Op::SlotWrite { .. }
            | Op::SlotRead { .. }
            | Op::SlotTruncate { .. }
            | Op::SlotStat { .. }
            | Op::SlotSync { .. }
            | Op::SlotClose { .. }
            | Op::Flock { .. }
            | Op::Lock { .. } => self.on_slot(op),
            Op::Write { .. }
            | Op::Append { .. }
            | Op::Read { .. }
            | Op::Truncate { .. }
            | Op::Allocate { .. }
            | Op::Copy { .. } => self.on_data(op),
            Op::SetXattr { .. } | Op::GetXattr { .. } | Op::RemoveXattr { .. } | Op::ListXattr { .. } => {
                self.on_xattr(op)
            }
            _ => self.on_name(op),
        }
    }

    fn on_name(&self, op: &Op) -> Result<Reply> {
        match op {
            Op::Create { path, mode, excl } => {
                let mut flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
                flags.set(OFlags::EXCL, *excl);
                rustix::fs::open(self.at(path), flags, Bits::from_raw_mode(*mode))?;
            }
            Op::Mkdir { path, mode } => rustix::fs::mkdir(self.at(path), Bits::from_raw_mode(*mode))?,
            Op::Rmdir { path } => rustix::fs::rmdir(self.at(path))?,
            Op::Unlink { path } => rustix::fs::unlink(self.at(path))?,
            Op::Rename { from, to, how } => {
                let flags = match how {
                    Renaming::Plain => RenameFlags::empty(),
                    Renaming::NoReplace => RenameFlags::NOREPLACE,
                    Renaming::Exchange => RenameFlags::EXCHANGE,
                };
                rustix::fs::renameat_with(CWD, self.at(from), CWD, self.at(to), flags)?;
            }
            Op::Link { from, to } => rustix::fs::link(self.at(from), self.at(to))?,
            Op::Symlink { target, path } => rustix::fs::symlink(target.as_str(), self.at(path))?,
            Op::Readlink { path } => {
                let target = rustix::fs::readlink(self.at(path), Vec::new())?;
                return Ok(Reply::Text(target.to_string_lossy().into_owned()));
            }
            Op::Fifo { path, mode } => {
                rustix::fs::mknodat(CWD, self.at(path), FileType::Fifo, Bits::from_raw_mode(*mode), 0)?;
            }
            Op::Stat { path } => return rustix::fs::lstat(self.at(path)).map(|s| Reply::Stat(stat_of(&s))),
            Op::List { path } => return self.list(path).map(Reply::Names),
            Op::Chmod { path, mode } => rustix::fs::chmod(self.at(path), Bits::from_raw_mode(*mode))?,
            Op::Chown { path, uid, gid } => {
                rustix::fs::chown(self.at(path), Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)))?;
            }
            Op::Utimes { path, sec, nsec } => {
                let time = Timespec { tv_sec: *sec, tv_nsec: i64::from(*nsec) };
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::utimensat(CWD, self.at(path), &times, AtFlags::empty())?;
            }
            _ => return Err(Errno::NOSYS),
        }
        Ok(Reply::Ok)
    }

    fn list(&self, path: &str) -> Result<Vec<(String, Kind)>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd: OwnedFd = rustix::fs::open(self.at(path), flags, Bits::empty())?;
        let mut out = Vec::new();
        for entry in rustix::fs::Dir::new(fd)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                out.push((name, kind_of(entry.file_type())));
            }
        }
        out.sort();
        Ok(out)
    }

    fn on_data(&self, op: &Op) -> Result<Reply> {
        match op {
            Op::Write { path, offset, seed, len } => {
                let file = self.open(path, OFlags::WRONLY)?;
                file.write_all_at(&rng::bytes(*seed, *len), *offset).map_err(|e| errno(&e))?;
                Ok(Reply::Count(*len as u64))
            }
            Op::Append { path, seed, len } => {
                let mut file = self.open(path, OFlags::WRONLY | OFlags::APPEND)?;
                file.write_all(&rng::bytes(*seed, *len)).map_err(|e| errno(&e))?;
                Ok(Reply::Count(*len as u64))
            }
            Op::Read { path, offset, len } => read(&self.open(path, OFlags::RDONLY)?, *offset, *len),
            Op::Truncate { path, len } => {
                let len = i64::try_from(*len).map_err(|_| Errno::INVAL)?;
                nix::unistd::truncate(&self.at(path), len).map_err(of_nix)?;
                Ok(Reply::Ok)
            }
            Op::Allocate { path, how, offset, len } => {
                let flags = match how {
                    Space::Grow => FallocateFlags::empty(),
                    Space::Keep => FallocateFlags::KEEP_SIZE,
                    Space::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                    Space::Zero => FallocateFlags::ZERO_RANGE,
                    Space::ZeroKeep => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
                };
                rustix::fs::fallocate(self.open(path, OFlags::RDWR)?, flags, *offset, *len)?;
                Ok(Reply::Ok)
            }
            Op::Copy { from, from_offset, to, to_offset, len } => {
                let from = self.open(from, OFlags::RDONLY)?;
                let to = self.open(to, OFlags::RDWR)?;
                let (mut source, mut target, mut left) = (*from_offset, *to_offset, *len);
                while left > 0 {
                    let n = usize::try_from(left).unwrap_or(usize::MAX);
                    let n = rustix::fs::copy_file_range(&from, Some(&mut source), &to, Some(&mut target), n)?;
                    if n == 0 {
                        break;
                    }
                    left -= n as u64;
                }
                Ok(Reply::Count(len - left))
            }
            _ => Err(Errno::NOSYS),
        }
    }

    fn on_xattr(&self, op: &Op) -> Result<Reply> {
        match op {
            Op::SetXattr { path, name, seed, len, create, replace } => {
                let mut flags = XattrFlags::empty();
                flags.set(XattrFlags::CREATE, *create);
                flags.set(XattrFlags::REPLACE, *replace);
                rustix::fs::setxattr(self.at(path), name.as_str(), &rng::bytes(*seed, *len), flags)?;
                Ok(Reply::Ok)
            }
            Op::GetXattr { path, name } => {
                let mut value = vec![0; 4096];
                let len = rustix::fs::getxattr(self.at(path), name.as_str(), &mut value[..])?;
                Ok(Reply::Data { len, hash: rng::hash(&value[..len]) })
            }
            Op::RemoveXattr { path, name } => {
                rustix::fs::removexattr(self.at(path), name.as_str())?;
                Ok(Reply::Ok)
            }
            Op::ListXattr { path } => {
                let mut list = vec![0_u8; 8192];
                let len = rustix::fs::listxattr(self.at(path), &mut list[..])?;
                let mut names: Vec<(String, Kind)> = list[..len]
                    .split(|b| *b == 0)
                    .filter(|n| n.starts_with(b"user.") || n.starts_with(b"trusted."))
                    .map(|n| (String::from_utf8_lossy(n).into_owned(), Kind::Other))
                    .collect();
                names.sort();
                Ok(Reply::Names(names))
            }
            _ => Err(Errno::NOSYS),
        }
    }

    fn on_slot(&mut self, op: &Op) -> Result<Reply> {
        match op {
            Op::Open { slot, path, mode } => {
                let file = self.open(path, flags_of(*mode))?;
                self.slots.insert(*slot, file);
                Ok(Reply::Ok)
            }
            Op::SlotWrite { slot, offset, seed, len } => {
                self.slot(*slot)?.write_all_at(&rng::bytes(*seed, *len), *offset).map_err(|e| errno(&e))?;
                Ok(Reply::Count(*len as u64))
            }
            Op::SlotRead { slot, offset, len } => read(self.slot(*slot)?, *offset, *len),
            Op::SlotTruncate { slot, len } => {
                rustix::fs::ftruncate(self.slot(*slot)?, *len).map(|()| Reply::Ok)
            }
            Op::SlotStat { slot } => rustix::fs::fstat(self.slot(*slot)?).map(|s| Reply::Stat(stat_of(&s))),
            Op::SlotSync { slot } => rustix::fs::fsync(self.slot(*slot)?).map(|()| Reply::Ok),
            Op::SlotClose { slot } => self.slots.remove(slot).map(|_| Reply::Ok).ok_or(Errno::BADF),
            Op::Flock { slot, how } => {
                let how = match how {
                    Locking::Read => FlockOperation::NonBlockingLockShared,
                    Locking::Write => FlockOperation::NonBlockingLockExclusive,
                    Locking::Unlock => FlockOperation::Unlock,
                };
                rustix::fs::flock(self.slot(*slot)?, how).map(|()| Reply::Ok)
            }
            Op::Lock { slot, how, cell, cells } => {
                let kind = match how {
                    Locking::Read => nix::libc::F_RDLCK,
                    Locking::Write => nix::libc::F_WRLCK,
                    Locking::Unlock => nix::libc::F_UNLCK,
                };
                let lock = nix::libc::flock {
                    l_type: i16::try_from(kind).map_err(|_| Errno::INVAL)?,
                    l_whence: 0,
                    l_start: i64::try_from(cell * LOCK_CELL).map_err(|_| Errno::INVAL)?,
                    l_len: i64::try_from(cells * LOCK_CELL).map_err(|_| Errno::INVAL)?,
                    l_pid: 0,
                };
                fcntl(self.slot(*slot)?, FcntlArg::F_SETLK(&lock)).map(|_| Reply::Ok).map_err(of_nix)
            }
            _ => Err(Errno::NOSYS),
        }
    }
}

fn flags_of(mode: Mode) -> OFlags {
    let mut flags = match (mode.read, mode.write) {
        (true, true) => OFlags::RDWR,
        (_, true) => OFlags::WRONLY,
        _ => OFlags::RDONLY,
    };
    flags.set(OFlags::APPEND, mode.append);
    flags.set(OFlags::TRUNC, mode.truncate);
    flags.set(OFlags::CREATE, mode.create);
    flags
}

fn read(file: &File, offset: u64, len: usize) -> Result<Reply> {
    let mut data = vec![0; len];
    let mut have = 0;
    while have < len {
        let n = file.read_at(&mut data[have..], offset + have as u64).map_err(|e| errno(&e))?;
        if n == 0 {
            break;
        }
        have += n;
    }
    Ok(Reply::Data { len: have, hash: rng::hash(&data[..have]) })
}

fn stat_of(s: &rustix::fs::Stat) -> Stat {
    let kind = kind_of(FileType::from_raw_mode(s.st_mode));
    Stat {
        kind,
        mode: s.st_mode & 0o7777,
        nlink: s.st_nlink,
        uid: s.st_uid,
        gid: s.st_gid,
        size: if kind == Kind::Dir { 0 } else { u64::try_from(s.st_size).unwrap_or(0) },
        ino: s.st_ino,
        mtime: (s.st_mtime, u32::try_from(s.st_mtime_nsec).unwrap_or(0)),
    }
}

fn kind_of(t: FileType) -> Kind {
    match t {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Link,
        FileType::Fifo => Kind::Fifo,
        _ => Kind::Other,
    }
}

fn errno(e: &std::io::Error) -> Errno {
    Errno::from_io_error(e).unwrap_or(Errno::IO)
}

fn of_nix(e: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(e as i32)
}

/// `ENOENT` and the like.
fn name_of(e: Errno) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(e.raw_os_error()))
}
