//! The `claudefs` binary: hands the command line to the library.

fn main() -> std::process::ExitCode {
    claudefs_cli::main(std::env::args_os())
}
