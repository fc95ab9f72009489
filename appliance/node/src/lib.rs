//! claudefsd as a library: wires the reactor, transport, namespace machine and chunk store of one node together.
//!
//! Owns the order of start and stop, the routing of requests to cores and what `status` tells. Must not hold logic of a
//! file system: that is the namespace's, the chunk store's or the transport's.

mod admin;
mod admission;
mod applying;
mod base;
pub mod config;
mod core;
mod data;
mod database;
mod error;
mod flusher;
mod format;
mod freeing;
pub mod fsck;
pub mod histogram;
mod meta;
mod naming;
mod node;
mod recovery;
mod reserve;
mod room;
mod scrub;
mod server;
#[cfg(feature = "sim")]
pub mod sim;
mod store;
pub mod units;
pub mod volume;

pub use error::{NodeError, exit};
pub use format::{Formatted, Options as FormatOptions, format};
pub use node::{Control, Ended, run};
