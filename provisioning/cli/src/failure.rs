//! How a command ends otherwise than well: what is said, and the exit code for scripts.

use std::io;

/// Why a command failed, classed by what its caller does next.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Anything without a class of its own.
    #[error("{0}")]
    Other(String),
    /// Correct the command line.
    #[error("{0}")]
    Usage(String),
    /// Look at the device.
    #[error("{0}")]
    Device(String),
    /// Start the daemon, or name another.
    #[error("{0}")]
    Server(String),
    /// Get the right key.
    #[error("{0}")]
    Key(String),
    /// Confirm, or try again later.
    #[error("{0}")]
    Refused(String),
    /// The command worked and has told that something is wrong with the file system.
    #[error("{0}")]
    Unwell(String),
    /// Who read the output has gone: nothing is to be said to anybody.
    #[error("the output was closed")]
    Closed,
    /// The output can't be written.
    #[error("can't write the output: {0}")]
    Output(#[source] io::Error),
}

impl Failure {
    /// The exit code, as `claudefs --help` lists them.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            // A reader such as `head` that has seen enough is no failure.
            Self::Closed => 0,
            Self::Other(_) | Self::Output(_) => 1,
            Self::Usage(_) => 2,
            Self::Device(_) => 3,
            Self::Server(_) => 4,
            Self::Key(_) => 5,
            Self::Refused(_) => 6,
            Self::Unwell(_) => 7,
        }
    }

    /// From what a command could not do.
    pub(crate) fn other(what: &str) -> impl FnOnce(io::Error) -> Self {
        move |e| Self::Other(format!("{what}: {e}"))
    }
}

impl From<reactor::Missing> for Failure {
    fn from(e: reactor::Missing) -> Self {
        Self::Other(e.to_string())
    }
}

impl From<reactor::Error> for Failure {
    fn from(e: reactor::Error) -> Self {
        Self::Other(e.to_string())
    }
}

impl From<transport::KeyError> for Failure {
    fn from(e: transport::KeyError) -> Self {
        Self::Key(e.to_string())
    }
}
