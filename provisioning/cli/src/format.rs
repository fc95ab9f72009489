//! `format`: looks at what would be destroyed, asks, makes the file where one is wanted, shows how far it is.
//!
//! Nothing is written before the device was found usable and the answer is yes; a file made here goes away with a failure.

use crate::args::Format;
use crate::confirm::{Asking, on_terminal};
use crate::device::{Content, content};
use crate::failure::Failure;
use crate::print::{self, bytes, uuid};
use crate::progress::Progress;
use chunkstore::{DeviceError, FileHandle, FileOptions, MIN_DEVICE};
use node::NodeError;
use serde_json::json;
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// From a device that can't be used.
pub(crate) fn device_failure(path: &Path, error: &DeviceError) -> Failure {
    let shown = path.display();
    let text = match error {
        DeviceError::InUse { .. } => format!(
            "{shown} is in use: by claudefsd (`systemctl stop claudefsd`), by a mount, or as part of another volume (`lsblk`)"
        ),
        DeviceError::Open { source, .. } => match source.kind() {
            ErrorKind::NotFound => format!("{shown} does not exist; check the path (`lsblk` lists disks)"),
            ErrorKind::PermissionDenied => format!("{shown} can't be opened: permission denied; run as root"),
            // open(2) with O_DIRECT on a file system that has none.
            ErrorKind::InvalidInput if source.raw_os_error().is_some() => {
                format!(
                    "{shown} can't be opened for direct I/O: its file system has none; use another, or a disk"
                )
            }
            _ => format!("{shown} can't be opened: {source}"),
        },
        other => format!("{shown}: {other}"),
    };
    Failure::Device(text)
}

/// From a node library's refusal of a device.
pub(crate) fn node_failure(path: &Path, error: &NodeError) -> Failure {
    match error {
        NodeError::Device(e) => device_failure(path, e),
        NodeError::Kernel(_) | NodeError::Reactor(_) => Failure::Other(error.to_string()),
        other => Failure::Device(format!("{}: {other}", path.display())),
    }
}

/// What is to be done about the file or disk itself.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// Make a file.
    Create(u64),
    /// Make it longer.
    Extend(u64),
    /// It has its size.
    Keep(u64),
}

fn plan(path: &Path, found: Option<&Metadata>, size: Option<u64>) -> Result<Plan, Failure> {
    let shown = path.display();
    let Some(meta) = found else {
        return match size {
            _ if path.starts_with("/dev") => {
                Err(Failure::Device(format!("{shown} does not exist; `lsblk` lists the disks")))
            }
            Some(size) => enough(path, size).map(|()| Plan::Create(size)),
            None => {
                Err(Failure::Device(format!("{shown} does not exist; --size 8GiB makes a file of that size")))
            }
        };
    };
    let kind = meta.file_type();
    if kind.is_block_device() {
        return match size {
            Some(_) => Err(Failure::Usage(format!("{shown} is a disk and has its size; leave --size out"))),
            // Its length is known once it is open.
            None => Ok(Plan::Keep(0)),
        };
    }
    if !kind.is_file() {
        return Err(Failure::Device(format!("{shown} is neither a disk nor a file; choose one that is")));
    }
    match size {
        Some(size) if size < meta.len() => Err(Failure::Usage(format!(
            "{shown} has {} and is not cut to {}: leave --size out, or remove the file",
            bytes(meta.len() as f64),
            bytes(size as f64)
        ))),
        Some(size) if size > meta.len() => enough(path, size).map(|()| Plan::Extend(size)),
        _ => enough(path, meta.len()).map(|()| Plan::Keep(meta.len())),
    }
}

fn enough(path: &Path, size: u64) -> Result<(), Failure> {
    if size >= MIN_DEVICE {
        return Ok(());
    }
    Err(Failure::Device(format!(
        "{}: {} is too small, a device needs at least {}",
        path.display(),
        bytes(size as f64),
        bytes(MIN_DEVICE as f64)
    )))
}

pub(crate) fn format(args: &Format) -> Result<(), Failure> {
    let path = &args.device;
    let found = match std::fs::metadata(path) {
        Ok(meta) => Some(meta),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(Failure::Device(format!("{}: {e}", path.display()))),
    };
    let plan = plan(path, found.as_ref(), args.size.map(|s| s.0))?;
    if found.is_some() {
        usable(args)?;
    }
    resize(path, &plan)?;
    let done = write(args);
    if done.is_err() && matches!(plan, Plan::Create(_)) {
        // A file that this command made is of no use to anybody; the failure is what matters.
        let _ = std::fs::remove_file(path);
    }
    report(args, &done?)
}

/// Nobody uses the device, and whoever must agrees that it is lost.
fn usable(args: &Format) -> Result<(), Failure> {
    let path = &args.device;
    // Opened for writing and closed again: a device in use is known before anybody is asked.
    let handle = FileHandle::open(path, FileOptions::default()).map_err(|e| device_failure(path, &e))?;
    let content = content(&handle)?;
    drop(handle);
    if content.is_something() && !args.force {
        return Err(Failure::Refused(format!(
            "{} holds {content}; nothing was changed: check that it is the right one, then add --force to destroy it",
            path.display()
        )));
    }
    if matches!(content, Content::Blank) {
        return Ok(());
    }
    let what = format!("Everything on {} will be lost: it holds {content}.", path.display());
    Asking::new(args.yes).confirm(&what, on_terminal)
}

fn resize(path: &Path, plan: &Plan) -> Result<(), Failure> {
    let failed = |e: io::Error| {
        let shown = path.display();
        Failure::Device(match e.kind() {
            ErrorKind::NotFound => {
                format!("{shown} can't be made: its folder does not exist; make it with `mkdir -p`")
            }
            ErrorKind::FileTooLarge => format!("{shown} can't be so large on its file system"),
            _ => format!("{shown} can't be given its size: {e}"),
        })
    };
    match *plan {
        Plan::Keep(_) => Ok(()),
        Plan::Extend(size) => {
            let file = File::options().write(true).open(path).map_err(failed)?;
            file.set_len(size).map_err(failed)
        }
        Plan::Create(size) => {
            // File data lies in it: for its owner alone.
            let made = File::options().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
            made.set_len(size).map_err(|e| {
                let _ = std::fs::remove_file(path);
                failed(e)
            })
        }
    }
}

fn write(args: &Format) -> Result<node::Formatted, Failure> {
    let store = chunkstore::FormatOptions {
        shards: args.shards,
        force: args.force,
        ..chunkstore::FormatOptions::default()
    };
    let options = node::FormatOptions { store, preallocate: args.preallocate };
    let mut progress = Progress::new("formatting");
    let (mut phase, preallocate) = (0, args.preallocate);
    let show = move |done: u64, all: u64| {
        if phase != 0 && all != phase && preallocate {
            progress.rename("preallocating");
        }
        phase = all;
        progress.at(done, all, || format!("{} of {}", bytes(done as f64), bytes(all as f64)));
    };
    node::format(&args.device, options, show).map_err(|e| node_failure(&args.device, &e))
}

fn report(args: &Format, made: &node::Formatted) -> Result<(), Failure> {
    // The daemon runs elsewhere: a relative path means nothing to it.
    let device = std::fs::canonicalize(&args.device).unwrap_or_else(|_| args.device.clone());
    let shown = device.display();
    if args.json {
        return print::json(&json!({
            "device": device.to_string_lossy(), "uuid": uuid(&made.uuid), "capacity": made.capacity,
            "shards": made.shards, "preallocated": args.preallocate,
        }));
    }
    print::out(&format!(
        "{shown}: file system {} of {} in {} shards\n\
         Next: name it in /etc/claudefs/claudefsd.toml (devices = [\"{shown}\"]), then `systemctl start claudefsd`\n",
        uuid(&made.uuid),
        bytes(made.capacity as f64),
        made.shards,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_made_and_extended_but_never_cut() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("device");
        let big = MIN_DEVICE * 2;
        assert_eq!(plan(&path, None, Some(big)).expect("new"), Plan::Create(big));
        assert_eq!(plan(&path, None, None).expect_err("no size").exit_code(), 3);
        assert_eq!(plan(&path, None, Some(1)).expect_err("small").exit_code(), 3);
        assert_eq!(plan(Path::new("/dev/none"), None, Some(big)).expect_err("a disk").exit_code(), 3);
        resize(&path, &Plan::Create(big)).expect("made");
        let meta = std::fs::metadata(&path).expect("there");
        assert_eq!(meta.len(), big);
        assert_eq!(plan(&path, Some(&meta), None).expect("kept"), Plan::Keep(big));
        assert_eq!(plan(&path, Some(&meta), Some(big * 2)).expect("extended"), Plan::Extend(big * 2));
        assert_eq!(plan(&path, Some(&meta), Some(MIN_DEVICE)).expect_err("cut").exit_code(), 2);
        let folder = std::fs::metadata(dir.path()).expect("there");
        assert_eq!(plan(dir.path(), Some(&folder), None).expect_err("a folder").exit_code(), 3);
    }
}
