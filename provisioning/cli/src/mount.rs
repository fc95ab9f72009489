//! `mount` and `umount`: the mounting itself is client-fuse's.

use crate::admin::key_file;
use crate::args::{Mount, Umount};
use crate::failure::Failure;
use client_fuse::mount::{FSTYPE, table};
use client_fuse::{Options, Source, Unmount, UnmountError, unmount};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use transport::Key;

/// The program that mounts and then serves the mount, as it is installed and as cargo builds it.
const HELPERS: [&str; 2] = ["mount.claudefs", "mount-claudefs"];
/// Where mount(8) looks for helpers, which is not always in PATH.
const HELPER_FOLDERS: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin"];

pub(crate) fn mount(args: Mount) -> Result<(), Failure> {
    // Read here so that mistakes are told before another program is looked for.
    let source: Source = args.source.parse().map_err(|e| Failure::Usage(format!("{e}")))?;
    let mut options = Options::default();
    for list in &args.options {
        let parsed = if args.sloppy { options.parse_sloppy(list).map(drop) } else { options.parse(list) };
        parsed.map_err(|e| Failure::Usage(e.to_string()))?;
    }
    let key = key_file(args.key.as_deref().or(options.key.as_deref()));
    // Before a process is left behind; the program reads it again.
    Key::load(&key)?;
    let mut list = args.options;
    list.push(format!("key={}", key.display()));
    if args.foreground && !options.foreground {
        list.push("foreground".to_owned());
    }
    let helper = helper()?;
    let mut command = std::process::Command::new(&helper);
    command.arg(source.to_string()).arg(&args.mountpoint).arg("-o").arg(list.join(","));
    for (flag, given) in [("-s", args.sloppy), ("-f", args.fake), ("-v", args.verbose)] {
        if given {
            command.arg(flag);
        }
    }
    // Returns only where it failed.
    let error = command.exec();
    Err(Failure::Other(format!("{} can't be run: {error}", helper.display())))
}

/// The program beside this one, else the one that mount(8) would run.
fn helper() -> Result<PathBuf, Failure> {
    let beside = std::env::current_exe().ok().and_then(|me| me.parent().map(Path::to_owned));
    let path: OsString = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(HELPER_FOLDERS.map(PathBuf::from));
    find_helper(beside.into_iter().chain(folders)).ok_or_else(|| {
        let text = "mount.claudefs is not installed: put it beside `claudefs` or into /sbin; docs/operations.md says how";
        Failure::Other(text.to_owned())
    })
}

fn find_helper(folders: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    folders.flat_map(|folder| HELPERS.map(|name| folder.join(name))).find(|p| p.is_file())
}

pub(crate) fn umount(args: &Umount) -> Result<(), Failure> {
    let point = &args.mountpoint;
    foreign(point)?;
    let how = if args.lazy { Unmount::Lazy } else { Unmount::Plain };
    match unmount(point, how) {
        // Nothing that uses a dead mount can do anything with it but let go.
        Err(UnmountError::Busy(_)) if is_dead(point) => unmount(point, Unmount::Lazy),
        other => other,
    }
    .map_err(|e| match e {
        UnmountError::Busy(_) | UnmountError::Permission(_) => Failure::Refused(e.to_string()),
        _ => Failure::Other(e.to_string()),
    })
}

/// Refuses what is not ours; what can't be found in the mount table is left to the kernel's answer.
fn foreign(point: &Path) -> Result<(), Failure> {
    let Ok(absolute) = std::path::absolute(point) else { return Ok(()) };
    match table::find(&absolute) {
        Ok(Some(entry)) if entry.kind != FSTYPE => Err(Failure::Usage(format!(
            "{} is a mount of {} ({}), not of ClaudeFS; `umount {0}` ends it",
            absolute.display(),
            entry.source,
            entry.kind
        ))),
        _ => Ok(()),
    }
}

/// Whether the client behind a mount is gone.
fn is_dead(point: &Path) -> bool {
    let looked = std::fs::metadata(point);
    looked.is_err_and(|e| e.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_under_either_name() {
        let (first, second) =
            (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let look = || find_helper([first.path(), second.path()].into_iter().map(Path::to_owned));
        assert_eq!(look(), None);
        std::fs::write(second.path().join("mount.claudefs"), b"").expect("a file");
        assert_eq!(look(), Some(second.path().join("mount.claudefs")));
        std::fs::write(first.path().join("mount-claudefs"), b"").expect("a file");
        assert_eq!(look(), Some(first.path().join("mount-claudefs")));
    }

    #[test]
    fn mounts_of_others_are_left_alone() {
        let refused = foreign(Path::new("/proc")).expect_err("proc is not ours");
        assert_eq!(refused.exit_code(), 2);
        assert!(refused.to_string().contains("proc"), "{refused}");
        let dir = tempfile::tempdir().expect("a folder");
        assert!(foreign(dir.path()).is_ok());
        assert!(!is_dead(dir.path()));
    }
}
