//! Making and ending the mount itself: options, the system calls, fusermount3 for users, the mount table, read-ahead.
//!
//! Owns everything that happens outside the FUSE protocol. Must not read requests. Calls here block; the caller runs them before its reactor
//! serves, or on a thread of its own.

pub mod bdi;
mod error;
mod helper;
mod kernel;
pub mod options;
pub mod source;
pub mod table;
pub mod unmount;
mod users;

pub use error::MountError;
pub use options::{Options, OptionsError};
pub use source::Source;
pub use table::Entry as TableEntry;
pub use unmount::{Unmount, UnmountError, unmount};
pub use users::InUse;

use rustix::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// `subtype` of every mount: it shows as `fuse.claudefs` in /proc/mounts.
pub const SUBTYPE: &str = "claudefs";
/// File system type as the mount table has it.
pub const FSTYPE: &str = "fuse.claudefs";

/// What the kernel answers where the client is gone, and to whom it was asking when that went.
const DEAD: [rustix::io::Errno; 2] = [rustix::io::Errno::NOTCONN, rustix::io::Errno::CONNABORTED];

/// How long a mount that is in the way may take to say whether it lives.
const DEAD_WAIT: std::time::Duration = std::time::Duration::from_secs(1);

/// A mount that was made and now waits for its INIT to be answered.
#[derive(Debug)]
pub struct Mounted {
    /// The FUSE device.
    pub device: OwnedFd,
    /// Where, as an absolute path without links.
    pub mountpoint: PathBuf,
    /// Whether fusermount3 made it, and must end it.
    pub by_helper: bool,
}

/// Mounts `source` (as the table is to show it) on `mountpoint`.
///
/// Root uses mount(2); others go through fusermount3, which is set-user-ID.
///
/// # Errors
/// Each says what stands in the way and what to do about it.
pub fn mount(source: &str, mountpoint: &Path, options: &Options) -> Result<Mounted, MountError> {
    let mountpoint = check_mountpoint(mountpoint)?;
    if rustix::process::geteuid().is_root() {
        let device = kernel::mount(source, &mountpoint, options)?;
        Ok(Mounted { device, mountpoint, by_helper: false })
    } else {
        let device = helper::mount(source, &mountpoint, options)?;
        Ok(Mounted { device, mountpoint, by_helper: true })
    }
}

/// A directory that is there, is not a mount already, and, where it is a dead one, says how to clear it.
fn check_mountpoint(path: &Path) -> Result<PathBuf, MountError> {
    let real = match std::fs::canonicalize(path) {
        Ok(real) => real,
        // A mount whose client died answers every path resolution so.
        Err(e) if DEAD.iter().any(|d| e.raw_os_error() == Some(d.raw_os_error())) => {
            return Err(MountError::Dead { mountpoint: path.to_owned() });
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(MountError::Missing { mountpoint: path.to_owned() });
        }
        Err(source) => return Err(MountError::Look { mountpoint: path.to_owned(), source }),
    };
    // The table is looked at before the directory itself: stat(2) on a mount whose server hangs would hang too.
    if let Some(entry) = table::find(&real).map_err(|source| MountError::Table { source })? {
        if entry.kind == FSTYPE && is_dead(&real) {
            return Err(MountError::Dead { mountpoint: real });
        }
        return Err(MountError::Busy { mountpoint: real, source_name: entry.source, kind: entry.kind });
    }
    match std::fs::metadata(&real) {
        Ok(meta) if meta.is_dir() => {
            if std::fs::read_dir(&real).is_ok_and(|mut entries| entries.next().is_some()) {
                tracing::warn!(
                    "mount point {} is not empty: what is in it is hidden until it is unmounted",
                    real.display()
                );
            }
            Ok(real)
        }
        Ok(_) => Err(MountError::NotDirectory { mountpoint: real }),
        Err(source) => Err(MountError::Look { mountpoint: real, source }),
    }
}

/// Whether the client of a mount is gone. It is asked on a thread of its own: one that hangs would not answer.
///
/// statfs(2), as the kernel never answers it itself: attributes of the root may still be in its cache.
#[must_use]
pub fn is_dead(mountpoint: &Path) -> bool {
    let path = mountpoint.to_owned();
    let (send, receive) = std::sync::mpsc::channel();
    let ask = move || {
        let asked = rustix::fs::statfs(&path).map(drop);
        // Nobody listens any more where the answer came too late.
        let _ = send.send(asked);
    };
    if std::thread::Builder::new().name("fuse-ask".to_owned()).spawn(ask).is_err() {
        return false;
    }
    matches!(receive.recv_timeout(DEAD_WAIT), Ok(Err(e)) if DEAD.contains(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_mount_points_are_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = Options::default();
        let missing = mount("h:/", &dir.path().join("none"), &options);
        assert!(matches!(missing, Err(MountError::Missing { .. })), "{missing:?}");
        let file = dir.path().join("file");
        std::fs::write(&file, b"").expect("a file");
        let not_dir = mount("h:/", &file, &options);
        assert!(matches!(not_dir, Err(MountError::NotDirectory { .. })), "{not_dir:?}");
        let busy = mount("h:/", Path::new("/proc"), &options).expect_err("proc is mounted there");
        assert!(matches!(&busy, MountError::Busy { kind, .. } if kind == "proc"), "{busy:?}");
        assert!(busy.to_string().contains("/proc"), "{busy}");
    }
}
