//! Connections and RPC: 64-byte-header frames over the reactor's TCP.
//!
//! The decisions are state machines without I/O (`cutter`, `handshake`, `pending`, `slots`, `alive`); `link` moves bytes, and
//! [`Server`], [`Connection`] and [`Session`] join them. This crate knows frames, keys, credits and slots; it must not
//! know what a request means, nor keep replies. `docs/wire.md` is the protocol's description.

pub mod alive;
mod connection;
mod cutter;
mod error;
pub mod handshake;
mod key;
mod link;
mod lobby;
pub mod pending;
mod server;
mod session;
pub mod slots;

pub use alive::{BACKOFF_MAX, BACKOFF_MIN, DEAD_AFTER};
pub use connection::{CallOptions, ConnectOptions, Connection, Notification, Reply};
pub use error::{CloseReason, Error};
pub use handshake::{HandshakeError, Identity, KeyRing};
pub use key::{Key, KeyError};
pub use lobby::HALF_OPEN_MAX;
pub use pending::PendingError;
pub use reactor::Parts;
pub use server::{HANDSHAKE_TIME, Handler, Incoming, Outgoing, Peer, Server, ServerConfig, WeakServer};
pub use session::{Hook, OnNotification, Session};
