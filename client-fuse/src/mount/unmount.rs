//! Ending a mount: umount2(2), or fusermount3 for users. Works on mounts whose client is gone.

use super::{InUse, helper, table};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How hard to try.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unmount {
    /// Only where nobody uses it.
    #[default]
    Plain,
    /// Take it out of sight now, end it when its last user has gone.
    Lazy,
}

/// Why the mount is still there.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Nothing to end.
    #[error("{} is not a mount point; `findmnt -t fuse.claudefs` lists the mounts", .0.display())]
    NotMounted(PathBuf),
    /// In use.
    #[error("{0}")]
    Busy(InUse),
    /// Not permitted.
    #[error("not permitted to unmount {}: run as root, or as the user who mounted it with fusermount3 installed", .0.display())]
    Permission(PathBuf),
    /// Otherwise.
    #[error("unmounting {} failed: {source}", .mountpoint.display())]
    Failed {
        /// Where.
        mountpoint: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Ends the topmost mount at `path`. Blocks while the kernel writes back what is dirty, so never call it on the thread that serves.
///
/// # Errors
/// Where nothing is mounted there, it is in use, or we may not.
pub fn unmount(path: &Path, how: Unmount) -> Result<(), UnmountError> {
    let mountpoint = resolve(path);
    let failed = |source: io::Error| UnmountError::Failed { mountpoint: mountpoint.clone(), source };
    if table::find(&mountpoint).map_err(failed)?.is_none() {
        return Err(UnmountError::NotMounted(mountpoint));
    }
    let mut flags = UnmountFlags::NOFOLLOW;
    if how == Unmount::Lazy {
        flags |= UnmountFlags::DETACH;
    }
    match rustix::mount::unmount(&mountpoint, flags) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => by_helper(mountpoint, how),
        Err(Errno::BUSY) => Err(UnmountError::Busy(InUse::find(mountpoint))),
        Err(Errno::INVAL) => Err(UnmountError::NotMounted(mountpoint)),
        Err(e) => Err(failed(e.into())),
    }
}

/// An absolute path without links. The mount itself is not touched: a dead one would fail, a hanging one hang.
fn resolve(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else { return absolute };
    let Ok(parent) = std::fs::canonicalize(parent) else { return absolute };
    let direct = parent.join(name);
    if matches!(table::find(&direct), Ok(None))
        && let Ok(real) = std::fs::canonicalize(&direct)
    {
        return real;
    }
    direct
}

fn by_helper(mountpoint: PathBuf, how: Unmount) -> Result<(), UnmountError> {
    let mut command = Command::new(helper::PROGRAM);
    command.arg("-u");
    if how == Unmount::Lazy {
        command.arg("-z");
    }
    let output = command.arg("--").arg(&mountpoint).stdin(Stdio::null()).output();
    match output {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => {
            let message = String::from_utf8_lossy(&out.stderr).trim().to_owned();
            if message.contains("busy") {
                return Err(UnmountError::Busy(InUse::find(mountpoint)));
            }
            Err(UnmountError::Failed { mountpoint, source: io::Error::other(message) })
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(UnmountError::Permission(mountpoint)),
        Err(source) => Err(UnmountError::Failed { mountpoint, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_mount_is_not_unmounted() {
        let dir = tempfile::tempdir().expect("a directory");
        let result = unmount(dir.path(), Unmount::Plain);
        assert!(matches!(result, Err(UnmountError::NotMounted(_))), "{result:?}");
        let missing = unmount(&dir.path().join("none"), Unmount::Lazy);
        assert!(matches!(missing, Err(UnmountError::NotMounted(_))), "{missing:?}");
    }
}
