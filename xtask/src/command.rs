//! Running other programs: visible, bounded in time, with errors that name the command and show the end of its log.

use anyhow::{Context as _, Result, bail};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How often a wait looks again.
pub const POLL: Duration = Duration::from_millis(50);

/// Announces a step that may take a while.
pub fn step(text: impl AsRef<str>) {
    println!("==> {}", text.as_ref());
}

/// Says one thing about the step that runs.
pub fn note(text: impl AsRef<str>) {
    println!("    {}", text.as_ref());
}

/// Runs a program with its output shown; fails unless it succeeds.
///
/// # Errors
/// The program is missing or ends unsuccessfully.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("can't start {}", describe(command)))?;
    if !status.success() {
        bail!("{} ended with {}", describe(command), describe_status(status));
    }
    Ok(())
}

/// Runs a program and returns what it printed to stdout.
///
/// # Errors
/// The program is missing or ends unsuccessfully; its stderr is in the message.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("can't start {}", describe(command)))?;
    if !out.status.success() {
        bail!(
            "{} ended with {}: {}",
            describe(command),
            describe_status(out.status),
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Runs a program, output shown, and kills it when `limit` has passed.
///
/// # Errors
/// The program is missing, ends unsuccessfully, or takes longer than `limit`.
pub fn run_bounded(command: &mut Command, limit: Duration) -> Result<()> {
    let mut child = command.spawn().with_context(|| format!("can't start {}", describe(command)))?;
    match wait(&mut child, limit)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("{} ended with {}", describe(command), describe_status(status)),
        None => {
            child.kill().ok();
            child.wait().ok();
            bail!("{} had not ended after {} s and was killed", describe(command), limit.as_secs())
        }
    }
}

/// Waits for a child's end, `None` when `limit` has passed.
///
/// # Errors
/// The kernel refuses to wait.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// Asks `done` until it says yes; `false` when `limit` has passed.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(POLL);
    }
}

/// A program's path, looked for in PATH and in the system directories that users' PATHs often lack.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|p| p.is_file())
}

/// The last `lines` lines of a log file, indented; says so when there are none.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    const WINDOW: u64 = 16 * 1024;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(WINDOW)))?;
        let mut bytes = Vec::new();
        file.take(WINDOW).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = match read() {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) => return format!("    ({}: {e})", path.display()),
    };
    let all: Vec<&str> = text.lines().collect();
    if all.is_empty() {
        return format!("    ({} is empty)", path.display());
    }
    let mut out = format!("    end of {}:", path.display());
    for line in &all[all.len().saturating_sub(lines)..] {
        let _ = write!(out, "\n    | {line}");
    }
    out
}

/// `cargo`, the one that started us where there is one, in the workspace's root.
#[must_use]
pub fn cargo() -> Command {
    let mut c = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    c.current_dir(crate::workspace::root());
    c
}

/// Whether a cargo subcommand such as `nextest` is installed.
#[must_use]
pub fn has_cargo_command(name: &str) -> bool {
    cargo()
        .args([name, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// A command as one would type it.
#[must_use]
pub fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

fn describe_status(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_hangs_is_killed_and_named() {
        let e = run_bounded(Command::new("sleep").arg("1000"), Duration::from_millis(1));
        assert!(e.is_err_and(|e| e.to_string().contains("sleep 1000")));
    }

    #[test]
    fn tail_shows_the_last_lines_only() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let log = dir.path().join("log");
        std::fs::write(&log, "one\ntwo\nthree\n").expect("write");
        let text = tail(&log, 2);
        assert!(!text.contains("one") && text.contains("two") && text.contains("three"));
        assert!(tail(&dir.path().join("none"), 2).contains("none"));
    }
}
