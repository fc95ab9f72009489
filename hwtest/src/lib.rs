//! End-to-end tests: a harness that runs a node and its mounts, and checks that run on any directory.
//!
//! Every check can be pointed at a directory of ext4 as well as at a mount, which tests the check itself. Later home of
//! hardware qualification. Must not be needed by anything that ships.

pub mod battery;
pub mod kills;
pub mod linear;
pub mod model;
pub mod pjdfstest;
pub mod rig;
pub mod rng;
pub mod scale;
pub mod seccomp;
