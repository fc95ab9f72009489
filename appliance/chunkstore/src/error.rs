//! Errors of the chunk store, classed by what the caller does about them.

use crate::index::Key;
use crate::superblock::Invalid;
use std::io;

/// What went wrong with an operation on a shard or a log.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Refuse the write (ENOSPC); everything else goes on.
    #[error("no space left on the device for user data; delete something or grow the device")]
    NoSpace,
    /// Report to the reader (EIO): the block's contents are not what was written.
    #[error(
        "chunk {key}, block {block}: device block {at} is damaged (wrong CRC); restore the file from a copy"
    )]
    BadBlock {
        /// The chunk.
        key: Key,
        /// Block within the chunk.
        block: u32,
        /// Block on the device.
        at: u64,
    },
    /// Report to the reader (EIO): the device gave an error for this chunk.
    #[error("chunk {key}: reading device block {at} failed: {source}; check the device's health log")]
    Read {
        /// The chunk.
        key: Key,
        /// Block on the device.
        at: u64,
        /// The device's error.
        source: Shared,
    },
    /// Refuse every change (EROFS); reads go on. The state lasts until the store is opened again.
    #[error("shard is read-only: {reason}; restart after the device was checked")]
    ReadOnly {
        /// What led to it.
        reason: String,
    },
    /// Both copies of a piece of metadata are damaged: the shard can't be opened, or the chunk not be used.
    #[error("{what} is damaged in both copies ({why}); run `claudefs fsck`, restore from a backup")]
    Damaged {
        /// The structure and where it lies.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Refuse: the request is older than the last one on its channel.
    #[error("request {sequence} of client {client:x} channel {channel} is older than the last, {last}")]
    StaleRequest {
        /// The client's session.
        client: u64,
        /// Its slot.
        channel: u16,
        /// Number given.
        sequence: u64,
        /// Number on record.
        last: u64,
    },
    /// Refuse: the caller's range, length or time is out of bounds.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// Retry after all shards of the device are open.
    #[error("space can't be taken before every shard of the device is open")]
    NotOpen,
    /// Stop: it was stopped.
    #[error("the shard or log was stopped")]
    Stopped,
    /// Report: a device error outside any chunk.
    #[error("{what} failed: {source}; check the device's health log")]
    Io {
        /// What was done.
        what: &'static str,
        /// The device's error.
        source: Shared,
    },
}

/// An I/O error that several waiters get.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Shared(std::rc::Rc<io::Error>);

impl From<io::Error> for Shared {
    fn from(e: io::Error) -> Shared {
        Shared(std::rc::Rc::new(e))
    }
}

impl Shared {
    /// The device's error.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.0.kind()
    }
}

impl Error {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |e| Error::Io { what, source: e.into() }
    }

    pub(crate) fn damaged(what: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Damaged { what: what.into(), why: why.into() }
    }
}

/// Why a device can't be formatted, opened or grown.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Another process has it.
    #[error("{path} is already in use by another process; stop it first")]
    InUse {
        /// The device.
        path: String,
    },
    /// It can't be opened.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The device.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// Something is on it.
    #[error("the device holds {found}; format with --force to destroy it")]
    Occupied {
        /// What was recognised.
        found: &'static str,
    },
    /// Nothing of ours is on it.
    #[error("the device holds {}, not a ClaudeFS store; check the path, or format it", found.unwrap_or("unknown data"))]
    NotOurs {
        /// What was recognised instead.
        found: Option<&'static str>,
    },
    /// Below [`crate::MIN_DEVICE`].
    #[error("the device has {got} bytes, at least {} are needed", crate::MIN_DEVICE)]
    TooSmall {
        /// Its size.
        got: u64,
    },
    /// Smaller than when it was formatted or grown.
    #[error(
        "the device has {got} bytes, its superblock says {recorded}: it shrank; make it as large as it was"
    )]
    Shrank {
        /// Bytes now.
        got: u64,
        /// Bytes recorded.
        recorded: u64,
    },
    /// Written by a later release.
    #[error(
        "the store has format version {found}, this release reads up to {}; use a newer release",
        crate::FORMAT_VERSION
    )]
    Newer {
        /// The version found.
        found: u32,
    },
    /// Neither superblock can be used.
    #[error(
        "both superblocks are damaged (first: {a}; second: {b}); restore one from a backup of the first 9 MiB"
    )]
    BothSuperblocks {
        /// The first copy.
        a: Invalid,
        /// The second copy.
        b: Invalid,
    },
    /// A format option is out of range.
    #[error("{0}")]
    Option(&'static str),
    /// More than [`crate::GROW_LIMIT`] times its size at open.
    #[error("the device grew more than {}-fold since it was opened; restart, then grow", crate::GROW_LIMIT)]
    GrewTooFar,
    /// The device failed.
    #[error("{what} failed: {source}")]
    Io {
        /// What was done.
        what: &'static str,
        /// The device's error.
        source: io::Error,
    },
}

impl DeviceError {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> DeviceError {
        move |source| DeviceError::Io { what, source }
    }
}
