//! Read-ahead of a mount: `/sys/class/bdi/MAJOR:MINOR/read_ahead_kb`.

use super::table;
use std::io;
use std::path::Path;

/// Sets the read-ahead of the mount at `mountpoint` and returns what it was, in KiB.
///
/// # Errors
/// Where nothing is mounted there, or the setting may not be changed (it takes root).
pub fn set_read_ahead(mountpoint: &Path, kib: u32) -> io::Result<u32> {
    let entry = table::find(mountpoint)?.ok_or(io::ErrorKind::NotFound)?;
    let (major, minor) = entry.device;
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    let old = std::fs::read_to_string(&path)?;
    std::fs::write(&path, kib.to_string())?;
    old.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}
