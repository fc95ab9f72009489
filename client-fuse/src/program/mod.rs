//! The mount command: its arguments, as mount(8) passes them to `mount.claudefs`, and the process that serves.
//!
//! The program starts itself again as the server of the mount and waits until that says that it serves, so that the
//! command returns when the mount is usable, and errors are the command's own. Must not know file systems: that is
//! [`crate::running`] over [`client::Client`].

mod background;
mod serve;

use crate::mount::{Options, Source};
use clap::Parser;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;

/// TCP port of claudefsd unless the source names another.
pub const DEFAULT_PORT: u16 = 7420;
/// Where the cluster key is looked for, after the option `key=` and the variable `CLAUDEFS_KEY`.
pub const DEFAULT_KEY: &str = "/etc/claudefs/cluster.key";

/// Mounts a ClaudeFS.
///
/// Called by `claudefs mount` and, through the name mount.claudefs, by mount(8) and fstab:
///
///   host:/path  /mnt/point  claudefs  _netdev,noatime,key=/etc/claudefs/cluster.key  0 0
///
/// The command returns when the mount can be used; a process of the same name stays and serves it. SIGTERM, SIGINT and
/// SIGHUP unmount.
/// Other users see the mount with ordinary permission checks.
#[derive(Debug, Parser)]
#[command(name = "mount.claudefs", version)]
pub struct Arguments {
    /// What to mount: `HOST[:PORT]:/PATH`.
    pub source: String,
    /// Directory to mount on.
    pub mountpoint: PathBuf,
    /// Options, separated by commas: ro, noatime, nodev, nosuid, noexec, _netdev, key=FILE, log=FILE, foreground...
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// Unknown options are ignored with a warning.
    #[arg(short = 's')]
    pub sloppy: bool,
    /// Check the arguments and stop before mounting.
    #[arg(short = 'f')]
    pub fake: bool,
    /// Say what is done.
    #[arg(short = 'v')]
    pub verbose: bool,
    /// Read-only, as the option ro.
    #[arg(short = 'r')]
    pub read_only: bool,
    /// Read-write, the default.
    #[arg(short = 'w', conflicts_with = "read_only")]
    pub read_write: bool,
    /// Accepted for mount(8): there is no mtab to leave alone.
    #[arg(short = 'n')]
    pub no_mtab: bool,
    /// File system type, as mount(8) passes it for subtypes.
    #[arg(short = 't', value_name = "TYPE")]
    pub fs_type: Option<String>,
}

/// Why nothing was mounted; each tells the next step.
#[derive(Debug)]
pub struct Failure {
    text: String,
    code: u8,
}

/// Exit codes of mount(8).
pub mod exit {
    /// Arguments or permissions.
    pub const USAGE: u8 = 1;
    /// System error.
    pub const SYSTEM: u8 = 2;
    /// The mount failed.
    pub const MOUNT: u8 = 32;
}

impl Failure {
    fn usage(text: impl fmt::Display) -> Self {
        Self { text: text.to_string(), code: exit::USAGE }
    }
    fn system(text: impl fmt::Display) -> Self {
        Self { text: text.to_string(), code: exit::SYSTEM }
    }
    fn mount(text: impl fmt::Display) -> Self {
        Self { text: text.to_string(), code: exit::MOUNT }
    }
    fn report(&self) -> ExitCode {
        eprintln!("mount.claudefs: {}", self.text);
        ExitCode::from(self.code)
    }
}

/// What was asked for, understood.
#[derive(Debug)]
struct Plan {
    source: Source,
    mountpoint: PathBuf,
    options: Options,
    key: transport::Key,
    verbose: bool,
}

impl Plan {
    fn of(arguments: &Arguments) -> Result<Self, Failure> {
        let source: Source = arguments.source.parse().map_err(Failure::usage)?;
        let mut options = Options::default();
        for list in &arguments.options {
            if arguments.sloppy {
                for ignored in options.parse_sloppy(list).map_err(Failure::usage)? {
                    eprintln!("mount.claudefs: option {ignored} is unknown and ignored");
                }
            } else {
                options.parse(list).map_err(Failure::usage)?;
            }
        }
        if arguments.read_only {
            options.parse("ro").map_err(Failure::usage)?;
        }
        // The serving process works in `/`, so nothing may depend on where it was started.
        options.log = options.log.map(std::path::absolute).transpose().map_err(Failure::usage)?;
        let named = options.key.clone().or_else(|| std::env::var_os("CLAUDEFS_KEY").map(PathBuf::from));
        let file = named.unwrap_or_else(|| PathBuf::from(DEFAULT_KEY));
        let key = transport::Key::load(&file)
            .map_err(|e| Failure::usage(format!("{e}; name the key file with -o key=FILE")))?;
        let mountpoint = std::path::absolute(&arguments.mountpoint).map_err(Failure::usage)?;
        Ok(Self { source, mountpoint, options, key, verbose: arguments.verbose })
    }
}

fn resolve(source: &Source) -> Result<SocketAddr, Failure> {
    let port = source.port.unwrap_or(DEFAULT_PORT);
    let unknown = |why: &dyn fmt::Display| {
        Failure::mount(format!(
            "host {} has no address: {why}; check the name or give its address",
            source.host
        ))
    };
    let mut found = (source.host.as_str(), port).to_socket_addrs().map_err(|e| unknown(&e))?;
    found.next().ok_or_else(|| unknown(&"the name exists without one"))
}

/// Runs the command.
#[must_use]
pub fn main(arguments: &Arguments) -> ExitCode {
    let plan = match Plan::of(arguments) {
        Ok(plan) => plan,
        Err(failure) => return failure.report(),
    };
    if arguments.fake {
        return ExitCode::SUCCESS;
    }
    if background::is_server() {
        return serve::main(plan, Some(background::Ready::new()));
    }
    if plan.options.foreground {
        return serve::main(plan, None);
    }
    match background::start() {
        Ok(code) => code,
        Err(e) => Failure::system(format!("can't start the process that serves the mount: {e}")).report(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn what_mount_passes_is_understood() {
        Arguments::command().debug_assert();
        let words = ["mount.claudefs", "h:/", "/mnt", "-s", "-n", "-v", "-o", "rw,_netdev", "-o", "key=/k"];
        let arguments = Arguments::parse_from(words);
        assert_eq!(arguments.options, ["rw,_netdev", "key=/k"]);
        assert!(arguments.sloppy && arguments.verbose && !arguments.fake);
    }

    #[test]
    fn mistakes_are_told_before_anything_is_done() {
        let dir = tempfile::tempdir().expect("a folder");
        let key = dir.path().join("key");
        let refused = |words: &[&str]| {
            let arguments = Arguments::parse_from(["mount.claudefs"].iter().chain(words));
            Plan::of(&arguments).err().map(|e| e.text).unwrap_or_default()
        };
        let with_key = format!("key={}", key.display());
        assert!(refused(&["nowhere", "/mnt", "-o", &with_key]).contains("HOST"));
        assert!(refused(&["h:/", "/mnt", "-o", &with_key]).contains("key generate"), "a missing key");
        transport::Key::generate().expect("random").save(&key).expect("saved");
        assert_eq!(refused(&["h:/", "/mnt", "-o", &with_key]), "");
        assert!(refused(&["h:/", "/mnt", "-o", "no_such"]).contains("no_such"));
        assert_eq!(refused(&["h:/", "/mnt", "-s", "-o", "no_such", "-o", &with_key]), "");
    }
}
