//! claudefsd as a library: wires the reactor, transport, namespace machine and chunk store of one node together.
//!
//! Owns the order of start and stop, the routing of requests to cores and what `status` tells. Must not hold logic of a
//! file system: that is the namespace's, the chunk store's or the transport's.

pub mod config;
pub mod histogram;
pub mod units;
pub mod volume;
