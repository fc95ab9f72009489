//! The demo's mount: mounting, unmounting, and clearing one whose client died.

use super::layout::Layout;
use super::programs::Programs;
use super::steps;
use crate::command::{find_program, note, run_bounded, step, tail, wait_until};
use anyhow::{Context as _, Result, bail};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A mount answers as soon as the server knows the session.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);
/// An unmount writes back what the client holds.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(60);

/// A client gives up on a daemon that does not answer its goodbye after 5 s.
const CLIENT_LIMIT: Duration = Duration::from_secs(10);

/// What is at the mount point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// A mount that answers.
    Mounted,
    /// A mount whose client is gone.
    Dead,
    /// Nothing.
    None,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Mounted => "mounted",
            Self::Dead => "left behind by a client that died (`cargo xtask up` or `down` clears it)",
            Self::None => "not mounted",
        })
    }
}

/// A client whose server is away keeps its callers waiting: a mount that does not answer within this is alive.
const STAT_LIMIT: Duration = Duration::from_secs(2);

/// Looks at a mount point: in the mount table, then whether a client stands behind it.
#[must_use]
pub(super) fn state(point: &Path) -> State {
    if !is_mounted(point) {
        return State::None;
    }
    let (tell, told) = std::sync::mpsc::channel();
    let path = point.to_path_buf();
    // statfs(2): the kernel never answers it itself, while attributes of the root may still be in its cache.
    std::thread::spawn(move || tell.send(rustix::fs::statfs(&path).map(drop)).ok());
    match told.recv_timeout(STAT_LIMIT) {
        // The second is for who was asking at the moment it died.
        Ok(Err(Errno::NOTCONN | Errno::CONNABORTED)) => State::Dead,
        _ => State::Mounted,
    }
}

fn is_mounted(point: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|l| {
        // proc(5): the fifth field is the mount point, with octal escapes for blanks.
        l.split(' ').nth(4).is_some_and(|p| unescape(p).as_bytes() == point.as_os_str().as_encoded_bytes())
    })
}

fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Mounts, unless it is mounted; clears a dead mount first.
pub(super) fn mount(layout: &Layout, programs: &Programs) -> Result<()> {
    let point = layout.mount_point();
    match state(&point) {
        State::Mounted => {
            note(format!("mounted already at {}", point.display()));
            return Ok(());
        }
        State::Dead => {
            note(format!("clearing {}: the client behind it has died", point.display()));
            detach(&point)?;
        }
        State::None => {}
    }
    step(format!("Mounting at {}", point.display()));
    std::fs::create_dir_all(&point).with_context(|| format!("can't create {}", point.display()))?;
    steps::status(layout, programs).context("claudefsd listens but does not answer")?;
    let log = std::fs::File::options().create(true).append(true).open(layout.mount_log())?;
    let mounted = run_bounded(
        Command::new(&programs.claudefs)
            .arg("mount")
            .arg(format!("{}:/", layout.address()?))
            .arg(&point)
            .arg("-o")
            .arg(format!("key={}", layout.key().display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log),
        MOUNT_LIMIT,
    );
    if let Err(e) = mounted {
        bail!("{e}\n{}", tail(&layout.mount_log(), 12));
    }
    if !wait_until(MOUNT_LIMIT, || state(&point) == State::Mounted) {
        bail!("the mount has not appeared at {}\n{}", point.display(), tail(&layout.mount_log(), 12));
    }
    Ok(())
}

/// Unmounts, whatever state the mount is in; false where nothing was mounted.
pub(super) fn unmount(layout: &Layout) -> Result<bool> {
    let point = layout.mount_point();
    if !is_mounted(&point) {
        return Ok(false);
    }
    step(format!("Unmounting {}", point.display()));
    if layout.running(&layout.daemon_pid(), "claudefsd").is_none() {
        // Whoever works in it waits for a daemon that does not come, and so would a plain unmount.
        note("claudefsd does not run: the mount is detached, whoever uses it or not");
        detach(&point)?;
    } else if let Err(e) = end(&point) {
        if state(&point) != State::Dead {
            bail!(
                "{e:#}\nSomething works in {0}: `fuser -vm {0}` names it. End it, then run this again (`umount --lazy {0}` \
                 lets it go on and unmounts when it is done)",
                point.display()
            );
        }
        detach(&point)?;
    }
    // It says goodbye to the daemon, which otherwise would wait for it at its next start.
    if !wait_until(CLIENT_LIMIT, || !is_served(&point)) {
        note("the process that served the mount has not ended yet; it ends by itself");
    }
    Ok(true)
}

/// Whether a process lives that serves, or served, a mount here.
fn is_served(point: &Path) -> bool {
    let Ok(list) = std::fs::read_dir("/proc") else { return false };
    list.flatten().filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok()).any(|line| {
        let mut words = line.split(|b| *b == 0);
        words.any(|w| w == b"mount") && words.any(|w| w == point.as_os_str().as_encoded_bytes())
    })
}

/// Root asks the kernel itself: umount(8) looks at the mount before, which hangs where no server answers.
fn end(point: &Path) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return run_bounded(&mut unmount_command(point, false), UNMOUNT_LIMIT);
    }
    let (tell, told) = std::sync::mpsc::channel();
    let path = point.to_path_buf();
    std::thread::spawn(move || tell.send(rustix::mount::unmount(&path, UnmountFlags::NOFOLLOW)).ok());
    match told.recv_timeout(UNMOUNT_LIMIT) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Errno::BUSY)) => bail!("{} is busy", point.display()),
        Ok(Err(e)) => Err(e).with_context(|| format!("can't unmount {}", point.display())),
        Err(_) => {
            bail!("{} does not unmount: what programs wrote to it waits for the daemon", point.display())
        }
    }
}

fn detach(point: &Path) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return rustix::mount::unmount(point, UnmountFlags::DETACH)
            .with_context(|| format!("can't clear the mount at {}", point.display()));
    }
    run_bounded(&mut unmount_command(point, true), UNMOUNT_LIMIT)
}

fn unmount_command(point: &Path, lazy: bool) -> Command {
    let mut c;
    if !rustix::process::geteuid().is_root() && find_program("fusermount3").is_some() {
        c = Command::new("fusermount3");
        c.arg("-u");
        if lazy {
            c.arg("-z");
        }
    } else {
        c = Command::new("umount");
        if lazy {
            c.arg("--lazy");
        }
    }
    c.arg(point);
    c
}
