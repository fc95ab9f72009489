//! The rig: a daemon on a device of its own and a free port, and mounts of it, in a temporary folder.
//!
//! Owns starting, killing, and leaving nothing behind, also when a test panics. Knows the product by its command lines
//! only.

mod mounts;
mod programs;

pub use programs::Programs;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fmt::Write as _;
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// A start, a stop, a mount or an unmount that takes longer has failed.
pub const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// What a rig is made with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Bytes of the device, a sparse file.
    pub size: u64,
    /// Lines added to the daemon's configuration.
    pub config: String,
    /// Where the rig's folder goes; else where temporary files go.
    pub dir: Option<PathBuf>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { size: 2 << 30, config: String::new(), dir: None }
    }
}

impl Setup {
    /// Clients keep their sessions and leases whatever keeps the machine busy. Only for runs whose clients all come back: others
    /// would be waited for.
    #[must_use]
    pub fn patient() -> Self {
        Self { config: "[lease]\ntime_ms = 60000\ngrace_ms = 60000".to_owned(), ..Self::default() }
    }
}

/// A daemon and its mounts.
#[derive(Debug)]
pub struct Rig {
    /// The programs under test.
    pub programs: Programs,
    /// Folder of everything.
    pub dir: PathBuf,
    address: SocketAddr,
    daemon: Option<Child>,
    mounts: Vec<PathBuf>,
    // Dropped last: the folder goes when nothing uses it any more, then the next rig may start.
    _folder: tempfile::TempDir,
    _turn: File,
}

impl Rig {
    /// A formatted device and a key, and no daemon yet.
    ///
    /// # Errors
    /// The programs are not built, or refuse.
    pub fn prepare(setup: &Setup) -> Result<Self> {
        let programs = Programs::find()?;
        let turn = programs.turn()?;
        let parent = setup.dir.clone().unwrap_or_else(std::env::temp_dir);
        let folder = tempfile::Builder::new().prefix("claudefs-").tempdir_in(parent)?;
        let dir = folder.path().to_path_buf();
        let address = own_address();
        let rig =
            Self { programs, dir, address, daemon: None, mounts: Vec::new(), _folder: folder, _turn: turn };
        rig.claudefs(&["key", "generate", &rig.text(&rig.key())])?;
        rig.claudefs(&["format", "--yes", "--size", &setup.size.to_string(), &rig.text(&rig.device())])?;
        std::fs::write(rig.config(), rig.config_text(&setup.config))?;
        Ok(rig)
    }

    /// A rig whose daemon serves.
    ///
    /// # Errors
    /// The daemon does not start.
    pub fn start(setup: &Setup) -> Result<Self> {
        let mut rig = Self::prepare(setup)?;
        rig.start_daemon()?;
        Ok(rig)
    }

    /// The daemon's device.
    #[must_use]
    pub fn device(&self) -> PathBuf {
        self.dir.join("device.img")
    }
    /// The cluster key.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.dir.join("key")
    }
    /// The daemon's configuration.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("claudefsd.toml")
    }
    /// Where the daemon listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A configuration with `more` behind what every one needs.
    #[must_use]
    pub fn config_text(&self, more: &str) -> String {
        format!(
            "listen = [\"{}\"]\ndevices = [\"{}\"]\nkey_file = \"{}\"\n{more}\n",
            self.address(),
            self.device().display(),
            self.key().display()
        )
    }

    fn text(&self, path: &Path) -> String {
        path.to_string_lossy().into_owned()
    }

    /// The daemon's command line.
    #[must_use]
    pub fn daemon_command(&self) -> Command {
        let mut c = Command::new(&self.programs.claudefsd);
        c.arg("--config").arg(self.config()).stdin(Stdio::null());
        c
    }

    /// Starts the daemon and waits until it listens.
    ///
    /// # Errors
    /// It dies or takes too long; the end of its log is in the message.
    pub fn start_daemon(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut child = self.daemon_command().stdout(log.try_clone()?).stderr(log).spawn()?;
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(status) = child.try_wait()? {
                bail!("claudefsd ended at its start with {status}\n{}", self.tail());
            }
            if TcpStream::connect_timeout(&self.address(), LIMIT).is_ok() {
                break;
            }
            if Instant::now() > end {
                child.kill().ok();
                child.wait().ok();
                bail!("claudefsd does not listen\n{}", self.tail());
            }
            std::thread::sleep(POLL);
        }
        self.daemon = Some(child);
        Ok(())
    }

    /// Starts a daemon that is expected to refuse, and returns what it said.
    ///
    /// # Errors
    /// It does not refuse.
    pub fn refusing_daemon(&self) -> Result<String> {
        let mut child = self.daemon_command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        if wait(&mut child, LIMIT)?.is_none() {
            child.kill().ok();
            child.wait().ok();
            bail!("claudefsd runs although it should refuse");
        }
        let out = child.wait_with_output()?;
        if out.status.success() {
            bail!("claudefsd ended with success although it should refuse");
        }
        Ok(said(&out))
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// There is no daemon.
    pub fn kill_daemon(&mut self) -> Result<()> {
        let mut child = self.daemon.take().context("no daemon runs")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM, and a clean end in time.
    ///
    /// # Errors
    /// It does not end, or not cleanly.
    pub fn stop_daemon(&mut self) -> Result<()> {
        let mut child = self.daemon.take().context("no daemon runs")?;
        signal(&child, Signal::TERM);
        match wait(&mut child, LIMIT)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("claudefsd ended with {status} after SIGTERM\n{}", self.tail()),
            None => {
                child.kill().ok();
                child.wait().ok();
                bail!("claudefsd does not end after SIGTERM\n{}", self.tail())
            }
        }
    }

    /// The daemon's process.
    #[must_use]
    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// Whether the daemon is alive.
    pub fn is_alive(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(|d| matches!(d.try_wait(), Ok(None)))
    }

    /// Runs `claudefs` and returns what it printed.
    ///
    /// # Errors
    /// It fails; what it said is in the message.
    pub fn claudefs(&self, args: &[&str]) -> Result<String> {
        let out = self.try_claudefs(args)?;
        if !out.status.success() {
            bail!("claudefs {} ended with {}: {}", args.join(" "), out.status, said(&out));
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Runs `claudefs`, whatever becomes of it, for a bounded time.
    ///
    /// # Errors
    /// It can't be started, or does not end.
    pub fn try_claudefs(&self, args: &[&str]) -> Result<Output> {
        bounded(Command::new(&self.programs.claudefs).args(args))
    }

    /// Checks the device, data included; no daemon may run.
    ///
    /// # Errors
    /// It is not clean; what was found is in the message.
    pub fn fsck(&self) -> Result<()> {
        self.claudefs(&["fsck", "--data", &self.text(&self.device())]).map(drop)
    }

    /// Arguments that name this server and its key.
    #[must_use]
    pub fn server_args(&self) -> [String; 4] {
        ["--server".into(), self.address().to_string(), "--key".into(), self.text(&self.key())]
    }

    /// What the daemon said.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("claudefsd.log")
    }

    /// The end of the daemon's log.
    #[must_use]
    pub fn tail(&self) -> String {
        let mut out = String::new();
        for log in [self.log(), self.dir.join("mount.log")] {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let _ = writeln!(out, "end of {}:", log.display());
            for l in &lines[lines.len().saturating_sub(25)..] {
                let _ = writeln!(out, "| {l}");
            }
        }
        out
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
        self.clear_mounts();
        if let Some(mut child) = self.daemon.take() {
            signal(&child, Signal::TERM);
            if !matches!(wait(&mut child, Duration::from_secs(10)), Ok(Some(_))) {
                child.kill().ok();
                child.wait().ok();
            }
        }
        self.end_leftovers();
    }
}

fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        kill_process(pid, signal).ok();
    }
}

/// Waits for a child's end, `None` when the time is over.
///
/// # Errors
/// The kernel refuses to wait.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > end {
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// Runs a program to its end and collects its output; kills it when it takes longer than [`LIMIT`].
///
/// # Errors
/// It can't be started, or does not end.
pub fn bounded(command: &mut Command) -> Result<Output> {
    bounded_by(command, LIMIT)
}

/// As [`bounded`], with a limit of one's own.
///
/// # Errors
/// It can't be started, or does not end.
pub fn bounded_by(command: &mut Command, limit: Duration) -> Result<Output> {
    // Output goes to files: a pipe that nobody reads would stop the program, and one that a child of it keeps open would
    // keep us.
    let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(err.try_clone()?)
        .spawn()
        .with_context(|| format!("can't start {command:?}"))?;
    let Some(status) = wait(&mut child, limit)? else {
        child.kill().ok();
        child.wait().ok();
        bail!("{command:?} does not end: {}", String::from_utf8_lossy(&all_of(&mut err)));
    };
    Ok(Output { status, stdout: all_of(&mut out), stderr: all_of(&mut err) })
}

fn all_of(file: &mut File) -> Vec<u8> {
    use std::io::{Read as _, Seek as _};
    let mut bytes = Vec::new();
    if file.rewind().is_ok() {
        file.read_to_end(&mut bytes).ok();
    }
    bytes
}

/// Everything a program printed.
#[must_use]
pub fn said(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
        .trim()
        .to_owned()
}

/// A port of 127.0.0.1 that nobody listens on, and that no connection gets by chance: the kernel gives those ports from
/// 32768 on (`net.ipv4.ip_local_port_range`), also while a daemon that had one is restarted.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16> {
    let start = std::process::id() % 20_000;
    let ports = (0..20_000).filter_map(|n| u16::try_from(10_000 + (start + n) % 20_000).ok());
    let mut free = ports.filter(|p| TcpListener::bind(("127.0.0.1", *p)).is_ok());
    free.next().context("no port is free")
}

/// An address that nobody else takes, also while no daemon listens on it: each process of a machine has loopback addresses of
/// its own, and each rig of a process its own port.
fn own_address() -> SocketAddr {
    static RIGS: AtomicU16 = AtomicU16::new(0);
    let [_, a, b, c] = std::process::id().to_be_bytes();
    // Not 127.0.x.y, where everybody else is.
    SocketAddr::from(([127, a | 0x80, b, c], 7620 + RIGS.fetch_add(1, Ordering::Relaxed)))
}
