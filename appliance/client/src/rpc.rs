//! The seam below the client: requests out, replies and notifications in, time and tasks.
//!
//! Implemented over `transport` (`link.rs`), by the scripted servers of the tests, and by the simulator. Whoever
//! implements [`Rpc`] keeps connections, slots and sequences; the client keeps what a session holds.

use hugepages::Bytes;
use reactor::sync::Event;
use std::any::Any;
use std::rc::Rc;
use std::time::Duration;
use wire::types::{ShardId, Status};
use wire::{Call, DecodeError, Request};

pub use crate::service::LocalFuture;

/// How long a request is pursued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Until it is answered: it waits for a connection, and is sent again after a reconnect once
    /// [`Events::connected`] is through.
    #[default]
    Session,
    /// On the present connection only, ahead of all others, also while [`Events::connected`] runs. If the connection
    /// ends, the answer is [`Status::Cancelled`].
    Connection,
}

/// A request to send.
#[derive(Clone)]
pub struct Outgoing<'a> {
    /// The message.
    pub request: Request<'a>,
    /// Its payload.
    pub payload: Option<Bytes>,
    /// Flag NEED_LEASE of the header.
    pub need_lease: bool,
    /// Others wait for it: see [`transport::CallOptions::urgent`].
    pub urgent: bool,
    /// The shard addressed.
    pub shard: ShardId,
    /// How long it is pursued.
    pub scope: Scope,
    /// Kept until the answer, even if nobody waits for it any more. Not for the [`Rpc`] to look at.
    pub keep: Option<Rc<dyn Any>>,
    /// Rung when it is to give way to others: then it is cancelled. A wait for a lock can always be.
    pub gives_way: Option<Rc<Event>>,
}

impl std::fmt::Debug for Outgoing<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing").field("request", &self.request).finish_non_exhaustive()
    }
}

impl<'a> Outgoing<'a> {
    /// A plain request.
    pub fn new(request: impl Into<Request<'a>>) -> Self {
        Self {
            request: request.into(),
            payload: None,
            need_lease: false,
            urgent: false,
            shard: ShardId(0),
            scope: Scope::Session,
            keep: None,
            gives_way: None,
        }
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// How it went.
    pub status: Status,
    /// Body, with [`Status::Ok`] that of the message.
    pub body: Bytes,
    /// Payload.
    pub payload: Bytes,
    /// Times the request was sent. At 1, a refusal means that it was never executed.
    pub attempts: u32,
}

impl Reply {
    /// The body of a successful answer to `C`.
    pub fn decode<'r, C: Call<'r>>(&'r self) -> Result<C::Reply<'r>, DecodeError> {
        wire::Body::decode(&self.body)
    }
}

/// Names a request towards [`Rpc::cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallId(pub u64);

/// A request under way.
pub struct Pending {
    /// Its name.
    pub id: CallId,
    /// Ends with the answer. Dropping it gives up a request that may be repeated; one that changes something must be
    /// awaited to its end.
    pub reply: LocalFuture<Reply>,
}

/// What the client makes of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The session lives: unanswered requests are sent again.
    Resume,
    /// The first connection of a new session.
    Fresh,
    /// The connection is of no use: connect again.
    Retry,
    /// The server has given the session up: as [`Rpc::renew`].
    Renew,
}

/// What the client wants to hear.
pub trait Events {
    /// A connection is authenticated. Requests wait until the future ends.
    fn connected(&self) -> LocalFuture<Verdict>;
    /// The server notifies (Recall, Fenced).
    fn notified(&self, request: &Request<'_>);
}

/// Terms of the server, from its Welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Shards of the device.
    pub shards: u16,
    /// Requests that change something and may be under way together.
    pub slots: u16,
    /// A session that is silent for so long loses its leases.
    pub lease: Duration,
}

/// Requests, time and tasks.
pub trait Rpc {
    /// Registers the client and begins to connect.
    fn start(&self, events: Rc<dyn Events>);
    /// Sends a request.
    fn call(&self, out: &Outgoing<'_>) -> Pending;
    /// Asks the server to give up a wait: for a lock, or of a request with [`Outgoing::gives_way`]. It is answered all the
    /// same: with the result if that is known, else [`Status::Cancelled`]. That proves that the request had no effect, save
    /// for a lock, which may have been granted.
    fn cancel(&self, id: CallId);
    /// The server has given the session up: connect anew under another identity, with fresh slots. Unanswered requests
    /// that change something and may have been sent end with [`Status::Fenced`]; all others are sent then.
    fn renew(&self);
    /// Ends the connection for good.
    fn close(&self) -> LocalFuture<()>;
    /// Terms of the last Welcome; `None` before the first.
    fn terms(&self) -> Option<Terms>;
    /// How long nothing was heard from the server.
    fn silence(&self) -> Duration;

    /// Runs a task on this thread.
    fn spawn(&self, task: LocalFuture<()>);
    /// Ends after `time`.
    fn sleep(&self, time: Duration) -> LocalFuture<()>;
    /// Time since some beginning.
    fn now(&self) -> Duration;
}
