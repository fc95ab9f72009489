//! Where the programs under test are, and whose turn it is to run them.

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::path::PathBuf;

/// The programs, built beside the test that runs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Folder of them all.
    pub dir: PathBuf,
    /// The daemon.
    pub claudefsd: PathBuf,
    /// The command-line tool.
    pub claudefs: PathBuf,
    /// Developer commands.
    pub xtask: PathBuf,
}

impl Programs {
    /// Looks beside the running program and one folder up, where cargo puts them.
    ///
    /// # Errors
    /// They are not built.
    pub fn find() -> Result<Self> {
        let here = std::env::current_exe()?;
        for dir in here.ancestors().skip(1).take(2) {
            let at = |name: &str| dir.join(name);
            if at("claudefsd").exists() && at("claudefs").exists() {
                return Ok(Self {
                    dir: dir.to_path_buf(),
                    claudefsd: at("claudefsd"),
                    claudefs: at("claudefs"),
                    xtask: at("xtask"),
                });
            }
        }
        bail!(
            "claudefsd and claudefs are not built beside {}: run `cargo build --workspace --bins`",
            here.display()
        )
    }

    /// Waits for the turn to mount: mounts, hugepages and ports of one machine are tried by one test at a time.
    ///
    /// # Errors
    /// The lock can't be opened.
    pub fn turn(&self) -> Result<File> {
        let path = self.dir.join("hwtest.lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("can't open {}", path.display()))?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }
}
