//! What the driver may ask of a worker, and what a worker answers: one line of JSON each.
//!
//! Paths are relative to the directory under test. Contents travel as seeds and hashes, not as bytes.

use serde::{Deserialize, Serialize};

/// Ways of fallocate(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Space {
    /// Mode 0: reserve, and grow the file.
    Grow,
    /// Reserve beyond the end without growing.
    Keep,
    /// Punch a hole.
    Punch,
    /// Zero, and grow the file.
    Zero,
    /// Zero without growing.
    ZeroKeep,
}

/// Rename flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Renaming {
    /// Replaces.
    Plain,
    /// `RENAME_NOREPLACE`.
    NoReplace,
    /// `RENAME_EXCHANGE`.
    Exchange,
}

/// How a file is opened into a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mode {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// `O_APPEND`.
    pub append: bool,
    /// `O_TRUNC` (with `write` only: without it Linux leaves the result open).
    pub truncate: bool,
    /// `O_CREAT`, with 0644.
    pub create: bool,
}

/// Lock requests; none waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Locking {
    /// Shared.
    Read,
    /// Exclusive.
    Write,
    /// Give back.
    Unlock,
}

/// Locks of a file are tried at so many places...
pub const LOCK_CELLS: u64 = 12;
/// ...each of so many bytes.
pub const LOCK_CELL: u64 = 10;

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are the arguments of the system calls")]
pub enum Op {
    /// open(O_CREAT [| O_EXCL] | O_RDWR), close
    Create { path: String, mode: u32, excl: bool },
    /// mkdir(2)
    Mkdir { path: String, mode: u32 },
    /// rmdir(2)
    Rmdir { path: String },
    /// unlink(2)
    Unlink { path: String },
    /// renameat2(2)
    Rename { from: String, to: String, how: Renaming },
    /// link(2)
    Link { from: String, to: String },
    /// symlink(2)
    Symlink { target: String, path: String },
    /// readlink(2)
    Readlink { path: String },
    /// mknod(2) of a fifo
    Fifo { path: String, mode: u32 },
    /// lstat(2)
    Stat { path: String },
    /// Entries of a directory.
    List { path: String },
    /// open, pwrite, close
    Write { path: String, offset: u64, seed: u64, len: usize },
    /// open(O_APPEND), write, close
    Append { path: String, seed: u64, len: usize },
    /// open, pread, close
    Read { path: String, offset: u64, len: usize },
    /// truncate(2)
    Truncate { path: String, len: u64 },
    /// open, fallocate, close
    Allocate { path: String, how: Space, offset: u64, len: u64 },
    /// chmod(2)
    Chmod { path: String, mode: u32 },
    /// chown(2)
    Chown { path: String, uid: u32, gid: u32 },
    /// utimensat(2), following links
    Utimes { path: String, sec: i64, nsec: u32 },
    /// setxattr(2)
    SetXattr { path: String, name: String, seed: u64, len: usize, create: bool, replace: bool },
    /// getxattr(2)
    GetXattr { path: String, name: String },
    /// removexattr(2)
    RemoveXattr { path: String, name: String },
    /// listxattr(2)
    ListXattr { path: String },
    /// open both, copy_file_range until all is done, close both
    Copy { from: String, from_offset: u64, to: String, to_offset: u64, len: u64 },
    /// Opens a file and keeps it.
    Open { slot: usize, path: String, mode: Mode },
    /// pwrite(2)
    SlotWrite { slot: usize, offset: u64, seed: u64, len: usize },
    /// pread(2)
    SlotRead { slot: usize, offset: u64, len: usize },
    /// ftruncate(2)
    SlotTruncate { slot: usize, len: u64 },
    /// fstat(2)
    SlotStat { slot: usize },
    /// fsync(2)
    SlotSync { slot: usize },
    /// close(2)
    SlotClose { slot: usize },
    /// flock(2) with `LOCK_NB`
    Flock { slot: usize, how: Locking },
    /// fcntl(2) `F_SETLK` on whole cells of [`LOCK_CELL`] bytes
    Lock { slot: usize, how: Locking, cell: u64, cells: u64 },
}

/// Kind of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Link,
    /// Named pipe.
    Fifo,
    /// Anything else.
    Other,
}

/// What stat(2) tells and the model knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// Kind.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Links.
    pub nlink: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes; 0 for directories, whose size is the file system's affair.
    pub size: u64,
    /// Inode number; the model learns it, then holds to it.
    pub ino: u64,
    /// Last modification; the model knows it only where it was set.
    pub mtime: (i64, u32),
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Ok,
    /// Failed, with the symbolic name of the error.
    Error(String),
    /// Attributes.
    Stat(Stat),
    /// Entries, sorted.
    Names(Vec<(String, Kind)>),
    /// Contents by length and hash.
    Data {
        /// Bytes.
        len: usize,
        /// [`crate::rng::hash`] of them.
        hash: u64,
    },
    /// A link's target.
    Text(String),
    /// Bytes written or copied.
    Count(u64),
}
