//! The operator's tool as a library: arguments, commands, and what they print.
//!
//! Owns what people see. Must not know formats on disk or on the wire: it calls the libraries that do.

pub mod args;

use clap::Parser;
use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the command line `args` and says how it went.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match args::Cli::try_parse_from(args) {
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            let _ = error.print();
            ExitCode::from(2)
        }
    }
}
