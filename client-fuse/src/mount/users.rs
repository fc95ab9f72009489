//! Who uses a mount, from /proc: reading it touches no file system, so a hanging server can't hang us.

use super::table;
use std::fmt;
use std::path::{Path, PathBuf};

/// Users that a message names at most.
const NAMED: usize = 5;

/// A mount in use, and by what as far as it can be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InUse {
    /// The mount.
    pub mountpoint: PathBuf,
    /// Programs with their process numbers, mounts below, loop devices.
    pub by: Vec<String>,
}

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mountpoint = self.mountpoint.display();
        write!(f, "{mountpoint} is in use")?;
        for (n, user) in self.by.iter().take(NAMED).enumerate() {
            write!(f, "{}{user}", if n == 0 { " by " } else { ", " })?;
        }
        if self.by.len() > NAMED {
            write!(f, " and {} more", self.by.len() - NAMED)?;
        }
        write!(f, ": stop what works in it (`fuser -vm {mountpoint}` tells), or detach it with `--lazy`")
    }
}

impl InUse {
    /// Looks for users of the mount at this path, absolute and free of links.
    pub(super) fn find(mountpoint: PathBuf) -> Self {
        let mut by = processes(Path::new("/proc"), &mountpoint);
        by.extend(loop_devices(Path::new("/sys/block"), &mountpoint));
        by.extend(mounts_below(&mountpoint));
        Self { mountpoint, by }
    }
}

fn processes(proc: &Path, mountpoint: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(proc).into_iter().flatten().flatten();
    let mut pids: Vec<u32> = entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    let uses = |pid: &u32| uses(&proc.join(pid.to_string()), mountpoint);
    let named = |pid: u32| {
        let name = std::fs::read_to_string(proc.join(format!("{pid}/comm"))).unwrap_or_default();
        format!("{} (process {pid})", name.trim())
    };
    pids.into_iter().filter(uses).map(named).collect()
}

/// Whether a process stands in it, runs from it, or has a file of it open. Its maps are not looked at: reading them may wait for a page of
/// this very mount.
fn uses(process: &Path, mountpoint: &Path) -> bool {
    let leads = |link: PathBuf| std::fs::read_link(link).is_ok_and(|to| to.starts_with(mountpoint));
    let mut descriptors = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    ["cwd", "root", "exe"].iter().any(|link| leads(process.join(link)))
        || descriptors.any(|fd| leads(fd.path()))
}

fn loop_devices(block: &Path, mountpoint: &Path) -> Vec<String> {
    let devices = std::fs::read_dir(block).into_iter().flatten().flatten();
    let backed = devices.filter_map(|device| {
        let file = std::fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        let name = device.file_name().to_string_lossy().into_owned();
        Path::new(file.trim_end()).starts_with(mountpoint).then(|| format!("/dev/{name}"))
    });
    backed.collect()
}

fn mounts_below(mountpoint: &Path) -> Vec<String> {
    let all = table::all().unwrap_or_default().into_iter().map(|e| e.mountpoint);
    let below = all.filter(|at| at != mountpoint && at.starts_with(mountpoint));
    below.map(|at| format!("the mount at {}", at.display())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_and_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let real = dir.path().canonicalize().expect("a path");
        let held = std::fs::File::create(real.join("held")).expect("a file");
        let me = format!("(process {})", std::process::id());
        let found = InUse::find(real.clone());
        assert!(found.by.iter().any(|user| user.ends_with(&me)), "{found:?}");
        assert!(found.to_string().contains(&me), "{found}");
        drop(held);
        let gone = InUse::find(real.join("held"));
        assert!(!gone.by.iter().any(|user| user.ends_with(&me)), "{gone:?}");
    }

    #[test]
    fn a_long_list_is_cut() {
        let by = (0..7).map(|n| format!("p{n}")).collect();
        let text = InUse { mountpoint: "/m".into(), by }.to_string();
        assert!(text.starts_with("/m is in use by p0, p1, p2, p3, p4 and 2 more: stop"), "{text}");
    }
}
