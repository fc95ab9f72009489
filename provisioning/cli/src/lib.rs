//! The operator's tool as a library: arguments, commands, and what they print.
//!
//! Owns what people see and what scripts rely on: texts, JSON documents, exit codes. Must not hold logic of the file
//! system, nor know formats on disk or on the wire: it calls the libraries that do.

mod admin;
pub mod args;
pub mod confirm;
mod device;
pub mod failure;
mod format;
mod fsck;
mod key;
mod manual;
mod mount;
pub mod print;
pub mod progress;
mod scrub;
mod status;

use args::{Cli, Command, Device, Key};
use clap::Parser;
use clap::error::ErrorKind;
use failure::Failure;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

/// The name under which mount(8) runs this program; a link to it.
const MOUNT_HELPER: &str = "mount.claudefs";

/// Runs the command line `args`, says what went wrong, and gives the exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = args.into_iter().collect();
    if words.first().is_some_and(|w| Path::new(w).file_name() == Some(OsStr::new(MOUNT_HELPER))) {
        return client_fuse::program::main(&client_fuse::program::Arguments::parse_from(words));
    }
    let fsck = words.get(1).is_some_and(|w| w == OsStr::new("fsck"));
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody to tell is no reason to fail otherwise.
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            let usage = Failure::Usage(String::new());
            return if asked { ExitCode::SUCCESS } else { exit_code(&usage, fsck) };
        }
    };
    // What serves a mount has a log of its own.
    if !matches!(cli.command, Command::Mount(_)) {
        start_log();
    }
    match run(&cli.command) {
        Ok(code) => code,
        Err(failure) => {
            let text = failure.to_string();
            if !text.is_empty() && !matches!(failure, Failure::Closed) {
                print::say(&format!("claudefs: {text}"));
            }
            exit_code(&failure, fsck)
        }
    }
}

/// The code for a script, or as fsck(8) has it.
fn exit_code(failure: &Failure, fsck: bool) -> ExitCode {
    if fsck { fsck::exit_code(failure).into() } else { failure.exit_code().into() }
}

/// Libraries report through `tracing`; a command's own messages say what matters, so only errors show by default.
fn start_log() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("CLAUDEFS_LOG").unwrap_or_else(|_| EnvFilter::new("error"));
    // Fails only where a log is set up already, as in tests.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}

fn run(command: &Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Format(args) => format::format(args),
        // Its exit codes are those of mount(8).
        Command::Mount(args) => return mount::mount(args),
        // Those of fsck(8).
        Command::Fsck(args) => return fsck::fsck(args),
        Command::Umount(args) => mount::umount(args),
        Command::Status(args) => status::status(args),
        Command::Df(args) => status::df(args),
        Command::Scrub(args) => scrub::scrub(args),
        Command::Device(Device::List(args)) => device::list(args),
        Command::Device(Device::Grow(args)) => device::grow(args),
        Command::Device(Device::Preallocate(args)) => device::preallocate(args),
        Command::Key(Key::Generate(args)) => key::generate(args),
        Command::Key(Key::ShowId(args)) => key::show_id(args),
        Command::Completions(args) => manual::completions(args.shell),
        Command::Man(args) => manual::man(&args.dir),
    }?;
    Ok(ExitCode::SUCCESS)
}
