//! The smoke battery: what every program expects of a file system, one check each, on any directory.
//!
//! A check leaves its folder behind only when it fails. On ext4 all of them pass.

mod access;
mod contents;
mod held;
mod names;
pub mod pairs;
mod special;
mod work;

use anyhow::{Context as _, Result, bail, ensure};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A check of one directory.
pub type Check = fn(&Path) -> Result<()>;

/// Quick checks.
pub const QUICK: &[(&str, Check)] = &[
    ("kinds and links", names::kinds_and_links),
    ("times", names::times),
    ("rename", names::rename),
    ("a directory of thousands", names::many_entries),
    ("unlinked but open", names::unlinked_but_open),
    ("names of all sorts", names::odd_names),
    ("removed but held", held::removed_but_held),
    ("listings tell numbers", held::listings_tell_numbers),
    ("write and read", contents::write_and_read),
    ("append and truncate", contents::append_and_truncate),
    ("sparse files", contents::sparse),
    ("allocate, punch, zero", contents::allocate),
    ("direct I/O", contents::direct),
    ("synchronous writes", contents::synchronous),
    ("copy_file_range", contents::copy_range),
    ("shared maps", contents::maps),
    ("temporary files", special::tmpfile),
    ("execution", special::execution),
    ("running programs can't be changed", special::running_programs),
    ("pipes and sockets", special::pipes_and_sockets),
    ("locks", special::locks),
    ("a waiting locker dies on SIGKILL", special::killed_waiter),
    ("statfs", special::statfs),
    ("extended attributes", access::xattrs),
    ("permissions", access::permissions),
    ("set-id bits go", access::set_id_bits_go),
    ("POSIX ACLs", access::acls),
    ("set-group-ID directories", access::setgid),
];

/// Real work with the programs that people use; seconds each.
pub const WORK: &[(&str, Check)] = &[
    ("git", work::git),
    ("sqlite with two writers", work::sqlite),
    ("tar and rsync", work::tar_and_rsync),
    ("building a program", work::build),
    ("an image with a file system", work::image),
];

/// Runs checks one after the other, each in a folder of its own; tells of each.
///
/// # Errors
/// Names of those that failed.
pub fn run(dir: &Path, checks: &[(&str, Check)]) -> Result<()> {
    let mut failed = Vec::new();
    for (n, (name, check)) in checks.iter().enumerate() {
        let own = dir.join(format!("check-{n}-{}", std::process::id()));
        std::fs::create_dir(&own).with_context(|| format!("can't create {}", own.display()))?;
        match check(&own).and_then(|()| Ok(std::fs::remove_dir_all(&own)?)) {
            Ok(()) => println!("ok      {name}"),
            Err(e) => {
                println!("FAILED  {name}: {e:#}");
                failed.push(*name);
            }
        }
    }
    ensure!(failed.is_empty(), "{} of {} checks failed: {}", failed.len(), checks.len(), failed.join(", "));
    Ok(())
}

/// Longest that one program of a check may take.
const PROGRAM_LIMIT: Duration = Duration::from_secs(240);

/// Runs a program in a folder; its output is the error's text.
pub(crate) fn program(dir: &Path, name: &str, args: &[&str]) -> Result<String> {
    let out = crate::rig::bounded_by(Command::new(name).args(args).current_dir(dir), PROGRAM_LIMIT)?;
    if !out.status.success() {
        bail!("{name} {} ended with {}: {}", args.join(" "), out.status, crate::rig::said(&out));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Runs a shell script in a folder.
pub(crate) fn shell(dir: &Path, script: &str) -> Result<String> {
    program(dir, "sh", &["-euc", script])
}

/// Checks that an operation fails with one error.
pub(crate) fn fails<T>(what: &str, with: rustix::io::Errno, result: std::io::Result<T>) -> Result<()> {
    match result {
        Ok(_) => bail!("{what} succeeded; {with:?} was due"),
        Err(e) if e.raw_os_error() == Some(with.raw_os_error()) => Ok(()),
        Err(e) => bail!("{what} failed with {e}; {with:?} was due"),
    }
}
