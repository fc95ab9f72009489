//! The programs that the demo runs, built when they are missing or old.

use crate::command::{cargo, run, step};
use crate::workspace::metadata;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};

/// Paths of what was built.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    /// The daemon.
    pub claudefsd: PathBuf,
    /// The command-line tool.
    pub claudefs: PathBuf,
}

/// Those of a folder.
///
/// # Errors
/// One is missing.
pub(super) fn built(dir: &Path) -> Result<Programs> {
    let found = |name: &str| {
        std::path::absolute(dir.join(name))
            .and_then(|path| path.metadata().map(|_| path))
            .with_context(|| format!("{} has no program {name}", dir.display()))
    };
    Ok(Programs { claudefsd: found("claudefsd")?, claudefs: found("claudefs")? })
}

/// Builds them; cargo shows the progress.
///
/// # Errors
/// They don't build.
pub(super) fn build(dev: bool) -> Result<Programs> {
    let profile = if dev { "debug" } else { "release" };
    step(format!("Building ({profile})"));
    let mut c = cargo();
    c.args(["build", "--package", "node", "--package", "claudefs", "--bins"]);
    if !dev {
        c.arg("--release");
    }
    run(&mut c)?;
    let dir = metadata()?.target_directory.join(profile);
    Ok(Programs { claudefsd: dir.join("claudefsd"), claudefs: dir.join("claudefs") })
}
