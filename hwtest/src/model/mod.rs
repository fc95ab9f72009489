//! A random run against a model: one driver orders operations over several processes, on one or more mounts of the same
//! file system, and compares every answer exactly with that of an in-memory reference.
//!
//! The same seed gives the same run. Works on any Linux file system: on ext4 it tests the model itself.

mod contents;
mod driver;
mod fs;
mod generate;
mod locks;
pub mod ops;
pub mod worker;

pub use driver::{Plan, Summary, run};
pub use fs::{Expected, Model};
