//! Leaving a server behind: the command starts itself again, waits for its word, and ends.

use rustix::fs::{Mode, OFlags};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// Set for the process that serves. Its standard output is a pipe to the command that waits.
const MARK: &str = "CLAUDEFS_MOUNT_SERVER";
/// The word that it serves.
const SERVING: &[u8] = b"serving\n";

/// Whether this process was started to serve.
pub(super) fn is_server() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Starts the server and waits for its word, or for its end, whose exit code is then ours.
pub(super) fn start() -> io::Result<ExitCode> {
    let mut words = std::env::args_os();
    let mut child = Command::new(std::env::current_exe()?)
        // The program tells its uses apart by the name it is called by.
        .arg0(words.next().unwrap_or_default())
        .args(words)
        .env(MARK, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = Vec::new();
    if let Some(pipe) = child.stdout.take() {
        // The server lets go of the pipe when it serves or ends.
        pipe.take(SERVING.len() as u64).read_to_end(&mut said)?;
    }
    if said == SERVING {
        return Ok(ExitCode::SUCCESS);
    }
    let status = child.wait()?;
    let code = status.code().and_then(|c| u8::try_from(c).ok()).filter(|&c| c != 0);
    if code.is_none() {
        eprintln!(
            "mount.claudefs: the process that was to serve the mount ended with {status}; see its log (-o log=FILE)"
        );
    }
    Ok(ExitCode::from(code.unwrap_or(super::exit::SYSTEM)))
}

/// What the server owes the command that waits.
#[derive(Debug)]
pub(super) struct Ready(());

impl Ready {
    /// Leaves the command's session and terminal.
    pub(super) fn new() -> Self {
        // Fails only for a process that leads a group already, as under a supervisor.
        let _ = rustix::process::setsid();
        Self(())
    }

    /// Says that the mount serves and cuts all ties: output goes to `log` or nowhere, the working directory is the root.
    pub(super) fn announce(self, log: Option<&Path>) -> io::Result<()> {
        let null = open("/dev/null".as_ref(), OFlags::RDWR)?;
        let log = log.map(|log| open(log, OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND)).transpose()?;
        std::env::set_current_dir("/")?;
        let mut out = io::stdout();
        out.write_all(SERVING)?;
        out.flush()?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        Ok(rustix::stdio::dup2_stderr(log.as_ref().unwrap_or(&null))?)
    }
}

fn open(path: &Path, flags: OFlags) -> io::Result<rustix::fd::OwnedFd> {
    Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o640))?)
}
