//! Mounts of a rig: made with the command that users have, unmounted or cleared whatever their state.

use super::{LIMIT, Rig, bounded, said};
use anyhow::{Result, bail};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

impl Rig {
    /// Mounts the root at a new mount point of this name.
    ///
    /// # Errors
    /// The mount fails; what was said is in the message.
    pub fn mount(&mut self, name: &str) -> Result<PathBuf> {
        self.mount_with(name, "")
    }

    /// Mounts with further options.
    ///
    /// # Errors
    /// The mount fails.
    pub fn mount_with(&mut self, name: &str, options: &str) -> Result<PathBuf> {
        let point = self.dir.join(name);
        std::fs::create_dir_all(&point)?;
        let out = self.try_mount(&point, options)?;
        if !out.status.success() {
            bail!("the mount failed with {}: {}\n{}", out.status, said(&out), self.tail());
        }
        self.mounts.push(point.clone());
        let end = Instant::now() + LIMIT;
        while !is_mounted(&point) {
            if Instant::now() > end {
                bail!("nothing is mounted at {}: {}\n{}", point.display(), said(&out), self.tail());
            }
            std::thread::sleep(super::POLL);
        }
        Ok(point)
    }

    /// Runs the mount command, whatever becomes of it.
    ///
    /// # Errors
    /// It can't be started, or does not end.
    pub fn try_mount(&self, point: &Path, options: &str) -> Result<std::process::Output> {
        let mut all = format!("key={}", self.key().display());
        if !options.is_empty() {
            all = format!("{all},{options}");
        }
        bounded(
            Command::new(&self.programs.claudefs)
                .arg("mount")
                .arg(format!("{}:/", self.address()))
                .arg(point)
                .args(["-o", &all]),
        )
    }

    /// Unmounts as a user does.
    ///
    /// # Errors
    /// It is busy, or does not end.
    pub fn unmount(&mut self, point: &Path) -> Result<()> {
        self.claudefs(&["umount", &point.to_string_lossy()])?;
        self.mounts.retain(|m| m != point);
        Ok(())
    }

    /// Processes that serve a mount.
    #[must_use]
    pub fn clients(&self, point: &Path) -> Vec<u32> {
        let found = processes_with(&point.to_string_lossy());
        found.into_iter().filter_map(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok()).collect()
    }

    /// Ends the client behind a mount with SIGKILL, as a crash would.
    ///
    /// # Errors
    /// No client is found.
    pub fn kill_client(&self, point: &Path) -> Result<()> {
        let marker = point.to_string_lossy().into_owned();
        let found = processes_with(&marker);
        if found.is_empty() {
            bail!("no process serves {}", point.display());
        }
        for pid in found {
            kill_process(pid, Signal::KILL).ok();
        }
        Ok(())
    }

    pub(super) fn clear_mounts(&mut self) {
        for point in std::mem::take(&mut self.mounts) {
            // Without a daemon a plain unmount waits for one.
            let clean = self.daemon.is_some()
                && super::bounded_by(Command::new("umount").arg(&point), Duration::from_secs(20))
                    .is_ok_and(|o| o.status.success());
            if !clean {
                rustix::mount::unmount(&point, UnmountFlags::DETACH | UnmountFlags::FORCE).ok();
            }
        }
    }

    /// Ends what still names the rig's folder on its command line: clients whose mount is gone.
    pub(super) fn end_leftovers(&self) {
        let marker = self.dir.to_string_lossy().into_owned();
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end && !processes_with(&marker).is_empty() {
            std::thread::sleep(super::POLL);
        }
        for pid in processes_with(&marker) {
            kill_process(pid, Signal::KILL).ok();
        }
    }
}

/// Whether something is mounted there.
#[must_use]
fn is_mounted(point: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let wanted = point.to_string_lossy();
    table.lines().any(|l| l.split(' ').nth(4) == Some(&wanted))
}

/// Processes whose command line contains this, but not our own.
fn processes_with(marker: &str) -> Vec<Pid> {
    let Ok(list) = std::fs::read_dir("/proc") else { return Vec::new() };
    list.flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| u32::try_from(*pid).is_ok_and(|p| p != std::process::id()))
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(marker))
        })
        .filter_map(Pid::from_raw)
        .collect()
}
