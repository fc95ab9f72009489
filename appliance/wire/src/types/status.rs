//! Status of a reply: 0, a Linux errno (1..=4095), or a condition of the protocol (4096 and up).

/// A Linux error number, as `errno(3)` has it on x86-64 and arm64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Errno(pub u16);

macro_rules! errnos {
    ($($name:ident = $n:literal, $text:literal;)*) => {
        #[allow(missing_docs, reason = "the names are those of errno(3)")]
        impl Errno { $(pub const $name: Self = Self($n);)* }
        impl Errno {
            /// The symbolic name, or `"E?"`.
            #[must_use]
            pub const fn name(self) -> &'static str { match self.0 { $($n => stringify!($name),)* _ => "E?" } }
            /// What strerror(3) says of it.
            #[must_use]
            pub const fn text(self) -> &'static str { match self.0 { $($n => $text,)* _ => "unknown error" } }
        }
    };
}
errnos! {
    EPERM = 1, "operation not permitted"; ENOENT = 2, "no such file or directory"; EINTR = 4, "interrupted system call";
    EIO = 5, "input/output error"; ENXIO = 6, "no such device or address"; E2BIG = 7, "argument list too long";
    EBADF = 9, "bad file descriptor"; EAGAIN = 11, "resource temporarily unavailable"; ENOMEM = 12, "cannot allocate memory";
    EACCES = 13, "permission denied"; EBUSY = 16, "device or resource busy"; EEXIST = 17, "file exists";
    EXDEV = 18, "invalid cross-device link"; ENODEV = 19, "no such device"; ENOTDIR = 20, "not a directory";
    EISDIR = 21, "is a directory"; EINVAL = 22, "invalid argument"; ENFILE = 23, "too many open files in system";
    ETXTBSY = 26, "text file busy"; EFBIG = 27, "file too large"; ENOSPC = 28, "no space left on device";
    EROFS = 30, "read-only file system"; EMLINK = 31, "too many links"; ERANGE = 34, "numerical result out of range";
    EDEADLK = 35, "resource deadlock avoided"; ENAMETOOLONG = 36, "file name too long"; ENOLCK = 37, "no locks available";
    ENOSYS = 38, "function not implemented"; ENOTEMPTY = 39, "directory not empty"; ELOOP = 40, "too many levels of symbolic links";
    ENODATA = 61, "no data available"; EPROTO = 71, "protocol error"; EOVERFLOW = 75, "value too large for defined data type";
    EOPNOTSUPP = 95, "operation not supported"; ETIMEDOUT = 110, "connection timed out"; ESTALE = 116, "stale file handle";
    EDQUOT = 122, "disk quota exceeded"; ECANCELED = 125, "operation canceled";
}

impl core::fmt::Debug for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

impl core::fmt::Display for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.text())
    }
}

impl core::error::Error for Errno {}

/// The `status` field of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// The operation failed as a system call would.
    Errno(Errno),
    /// The request believes in an epoch that is past: fetch the new one, ask again.
    StaleEpoch,
    /// This session was fenced: its leases, locks and opens are gone.
    Fenced,
    /// The server has no such session: open it anew.
    UnknownSession,
    /// Clients are reclaiming after a restart: ask again later.
    Grace,
    /// The data object is no longer the inode's: fetch attributes, ask again.
    StaleObject,
    /// The sequence is neither the slot's last nor the one after.
    BadSequence,
    /// The request's deadline passed before it ran.
    Expired,
    /// The request was cancelled before it ran.
    Cancelled,
    /// The request's credit or a table of the server is exhausted: ask again later.
    Busy,
    /// The peer is not authenticated for this.
    Denied,
    /// Header or body is not what the opcode demands.
    Malformed,
    /// The opcode or version is unknown here.
    Unsupported,
    /// A number that this version does not know.
    Unknown(u16),
}

impl Status {
    /// The number on the wire.
    #[must_use]
    pub const fn to_u16(self) -> u16 {
        match self {
            Self::Ok => 0,
            Self::Errno(e) => e.0,
            Self::StaleEpoch => 0x1000,
            Self::Fenced => 0x1001,
            Self::UnknownSession => 0x1002,
            Self::Grace => 0x1003,
            Self::StaleObject => 0x1004,
            Self::BadSequence => 0x1005,
            Self::Expired => 0x1006,
            Self::Cancelled => 0x1007,
            Self::Busy => 0x1008,
            Self::Denied => 0x1009,
            Self::Malformed => 0x100A,
            Self::Unsupported => 0x100B,
            Self::Unknown(n) => n,
        }
    }
    /// From the number on the wire.
    #[must_use]
    pub const fn from_u16(n: u16) -> Self {
        match n {
            0 => Self::Ok,
            1..=4095 => Self::Errno(Errno(n)),
            0x1000 => Self::StaleEpoch,
            0x1001 => Self::Fenced,
            0x1002 => Self::UnknownSession,
            0x1003 => Self::Grace,
            0x1004 => Self::StaleObject,
            0x1005 => Self::BadSequence,
            0x1006 => Self::Expired,
            0x1007 => Self::Cancelled,
            0x1008 => Self::Busy,
            0x1009 => Self::Denied,
            0x100A => Self::Malformed,
            0x100B => Self::Unsupported,
            _ => Self::Unknown(n),
        }
    }
}
