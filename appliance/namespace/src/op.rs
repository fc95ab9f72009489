//! Operations and their replies, as the namespace sees them: no grants, no sessions, no encoding.
//!
//! Owns the vocabulary. Must not hold behaviour beyond small helpers: the rules are in `exec`.

use wire::{Attr, ClientId, Errno, FileKind, Ino, ObjectId, RequestId, SetAttr, Slot, Timestamp};

/// Who asks, as which request, and at what time. The namespace never reads a clock.
#[derive(Clone, Copy, Debug)]
pub struct OpCtx {
    /// The server's clock when the operation runs.
    pub now: Timestamp,
    /// Client, slot and sequence. A slot of [`Slot::IDEMPOTENT`] stores no reply.
    pub request: RequestId,
    /// Caller's user, owner of what it creates.
    pub uid: u32,
    /// Caller's group, group of what it creates outside of setgid directories.
    pub gid: u32,
}

impl OpCtx {
    /// A caller without a slot: internal work and idempotent requests.
    #[must_use]
    pub fn plain(client: ClientId, now: Timestamp) -> Self {
        let request = RequestId { client, slot: Slot::IDEMPOTENT, sequence: 0 };
        Self { now, request, uid: 0, gid: 0 }
    }
}

/// How a file is opened; bits of [`Op::Open`] and `Create::open_flags`.
pub mod open_flags {
    /// Reading.
    pub const READ: u32 = 1;
    /// Writing.
    pub const WRITE: u32 = 2;
    /// Every write goes to the end.
    pub const APPEND: u32 = 4;
    /// Cut to zero length.
    pub const TRUNC: u32 = 8;
    /// Clear set-user-ID and set-group-ID if the file is cut.
    pub const KILL_SUIDGID: u32 = 16;
    /// O_DIRECT: the caller's own caches are bypassed.
    pub const DIRECT: u32 = 32;
    /// All bits that mean something.
    pub const ALL: u32 = 63;
}

/// Makes one inode with one name (or none, for an unnamed temporary file).
#[derive(Clone, Copy, Debug)]
pub struct Create<'a> {
    /// Directory.
    pub dir: Ino,
    /// Name; ignored when `tmpfile`.
    pub name: &'a [u8],
    /// Kind and permission bits, before the umask.
    pub mode: u32,
    /// Caller's umask; not used where the directory has a default ACL (acl(5), "object creation").
    pub umask: u32,
    /// Device number of a device node, else 0.
    pub rdev: u32,
    /// Target of a symbolic link, else empty. 1..=4095 bytes, no NUL.
    pub target: &'a [u8],
    /// An existing name is EEXIST. Always the case for everything but regular files.
    pub excl: bool,
    /// `O_TMPFILE`: no name, link count 0, freed at the last close unless linked before.
    pub tmpfile: bool,
    /// Open it too, with these [`open_flags`]. Regular files only.
    pub open: Option<u32>,
}

/// One operation. Names are bytes without NUL and '/'; they are checked.
#[derive(Clone, Copy, Debug)]
pub enum Op<'a> {
    /// Name to inode; ".." and "." work.
    Lookup {
        /// Directory.
        dir: Ino,
        /// Name.
        name: &'a [u8],
    },
    /// Attributes.
    GetAttr {
        /// Inode.
        ino: Ino,
    },
    /// Changes attributes. Shrinking gives [`Effect::Truncate`], cutting to zero a fresh object.
    SetAttr {
        /// Inode.
        ino: Ino,
        /// What to change.
        set: SetAttr,
    },
    /// Target of a symbolic link.
    ReadLink {
        /// Inode.
        ino: Ino,
    },
    /// New inode of any kind.
    Create(Create<'a>),
    /// New name of an existing inode.
    Link {
        /// Inode, not a directory.
        ino: Ino,
        /// Directory of the new name.
        dir: Ino,
        /// New name.
        name: &'a [u8],
    },
    /// Drops a name of something that is no directory.
    Unlink {
        /// Directory.
        dir: Ino,
        /// Name.
        name: &'a [u8],
    },
    /// Drops an empty directory.
    Rmdir {
        /// Directory.
        dir: Ino,
        /// Name.
        name: &'a [u8],
    },
    /// Moves a name, replacing what stands there.
    Rename {
        /// Directory.
        dir: Ino,
        /// Name.
        name: &'a [u8],
        /// Directory of the new name.
        new_dir: Ino,
        /// New name.
        new_name: &'a [u8],
        /// [`RENAME_NOREPLACE`] or [`RENAME_EXCHANGE`] or neither.
        flags: u32,
    },
    /// Opens a file or directory; the handle lives until [`Op::Close`] or the end of the session.
    Open {
        /// Inode.
        ino: Ino,
        /// [`open_flags`].
        flags: u32,
    },
    /// Closes a handle. An unknown handle is no error (a repeat after a restart).
    Close {
        /// Inode.
        ino: Ino,
        /// Handle.
        handle: u64,
    },
    /// A page of a directory, in cookie order, starting after `cookie` (0 at the start).
    ReadDir {
        /// Directory.
        dir: Ino,
        /// Cookie of the last entry seen.
        cookie: u64,
        /// Limit in bytes; an entry counts `ENTRY_COST` + its name, + `ENTRY_ATTR_COST` with attributes.
        max: u32,
        /// With attributes of each.
        plus: bool,
    },
    /// Value of an extended attribute; [`Reply::Bytes`].
    GetXattr {
        /// Inode.
        ino: Ino,
        /// Full name, with its prefix.
        name: &'a [u8],
    },
    /// Sets an extended attribute or an ACL.
    SetXattr {
        /// Inode.
        ino: Ino,
        /// Full name, with its prefix.
        name: &'a [u8],
        /// Value.
        value: &'a [u8],
        /// [`XATTR_CREATE`], [`XATTR_REPLACE`], [`XATTR_ACL_KILL_SGID`].
        flags: u32,
    },
    /// Names of all extended attributes, each ended by a NUL; [`Reply::Bytes`].
    ListXattr {
        /// Inode.
        ino: Ino,
    },
    /// Removes an extended attribute or an ACL.
    RemoveXattr {
        /// Inode.
        ino: Ino,
        /// Full name, with its prefix.
        name: &'a [u8],
    },
    /// Totals.
    StatFs,
}

/// An existing target is EEXIST.
pub const RENAME_NOREPLACE: u32 = 1;
/// Both names must exist and change places.
pub const RENAME_EXCHANGE: u32 = 2;
/// The attribute must not exist (setxattr(2)).
pub const XATTR_CREATE: u32 = 1;
/// The attribute must exist (setxattr(2)).
pub const XATTR_REPLACE: u32 = 2;
/// Setting an access ACL clears set-group-ID (the kernel found the caller outside of the group).
pub const XATTR_ACL_KILL_SGID: u32 = 4;
/// What an entry of a directory page counts besides its name: fixed part and padding.
pub const ENTRY_COST: u32 = 32;
/// What attributes and a grant add to an entry.
pub const ENTRY_ATTR_COST: u32 = 160;

/// One entry of a directory page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Inode.
    pub ino: Ino,
    /// Its position: give the last one back to go on after it.
    pub cookie: u64,
    /// Kind.
    pub kind: FileKind,
    /// Name.
    pub name: Box<[u8]>,
    /// Attributes, when asked for; not for "." and "..".
    pub attr: Option<Attr>,
}

/// The answer to an operation that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done, nothing to tell.
    Done,
    /// Attributes: GetAttr, SetAttr, SetXattr, RemoveXattr.
    Attr(Attr),
    /// Lookup, Link.
    Entry(Attr),
    /// Create.
    Created {
        /// The inode.
        attr: Attr,
        /// The handle, when it was opened.
        handle: Option<u64>,
        /// The name was there before (never with `excl`).
        existed: bool,
    },
    /// Unlink, Rmdir.
    Removed {
        /// What the name meant.
        ino: Ino,
        /// Links left.
        nlink: u32,
    },
    /// Rename.
    Renamed {
        /// What was moved.
        moved: Ino,
        /// What it replaced or changed places with.
        replaced: Option<Ino>,
    },
    /// Open.
    Opened {
        /// The inode.
        attr: Attr,
        /// The handle.
        handle: u64,
    },
    /// ReadDir.
    DirPage {
        /// Entries, cookies ascending.
        entries: Vec<DirEntry>,
        /// Nothing comes after these.
        eof: bool,
    },
    /// Bytes that a data operation copied.
    Count(u64),
    /// ReadLink, GetXattr, ListXattr.
    Bytes(Box<[u8]>),
    /// StatFs.
    StatFs(wire::StatFs),
}

/// What the caller answers: the reply or the error number.
pub type Outcome = Result<Reply, Errno>;

/// What the shell has to do after an operation, besides logging its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Cut the object's chunks to `to` bytes: after the record is **flushed** and before the reply is sent, with no other
    /// data operation on the inode in between. Then call `Namespace::freed(entry)`. After a crash the entry is found in
    /// the free list and is done again before data is served.
    Truncate {
        /// Entry of the free list which remembers it.
        entry: u64,
        /// Inode.
        ino: Ino,
        /// Body of data.
        object: ObjectId,
        /// Size before.
        from: u64,
        /// Size now.
        to: u64,
    },
    /// The free list got an entry: after the next flush `Namespace::free_work` has something to do.
    Free {
        /// Entry of the free list.
        entry: u64,
    },
    /// The inode is gone: forget its leases and locks.
    Gone {
        /// Inode.
        ino: Ino,
    },
}

/// How an operation touches an inode, for the lease check before it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Reads attributes, names or data: conflicts with others' exclusive leases.
    Read,
    /// Changes them: conflicts with others' shared and exclusive leases.
    Modify,
}
