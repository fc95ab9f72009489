//! Why a node can't start or had to stop, with the exit code of the daemon for each.

use chunkstore::DeviceError;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Exit codes of claudefsd, as its manual lists them.
pub mod exit {
    /// It stopped because it was asked to, and cleanly.
    pub const OK: u8 = 0;
    /// Anything that has no code of its own.
    pub const FAILURE: u8 = 1;
    /// The configuration, the key file or the command line is wrong: correct it.
    pub const CONFIG: u8 = 2;
    /// The device can't be used: missing, not ours, in use, damaged, too small. Starting again does not help.
    pub const DEVICE: u8 = 3;
    /// An address can't be listened on.
    pub const LISTEN: u8 = 4;
    /// The kernel lacks a feature.
    pub const KERNEL: u8 = 5;
    /// The store failed while it ran; what was acknowledged is on the device as far as the device keeps it.
    pub const STORE: u8 = 6;
    /// A second signal ended it before it was drained; nothing acknowledged is lost.
    pub const KILLED: u8 = 7;
}

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Correct the key file.
    #[error("the cluster key: {0}")]
    Key(#[from] transport::KeyError),
    /// The device can't be used.
    #[error("{0}")]
    Device(#[from] DeviceError),
    /// As its source, which does not name the device.
    #[error("{}: {source}", .path.display())]
    OnDevice {
        /// The device.
        path: PathBuf,
        /// What is wrong on it.
        source: Box<NodeError>,
    },
    /// The kernel lacks something.
    #[error("{0}")]
    Kernel(#[from] reactor::Missing),
    /// A reactor could not run.
    #[error("{0}")]
    Reactor(#[from] reactor::Error),
    /// The system refused something that a node needs.
    #[error("{what} failed: {source}")]
    Io {
        /// What was done.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Free the address or choose another.
    #[error("can't listen on {address}: {source}; stop what uses it or change `listen`")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// The chunk store failed.
    #[error("{0}")]
    Store(String),
    /// A core other than the first is gone, with its shards.
    #[error(
        "a core's thread died, and with it the way to its shards; the log says why: start the daemon again"
    )]
    Core,
    /// The namespace can't be opened.
    #[error("{0}")]
    Namespace(#[from] namespace::OpenError),
    /// The database below it can't be opened.
    #[error("{0}")]
    Applier(#[from] namespace::applier::Error),
}

impl NodeError {
    #[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
    pub(crate) fn store(e: chunkstore::Error) -> Self {
        Self::Store(e.to_string())
    }

    pub(crate) fn reactor_io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    /// The same with the device's name, where it is about a device and names none.
    #[must_use]
    pub(crate) fn on_device(self, path: &Path) -> Self {
        match self {
            Self::Device(DeviceError::InUse { .. } | DeviceError::Open { .. }) => self,
            Self::Device(_) | Self::Store(_) | Self::Namespace(_) | Self::Applier(_) => {
                Self::OnDevice { path: path.to_owned(), source: Box::new(self) }
            }
            _ => self,
        }
    }

    /// The daemon's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Key(_) => exit::CONFIG,
            Self::Device(_) | Self::Namespace(_) | Self::Applier(_) => exit::DEVICE,
            Self::OnDevice { source, .. } => source.exit_code(),
            Self::Kernel(_) | Self::Reactor(_) => exit::KERNEL,
            Self::Listen { .. } => exit::LISTEN,
            Self::Store(_) | Self::Core => exit::STORE,
            Self::Io { .. } => exit::FAILURE,
        }
    }
}
