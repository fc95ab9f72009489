//! The programs that the demo runs, built when they are missing or old.

use crate::command::{cargo, run, step};
use crate::workspace::metadata;
use anyhow::Result;
use std::path::PathBuf;

/// Paths of what was built.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    /// The daemon.
    pub claudefsd: PathBuf,
    /// The command-line tool.
    pub claudefs: PathBuf,
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
