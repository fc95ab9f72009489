//! `mount` and `umount`: the mounting itself is client-fuse's.

use crate::admin::key_file;
use crate::args::{Mount, Umount};
use crate::failure::Failure;
use clap::Parser;
use client_fuse::mount::{FSTYPE, is_dead, table};
use client_fuse::program::{self, Arguments};
use client_fuse::{Options, Source, Unmount, UnmountError, unmount};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use transport::Key;

/// Mounts. The process that serves the mount is this program, started again with the same words.
pub(crate) fn mount(args: &Mount) -> Result<ExitCode, Failure> {
    // Read here as well: mistakes in it have this program's exit codes.
    let source: Source = args.source.parse().map_err(|e| Failure::Usage(format!("{e}")))?;
    let mut options = Options::default();
    for list in &args.options {
        let parsed = if args.sloppy { options.parse_sloppy(list).map(drop) } else { options.parse(list) };
        parsed.map_err(|e| Failure::Usage(e.to_string()))?;
    }
    let key = key_file(args.key.as_deref().or(options.key.as_deref()));
    Key::load(&key)?;
    let words = words(args, &source, &key);
    let arguments = Arguments::try_parse_from(words).map_err(|e| Failure::Usage(e.to_string()))?;
    Ok(program::main(&arguments))
}

/// The command line of the mount program.
fn words(args: &Mount, source: &Source, key: &Path) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["claudefs mount".into()];
    for (flag, given) in [("-s", args.sloppy), ("-f", args.fake), ("-v", args.verbose)] {
        words.extend(given.then(|| flag.into()));
    }
    let mut key_option = OsString::from("key=");
    key_option.push(key);
    let foreground = args.foreground.then(|| "foreground".into());
    let options = args.options.iter().map(OsString::from).chain(foreground).chain([key_option]);
    words.extend(options.flat_map(|option| ["-o".into(), option]));
    words.extend(["--".into(), source.to_string().into(), args.mountpoint.clone().into()]);
    words
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_program_gets_what_was_asked_for() {
        let line = ["claudefs", "mount", "h:7:/a", "/mnt", "-o", "ro", "--foreground", "-v", "-n"];
        let command = crate::args::Cli::parse_from(line).command;
        let crate::args::Command::Mount(args) = command else { unreachable!("it is a mount") };
        let source = args.source.parse().expect("a source");
        let arguments =
            Arguments::try_parse_from(words(&args, &source, Path::new("/k"))).expect("understood");
        assert_eq!(
            (arguments.source.as_str(), arguments.mountpoint.as_path()),
            ("h:7:/a", Path::new("/mnt"))
        );
        assert_eq!(arguments.options, ["ro", "foreground", "key=/k"]);
        assert!(arguments.verbose && !arguments.fake && !arguments.sloppy);
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
