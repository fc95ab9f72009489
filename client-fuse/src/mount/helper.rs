//! fusermount3(1), which mounts for users: it opens the device, mounts, and passes the descriptor over a Unix socket whose number
//! stands in `_FUSE_COMMFD`.

use super::{MountError, Options, SUBTYPE};
use crate::abi;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::path::Path;
use std::process::{Command, Stdio};

/// Longest message of fusermount3 that is passed on.
const MESSAGE_MAX: u64 = 4096;

/// Name of the program, from PATH.
pub(super) const PROGRAM: &str = "fusermount3";

pub(super) fn mount(source: &str, mountpoint: &Path, options: &Options) -> Result<OwnedFd, MountError> {
    match attempt(source, mountpoint, options, true) {
        // Without `user_allow_other` in /etc/fuse.conf a mount is for its owner alone.
        Err(MountError::Helper { message, .. }) if message.contains("allow_other") => {
            tracing::warn!(
                "others cannot use this mount: add `user_allow_other` to /etc/fuse.conf to let them ({message})"
            );
            attempt(source, mountpoint, options, false)
        }
        other => other,
    }
}

fn attempt(source: &str, mountpoint: &Path, options: &Options, others: bool) -> Result<OwnedFd, MountError> {
    let talk = |source: io::Error| MountError::HelperTalk { source };
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|e| talk(e.into()))?;
    // The child finds the socket under the same number: it is to survive exec.
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).map_err(|e| talk(e.into()))?;
    let mut list = vec![
        format!("fsname={}", source.replace('\\', "\\\\").replace(',', "\\,")),
        format!("subtype={SUBTYPE}"),
        "default_permissions".to_owned(),
        format!("max_read={}", abi::MAX_WRITE),
    ];
    if others {
        list.push("allow_other".to_owned());
    }
    list.extend(options.flag_names().into_iter().map(str::to_owned));
    let mut child = Command::new(PROGRAM)
        .arg("-o")
        .arg(list.join(","))
        .arg("--")
        .arg(mountpoint)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| if e.kind() == io::ErrorKind::NotFound { MountError::NoHelper } else { talk(e) })?;
    drop(theirs);
    let device = receive(&ours);
    let mut message = String::new();
    if let Some(stderr) = child.stderr.take() {
        // Its words are for people: what is not UTF-8 in them may be lost.
        let _ = stderr.take(MESSAGE_MAX).read_to_string(&mut message);
    }
    let status = child.wait().map_err(talk)?;
    match device {
        Ok(Some(device)) if status.success() => Ok(device),
        Err(error) if status.success() => Err(talk(error)),
        _ => {
            let message = message.trim().to_owned();
            Err(MountError::Helper { mountpoint: mountpoint.to_owned(), message })
        }
    }
}

/// One byte with one descriptor; `None` where the other side just closed.
fn receive(socket: impl AsFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut pieces = [IoSliceMut::new(&mut byte)];
    rustix::io::retry_on_intr(|| recvmsg(&socket, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC))?;
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    Ok(fds.by_ref().flatten().next())
}
