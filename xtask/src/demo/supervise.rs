//! The supervisor: starts claudefsd, starts it again when it dies, and takes it along when it is told to stop.

use super::SuperviseArgs;
use super::layout::Layout;
use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process, setsid};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// First line of each start in the supervisor's log.
pub(super) const STARTED: &str = "supervisor started";
/// Part of the line that tells of the daemon's end.
pub(super) const DIED: &str = "claudefsd ended by itself";

/// Pause before the first restart; doubles with each quick death.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause: a device that comes back is found soon.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A daemon that has lived this long is healthy: the pause starts small again.
const HEALTHY: Duration = Duration::from_secs(30);
/// Between SIGTERM and SIGKILL at a stop.
const STOP_LIMIT: Duration = Duration::from_secs(45);
/// How often signals and the child are looked at.
const TICK: Duration = Duration::from_millis(20);
/// A log larger than this is put aside at the next start of the daemon, over the previous one.
const LOG_LIMIT: u64 = 64 << 20;

/// Runs until SIGTERM.
///
/// # Errors
/// The daemon's program, log or pid file can't be used.
pub fn supervise(args: &SuperviseArgs) -> Result<()> {
    let layout = Layout::new(&args.dir)?;
    // A session of its own: closing the terminal does not stop the file system.
    setsid().ok();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    signal_hook::flag::register(SIGHUP, Arc::new(AtomicBool::new(false)))?;
    write_pid(&layout.supervisor_pid(), std::process::id())?;
    say(STARTED);
    let result = keep_running(&layout, &args.claudefsd, &stop);
    std::fs::remove_file(layout.daemon_pid()).ok();
    std::fs::remove_file(layout.supervisor_pid()).ok();
    say("supervisor stopped");
    result
}

fn keep_running(layout: &Layout, program: &Path, stop: &AtomicBool) -> Result<()> {
    let mut pause = FIRST_PAUSE;
    while !stop.load(Ordering::Relaxed) {
        let born = Instant::now();
        let mut child = start(layout, program)?;
        let status = loop {
            if stop.load(Ordering::Relaxed) {
                return end(&mut child);
            }
            if let Some(status) = child.try_wait()? {
                break status;
            }
            std::thread::sleep(TICK);
        };
        if born.elapsed() >= HEALTHY {
            pause = FIRST_PAUSE;
        }
        say(&format!("{DIED} ({status}) after {:.1} s; next try in {pause:?}", born.elapsed().as_secs_f32()));
        let until = Instant::now() + pause;
        while Instant::now() < until && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(TICK);
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(())
}

fn start(layout: &Layout, program: &Path) -> Result<Child> {
    let path = layout.daemon_log();
    if std::fs::metadata(&path).is_ok_and(|m| m.len() > LOG_LIMIT) {
        std::fs::rename(&path, path.with_extension("log.1"))?;
    }
    let log = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("can't open {}", path.display()))?;
    let child = Command::new(program)
        .arg("--config")
        .arg(layout.config())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("can't start {}", program.display()))?;
    write_pid(&layout.daemon_pid(), child.id())?;
    say(&format!("claudefsd started, pid {}", child.id()));
    Ok(child)
}

fn end(child: &mut Child) -> Result<()> {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        kill_process(pid, Signal::TERM).ok();
    }
    if crate::command::wait(child, STOP_LIMIT)?.is_none() {
        say("claudefsd has not stopped in time and is killed; what was acknowledged is on the device");
        child.kill().ok();
        child.wait()?;
    }
    Ok(())
}

fn write_pid(path: &Path, pid: u32) -> Result<()> {
    std::fs::write(path, format!("{pid}\n")).with_context(|| format!("can't write {}", path.display()))
}

fn say(text: &str) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    println!("{now} {text}");
}
