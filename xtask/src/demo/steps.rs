//! The steps of `up` before the mount, and the stop. Each looks first whether its work is done.

use super::layout::Layout;
use super::programs::Programs;
use crate::command::{note, output, run_bounded, step, tail, wait_until};
use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A daemon on a large store is serving within 3 s; the rest is for a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);
/// The ring of a killed daemon closes its sockets a moment after the process has ended.
const LET_GO: Duration = Duration::from_secs(5);
/// A stop drains what is in flight and flushes the device.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// Writing the logs and tables of a device with zeros.
const FORMAT_LIMIT: Duration = Duration::from_secs(300);

/// Reserves 2 MiB hugepages where this user may; the daemon goes on without them.
pub(super) fn hugepages(bytes: u64) {
    const PATH: &str = "/proc/sys/vm/nr_hugepages";
    let read = || std::fs::read_to_string(PATH).ok()?.trim().parse::<u64>().ok();
    let wanted = bytes >> 21;
    match read() {
        None => note("hugepages: this kernel has none; small pages are used"),
        Some(have) if have >= wanted => note(format!("hugepages: {have} of 2 MiB are there already")),
        Some(have) => {
            if std::fs::write(PATH, wanted.to_string()).is_err() {
                note(format!("hugepages: {have} reserved. For {wanted}: echo {wanted} | sudo tee {PATH}"));
                return;
            }
            let got = read().unwrap_or(have);
            note(format!("hugepages: {got} of 2 MiB reserved (there were {have}), until the next boot"));
        }
    }
}

/// Makes the cluster's key.
pub(super) fn key(layout: &Layout, programs: &Programs) -> Result<()> {
    if layout.key().exists() {
        return Ok(());
    }
    step("Creating the cluster key");
    run_bounded(
        Command::new(&programs.claudefs).args(["key", "generate"]).arg(layout.key()).stdout(Stdio::null()),
        Duration::from_secs(30),
    )
}

/// Makes and formats the device.
pub(super) fn device(layout: &Layout, programs: &Programs, size: u64) -> Result<()> {
    let device = layout.device();
    if device.exists() {
        note(format!("device: {} is there already and keeps its data", device.display()));
        return Ok(());
    }
    step(format!("Formatting a device of {} MiB (a sparse file)", size >> 20));
    // Formatted under another name, so that an interrupted format is not taken for a device by the next `up`.
    let unfinished = device.with_extension("new");
    std::fs::remove_file(&unfinished).ok();
    run_bounded(
        Command::new(&programs.claudefs)
            .args(["format", "--yes", "--size", &size.to_string()])
            .arg(&unfinished)
            // It tells how to go on by hand; here `up` goes on.
            .stdout(Stdio::null()),
        FORMAT_LIMIT,
    )?;
    std::fs::rename(&unfinished, &device).with_context(|| format!("can't name {}", device.display()))
}

/// Writes the daemon's configuration, or moves an existing one to another port.
pub(super) fn config(layout: &Layout, port: u16) -> Result<()> {
    let path = layout.config();
    let listen = format!("127.0.0.1:{port}");
    if path.exists() {
        let old = layout.address()?;
        if old != listen {
            if layout.running(&layout.daemon_pid(), "claudefsd").is_some() {
                bail!("claudefsd listens on {old}: run `cargo xtask down` before you change the port");
            }
            let text = std::fs::read_to_string(&path)?;
            std::fs::write(&path, text.replace(&format!("\"{old}\""), &format!("\"{listen}\"")))?;
        }
        return Ok(());
    }
    let quoted = |p: &Path| toml::Value::String(p.to_string_lossy().into_owned()).to_string();
    let text = format!(
        "# Written by `cargo xtask up`. `claudefsd --print-config` shows every key.\n\
         listen = [\"{listen}\"]\ndevices = [{}]\nkey_file = {}\n",
        quoted(&layout.device()),
        quoted(&layout.key()),
    );
    std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))
}

/// Starts the supervisor, which starts the daemon, and waits until the daemon serves.
pub(super) fn daemon(layout: &Layout, programs: &Programs) -> Result<()> {
    let address = layout.address()?;
    let running = layout.running(&layout.supervisor_pid(), "supervise");
    if let (Some(supervisor), Some(pid)) = (running, layout.running(&layout.daemon_pid(), "claudefsd"))
        && serves(&address)
    {
        note(format!("claudefsd runs already: pid {pid}, supervisor {supervisor}, listening on {address}"));
        return Ok(());
    }
    let before = log_len(layout);
    if running.is_none() {
        step("Starting claudefsd");
        stop_orphan(layout)?;
        let mut bound = Ok(());
        wait_until(LET_GO, || {
            bound = TcpListener::bind(&address).map(drop);
            !matches!(&bound, Err(e) if e.kind() == ErrorKind::AddrInUse)
        });
        if let Err(e) = bound {
            bail!("can't listen on {address}: {e}. Stop what uses the port, or choose another with --port");
        }
        let log_path = layout.supervisor_log();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log_path)
            .with_context(|| format!("can't open {}", log_path.display()))?;
        Command::new(std::env::current_exe()?)
            .arg("supervise")
            .arg("--dir")
            .arg(&layout.dir)
            .arg("--claudefsd")
            .arg(&programs.claudefsd)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("can't start the supervisor")?;
    }
    // A daemon whose configuration or device is bad dies at once, each time: three deaths are an answer.
    let failed = || deaths(layout, before) >= 3;
    let mut up = false;
    wait_until(START_LIMIT, || {
        up = serves(&address) && layout.running(&layout.daemon_pid(), "claudefsd").is_some();
        up || failed()
    });
    if up {
        note(format!("claudefsd listens on {address}"));
        return Ok(());
    }
    stop(layout).ok();
    bail!("claudefsd does not come up on {address}\n{}", tail(&layout.daemon_log(), 12))
}

fn log_len(layout: &Layout) -> u64 {
    std::fs::metadata(layout.supervisor_log()).map_or(0, |m| m.len())
}

/// How often the supervisor's log tells of a daemon's death from this byte on: what stands before is of other starts.
fn deaths(layout: &Layout, from: u64) -> usize {
    let log = std::fs::read(layout.supervisor_log()).unwrap_or_default();
    let from = usize::try_from(from).unwrap_or(usize::MAX).min(log.len());
    String::from_utf8_lossy(&log[from..]).matches(super::supervise::DIED).count()
}

fn serves(address: &str) -> bool {
    address
        .parse::<SocketAddr>()
        .is_ok_and(|a| TcpStream::connect_timeout(&a, Duration::from_millis(500)).is_ok())
}

/// Stops a daemon whose supervisor was killed.
fn stop_orphan(layout: &Layout) -> Result<()> {
    if let Some(pid) = layout.running(&layout.daemon_pid(), "claudefsd") {
        note(format!("claudefsd (pid {pid}) has lost its supervisor: restarting it"));
        terminate(layout, &layout.daemon_pid(), "claudefsd")?;
    }
    Ok(())
}

/// Stops the supervisor and with it the daemon; false where neither ran.
pub(super) fn stop(layout: &Layout) -> Result<bool> {
    let supervisor = terminate(layout, &layout.supervisor_pid(), "supervise")?;
    let daemon = terminate(layout, &layout.daemon_pid(), "claudefsd")?;
    Ok(supervisor || daemon)
}

fn terminate(layout: &Layout, pid_file: &Path, marker: &str) -> Result<bool> {
    let Some(pid) = layout.running(pid_file, marker) else { return Ok(false) };
    let Some(target) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(false) };
    kill_process(target, Signal::TERM).ok();
    if wait_until(STOP_LIMIT, || layout.running(pid_file, marker).is_none()) {
        return Ok(true);
    }
    bail!(
        "process {pid} ({marker}) has not stopped {} s after SIGTERM; `kill -9 {pid}` is safe: what was acknowledged \
         is on the device\n{}",
        STOP_LIMIT.as_secs(),
        tail(&layout.daemon_log(), 8)
    )
}

/// The status report of the daemon, for the mount step to see that the key works.
pub(super) fn status(layout: &Layout, programs: &Programs) -> Result<String> {
    output(
        Command::new(&programs.claudefs)
            .args(["status", "--json", "--server", &layout.address()?])
            .arg("--key")
            .arg(layout.key()),
    )
}
