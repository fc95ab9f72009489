//! mount(2), as root.

use super::{FSTYPE, MountError, Options};
use crate::abi;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ffi::CString;
use std::path::Path;

/// Opens the device.
pub(super) fn open_device() -> Result<OwnedFd, Errno> {
    rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
}

/// Whether a descriptor is of the FUSE device: misc (10), 229, in the kernel's Documentation/admin-guide/devices.txt.
fn is_fuse(device: &OwnedFd) -> bool {
    let same =
        |s: rustix::fs::Stat| (rustix::fs::major(s.st_rdev), rustix::fs::minor(s.st_rdev)) == (10, 229);
    rustix::fs::fstat(device).is_ok_and(same)
}

pub(super) fn mount(source: &str, mountpoint: &Path, options: &Options) -> Result<OwnedFd, MountError> {
    let device = open_device().map_err(|e| match e {
        Errno::ACCESS | Errno::PERM => {
            MountError::Permission { mountpoint: mountpoint.to_owned(), source: e.into() }
        }
        e => MountError::NoFuse { source: e.into() },
    })?;
    if !is_fuse(&device) {
        let source = std::io::Error::other("it is another device");
        return Err(MountError::NoFuse { source });
    }
    // The kernel checks permissions for everyone (default_permissions), so others may come in (allow_other). The root's attributes
    // come with the first LOOKUP; until then it is a directory.
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},allow_other,default_permissions,max_read={}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
        abi::MAX_WRITE,
    );
    let mount_error = |e: Errno| {
        let mountpoint = mountpoint.to_owned();
        match e {
            Errno::PERM | Errno::ACCESS => MountError::Permission { mountpoint, source: e.into() },
            Errno::NODEV => MountError::NoFuse { source: e.into() },
            e => MountError::Mount { mountpoint, source: e.into() },
        }
    };
    let data = CString::new(data).map_err(|_| mount_error(Errno::INVAL))?;
    rustix::mount::mount(source, mountpoint, FSTYPE, options.flags, data.as_c_str()).map_err(mount_error)?;
    Ok(device)
}
