//! Developer commands of the repository: what `cargo xtask` does.
//!
//! Owns the way from a fresh checkout to a running demo and to a tested tree. Must not be needed by anything that
//! ships, and must not know more of the product than its command lines.

pub mod check;
pub mod command;
pub mod demo;
pub mod packages;
pub mod suite;
pub mod tidy;
pub mod workspace;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Developer commands of ClaudeFS.
///
/// Two to know: `cargo xtask up` brings up a file system on this machine and mounts it at `.claudefs/mnt`;
/// `cargo xtask test` builds and runs every test.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Task,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Bring up a node and a mount on this machine, ready to try
    ///
    /// Installs missing Debian packages, builds, reserves hugepages if it may, creates and formats a file-backed
    /// device, starts claudefsd under a supervisor and mounts it. Run it again at any time: what runs already is left
    /// alone, what died is started again, and the data is kept.
    Up(demo::UpArgs),
    /// Unmount and stop what `up` started; the data stays for the next `up`
    Down(demo::DownArgs),
    /// Say what of the demo runs, and where its files are
    Ps(demo::DownArgs),
    /// Run every test: unit, property and end-to-end tests on a real mount
    ///
    /// Installs the Debian packages that tests need, builds, and runs everything with cargo-nextest if it is installed,
    /// else with `cargo test`. Tests that cannot run on this machine are named and counted as skipped.
    Test(suite::TestArgs),
    /// What to run before each commit: formatting, tidy, clippy and documentation without warnings, cargo-deny where installed
    Check,
    /// Check the rules of the repository that no compiler checks (layers, heads of modules, lengths of files, ...)
    Tidy(tidy::TidyArgs),
    /// Format every source file
    Fmt,
    /// Play seeds of the simulator: the real node and clients under kills and network faults, with a simulated clock
    ///
    /// Everything follows from the seed; one that fails is printed, with how to play it again. A fixed batch runs in `test`.
    Sim(suite::SimArgs),
    /// Keep claudefsd running (started by `up`, not by hand)
    #[command(hide = true)]
    Supervise(demo::SuperviseArgs),
}

/// Runs one command to its end.
///
/// # Errors
/// Whatever stopped it, worded for the developer at the terminal.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Task::Up(args) => demo::up(&args),
        Task::Down(args) => demo::down(&args),
        Task::Ps(args) => demo::ps(&args),
        Task::Test(args) => suite::test(&args),
        Task::Sim(args) => suite::sim(&args),
        Task::Check => check::check(),
        Task::Tidy(args) => tidy::run(&args),
        Task::Fmt => check::fmt(),
        Task::Supervise(args) => demo::supervise(&args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
