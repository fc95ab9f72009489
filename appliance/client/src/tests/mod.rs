//! The client against a scripted server with a clock of its own, and (`loopback`) over real TCP.

mod caching;
mod data;
mod fake;
mod locking;
mod loopback;
mod model;
mod recalls;
mod sessions;
