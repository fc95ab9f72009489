//! The client core: sessions, leases, chunk addressing and retry under one trait, [`FileService`], that every front end
//! uses.
//!
//! Must not know FUSE or NFS, and must not open sockets itself: messages go through [`rpc::Rpc`]. One request's way:
//! `client.rs` (count, time) → `op_*.rs` (what it means, what may be cached) → `core.rs` (ask until answered) → `rpc.rs`.
//! One recall's way: `session.rs` (notified) → `leases.rs` (bookkeeping) → `recall.rs` (invalidate, give back).

mod cancel;
mod changes;
mod client;
mod core;
mod gate;
mod hold;
mod leases;
mod link;
mod locks;
#[cfg(any(test, feature = "memory"))]
pub mod memory;
mod names;
mod op_data;
mod op_files;
mod op_locks;
mod op_names;
mod opens;
mod race;
mod ranges;
mod recall;
pub mod rpc;
pub mod service;
mod session;
mod stats;
mod stripe;
#[cfg(test)]
mod tests;

pub use cancel::{CancelToken, Interrupt};
pub use client::{Client, Options};
pub use hold::Hold;
pub use leases::Limits;
pub use link::Endpoint;
pub use service::{Ctx, FileService};
pub use stats::{BUCKETS, Op, OpSnapshot, Snapshot};
