//! Entry of `claudefs`, and of `mount.claudefs`, which may be a link to it: the name that mount(8) looks for.

use std::process::ExitCode;

fn main() -> ExitCode {
    claudefs_cli::main(std::env::args_os())
}
