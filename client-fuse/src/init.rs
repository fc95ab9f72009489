//! The first message: which version and which capabilities.
//!
//! Every capability taken or left has its reason at [`WANTED`]. Owns the negotiation; must not know the device.
//!
//! Left out on purpose:
//! - `WRITEBACK_CACHE`: with it the kernel owns size and times of a file and would not believe another mount's. Writes go through instead:
//!   write(2) returns when the server has acknowledged. Pages stay cached for reading.
//! - `AUTO_INVAL_DATA`: recalls say exactly what to drop (`EXPLICIT_INVAL_DATA`); comparing mtimes would drop our own fresh pages.
//! - `ATOMIC_O_TRUNC`: the kernel would have us cut the file before it looks whether the file is a program that runs: O_RDONLY|O_TRUNC
//!   is ETXTBSY, and the program is gone. Without it the kernel looks first and then sends SETATTR.
//! - `NO_OPENDIR_SUPPORT`: it makes the kernel cache listings of *every* directory, leased or not, until it is told otherwise.
//! - `NO_OPEN_SUPPORT`: opens must reach the server, which keeps unlinked files alive for them.
//! - `CACHE_SYMLINKS`: a cached target outlives its inode's lease only where nothing invalidates it; recalls that name data do, but a
//!   symbolic link's target never changes and inode numbers are never reused, so it is sound and taken.
//! - `CREATE_SUPP_GROUP`, `SECURITY_CTX`: the VFS strips set-group-ID itself before it asks us, and no label is kept by us.
//! - `HAS_INODE_DAX`, `PASSTHROUGH`, `OVER_IO_URING`, `ALLOW_IDMAP`, `HAS_RESEND`, `REQUEST_TIMEOUT`: not used by this client. A request timeout would turn
//!   a server's restart into errors.

use crate::abi::flags::init::*;
use crate::abi::reply::InitOut;
use crate::abi::request::InitIn;
use crate::abi::{MAJOR, MAX_PAGES, MAX_WRITE, MINOR, MINOR_OLDEST};

/// Capabilities that we take where the kernel offers them.
pub const WANTED: u64 = ASYNC_READ
    | POSIX_LOCKS
    | FLOCK_LOCKS
    | EXPORT_SUPPORT
    | BIG_WRITES
    | DONT_MASK
    | DO_READDIRPLUS
    | READDIRPLUS_AUTO
    | ASYNC_DIO
    | PARALLEL_DIROPS
    | HANDLE_KILLPRIV_V2
    | POSIX_ACL
    | ABORT_ERROR
    | MAX_PAGES_FLAG
    | CACHE_SYMLINKS
    | EXPLICIT_INVAL_DATA
    | SETXATTR_EXT
    | INIT_EXT
    | HAS_EXPIRE_ONLY
    | DIRECT_IO_ALLOW_MMAP;

const MAX_PAGES_FLAG: u64 = crate::abi::flags::init::MAX_PAGES;

/// Without these the mount would not keep its promises.
const NEEDED: &[(u64, &str)] = &[
    (POSIX_LOCKS, "POSIX_LOCKS"),
    (FLOCK_LOCKS, "FLOCK_LOCKS"),
    (BIG_WRITES, "BIG_WRITES"),
    (DONT_MASK, "DONT_MASK"),
    (POSIX_ACL, "POSIX_ACL"),
    (EXPLICIT_INVAL_DATA, "EXPLICIT_INVAL_DATA"),
    (MAX_PAGES_FLAG, "MAX_PAGES"),
];

/// Background requests (read-ahead, asynchronous direct I/O) that the kernel keeps with us at once.
/// 64 of 1 MiB keep any link busy; the kernel's 12 do not.
pub const MAX_BACKGROUND: u16 = 64;
/// Where the kernel begins to call us congested: three quarters, as it does itself.
pub const CONGESTION: u16 = MAX_BACKGROUND / 4 * 3;

/// Why a kernel is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitError {
    /// Another major version.
    #[error("the kernel speaks FUSE {0}.{1}, this client 7.31 to 7.45: use a kernel from 6.1 on")]
    Version(u32, u32),
    /// A capability is missing.
    #[error("the kernel's FUSE ({0}.{1}) lacks {2}: use a kernel from 6.1 on")]
    Lacks(u32, u32, &'static str),
}

/// What was agreed upon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Minor version.
    pub minor: u32,
    /// Capabilities.
    pub flags: u64,
}

impl Agreed {
    /// Whether all of these were agreed upon.
    #[must_use]
    pub const fn has(&self, flags: u64) -> bool {
        self.flags & flags == flags
    }
}

/// Answers an INIT. Where the kernel's major version is above ours the reply only names ours, and another INIT comes: `Ok((reply, None))`.
///
/// # Errors
/// Where the kernel is too old.
pub fn negotiate(init: &InitIn, flags2: u32) -> Result<(InitOut, Option<Agreed>), InitError> {
    if init.major > MAJOR {
        return Ok((InitOut { major: MAJOR, minor: MINOR, ..InitOut::default() }, None));
    }
    if init.major < MAJOR || init.minor < MINOR_OLDEST {
        return Err(InitError::Version(init.major, init.minor));
    }
    let mut offered = u64::from(init.flags);
    if offered & INIT_EXT != 0 {
        offered |= u64::from(flags2) << 32;
    }
    if let Some((_, name)) = NEEDED.iter().find(|(flag, _)| offered & flag == 0) {
        return Err(InitError::Lacks(init.major, init.minor, name));
    }
    let minor = init.minor.min(MINOR);
    let flags = offered & WANTED;
    let out = InitOut {
        major: MAJOR,
        minor,
        max_readahead: init.max_readahead,
        flags: flags as u32,
        flags2: (flags >> 32) as u32,
        max_background: MAX_BACKGROUND,
        congestion_threshold: CONGESTION,
        max_write: MAX_WRITE,
        time_gran: 1,
        max_pages: MAX_PAGES,
        ..InitOut::default()
    };
    Ok((out, Some(Agreed { minor, flags })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(minor: u32, flags: u64) -> (InitIn, u32) {
        (InitIn { major: 7, minor, max_readahead: 131_072, flags: flags as u32 }, (flags >> 32) as u32)
    }

    #[test]
    fn only_what_is_offered_and_wanted_is_taken() {
        let (init, flags2) = kernel(45, u64::MAX);
        let (out, agreed) = negotiate(&init, flags2).expect("a new kernel");
        let agreed = agreed.expect("settled");
        assert_eq!((agreed.minor, agreed.flags), (45, WANTED));
        assert!(!agreed.has(WRITEBACK_CACHE) && agreed.has(HAS_EXPIRE_ONLY));
        assert_eq!((out.max_write, out.max_pages, out.max_readahead), (1 << 20, 256, 131_072));
    }

    #[test]
    fn older_kernels_get_their_own_minor_and_no_flags2() {
        let (init, flags2) = kernel(31, u64::from(u32::MAX) & !INIT_EXT);
        let (out, agreed) = negotiate(&init, flags2 | 0xFF).expect("old enough");
        assert_eq!((out.minor, out.flags2), (31, 0));
        assert_eq!(agreed.map(|a| a.minor), Some(31));
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        let (init, _) = kernel(30, u64::MAX);
        assert_eq!(negotiate(&init, 0), Err(InitError::Version(7, 30)));
        let (init, _) = kernel(38, u64::from(u32::MAX) & !POSIX_ACL);
        assert_eq!(negotiate(&init, 0), Err(InitError::Lacks(7, 38, "POSIX_ACL")));
        let newer = InitIn { major: 8, minor: 1, ..InitIn::default() };
        let (out, agreed) = negotiate(&newer, 0).expect("asks again");
        assert_eq!((out.major, agreed), (7, None));
    }
}
