//! Attributes of an inode and of the file system.

use super::{Ino, ObjectId, Timestamp};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

/// What an inode is; the value is that of `st_mode & S_IFMT` (inode(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum FileKind {
    /// Named pipe.
    Fifo = 0o010_000,
    /// Character device.
    CharDevice = 0o020_000,
    /// Directory.
    Directory = 0o040_000,
    /// Block device.
    BlockDevice = 0o060_000,
    /// Regular file.
    Regular = 0o100_000,
    /// Symbolic link.
    Symlink = 0o120_000,
    /// Unix-domain socket.
    Socket = 0o140_000,
}

impl FileKind {
    /// The kind in a mode, `None` for a value that is no kind.
    #[must_use]
    pub const fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & 0o170_000 {
            0o010_000 => Self::Fifo,
            0o020_000 => Self::CharDevice,
            0o040_000 => Self::Directory,
            0o060_000 => Self::BlockDevice,
            0o100_000 => Self::Regular,
            0o120_000 => Self::Symlink,
            0o140_000 => Self::Socket,
            _ => return None,
        })
    }
    /// The value of `d_type` (readdir(3)): the mode's kind shifted down by 12.
    #[must_use]
    pub const fn dirent_type(self) -> u8 {
        (self as u32 >> 12) as u8
    }
    /// The kind of a `d_type`.
    #[must_use]
    pub const fn from_dirent_type(t: u8) -> Option<Self> {
        Self::from_mode((t as u32) << 12)
    }
}

/// Everything stat(2) and statx(2) tell of an inode. 136 bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Attr {
    /// Inode number.
    pub ino: le::U64,
    /// Body of file data, 0 where there is none.
    pub object: le::U64,
    /// Bytes.
    pub size: le::U64,
    /// Units of 512 bytes in use.
    pub blocks: le::U64,
    /// Grows with each change (NFSv4 `change`).
    pub change: le::U64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of contents.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Birth.
    pub btime: Timestamp,
    /// Kind and permission bits.
    pub mode: le::U32,
    /// Hard links.
    pub nlink: le::U32,
    /// Owner.
    pub uid: le::U32,
    /// Group.
    pub gid: le::U32,
    /// Device number (the kernel's 32-bit `new_encode_dev` form) of a device node, else 0.
    pub rdev: le::U32,
    /// Must be zero.
    pub zero: le::U32,
    /// Set of `FLAG_*`.
    pub flags: le::U64,
}

const _: () = assert!(size_of::<Attr>() == 136);

impl Attr {
    /// The inode has a POSIX access ACL beyond its mode.
    pub const FLAG_HAS_ACL: u64 = 1;
    /// The inode has no extended attributes at all, ACLs included. Without it it may have some.
    pub const FLAG_NO_XATTRS: u64 = 2;

    /// Inode number.
    #[must_use]
    pub fn ino(&self) -> Ino {
        self.ino.into()
    }
    /// Body of data.
    #[must_use]
    pub fn object(&self) -> ObjectId {
        self.object.into()
    }
    /// Kind, `None` in corrupt attributes.
    #[must_use]
    pub fn kind(&self) -> Option<FileKind> {
        FileKind::from_mode(self.mode.get())
    }
    /// Why these bytes are no attributes, if they are not.
    pub fn validate(&self) -> Result<(), &'static str> {
        if self.kind().is_none() {
            return Err("mode names no kind of file");
        }
        if self.zero.get() != 0 {
            return Err("padding of attributes is not zero");
        }
        for t in [&self.atime, &self.mtime, &self.ctime, &self.btime] {
            t.validate()?;
        }
        Ok(())
    }
}

/// A time to set: given, or the server's own now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// This one.
    At(Timestamp),
    /// The server's clock when the operation runs.
    Now,
}

/// Changes to attributes; `None` leaves one alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits (07777); the kind can't change.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// New length in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last modification.
    pub mtime: Option<SetTime>,
    /// Clear set-user-ID and, where group-executable, set-group-ID (FUSE_HANDLE_KILLPRIV_V2 semantics).
    pub kill_suidgid: bool,
}

/// Totals of the file system, statfs(2).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct StatFs {
    /// Blocks in all.
    pub blocks: le::U64,
    /// Free blocks.
    pub free: le::U64,
    /// Free blocks that users may take (less the reserve).
    pub available: le::U64,
    /// Inodes in all: used plus what free space could hold.
    pub files: le::U64,
    /// Inodes still to be had.
    pub files_free: le::U64,
    /// Bytes in a block.
    pub block_size: le::U32,
    /// Longest name in bytes.
    pub name_max: le::U32,
}
