//! The daemon's configuration: one TOML file, every key typed, every default here and nowhere else.
//!
//! Owns parsing, range checks and their messages. Must not open a device, a socket or a key file: a configuration is
//! judged before anything is touched (`claudefsd --check`).

use crate::units::{ByteSize, Millis};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Where the daemon looks when `--config` is not given.
pub const DEFAULT_PATH: &str = "/etc/claudefs/claudefsd.toml";
/// TCP port of the core RPC.
pub const DEFAULT_PORT: u16 = 7420;

/// Why a configuration can't be used: correct the file, then start again.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error(
        "can't read the configuration {path}: {source}; give another with --config FILE, or see --print-config for a start"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong type; the text names line and column.
    #[error("{path}: {text}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser says, with the line quoted.
        text: String,
    },
    /// A value outside its range.
    #[error("{path}: key `{key}`: {why}")]
    Value {
        /// The file.
        path: PathBuf,
        /// Dotted key.
        key: &'static str,
        /// What is wrong and what is allowed.
        why: String,
    },
}

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Addresses to serve on.
    pub listen: Vec<SocketAddr>,
    /// Devices of the store, by path; each was made with `claudefs format`.
    pub devices: Vec<PathBuf>,
    /// File with the cluster key, made with `claudefs key generate`; readable by its owner alone.
    pub key_file: PathBuf,
    /// Threads and how they wait.
    pub cores: Cores,
    /// Memory budget.
    pub memory: Memory,
    /// Leases, sessions and the window after a restart.
    pub lease: Lease,
    /// Bounds on what clients may hold.
    pub limits: Limits,
    /// How old unflushed data may become.
    pub durability: Durability,
    /// Devices' settings.
    pub device: Device,
    /// What is logged and how.
    pub log: Log,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT))],
            devices: Vec::new(),
            key_file: PathBuf::from("/etc/claudefs/cluster.key"),
            cores: Cores::default(),
            memory: Memory::default(),
            lease: Lease::default(),
            limits: Limits::default(),
            durability: Durability::default(),
            device: Device::default(),
            log: Log::default(),
        }
    }
}

/// Threads and how they wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cores {
    /// Data cores; 0 chooses: one on up to four processors, else all but two, at most the device's shard count.
    pub count: u16,
    /// Pin each thread to its processor.
    pub pin: bool,
    /// What an idle core does.
    pub wait: WaitMode,
    /// Microseconds that an adaptive core spins before it sleeps.
    pub spin_us: u32,
}

impl Default for Cores {
    fn default() -> Self {
        Self { count: 0, pin: true, wait: WaitMode::Adaptive, spin_us: 20 }
    }
}

/// What an idle core does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WaitMode {
    /// Spin a little, then sleep.
    Adaptive,
    /// Spin always; for cores that do nothing else.
    Busy,
    /// Sleep at once.
    Sleep,
}

/// Memory budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// I/O buffers of each core, on huge pages where there are any.
    pub arena: ByteSize,
    /// Pages to take for them.
    pub pages: Pages,
    /// Cached chunk maps of each device.
    pub leaf_cache: ByteSize,
    /// Cached inodes, names and xattrs.
    pub namespace_cache: ByteSize,
    /// Page cache of the namespace's checkpoint database.
    pub checkpoint_cache: ByteSize,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            arena: ByteSize::mib(256),
            pages: Pages::Best,
            leaf_cache: ByteSize::mib(64),
            namespace_cache: ByteSize::mib(128),
            checkpoint_cache: ByteSize::mib(64),
        }
    }
}

/// Pages under the I/O buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pages {
    /// The largest to be had.
    Best,
    /// 1 GiB.
    #[serde(rename = "1g")]
    Huge1G,
    /// 2 MiB.
    #[serde(rename = "2m")]
    Huge2M,
    /// Normal ones.
    Small,
}

/// Leases and sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lease {
    /// A client silent for so long, or one that does not answer a recall, is fenced.
    pub time_ms: Millis,
    /// After a restart, conflicting work waits at most so long for clients to come back.
    pub grace_ms: Millis,
}

impl Default for Lease {
    fn default() -> Self {
        Self { time_ms: Millis(10_000), grace_ms: Millis(10_000) }
    }
}

/// Bounds on what clients may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections at a time.
    pub connections: u32,
    /// Sessions (mounts) at a time.
    pub sessions: u32,
    /// Requests in flight on one connection.
    pub credits: u16,
    /// Slots of one session for requests that must run exactly once.
    pub slots: u16,
    /// Leases of one session; beyond it the oldest is recalled.
    pub leases_per_session: u32,
    /// Locks in all.
    pub locks: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            sessions: 1024,
            credits: 256,
            slots: 128,
            leases_per_session: 262_144,
            locks: 1_048_576,
        }
    }
}

/// How old unflushed data may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Durability {
    /// The device is flushed at least so often while there is something to flush. The promise is 5 s.
    pub flush_ms: Millis,
}

impl Default for Durability {
    fn default() -> Self {
        Self { flush_ms: Millis(1000) }
    }
}

/// Devices' settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Device {
    /// Whether freed space is trimmed.
    pub trim: Trim,
}

/// Whether freed space is trimmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trim {
    /// On block devices that support it, not on files (a hole costs a later write more than the space is worth).
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Lines for people or JSON for collectors.
    pub format: LogFormat,
    /// A level (`error` to `trace`), or directives such as `info,chunkstore=debug`.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".into() }
    }
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Parses and checks; `path` serves the messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|e| ConfigError::Parse {
            path: path.to_owned(),
            text: e.to_string().trim_end().to_owned(),
        })?;
        config.check().map_err(|(key, why)| ConfigError::Value { path: path.to_owned(), key, why })?;
        Ok(config)
    }

    /// The effective configuration as a file that [`Config::parse`] reads back.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).unwrap_or_else(|e| format!("# can't be printed: {e}\n"))
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        if self.listen.is_empty() {
            return Err((
                "listen",
                format!("names no address; the default is [\"127.0.0.1:{DEFAULT_PORT}\"]"),
            ));
        }
        if self.devices.is_empty() {
            return Err((
                "devices",
                "names no device; make one with `claudefs format DEVICE` and list it here".into(),
            ));
        }
        if self.devices.len() > 1 {
            let why =
                format!("names {} devices; this version serves one device per daemon", self.devices.len());
            return Err(("devices", why));
        }
        within("cores.count", self.cores.count, 0, 1024)?;
        within("cores.spin_us", self.cores.spin_us, 0, 10_000)?;
        self.memory.check()?;
        within("lease.time_ms", self.lease.time_ms, Millis(500), Millis(300_000))?;
        within("lease.grace_ms", self.lease.grace_ms, Millis(500), Millis(300_000))?;
        within("limits.connections", self.limits.connections, 1, 65_536)?;
        within("limits.sessions", self.limits.sessions, 1, 65_536)?;
        within("limits.credits", self.limits.credits, 8, 4096)?;
        within("limits.slots", self.limits.slots, 8, 4096)?;
        within("limits.leases_per_session", self.limits.leases_per_session, 1024, 16_777_216)?;
        within("limits.locks", self.limits.locks, 1024, 16_777_216)?;
        within("durability.flush_ms", self.durability.flush_ms, Millis(10), Millis(5000))
    }
}

impl Memory {
    fn check(&self) -> Result<(), (&'static str, String)> {
        // An arena must hold requests of every size class at once for the smallest number of credits.
        within("memory.arena", self.arena, ByteSize::mib(32), ByteSize::mib(64 << 10))?;
        within("memory.leaf_cache", self.leaf_cache, ByteSize::mib(4), ByteSize::mib(64 << 10))?;
        within("memory.namespace_cache", self.namespace_cache, ByteSize::mib(4), ByteSize::mib(64 << 10))?;
        within("memory.checkpoint_cache", self.checkpoint_cache, ByteSize::mib(4), ByteSize::mib(64 << 10))
    }
}

fn within<T: Copy + PartialOrd + std::fmt::Display>(
    key: &'static str,
    value: T,
    least: T,
    most: T,
) -> Result<(), (&'static str, String)> {
    if value < least || value > most {
        return Err((key, format!("is {value}; allowed is {least} to {most}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("test.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn a_printed_configuration_reads_back() {
        let config = Config { devices: vec!["/dev/x".into()], ..Config::default() };
        assert_eq!(parse(&config.to_toml()), Ok(config));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let error =
            parse("devices = [\"/dev/x\"]\n\n[memory]\narenas = \"1GiB\"\n").expect_err("it is unknown");
        assert!(error.contains("line 4") && error.contains("arenas"), "{error}");
        assert!(error.contains("arena"), "it lists the known ones: {error}");
    }

    #[test]
    fn a_value_out_of_range_names_key_and_range() {
        let error = parse("devices = [\"/dev/x\"]\n[durability]\nflush_ms = 60000\n").expect_err("too long");
        assert!(error.contains("durability.flush_ms") && error.contains("5000"), "{error}");
    }

    #[test]
    fn a_value_of_another_type_names_its_line() {
        let error = parse("devices = [\"/dev/x\"]\nlisten = 7\n").expect_err("not a list");
        assert!(error.contains("line 2"), "{error}");
        let error = parse("devices = [\"/dev/x\"]\nlisten = [\"nowhere\"]\n").expect_err("not an address");
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn no_device_says_how_to_make_one() {
        assert!(parse("").expect_err("none").contains("claudefs format"));
    }
}
