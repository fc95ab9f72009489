//! A mount from its start to its end.

use crate::abi::reply::InitOut;
use crate::abi::{Op, opcode};
use crate::channel::{ChannelError, Device, Reader, Received};
use crate::init::{self, Agreed, InitError};
use crate::mount::{self, MountError, Options, Unmount, UnmountError};
use crate::nodes::Nodes;
use crate::notify::{Notifier, Recaller};
use crate::session::{MountStats, Session};
use client::service::{Errno, FileKind, Ino};
use client::{Ctx, FileService};
use hugepages::Arena;
use reactor::JoinHandle;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use zerocopy::IntoBytes;

/// What to mount, where and how.
#[derive(Debug)]
pub struct MountConfig {
    /// What the mount table shows, `HOST:/PATH`.
    pub source: String,
    /// Directory to mount on.
    pub mountpoint: PathBuf,
    /// Path within the file system of the directory that becomes the root.
    pub path: String,
    /// Options.
    pub options: Options,
    /// Memory for requests; the heap serves where it is missing or exhausted.
    pub arena: Option<Arena>,
}

/// Why there is no mount, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be made.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The kernel is too old.
    #[error(transparent)]
    Init(#[from] InitError),
    /// The directory to be mounted is not there, or is none.
    #[error("cannot mount {path} of the file system: {errno}; name a directory in it (`/` is its root)")]
    Root {
        /// The path.
        path: String,
        /// The service's answer.
        errno: Errno,
    },
    /// The device failed or was aborted.
    #[error("the mount at {} ended: {source}", .mountpoint.display())]
    Channel {
        /// Where.
        mountpoint: PathBuf,
        /// Why.
        source: ChannelError,
    },
    /// The device could not be set up.
    #[error("cannot set up the FUSE device: {0}")]
    Device(#[source] io::Error),
}

/// A mount that serves. Dropping it stops serving and leaves the mount dead; see [`Mount::unmount`].
pub struct Mount {
    mountpoint: PathBuf,
    agreed: Agreed,
    stats: Rc<dyn Fn() -> MountStats>,
    serving: JoinHandle<ChannelError>,
}

impl Mount {
    /// Finds the root, mounts, and answers INIT: when it returns, the mount serves. To be called on a reactor.
    ///
    /// # Errors
    /// Where the root does not answer, the mount can't be made, or the kernel is too old.
    pub async fn start<S: FileService>(config: MountConfig, service: Rc<S>) -> Result<Self, Error> {
        let notifier = Rc::new(Notifier::default());
        service.set_invalidator(Rc::new(Recaller(Rc::clone(&notifier))));
        let root = find_root(&*service, &config.path).await?;
        let mounted = mount::mount(&config.source, &config.mountpoint, &config.options)?;
        let started =
            Self::serve(&config, service, notifier, Rc::new(Nodes::new(root)), mounted.device).await;
        let (agreed, stats, serving) = match started {
            Ok(started) => started,
            Err(error) => {
                // The descriptor is closed by now, so nothing can wait for us.
                if let Err(left) = mount::unmount(&mounted.mountpoint, Unmount::Lazy) {
                    tracing::warn!(%left, "a dead mount is left behind");
                }
                return Err(error);
            }
        };
        match mount::bdi::set_read_ahead(&mounted.mountpoint, config.options.read_ahead_kib) {
            Ok(old) => tracing::debug!(old, new = config.options.read_ahead_kib, "read-ahead in KiB"),
            Err(error) => tracing::debug!(%error, "read-ahead stays as it is: it takes root to change"),
        }
        Ok(Self { mountpoint: mounted.mountpoint, agreed, stats, serving })
    }

    async fn serve<S: FileService>(
        config: &MountConfig,
        service: Rc<S>,
        notifier: Rc<Notifier>,
        nodes: Rc<Nodes>,
        fd: rustix::fd::OwnedFd,
    ) -> Result<(Agreed, Rc<dyn Fn() -> MountStats>, JoinHandle<ChannelError>), Error> {
        let twin = rustix::io::fcntl_dupfd_cloexec(&fd, 3).map_err(|e| Error::Device(e.into()))?;
        let device = Rc::new(Device::new(fd).map_err(Error::Device)?);
        let mut reader = Reader::new(config.arena.clone());
        let agreed = negotiate(&device, &mut reader, &config.mountpoint).await?;
        tracing::debug!(minor = agreed.minor, flags = format_args!("{:#x}", agreed.flags), "FUSE agreed");
        notifier.attach(twin, Rc::clone(&nodes), agreed);
        let session = Rc::new(Session::new(service, device, nodes, agreed, notifier));
        let counted = Rc::clone(&session);
        let stats: Rc<dyn Fn() -> MountStats> = Rc::new(move || counted.stats());
        let serving = reactor::spawn(session.run(reader));
        Ok((agreed, stats, serving))
    }

    /// Where it is, as an absolute path without links.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// What was agreed upon with the kernel.
    #[must_use]
    pub fn agreed(&self) -> Agreed {
        self.agreed
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> MountStats {
        (self.stats)()
    }

    /// Serves on until the mount has ended. May be called again after being dropped.
    ///
    /// # Errors
    /// Where it ended otherwise than by being unmounted.
    pub async fn unmounted(&mut self) -> Result<(), Error> {
        match (&mut self.serving).await {
            Ok(ChannelError::Unmounted) | Err(reactor::Aborted) => Ok(()),
            Ok(source) => Err(Error::Channel { mountpoint: self.mountpoint.clone(), source }),
        }
    }

    /// Unmounts, serving all the while; [`Mount::unmounted`] ends when the kernel has let go.
    ///
    /// # Errors
    /// As [`mount::unmount()`].
    pub async fn unmount(&self, how: Unmount) -> Result<(), UnmountError> {
        let mountpoint = self.mountpoint.clone();
        let (send, mut receive) = reactor::mail::channel(1);
        let name = "fuse-umount".to_owned();
        let failed = |source| UnmountError::Failed { mountpoint: self.mountpoint.clone(), source };
        let work = move || {
            // Where nobody listens any more there is nobody to tell.
            let _ = send.send_blocking(mount::unmount(&mountpoint, how));
        };
        std::thread::Builder::new().name(name).spawn(work).map_err(failed)?;
        receive.recv().await.unwrap_or_else(|| Err(failed(io::ErrorKind::BrokenPipe.into())))
    }
}

/// The inode of a directory by its path.
async fn find_root<S: FileService>(service: &S, path: &str) -> Result<Ino, Error> {
    let failed = |errno| Error::Root { path: path.to_owned(), errno };
    let ctx = Ctx::default();
    let mut at = service.getattr(&ctx, client::service::ROOT_INO).await.map_err(failed)?.attr;
    for name in path.split('/').filter(|n| !n.is_empty()) {
        let found = service.lookup(&ctx, at.ino(), name.as_bytes()).await;
        let entry = found.and_then(client::service::Found::entry).map_err(failed)?;
        service.forget(entry.attr.ino(), 1);
        at = entry.attr;
    }
    match at.kind() {
        Some(FileKind::Directory) => Ok(at.ino()),
        _ => Err(failed(Errno::ENOTDIR)),
    }
}

/// Answers INIT, which is always the first request.
async fn negotiate(device: &Device, reader: &mut Reader, mountpoint: &Path) -> Result<Agreed, Error> {
    let ended = |source| Error::Channel { mountpoint: mountpoint.to_owned(), source };
    loop {
        let message = match reader.read(device).map_err(ended)? {
            Received::Request(message) => message,
            Received::Bad(unique, error) => {
                tracing::warn!(%error, "refused before INIT");
                device.error(unique, Errno::EIO);
                continue;
            }
            Received::Nothing => {
                device.readable().await.map_err(Error::Device)?;
                continue;
            }
        };
        let unique = message.header.unique;
        let op = Op::decode(message.header.opcode, &message.body, false);
        let (opcode::INIT, Ok(Op::Init { init, flags2 })) = (message.header.opcode, op) else {
            device.error(unique, Errno::EIO);
            continue;
        };
        let answer = init::negotiate(&init, flags2);
        let (out, agreed): (InitOut, Option<Agreed>) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                device.error(unique, Errno::EPROTO);
                return Err(error.into());
            }
        };
        device.reply(unique, &[out.as_bytes()]);
        if let Some(agreed) = agreed {
            return Ok(agreed);
        }
    }
}
