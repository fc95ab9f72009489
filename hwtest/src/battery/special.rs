//! Locks, special files, execution, totals.

use super::{fails, program, shell};
use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub(super) fn tmpfile(dir: &Path) -> Result<()> {
    let fd =
        rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::from_raw_mode(0o600))?;
    let file = File::from(fd);
    file.write_all_at(b"nameless", 0)?;
    ensure!(file.metadata()?.nlink() == 0 && fs::read_dir(dir)?.next().is_none(), "it has no name");
    let proc_path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, proc_path, CWD, dir.join("named"), AtFlags::SYMLINK_FOLLOW)?;
    ensure!(fs::read(dir.join("named"))? == b"nameless" && file.metadata()?.nlink() == 1, "now it has one");
    Ok(())
}

// Programs are written by other processes: a descriptor of ours could live on for a moment in a process that another thread
// starts, and then running the program would be ETXTBSY.
pub(super) fn execution(dir: &Path) -> Result<()> {
    program(dir, "cp", &["/bin/true", "true"])?;
    program(dir, "./true", &[])?;
    shell(dir, "printf '#!/bin/sh\nexit 0\n' >script; chmod 755 script")?;
    program(dir, "./script", &[])?;
    Ok(())
}

/// Nobody can write to a program that runs, or cut it: an open with O_RDONLY and O_TRUNC was ETXTBSY and cut it nevertheless.
pub(super) fn running_programs(dir: &Path) -> Result<()> {
    shell(dir, "cp $(command -v sleep) sleep")?;
    let path = dir.join("sleep");
    let size = fs::metadata(&path)?.len();
    let mut runs = Command::new(&path).arg("600").spawn()?;
    let refused = || {
        for flags in [OFlags::WRONLY, OFlags::RDWR, OFlags::WRONLY | OFlags::TRUNC, OFlags::TRUNC] {
            let opened = rustix::fs::open(&path, flags | OFlags::CLOEXEC, Mode::empty());
            fails(&format!("{flags:?} of a running program"), Errno::TXTBSY, opened.map_err(Into::into))?;
            ensure!(fs::metadata(&path)?.len() == size, "{flags:?} has cut a running program");
        }
        Ok(())
    };
    let result = refused();
    runs.kill()?;
    runs.wait()?;
    result?;
    drop(rustix::fs::open(&path, OFlags::TRUNC | OFlags::CLOEXEC, Mode::empty())?);
    ensure!(fs::metadata(&path)?.len() == 0, "it is cut once it does not run");
    Ok(())
}

pub(super) fn pipes_and_sockets(dir: &Path) -> Result<()> {
    let pipe = dir.join("pipe");
    rustix::fs::mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
    let path = pipe.clone();
    let writer = std::thread::spawn(move || fs::write(path, "through the pipe"));
    ensure!(fs::read_to_string(&pipe)? == "through the pipe", "a pipe carries data");
    if writer.join().is_err() {
        bail!("the writer of the pipe failed");
    }
    // A socket's address holds 108 bytes, a test's folder may be longer: bind by a short way.
    let folder = File::open(dir)?;
    let name = format!("/proc/self/fd/{}/socket", folder.as_raw_fd());
    let listener = UnixListener::bind(&name)?;
    UnixStream::connect(&name)?.write_all(b"hello")?;
    let mut text = String::new();
    listener.accept()?.0.read_to_string(&mut text)?;
    ensure!(text == "hello", "a socket carries data");
    Ok(())
}

fn record(file: &File, kind: i32, start: i64, len: i64) -> nix::Result<i32> {
    let lock = nix::libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: 0,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    // Locks of open file descriptions conflict within one process, so one process can test them.
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock))
}

/// Locks through two descriptors; also the check of two mounts, each with one.
pub(crate) fn lock_two(first: &Path, second: &Path) -> Result<()> {
    let open = |p: &Path| File::options().create(true).truncate(false).read(true).write(true).open(p);
    let (a, b) = (open(first)?, open(second)?);
    flock(&a, FlockOperation::NonBlockingLockExclusive).context("a free file can be locked")?;
    ensure!(flock(&b, FlockOperation::NonBlockingLockShared).is_err(), "an exclusive flock excludes");
    let (read, write, free) = (nix::libc::F_RDLCK, nix::libc::F_WRLCK, nix::libc::F_UNLCK);
    record(&b, write, 0, 0).context("record locks and flock don't meet")?;
    ensure!(record(&a, read, 5, 1).is_err(), "an exclusive record lock excludes");
    record(&b, free, 0, 0).context("unlock")?;
    record(&a, write, 0, 10).context("the first ten bytes are free")?;
    record(&b, write, 10, 10).context("the next ten bytes are free")?;
    ensure!(record(&b, read, 9, 1).is_err() && record(&a, read, 10, 1).is_err(), "ranges have exact ends");
    record(&a, free, 5, 1).context("one byte of a range is given back")?;
    record(&b, read, 5, 1).context("a byte that was given back is free")?;
    drop(a);
    flock(&b, FlockOperation::NonBlockingLockExclusive).context("a closed file's flock is gone")?;
    Ok(())
}

pub(super) fn locks(dir: &Path) -> Result<()> {
    lock_two(&dir.join("file"), &dir.join("file"))
}

/// A process that waits for a lock dies when it is told to, and the lock stays with its holder.
pub(super) fn killed_waiter(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    let file = File::create(&path)?;
    flock(&file, FlockOperation::LockExclusive)?;
    let mut waiter = Command::new("flock").arg(&path).arg("true").spawn()?;
    // It waits: it is still there after a while. How long does not matter to the result.
    std::thread::sleep(Duration::from_millis(200));
    ensure!(waiter.try_wait()?.is_none(), "the waiter does not wait");
    waiter.kill()?;
    ensure!(crate::rig::wait(&mut waiter, Duration::from_secs(20))?.is_some(), "the waiter does not die");
    let second = File::open(&path)?;
    ensure!(flock(&second, FlockOperation::NonBlockingLockShared).is_err(), "the holder still holds");
    drop(file);
    flock(&second, FlockOperation::NonBlockingLockShared)?;
    Ok(())
}

pub(super) fn statfs(dir: &Path) -> Result<()> {
    let before = rustix::fs::statvfs(dir)?;
    ensure!(before.f_blocks > 0 && before.f_bfree <= before.f_blocks, "blocks are counted");
    ensure!(before.f_files > 0 && before.f_ffree <= before.f_files, "inodes are counted");
    ensure!(before.f_namemax == 255, "names of 255 bytes");
    fs::write(dir.join("file"), vec![1; 8 << 20])?;
    File::open(dir.join("file"))?.sync_all()?;
    ensure!(fs::metadata(dir.join("file"))?.blocks() * 512 >= 8 << 20, "the file's blocks are counted");
    Ok(())
}
