//! The whole transport over real TCP on loopback: server, connection and session in one reactor.
#![expect(clippy::expect_used, reason = "a test ends at the first surprise")]

mod calls;
mod common;
mod faults;
mod strangers;
