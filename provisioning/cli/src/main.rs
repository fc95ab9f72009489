//! Entry of `claudefs`, which mount(8) runs as `mount.claudefs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    claudefs_cli::main(std::env::args_os())
}
