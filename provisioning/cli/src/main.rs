//! Entry of `claudefs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    claudefs_cli::main(std::env::args_os())
}
