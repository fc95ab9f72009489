//! What is held open, or stood in, while its name goes.

use super::{program, shell};
use anyhow::{Result, ensure};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Directories and pipes answer fstat(2) as long as somebody holds them; a removed directory is empty and stays so.
pub(super) fn removed_but_held(dir: &Path) -> Result<()> {
    fs::create_dir(dir.join("gone"))?;
    let folder = File::open(dir.join("gone"))?;
    fs::remove_dir(dir.join("gone"))?;
    let meta = folder.metadata()?;
    ensure!(meta.is_dir() && meta.nlink() == 0, "a removed directory has {} links", meta.nlink());
    let made = rustix::fs::mkdirat(&folder, "sub", Mode::RWXU);
    ensure!(made == Err(rustix::io::Errno::NOENT), "mkdir in a removed directory gave {made:?}");
    folder.sync_all()?;

    fs::create_dir(dir.join("over"))?;
    fs::create_dir(dir.join("new"))?;
    let folder = File::open(dir.join("over"))?;
    fs::rename(dir.join("new"), dir.join("over"))?;
    ensure!(folder.metadata()?.nlink() == 0, "a replaced directory has no links");
    ensure!(fs::metadata(dir.join("over"))?.ino() != folder.metadata()?.ino(), "another stands in its place");

    rustix::fs::mknodat(CWD, dir.join("pipe"), FileType::Fifo, Mode::RWXU, 0)?;
    let pipe =
        File::from(rustix::fs::open(dir.join("pipe"), OFlags::RDWR | OFlags::NONBLOCK, Mode::empty())?);
    fs::remove_file(dir.join("pipe"))?;
    ensure!(pipe.metadata()?.nlink() == 0, "a removed pipe has no links");
    shell(dir, "mkdir here; cd here; rmdir ../here; test -z \"$(ls)\"; cd ..; test -d over")?;
    Ok(())
}

/// `..` of a listing is the directory above, as getcwd(3) once relied on; kinds and numbers are those of stat(2).
pub(super) fn listings_tell_numbers(dir: &Path) -> Result<()> {
    const SCRIPT: &str = r#"
import os, ctypes, stat
libc = ctypes.CDLL(None)
class Entry(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_ulong), ("off", ctypes.c_long), ("len", ctypes.c_ushort), ("kind", ctypes.c_ubyte), ("name", ctypes.c_char * 256)]
libc.opendir.restype = ctypes.c_void_p
libc.readdir.restype = ctypes.POINTER(Entry)
os.makedirs("a/b")
open("a/b/file", "w").close()
os.symlink("x", "a/b/link")
os.mkfifo("a/b/pipe")
d = ctypes.c_void_p(libc.opendir(b"a/b"))
seen = {}
while True:
    e = libc.readdir(d)
    if not e: break
    seen[e.contents.name] = (e.contents.ino, e.contents.kind)
assert len(seen) == 5, seen
for name, (ino, kind) in seen.items():
    s = os.lstat(b"a/b/" + name)
    assert (s.st_ino, stat.S_IFMT(s.st_mode) >> 12) == (ino, kind), (name, ino, kind, s)
"#;
    program(dir, "python3", &["-c", SCRIPT])?;
    Ok(())
}
