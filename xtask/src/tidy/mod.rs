//! The rules of the repository that no compiler checks. Each rule is a function from the tree to complaints.
//!
//! Runs as a test too (`tests/tidy.rs`). A complaint names the place, the rule and the way out.

mod docs;
mod layers;
mod lengths;
mod manifests;
mod scan;
mod sources;
mod tree;

use anyhow::{Result, bail};
use clap::Args;
use std::path::Path;

pub use tree::{SourceFile, Tree};

/// Options of `cargo xtask tidy`.
#[derive(Clone, Copy, Debug, Args)]
pub struct TidyArgs {
    /// Write the present lengths of long files into the list of exceptions, where they have become shorter
    #[arg(long)]
    pub shrink: bool,
}

/// Checks the repository; prints every complaint.
///
/// # Errors
/// There are complaints, or the tree can't be read.
pub fn run(args: &TidyArgs) -> Result<()> {
    let root = crate::workspace::root();
    if args.shrink {
        lengths::shrink(&Tree::read(root)?)?;
    }
    let complaints = complaints(root)?;
    for c in &complaints {
        eprintln!("{c}");
    }
    match complaints.len() {
        0 => Ok(()),
        n => bail!("tidy: {n} complaint{}", if n == 1 { "" } else { "s" }),
    }
}

/// Everything that breaks a rule, in the order of the rules.
///
/// # Errors
/// The tree can't be read.
pub fn complaints(root: &Path) -> Result<Vec<String>> {
    let tree = Tree::read(root)?;
    let mut out = Vec::new();
    out.extend(tree::top_level(&tree));
    out.extend(layers::check(&crate::workspace::metadata()?.packages));
    out.extend(manifests::check(&tree)?);
    out.extend(tree.sources.iter().flat_map(sources::check));
    out.extend(lengths::check(&tree)?);
    out.extend(docs::check(&tree)?);
    Ok(out)
}
