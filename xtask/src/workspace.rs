//! What the workspace is made of: its root, its build directory, its packages.

use anyhow::{Context as _, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The repository's root.
#[must_use]
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        here.parent().unwrap_or(here).to_path_buf()
    })
}

/// What `cargo metadata` tells of the workspace.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    /// The members.
    pub packages: Vec<Package>,
    /// Where cargo builds.
    pub target_directory: PathBuf,
}

/// A member of the workspace.
#[derive(Debug, Deserialize)]
pub struct Package {
    /// Name of the package.
    pub name: String,
    /// Path of its Cargo.toml.
    pub manifest_path: PathBuf,
    /// What it depends on.
    pub dependencies: Vec<Dependency>,
    /// What it builds.
    pub targets: Vec<Target>,
}

/// A dependency of a member.
#[derive(Debug, Deserialize)]
pub struct Dependency {
    /// Name of the package.
    pub name: String,
    /// `None` for an ordinary one, else `dev` or `build`.
    pub kind: Option<String>,
    /// Set where it is a folder of this repository.
    pub path: Option<PathBuf>,
}

/// A library, binary or test.
#[derive(Debug, Deserialize)]
pub struct Target {
    /// `lib`, `bin`, `test`, ...
    pub kind: Vec<String>,
    /// Name of the target.
    pub name: String,
}

impl Package {
    /// Whether other crates can build on it.
    #[must_use]
    pub fn is_library(&self) -> bool {
        self.targets.iter().any(|t| t.kind.iter().any(|k| k == "lib"))
    }

    /// Folder relative to the root, with `/` between its parts.
    #[must_use]
    pub fn folder(&self) -> String {
        let dir = self.manifest_path.parent().unwrap_or(&self.manifest_path);
        dir.strip_prefix(root()).unwrap_or(dir).to_string_lossy().into_owned()
    }
}

/// Asks cargo for the members of the workspace.
///
/// # Errors
/// Cargo can't read the workspace.
pub fn metadata() -> Result<Metadata> {
    let text = crate::command::output(crate::command::cargo().args([
        "metadata",
        "--no-deps",
        "--offline",
        "--format-version",
        "1",
    ]))?;
    serde_json::from_str(&text).context("cargo metadata printed something unexpected")
}
