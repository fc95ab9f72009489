//! The files under version control, and the rule for the top level.

use super::scan;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository's files.
#[derive(Debug)]
pub struct Tree {
    /// Where it is.
    pub root: PathBuf,
    /// Every file that git tracks or would, relative to the root.
    pub files: Vec<String>,
    /// The Rust files among them.
    pub sources: Vec<SourceFile>,
}

/// A Rust file.
#[derive(Debug)]
pub struct SourceFile {
    /// Relative to the root.
    pub path: String,
    /// As it is.
    pub text: String,
    /// With comments and the insides of literals blanked; same line numbers.
    pub code: String,
}

/// What may stand at the top; the layout is fixed.
const TOP_LEVEL: &[&str] = &[
    ".cargo",
    ".ci",
    ".config",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "SECURITY.md",
    "appliance",
    "client-fuse",
    "clippy.toml",
    "deny.toml",
    "docs",
    "drivers-userland",
    "hwtest",
    "image",
    "nfs-frontend",
    "provisioning",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "xtask",
];

impl Tree {
    /// Reads the tree below `root`.
    ///
    /// # Errors
    /// Git does not answer, or a file can't be read.
    pub fn read(root: &Path) -> Result<Self> {
        let list = crate::command::output(Command::new("git").current_dir(root).args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
        ]))?;
        let mut files: Vec<String> =
            list.lines().filter(|f| root.join(f).is_file()).map(str::to_owned).collect();
        files.sort();
        files.dedup();
        let mut sources = Vec::new();
        for path in files.iter().filter(|f| has_extension(f, "rs")) {
            let text =
                std::fs::read_to_string(root.join(path)).with_context(|| format!("can't read {path}"))?;
            let code = scan::code_only(&text);
            sources.push(SourceFile { path: path.clone(), text, code });
        }
        Ok(Self { root: root.to_path_buf(), files, sources })
    }

    /// The text of a file.
    ///
    /// # Errors
    /// It can't be read.
    pub fn text(&self, path: &str) -> Result<String> {
        std::fs::read_to_string(self.root.join(path)).with_context(|| format!("can't read {path}"))
    }
}

/// Whether a path ends so.
pub(super) fn has_extension(path: &str, extension: &str) -> bool {
    Path::new(path).extension().is_some_and(|e| e == extension)
}

/// Complains of entries at the top that the layout does not name.
pub(super) fn top_level(tree: &Tree) -> Vec<String> {
    let mut seen: Vec<&str> = tree.files.iter().filter_map(|f| f.split('/').next()).collect();
    seen.dedup();
    seen.into_iter()
        .filter(|f| !TOP_LEVEL.contains(f))
        .map(|f| format!("{f}: the top level is fixed; put this into one of its folders"))
        .collect()
}
