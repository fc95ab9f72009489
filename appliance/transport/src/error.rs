//! Why a connection ended and why a call failed, classed by what the caller does about it.

use crate::handshake::HandshakeError;
use crate::pending::PendingError;
use std::rc::Rc;
use wire::HeaderError;

/// Why a connection is closed. Cheap to clone: everyone who waits on the connection is told.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CloseReason {
    /// This side closed it.
    #[error("closed by this side")]
    Local,
    /// The peer closed it between two frames.
    #[error("closed by the peer")]
    Peer,
    /// The stream ended within a frame.
    #[error("the stream ended within a frame")]
    Cut,
    /// The socket failed.
    #[error("socket: {0}")]
    Io(Rc<std::io::Error>),
    /// Nothing was heard of the peer for too long.
    #[error("nothing heard of the peer for three keep-alive periods")]
    Silent,
    /// The peer does not take what it is sent.
    #[error("the peer takes nothing it is sent")]
    Slow,
    /// The peer did not finish the handshake in time.
    #[error("the handshake took longer than 5 s")]
    HandshakeTime,
    /// Others came, and this peer had been in the handshake for longest.
    #[error("too many connections have not proved a key, and this one was the oldest")]
    Crowded,
    /// The handshake failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// A frame was not sound.
    #[error(transparent)]
    Frame(#[from] HeaderError),
    /// The peer exceeded what is allowed in flight.
    #[error(transparent)]
    Pending(#[from] PendingError),
    /// The peer broke the protocol otherwise.
    #[error("protocol: {0}")]
    Protocol(&'static str),
    /// The server is going down.
    #[error("this side is stopping")]
    Stopping,
}

impl CloseReason {
    /// Whether the peer did what a sound one never does: for the log.
    #[must_use]
    pub const fn is_fault(&self) -> bool {
        matches!(
            self,
            Self::Slow
                | Self::HandshakeTime
                | Self::Handshake(_)
                | Self::Frame(_)
                | Self::Pending(_)
                | Self::Protocol(_)
        )
    }
}

impl From<std::io::Error> for CloseReason {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::UnexpectedEof { Self::Cut } else { Self::Io(Rc::new(error)) }
    }
}

/// Why a call or an attempt to connect failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The connection is gone; whether the request had its effect is unknown. Connect again and repeat.
    #[error("connection lost: {0}")]
    Closed(#[from] CloseReason),
    /// No connection could be made. Try again.
    #[error("{0}")]
    Connect(Rc<std::io::Error>),
    /// The caller's deadline passed. The request may still have its effect.
    #[error("no reply within the deadline")]
    Deadline,
    /// The request does not fit: a defect of the caller.
    #[error("request does not fit: {0}")]
    TooLong(&'static str),
    /// What a hook answers when the server does not take the session up. Another attempt follows.
    #[error("the server refuses the session with {0:?}")]
    Refused(wire::Status),
    /// No random bytes.
    #[error("no random bytes from the kernel")]
    Random,
    /// Cancelled before the server saw it: it has had no effect.
    #[error("cancelled before it was sent")]
    Cancelled,
    /// The session was stopped.
    #[error("the session was stopped")]
    Stopped,
}

impl Error {
    /// Whether trying again can't help until an operator acts.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Closed(CloseReason::Handshake(error)) => error.is_permanent(),
            Self::TooLong(_) | Self::Stopped => true,
            _ => false,
        }
    }
}
