//! pjdfstest (the crate): the POSIX cases on ext4 and on a directory under test, compared case by case.
//!
//! ext4 decides what is due: a case that passes there must pass here.

use crate::rig::{bounded_by, said};
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The version that results are compared with.
pub const VERSION: &str = "0.2.2";
/// The cases use two users besides root; this one is not on every machine.
const USER: &str = "tests";
/// All cases take seconds; an hour is a hang.
const LIMIT: Duration = Duration::from_secs(900);

/// The features of Linux file systems that cases ask for; times of ours and of ext4 are finer than the nap.
const CONFIG: &str = "[features]\nposix_fallocate = {}\nrename_ctime = {}\nutimensat = {}\nutime_now = {}\n\
                      [settings]\nnaptime = 0.01\n\
                      [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"tests\", \"tests\"]]\n";

/// What became of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It needs something that is not configured (remounting, a second file system).
    Skipped,
}

/// The case that needs `pathconf(_PC_LINK_MAX)`: the C library knows the limits of a few file systems by their magic
/// numbers, FUSE is none of them, and pjdfstest then skips it. [`compare`] then does what the case does, and says so.
const LINK_COUNT_MAX: &str = "link::link_count_max";

/// Every case by name.
pub type Outcomes = BTreeMap<String, Outcome>;

/// A comparison.
#[derive(Debug)]
pub struct Comparison {
    /// On ext4.
    pub reference: Outcomes,
    /// On the directory under test.
    pub tested: Outcomes,
}

/// Finds the program, or installs it below `root` (cargo shows the progress).
///
/// # Errors
/// It can't be installed.
pub fn install(root: &Path) -> Result<PathBuf> {
    let program = root.join("bin/pjdfstest");
    if !program.exists() {
        println!("==> Installing pjdfstest {VERSION} into {}", root.display());
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["install", "--locked", "pjdfstest", "--version", VERSION, "--root"])
            .arg(root)
            .stdin(Stdio::null())
            .status()?;
        ensure!(status.success(), "cargo install pjdfstest ended with {status}");
    }
    ensure_user()?;
    Ok(program)
}

/// Creates the system user and group that the cases switch to, and says so.
fn ensure_user() -> Result<()> {
    let knows = |kind: &str| {
        Command::new("getent").args([kind, USER]).stdout(Stdio::null()).status().is_ok_and(|s| s.success())
    };
    if knows("passwd") && knows("group") {
        return Ok(());
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "pjdfstest switches users: run it as root (it needs a user and a group `{USER}`, which it then creates)"
    );
    println!("==> Creating the system user and group `{USER}` (remove them with `userdel {USER}`)");
    for (program, args) in [
        ("groupadd", &["--system", "--force", USER][..]),
        (
            "useradd",
            &["--system", "--no-create-home", "--gid", USER, "--shell", "/usr/sbin/nologin", USER][..],
        ),
    ] {
        let out = bounded_by(Command::new(program).args(args), Duration::from_secs(60))?;
        ensure!(out.status.success(), "{program} failed: {}", said(&out));
    }
    Ok(())
}

/// Runs the cases in a directory.
///
/// # Errors
/// The program can't be run, or prints nothing that is a case.
pub fn run(program: &Path, dir: &Path, filter: &[String]) -> Result<Outcomes> {
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("pjdfstest.toml");
    std::fs::write(&config, CONFIG)?;
    let out = bounded_by(
        Command::new(program)
            .arg("--configuration-file")
            .arg(&config)
            .arg("--path")
            .arg(dir)
            .args(filter)
            .env("NO_COLOR", "1"),
        LIMIT,
    )?;
    let outcomes = parse(&said(&out));
    if outcomes.is_empty() {
        bail!("pjdfstest ran no case in {}: {}", dir.display(), said(&out));
    }
    Ok(outcomes)
}

/// Lines of the form `chmod::ctime::regular     ok`.
fn parse(text: &str) -> Outcomes {
    text.lines()
        .filter_map(|line| {
            let (name, result) = line.trim_end().rsplit_once(char::is_whitespace)?;
            let outcome = match result {
                "ok" => Outcome::Passed,
                "FAILED" => Outcome::Failed,
                "skipped" => Outcome::Skipped,
                _ => return None,
            };
            let name = name.trim_end();
            (name.contains("::") && !name.contains(' ')).then(|| (name.to_owned(), outcome))
        })
        .collect()
}

/// Runs the cases on both and compares.
///
/// # Errors
/// Either run fails, or the reference is no good.
pub fn compare(program: &Path, reference: &Path, tested: &Path, filter: &[String]) -> Result<Comparison> {
    let reference_outcomes = run(program, reference, filter).context("the run on the reference")?;
    let mut tested_outcomes = run(program, tested, filter).context("the run on the directory under test")?;
    if let Some(outcome) = tested_outcomes.get_mut(LINK_COUNT_MAX)
        && *outcome == Outcome::Skipped
        && reference_outcomes.get(LINK_COUNT_MAX) == Some(&Outcome::Passed)
    {
        println!(
            "==> {LINK_COUNT_MAX}: skipped, as pathconf(3) tells no link limit of FUSE; doing the same here"
        );
        *outcome = match link_count_max(tested) {
            Ok(()) => Outcome::Passed,
            Err(e) => {
                println!("{LINK_COUNT_MAX}: {e:#}");
                Outcome::Failed
            }
        };
    }
    Ok(Comparison { reference: reference_outcomes, tested: tested_outcomes })
}

/// A file takes as many links as ext4 allows (65,000) and answers EMLINK to one more, after which it is as it was.
fn link_count_max(dir: &Path) -> Result<()> {
    const MAX: u64 = 65_000;
    let folder = tempfile::tempdir_in(dir)?;
    let file = folder.path().join("0");
    std::fs::write(&file, "")?;
    for n in 1..MAX {
        std::fs::hard_link(&file, folder.path().join(n.to_string())).with_context(|| format!("link {n}"))?;
    }
    match std::fs::hard_link(&file, folder.path().join("too many")) {
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::MLINK.raw_os_error()) => {}
        other => bail!("one link more than {MAX} gave {other:?} instead of EMLINK"),
    }
    let links = std::fs::metadata(&file)?.nlink();
    ensure!(links == MAX, "{links} links after {MAX} were made");
    Ok(())
}

impl Comparison {
    /// Cases that pass on the reference and not here.
    #[must_use]
    pub fn worse(&self) -> Vec<&str> {
        self.reference
            .iter()
            .filter(|(name, o)| **o == Outcome::Passed && self.tested.get(*name) != Some(&Outcome::Passed))
            .map(|(name, _)| name.as_str())
            .collect()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |of: &Outcomes, o| of.values().filter(|x| **x == o).count();
        for (name, of) in [("reference", &self.reference), ("tested", &self.tested)] {
            let (passed, failed) = (count(of, Outcome::Passed), count(of, Outcome::Failed));
            writeln!(
                f,
                "{name:<10}{passed:>5} passed {failed:>4} failed {:>4} skipped",
                count(of, Outcome::Skipped)
            )?;
        }
        for (name, outcome) in &self.reference {
            let here = self.tested.get(name);
            if here != Some(outcome) {
                writeln!(f, "differs: {name}: reference {outcome:?}, tested {here:?}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_from_the_output() {
        let text = "chmod::ctime::regular        ok\nopen::eloop   FAILED\n\tnot as due\nopen::erofs  skipped\n\nSummary: 1 failed\n";
        let outcomes = parse(text);
        assert_eq!(outcomes.len(), 3);
        assert_eq!(outcomes["open::eloop"], Outcome::Failed);
        let all_good = outcomes.keys().map(|k| (k.clone(), Outcome::Passed)).collect();
        let comparison = Comparison { reference: all_good, tested: outcomes };
        assert_eq!(comparison.worse(), ["open::eloop", "open::erofs"]);
    }
}
