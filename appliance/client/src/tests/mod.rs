//! The client against a scripted server: no socket, a clock of its own.

mod caching;
mod data;
mod fake;
mod locking;
mod model;
mod recalls;
mod sessions;
