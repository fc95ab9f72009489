//! Where the demo's files are, and which of its processes live.

use crate::command::POLL;
use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The demo's folder and the names in it.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The folder, absolute.
    pub dir: PathBuf,
}

/// Another `up` or `down` may be building; nothing else holds the lock for long.
const LOCK_LIMIT: Duration = Duration::from_secs(900);

impl Layout {
    /// A relative folder is one of the repository.
    ///
    /// # Errors
    /// The path is not UTF-8: it goes into a TOML file.
    pub fn new(dir: &Path) -> Result<Self> {
        let dir = if dir.is_absolute() { dir.to_path_buf() } else { crate::workspace::root().join(dir) };
        if dir.to_str().is_none() {
            bail!("the folder's name {} is not valid UTF-8: choose another with --dir", dir.display());
        }
        Ok(Self { dir })
    }
    /// Cluster key.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.dir.join("key")
    }
    /// The device: a sparse file.
    #[must_use]
    pub fn device(&self) -> PathBuf {
        self.dir.join("device.img")
    }
    /// The daemon's configuration.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("claudefsd.toml")
    }
    /// Where it is mounted.
    #[must_use]
    pub fn mount_point(&self) -> PathBuf {
        self.dir.join("mnt")
    }
    /// Folder of logs.
    #[must_use]
    pub fn log_dir(&self) -> PathBuf {
        self.dir.join("log")
    }
    /// Log of the daemon.
    #[must_use]
    pub fn daemon_log(&self) -> PathBuf {
        self.log_dir().join("claudefsd.log")
    }
    /// Log of the supervisor.
    #[must_use]
    pub fn supervisor_log(&self) -> PathBuf {
        self.log_dir().join("supervisor.log")
    }
    /// Log of the mount.
    #[must_use]
    pub fn mount_log(&self) -> PathBuf {
        self.log_dir().join("mount.log")
    }
    /// Number of the supervisor's process.
    #[must_use]
    pub fn supervisor_pid(&self) -> PathBuf {
        self.dir.join("run/supervisor.pid")
    }
    /// Number of the daemon's process.
    #[must_use]
    pub fn daemon_pid(&self) -> PathBuf {
        self.dir.join("run/claudefsd.pid")
    }

    /// Makes the folders.
    ///
    /// # Errors
    /// One can't be made.
    pub fn create(&self) -> Result<()> {
        for dir in [self.dir.clone(), self.log_dir(), self.dir.join("run")] {
            std::fs::create_dir_all(&dir).with_context(|| format!("can't create {}", dir.display()))?;
        }
        Ok(())
    }

    /// Keeps two commands from working on the folder at once.
    ///
    /// # Errors
    /// Another command holds it for too long.
    pub fn lock(&self) -> Result<File> {
        let path = self.dir.join("run/lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("can't open {}", path.display()))?;
        let end = Instant::now() + LOCK_LIMIT;
        let mut told = false;
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            if !told {
                crate::command::note("waiting for another `cargo xtask up` or `down` to end");
                told = true;
            }
            if Instant::now() >= end {
                bail!("another `cargo xtask up` or `down` has held {} for too long", path.display());
            }
            std::thread::sleep(POLL);
        }
        Ok(file)
    }

    /// The process of a pid file, if it lives and is the one meant: its command line names `marker` and this folder.
    /// A stale file is removed.
    #[must_use]
    pub fn running(&self, pid_file: &Path, marker: &str) -> Option<u32> {
        let pid: u32 = std::fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if line.contains(marker) && self.dir.to_str().is_some_and(|d| line.contains(d)) {
            return Some(pid);
        }
        std::fs::remove_file(pid_file).ok();
        None
    }

    /// Where the daemon listens, from its configuration.
    ///
    /// # Errors
    /// The configuration is missing or names none.
    pub fn address(&self) -> Result<String> {
        let path = self.config();
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        let table: toml::Table = text.parse().with_context(|| format!("{} is not TOML", path.display()))?;
        let first = table.get("listen").and_then(|l| l.get(0)).and_then(toml::Value::as_str);
        match first {
            Some(address) => Ok(address.to_owned()),
            None => bail!("{} has no line `listen = [\"ADDRESS:PORT\"]`", path.display()),
        }
    }
}

/// Reads a size such as `8GiB`, `512M` or a plain number of bytes. Units are powers of 1024.
///
/// # Errors
/// It is no size, with an example of one.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("`{text}` is no size: write one like 8GiB, 512MiB or 4096");
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let shift =
        match unit.trim().trim_end_matches(['b', 'B']).trim_end_matches('i').to_ascii_lowercase().as_str() {
            "" => 0,
            "k" => 10,
            "m" => 20,
            "g" => 30,
            "t" => 40,
            _ => return Err(bad()),
        };
    number.checked_mul(1 << shift).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        assert_eq!(parse_size("8GiB"), Ok(8 << 30));
        assert_eq!(parse_size("8g"), Ok(8 << 30));
        assert_eq!(parse_size("512 MB"), Ok(512 << 20));
        assert_eq!(parse_size("4096"), Ok(4096));
        for bad in ["", "G", "-1", "1.5G", "1X", "99999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_stale_pid_file_names_nobody_and_goes_away() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let layout = Layout::new(dir.path()).expect("UTF-8");
        layout.create().expect("folders");
        // Process 1 lives, but it is not ours.
        std::fs::write(layout.daemon_pid(), "1\n").expect("write");
        assert_eq!(layout.running(&layout.daemon_pid(), "claudefsd"), None);
        assert!(!layout.daemon_pid().exists());
    }
}
