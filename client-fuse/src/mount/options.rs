//! `-o` options, parsed strictly: what is unknown is refused with the list of what is known.

use rustix::mount::MountFlags;
use std::path::PathBuf;

/// An option that was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// No such option.
    #[error("unknown mount option `{0}`; known are: {known}", known = known())]
    Unknown(String),
    /// It needs a value, or a better one.
    #[error("mount option `{0}` needs {1}")]
    Value(String, &'static str),
    /// It takes none.
    #[error("mount option `{0}` takes no value")]
    NoValue(String),
}

/// What a mount is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Flags of mount(2).
    pub flags: MountFlags,
    /// Access times are not recorded, here nor at the server.
    pub noatime: bool,
    /// Key file of this client.
    pub key: Option<PathBuf>,
    /// Where the log goes once in the background.
    pub log: Option<PathBuf>,
    /// Stay in the foreground.
    pub foreground: bool,
    /// Read-ahead of the mount in KiB.
    pub read_ahead_kib: u32,
}

/// Read-ahead by default: one largest READ. It starts at 128 KiB in the kernel, which costs a third of the cold read rate.
pub const READ_AHEAD_KIB: u32 = 1024;
/// Most that `read_ahead=` takes.
pub const READ_AHEAD_MAX_KIB: u32 = 65_536;

impl Default for Options {
    fn default() -> Self {
        Self {
            flags: MountFlags::empty(),
            noatime: false,
            key: None,
            log: None,
            foreground: false,
            read_ahead_kib: READ_AHEAD_KIB,
        }
    }
}

/// Flag options: name, flags set, flags cleared.
const FLAGS: &[(&str, MountFlags, MountFlags)] = &[
    ("ro", MountFlags::RDONLY, NONE),
    ("rw", NONE, MountFlags::RDONLY),
    ("nosuid", MountFlags::NOSUID, NONE),
    ("suid", NONE, MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV, NONE),
    ("dev", NONE, MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC, NONE),
    ("exec", NONE, MountFlags::NOEXEC),
    ("sync", MountFlags::SYNCHRONOUS, NONE),
    ("async", NONE, MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC, NONE),
    ("noatime", MountFlags::NOATIME, NONE),
    ("atime", NONE, MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME, NONE),
    ("diratime", NONE, MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME, NONE),
    ("norelatime", NONE, MountFlags::RELATIME),
];
const NONE: MountFlags = MountFlags::empty();

/// Accepted and without effect: meant for mount(8) or systemd, or always on here.
const IGNORED: &[&str] = &[
    "defaults",
    "_netdev",
    "nofail",
    "auto",
    "noauto",
    "user",
    "users",
    "nouser",
    "owner",
    "group",
    "allow_other",
    "default_permissions",
];
/// Options with a value or of our own.
const OURS: &[&str] = &["key=FILE", "log=FILE", "foreground", "read_ahead=KIB"];

fn known() -> String {
    let flags = FLAGS.iter().map(|f| f.0);
    let all: Vec<&str> = flags.chain(IGNORED.iter().copied()).chain(OURS.iter().copied()).collect();
    all.join(", ")
}

/// Passed over as mount(8) does: comments and what other programs read.
fn is_foreign(name: &str) -> bool {
    name.starts_with("x-") || name.starts_with("X-") || name == "comment"
}

impl Options {
    /// Parses a list such as `ro,noatime,key=/etc/claudefs/client.key` on top of what is set already.
    ///
    /// # Errors
    /// Unknown options, missing and superfluous values.
    pub fn parse(&mut self, list: &str) -> Result<(), OptionsError> {
        list.split(',').filter(|o| !o.is_empty()).try_for_each(|option| self.parse_one(option))
    }

    /// As [`Options::parse`], but passes over what is unknown (mount's `-s`) and returns it.
    ///
    /// # Errors
    /// Missing and superfluous values.
    pub fn parse_sloppy(&mut self, list: &str) -> Result<Vec<String>, OptionsError> {
        let mut unknown = Vec::new();
        for option in list.split(',').filter(|o| !o.is_empty()) {
            match self.parse_one(option) {
                Err(OptionsError::Unknown(name)) => unknown.push(name),
                other => other?,
            }
        }
        Ok(unknown)
    }

    fn parse_one(&mut self, option: &str) -> Result<(), OptionsError> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        if is_foreign(name) {
            return Ok(());
        }
        if let Some((_, set, clear)) = FLAGS.iter().find(|f| f.0 == name) {
            no_value(name, value)?;
            self.flags = self.flags.difference(*clear).union(*set);
            self.noatime = self.flags.contains(MountFlags::NOATIME);
            return Ok(());
        }
        if IGNORED.contains(&name) {
            return no_value(name, value);
        }
        match name {
            "foreground" => {
                no_value(name, value)?;
                self.foreground = true;
            }
            "key" => self.key = Some(file(name, value)?),
            "log" => self.log = Some(file(name, value)?),
            "read_ahead" => self.read_ahead_kib = kib(name, value)?,
            _ => return Err(OptionsError::Unknown(name.to_owned())),
        }
        Ok(())
    }

    /// The flag options that fusermount3 is to be given.
    #[must_use]
    pub fn flag_names(&self) -> Vec<&'static str> {
        let positive = FLAGS.iter().filter(|(_, set, _)| !set.is_empty() && self.flags.contains(*set));
        positive.map(|f| f.0).collect()
    }
}

fn no_value(name: &str, value: Option<&str>) -> Result<(), OptionsError> {
    if value.is_some() { Err(OptionsError::NoValue(name.to_owned())) } else { Ok(()) }
}

fn file(name: &str, value: Option<&str>) -> Result<PathBuf, OptionsError> {
    match value {
        Some(path) if !path.is_empty() => Ok(PathBuf::from(path)),
        _ => Err(OptionsError::Value(name.to_owned(), "a file: write it as name=FILE")),
    }
}

fn kib(name: &str, value: Option<&str>) -> Result<u32, OptionsError> {
    let number = value.and_then(|v| v.parse().ok()).filter(|&n| n <= READ_AHEAD_MAX_KIB);
    number.ok_or_else(|| OptionsError::Value(name.to_owned(), "a number of KiB from 0 to 65536"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Result<Options, OptionsError> {
        let mut options = Options::default();
        options.parse(list).map(|()| options)
    }

    #[test]
    fn what_fstab_says_is_understood() {
        let o = parse("ro,noatime,nodev,nosuid,noexec,_netdev,x-systemd.automount,comment=mine")
            .expect("known options");
        let want = MountFlags::RDONLY
            | MountFlags::NOATIME
            | MountFlags::NODEV
            | MountFlags::NOSUID
            | MountFlags::NOEXEC;
        assert_eq!((o.flags, o.noatime), (want, true));
        assert_eq!(o.flag_names(), ["ro", "nosuid", "nodev", "noexec", "noatime"]);
    }

    #[test]
    fn later_options_win() {
        assert_eq!(parse("ro,rw,noatime,atime,sync,async").expect("known").flags, MountFlags::empty());
    }

    #[test]
    fn our_own_have_values() {
        let o = parse("key=/k,log=/l,foreground,read_ahead=4096").expect("known");
        assert_eq!((o.key, o.log), (Some("/k".into()), Some("/l".into())));
        assert_eq!((o.foreground, o.read_ahead_kib), (true, 4096));
    }

    #[test]
    fn what_is_wrong_is_refused_by_name() {
        let unknown = parse("ro,noatmie").expect_err("a typo");
        assert_eq!(unknown, OptionsError::Unknown("noatmie".into()));
        assert!(
            unknown.to_string().contains("noatime") && unknown.to_string().contains("key=FILE"),
            "{unknown}"
        );
        assert!(matches!(parse("ro=1"), Err(OptionsError::NoValue(_))));
        assert!(matches!(parse("key"), Err(OptionsError::Value(..))));
        assert!(matches!(parse("read_ahead=99999999"), Err(OptionsError::Value(..))));
        let mut sloppy = Options::default();
        assert_eq!(sloppy.parse_sloppy("ro,strange,odd=1"), Ok(vec!["strange".into(), "odd".into()]));
    }
}
