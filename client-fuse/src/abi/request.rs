//! Structures that the kernel sends. Names and payloads follow them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! layout {
    ($($(#[$doc:meta])* $name:ident: $size:literal { $($(#[$fdoc:meta])* $field:ident: $ty:ty),* $(,)? })*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        #[allow(missing_docs, reason = "fields bear the kernel's own names; those that need a word have one")]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty),* }
        const _: () = assert!(size_of::<$name>() == $size, concat!("size of ", stringify!($name)));
    )* };
}
pub(crate) use layout;

layout! {
    /// Starts every request.
    InHeader: 40 {
        /// Bytes of the whole message.
        len: u32,
        opcode: u32,
        /// Identity of the request; even.
        unique: u64,
        nodeid: u64,
        uid: u32,
        gid: u32,
        /// Thread that called, in our pid namespace; 0 where it is outside or there is none.
        pid: u32,
        /// Bytes of extensions at the end, in units of 8.
        total_extlen: u16,
        padding: u16,
    }
    /// INIT up to version 7.35; the long form adds `flags2` and reserved room.
    InitIn: 16 { major: u32, minor: u32, max_readahead: u32, flags: u32 }
    /// What 7.36 appends to [`InitIn`].
    InitInExt: 48 { flags2: u32, unused: [u32; 11] }
    /// FORGET.
    ForgetIn: 8 { nlookup: u64 }
    /// Head of a BATCH_FORGET.
    BatchForgetIn: 8 { count: u32, dummy: u32 }
    /// One of a BATCH_FORGET.
    ForgetOne: 16 { nodeid: u64, nlookup: u64 }
    /// GETATTR.
    GetattrIn: 16 { getattr_flags: u32, dummy: u32, fh: u64 }
    /// STATX.
    StatxIn: 24 { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32 }
    /// MKNOD; a name follows.
    MknodIn: 16 { mode: u32, rdev: u32, umask: u32, padding: u32 }
    /// MKDIR; a name follows.
    MkdirIn: 8 { mode: u32, umask: u32 }
    /// RENAME; two names follow.
    RenameIn: 8 { newdir: u64 }
    /// RENAME2; two names follow.
    Rename2In: 16 { newdir: u64, flags: u32, padding: u32 }
    /// LINK; a name follows.
    LinkIn: 8 { oldnodeid: u64 }
    /// SETATTR.
    SetattrIn: 88 {
        /// Which fields count: `flags::fattr`.
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64,
        atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32, ctimensec: u32,
        mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    /// OPEN and OPENDIR.
    OpenIn: 8 { flags: u32, open_flags: u32 }
    /// CREATE and TMPFILE; a name follows.
    CreateIn: 16 { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    /// RELEASE and RELEASEDIR.
    ReleaseIn: 24 { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    /// FLUSH.
    FlushIn: 24 { fh: u64, unused: u32, padding: u32, lock_owner: u64 }
    /// READ, READDIR, READDIRPLUS.
    ReadIn: 40 { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    /// WRITE; `size` bytes follow.
    WriteIn: 40 {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64,
        /// The file's open(2) flags, with O_SYNC and O_DSYNC of this very write.
        flags: u32,
        padding: u32,
    }
    /// FSYNC and FSYNCDIR.
    FsyncIn: 16 { fh: u64, fsync_flags: u32, padding: u32 }
    /// SETXATTR before 7.33 or without SETXATTR_EXT; name and value follow.
    SetxattrIn: 8 { size: u32, flags: u32 }
    /// What SETXATTR_EXT appends to [`SetxattrIn`].
    SetxattrInExt: 8 { setxattr_flags: u32, padding: u32 }
    /// GETXATTR (a name follows) and LISTXATTR.
    GetxattrIn: 8 { size: u32, padding: u32 }
    /// A lock.
    FileLock: 24 { start: u64, end: u64, kind: u32, pid: u32 }
    /// GETLK, SETLK, SETLKW.
    LkIn: 48 { fh: u64, owner: u64, lk: FileLock, lk_flags: u32, padding: u32 }
    /// ACCESS.
    AccessIn: 8 { mask: u32, padding: u32 }
    /// INTERRUPT.
    InterruptIn: 8 { unique: u64 }
    /// BMAP.
    BmapIn: 16 { block: u64, blocksize: u32, padding: u32 }
    /// IOCTL; `in_size` bytes follow.
    IoctlIn: 32 { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32 }
    /// POLL.
    PollIn: 24 { fh: u64, kh: u64, flags: u32, events: u32 }
    /// FALLOCATE.
    FallocateIn: 32 { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    /// LSEEK.
    LseekIn: 24 { fh: u64, offset: u64, whence: u32, padding: u32 }
    /// COPY_FILE_RANGE and its 64-bit form.
    CopyFileRangeIn: 56 { fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64 }
    /// SETUPMAPPING.
    SetupmappingIn: 40 { fh: u64, foffset: u64, len: u64, flags: u64, moffset: u64 }
    /// Head of a REMOVEMAPPING.
    RemovemappingIn: 4 { count: u32 }
    /// One of a REMOVEMAPPING.
    RemovemappingOne: 16 { moffset: u64, len: u64 }
    /// SYNCFS.
    SyncfsIn: 8 { padding: u64 }
    /// Answer to a retrieve notification; its pages follow.
    NotifyRetrieveIn: 40 { dummy1: u64, offset: u64, size: u32, dummy2: u32, dummy3: u64, dummy4: u64 }
    /// Extension at the end of a request.
    ExtHeader: 8 { size: u32, kind: u32 }
    /// Head of a security context extension.
    SecctxHeader: 8 { size: u32, nr_secctx: u32 }
    /// One security context; its name and value follow.
    Secctx: 8 { size: u32, padding: u32 }
    /// Head of a supplementary group extension; the groups follow.
    SuppGroups: 4 { nr_groups: u32 }
    /// First message of a character device in user space (never sent to us).
    CuseInitIn: 16 { major: u32, minor: u32, unused: u32, flags: u32 }
}
