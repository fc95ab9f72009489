//! The client core: sessions, leases, chunk addressing and retry under one trait, [`FileService`], that every front end
//! uses.
//!
//! Must not know FUSE or NFS, and must not open sockets itself: messages go through `transport`.

mod cancel;
mod hold;
#[cfg(any(test, feature = "memory"))]
pub mod memory;
pub mod service;

pub use cancel::{CancelToken, Interrupt};
pub use hold::Hold;
pub use service::{Ctx, FileService};
