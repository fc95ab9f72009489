//! `check` and `fmt`: what is to be clean before a commit.

use crate::command::{cargo, has_cargo_command, note, run, step};
use anyhow::Result;

/// Heads of modules name private items on purpose: they are for who works on the crate.
const DOC_FLAGS: &str = "-D warnings -A rustdoc::private_intra_doc_links";

/// Formats every source file.
///
/// # Errors
/// rustfmt fails.
pub fn fmt() -> Result<()> {
    run(cargo().args(["fmt", "--all"]))
}

/// Everything that is to be clean before a commit.
///
/// # Errors
/// The first thing that is not clean.
pub fn check() -> Result<()> {
    step("Formatting");
    run(cargo().args(["fmt", "--all", "--check"]))?;
    step("Tidy");
    crate::tidy::run(&crate::tidy::TidyArgs { shrink: false })?;
    step("Clippy");
    let features = ["--workspace", "--all-targets", "--all-features", "--quiet"];
    run(cargo().arg("clippy").args(features).args(["--", "-D", "warnings"]))?;
    step("Documentation");
    run(cargo().args(["doc", "--workspace", "--no-deps", "--quiet"]).env("RUSTDOCFLAGS", DOC_FLAGS))?;
    step("Licences, bans and sources of dependencies");
    if has_cargo_command("deny") {
        run(cargo().args(["deny", "--all-features", "check", "licenses", "bans", "sources"]))?;
    } else {
        note("skipped: cargo-deny is not installed (cargo install --locked cargo-deny)");
    }
    Ok(())
}
