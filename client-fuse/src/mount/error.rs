//! What can stand in the way of a mount.

use std::io;
use std::path::PathBuf;

/// Why there is no mount. All are for the user to act upon; none is worth a retry as it is.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Nothing at the mount point.
    #[error("mount point {} does not exist: make it with `mkdir -p {}`", .mountpoint.display(), .mountpoint.display())]
    Missing {
        /// The path.
        mountpoint: PathBuf,
    },
    /// Something else than a directory.
    #[error("mount point {} is not a directory: choose one", .mountpoint.display())]
    NotDirectory {
        /// The path.
        mountpoint: PathBuf,
    },
    /// A mount is there.
    #[error(
        "mount point {} is busy: {source_name} ({kind}) is mounted there; `claudefs umount {}` first, or choose another directory",
        .mountpoint.display(), .mountpoint.display()
    )]
    Busy {
        /// The path.
        mountpoint: PathBuf,
        /// What the mount table says is mounted.
        source_name: String,
        /// Its file system type.
        kind: String,
    },
    /// A mount is there whose client has died.
    #[error(
        "mount point {} holds a mount whose client is gone (transport endpoint is not connected): clear it with `claudefs umount {}`",
        .mountpoint.display(), .mountpoint.display()
    )]
    Dead {
        /// The path.
        mountpoint: PathBuf,
    },
    /// The mount point can't be looked at.
    #[error("cannot look at mount point {}: {source}", .mountpoint.display())]
    Look {
        /// The path.
        mountpoint: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The mount table can't be read.
    #[error("cannot read /proc/self/mountinfo: {source}; is /proc mounted?")]
    Table {
        /// The kernel's answer.
        source: io::Error,
    },
    /// No device.
    #[error(
        "no FUSE on this machine: /dev/fuse can not be used ({source}); load it with `modprobe fuse`, or make the node with `mknod /dev/fuse c 10 229` where the kernel has it built in (in a container: pass the device in, e.g. `--device /dev/fuse`)"
    )]
    NoFuse {
        /// The kernel's answer.
        source: io::Error,
    },
    /// The device is there and may not be opened or mounted.
    #[error("not permitted to mount at {}: {source}; run as root, or install fuse3 (its fusermount3 mounts for users)", .mountpoint.display())]
    Permission {
        /// The path.
        mountpoint: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// mount(2) failed otherwise.
    #[error("mounting at {} failed: {source}", .mountpoint.display())]
    Mount {
        /// The path.
        mountpoint: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No fusermount3.
    #[error(
        "mounting without root needs fusermount3, which is not installed: `apt install fuse3`, or run as root"
    )]
    NoHelper,
    /// fusermount3 refused.
    #[error("fusermount3 refused to mount at {}: {message}", .mountpoint.display())]
    Helper {
        /// The path.
        mountpoint: PathBuf,
        /// Its words.
        message: String,
    },
    /// Talking to fusermount3 failed.
    #[error("cannot talk to fusermount3: {source}")]
    HelperTalk {
        /// The kernel's answer.
        source: io::Error,
    },
}
