//! The mount table, proc(5) `/proc/self/mountinfo`. Reading it never touches a file system, so a hanging server can't hang us.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `major:minor` of the device.
    pub device: (u32, u32),
    /// Where.
    pub mountpoint: PathBuf,
    /// File system type with its subtype.
    pub kind: String,
    /// What is mounted.
    pub source: String,
}

/// The topmost mount at exactly this path, which must be absolute and free of links.
///
/// # Errors
/// Where the table can't be read.
pub fn find(mountpoint: &Path) -> io::Result<Option<Entry>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    // Later mounts stand later and lie on top.
    Ok(parse(&text).filter(|e| e.mountpoint == mountpoint).last())
}

/// All mounts.
///
/// # Errors
/// Where the table can't be read.
pub fn all() -> io::Result<Vec<Entry>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(parse(&text).collect())
}

/// All ClaudeFS mounts.
///
/// # Errors
/// Where the table can't be read.
pub fn ours() -> io::Result<Vec<Entry>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(parse(&text).filter(|e| e.kind == super::FSTYPE).collect())
}

fn parse(text: &[u8]) -> impl Iterator<Item = Entry> + '_ {
    text.split(|&b| b == b'\n').filter_map(parse_line)
}

/// `ID PARENT MAJ:MIN ROOT MOUNTPOINT OPTIONS [TAGS] - TYPE SOURCE SUPER_OPTIONS`
fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|&b| b == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let mountpoint = fields.nth(1)?;
    let mut rest = fields.skip_while(|f| *f != b"-").skip(1);
    let kind = String::from_utf8_lossy(rest.next()?).into_owned();
    let source = unescape(rest.next()?);
    let mountpoint = PathBuf::from(std::ffi::OsString::from_vec(unescape(mountpoint)));
    Some(Entry {
        device,
        mountpoint,
        kind,
        source: OsStr::from_bytes(&source).to_string_lossy().into_owned(),
    })
}

/// Blanks, tabs, newlines and backslashes stand as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        if *first == b'\\'
            && let [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] = tail
        {
            out.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
            rest = after;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let text = b"36 35 0:45 / /mnt/a\\040b rw,noatime shared:1 master:2 - fuse.claudefs h:/x\\134y rw,user_id=0\n\
            40 1 8:1 / / rw - ext4 /dev/sda1 rw\nrubbish\n";
        let all: Vec<Entry> = parse(text).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(
            all[0],
            Entry {
                device: (0, 45),
                mountpoint: "/mnt/a b".into(),
                kind: "fuse.claudefs".into(),
                source: "h:/x\\y".into()
            }
        );
        assert_eq!(all[1].kind, "ext4");
    }

    #[test]
    fn this_machine_has_proc() {
        let entry = find(Path::new("/proc")).expect("a table").expect("proc is mounted");
        assert_eq!(entry.kind, "proc");
    }
}
