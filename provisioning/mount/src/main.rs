//! Entry of the mount program, installed as `mount.claudefs`; all of it is in `client_fuse::program`.

use clap::Parser as _;
use client_fuse::program::{self, Arguments};
use std::process::ExitCode;

fn main() -> ExitCode {
    program::main(&Arguments::parse())
}
