//! `test`: every test of the workspace in one run of one runner.

use crate::command::{cargo, has_cargo_command, note, run, step};
use crate::packages;
use anyhow::Result;
use clap::Args;
use std::path::Path;

/// Options of `cargo xtask test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Leave out the end-to-end tests that mount a file system
    #[arg(long)]
    pub no_mount: bool,
    /// Seed of the property tests' inputs
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub seed: u64,
    /// Run only tests of these packages
    #[arg(short, long, value_name = "PACKAGE")]
    pub package: Vec<String>,
    /// Only tests whose name contains this
    #[arg(value_name = "FILTER")]
    pub filter: Option<String>,
}

/// Tests whose names start with this mount a file system (`hwtest/tests`).
const MOUNTING: &str = "mount_";

/// Where proptest looks for its seed. One run of one tree is then like another: what a new seed finds is found by whoever
/// looks for it, and not by whoever touches something else.
const PROPERTY_SEED: &str = "PROPTEST_RNG_SEED";

/// Builds everything, then runs the tests.
///
/// # Errors
/// Something does not build, or a test fails.
pub fn test(args: &TestArgs) -> Result<()> {
    packages::ensure(&[packages::DEMO, packages::TESTS])?;
    let skip_mounting = match obstacle() {
        _ if args.no_mount => true,
        None => false,
        Some(why) => {
            note(format!("end-to-end tests are skipped: {why}"));
            true
        }
    };
    let mut scope: Vec<&str> = Vec::new();
    for p in &args.package {
        scope.extend(["--package", p]);
    }
    if scope.is_empty() {
        scope.push("--workspace");
    }
    step("Building");
    // End-to-end tests start the programs, so programs and tests are built together, with one choice of features.
    run(cargo().args(["build", "--workspace", "--bins", "--tests"]))?;
    step("Testing");
    let seed = args.seed.to_string();
    if has_cargo_command("nextest") {
        let mut c = cargo();
        c.args(["nextest", "run", "--no-fail-fast"]).args(&scope);
        if skip_mounting {
            c.args(["-E", &format!("not (package(hwtest) & test(/(^|::){MOUNTING}/))")]);
        }
        c.args(&args.filter);
        run(c.env(PROPERTY_SEED, seed))
    } else {
        let mut c = cargo();
        c.args(["test", "--no-fail-fast"]).args(&scope).args(&args.filter);
        if skip_mounting {
            c.args(["--", "--skip", MOUNTING]);
        }
        run(c.env(PROPERTY_SEED, seed))
    }
}

/// What keeps this machine from mounting, if anything.
fn obstacle() -> Option<String> {
    if !Path::new("/dev/fuse").exists() {
        return Some("there is no /dev/fuse (load the module with `modprobe fuse`)".to_owned());
    }
    if !rustix::process::geteuid().is_root() {
        return Some("they need root: daemons, two mounts and several users on one machine".to_owned());
    }
    None
}

/// Arguments of `cargo xtask sim`.
#[derive(Debug, clap::Args)]
pub struct SimArgs {
    /// How many seeds to play
    #[arg(long, default_value_t = 1000)]
    pub seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    pub from: u64,
    /// Operations of each client
    #[arg(long, default_value_t = 120)]
    pub ops: u64,
    /// Play each seed twice and compare the two runs
    #[arg(long)]
    pub twice: bool,
}

/// Plays seeds with an optimised simulator.
///
/// # Errors
/// Where a seed fails; its number stands on the terminal.
pub fn sim(args: &SimArgs) -> Result<()> {
    let mut c = cargo();
    c.args(["run", "--quiet", "--release", "--package", "sim", "--"]);
    c.args([
        "--seeds",
        &args.seeds.to_string(),
        "--from",
        &args.from.to_string(),
        "--ops",
        &args.ops.to_string(),
    ]);
    if args.twice {
        c.arg("--twice");
    }
    run(&mut c)
}
