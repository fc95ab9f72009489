//! Names, kinds, times and directories.

use super::{fails, shell};
use anyhow::{Result, ensure};
use rustix::fs::{AtFlags, CWD, RenameFlags, StatxFlags, Timespec, Timestamps};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

pub(super) fn kinds_and_links(dir: &Path) -> Result<()> {
    fs::write(dir.join("file"), "x")?;
    fs::create_dir(dir.join("sub"))?;
    fs::create_dir(dir.join("sub/below"))?;
    ensure!(fs::metadata(dir.join("sub"))?.nlink() == 3, "a directory counts its subdirectories");
    symlink("file", dir.join("link"))?;
    ensure!(fs::read_to_string(dir.join("link"))? == "x", "a link leads to its target");
    fs::hard_link(dir.join("file"), dir.join("second"))?;
    let (a, b) = (fs::metadata(dir.join("file"))?, fs::metadata(dir.join("second"))?);
    ensure!(a.ino() == b.ino() && a.nlink() == 2, "two names of one inode");
    fs::remove_file(dir.join("file"))?;
    ensure!(fs::metadata(dir.join("second"))?.nlink() == 1, "one name is gone");
    fails("reading a dangling link", Errno::NOENT, fs::read(dir.join("link")))?;
    fails("mkdir over a file", Errno::EXIST, fs::create_dir(dir.join("second")))?;
    fails("rmdir of a full directory", Errno::NOTEMPTY, fs::remove_dir(dir.join("sub")))?;
    fails("a name of 256 bytes", Errno::NAMETOOLONG, fs::write(dir.join("n".repeat(256)), ""))?;
    Ok(())
}

pub(super) fn times(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    fs::write(&path, "x")?;
    let set = Timespec { tv_sec: 1_234_567_890, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: set, last_modification: set };
    rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty())?;
    let m = fs::metadata(&path)?;
    ensure!((m.mtime(), m.mtime_nsec()) == (set.tv_sec, set.tv_nsec), "times keep their nanoseconds");
    let before = (m.ctime(), m.ctime_nsec());
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let m = fs::metadata(&path)?;
    ensure!((m.ctime(), m.ctime_nsec()) >= before, "ctime does not go back");
    ensure!(m.mtime() == set.tv_sec, "chmod leaves mtime alone");
    let x = rustix::fs::statx(CWD, &path, AtFlags::empty(), StatxFlags::BTIME | StatxFlags::BASIC_STATS)?;
    ensure!(x.stx_mask & StatxFlags::BTIME.bits() != 0 && x.stx_btime.tv_sec > 0, "there is a birth time");
    fs::write(&path, "longer")?;
    ensure!(fs::metadata(&path)?.mtime() > set.tv_sec, "a write moves mtime");
    Ok(())
}

pub(super) fn rename(dir: &Path) -> Result<()> {
    let at = |name: &str| dir.join(name);
    fs::write(at("a"), "a")?;
    fs::write(at("b"), "b")?;
    let how = |from: &str, to: &str, flags| rustix::fs::renameat_with(CWD, at(from), CWD, at(to), flags);
    ensure!(how("a", "b", RenameFlags::NOREPLACE) == Err(Errno::EXIST), "NOREPLACE replaces nothing");
    how("a", "b", RenameFlags::EXCHANGE)?;
    ensure!(fs::read_to_string(at("a"))? == "b" && fs::read_to_string(at("b"))? == "a", "EXCHANGE exchanges");
    let mut old = fs::File::open(at("b"))?;
    fs::rename(at("a"), at("b"))?;
    let mut text = String::new();
    old.read_to_string(&mut text)?;
    ensure!(text == "a", "who has the replaced file open still reads it");
    fs::create_dir_all(at("d/e"))?;
    fails("a directory into itself", Errno::INVAL, fs::rename(at("d"), at("d/e/f")))?;
    fails("a file over a directory", Errno::ISDIR, fs::rename(at("b"), at("d")))?;
    fs::create_dir(at("empty"))?;
    fs::rename(at("d"), at("empty"))?;
    ensure!(fs::metadata(at("empty/e"))?.is_dir(), "a directory replaces an empty one");
    Ok(())
}

pub(super) fn many_entries(dir: &Path) -> Result<()> {
    const N: usize = 4000;
    for n in 0..N {
        fs::write(dir.join(format!("entry number {n:05}")), "")?;
    }
    let names: BTreeSet<_> =
        fs::read_dir(dir)?.map(|e| e.map(|e| e.file_name())).collect::<Result<_, _>>()?;
    ensure!(names.len() == N, "{} of {N} entries listed", names.len());
    // Removing while listing must skip nothing: each entry is seen once, whatever goes.
    let mut seen = 0;
    for entry in fs::read_dir(dir)? {
        fs::remove_file(entry?.path())?;
        seen += 1;
    }
    ensure!(seen == N, "{seen} of {N} entries seen while they were removed");
    ensure!(fs::read_dir(dir)?.next().is_none(), "the directory is empty");
    Ok(())
}

pub(super) fn unlinked_but_open(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    let mut file = fs::File::options().create_new(true).read(true).write(true).open(&path)?;
    file.write_all(b"still here")?;
    fs::remove_file(&path)?;
    ensure!(file.metadata()?.nlink() == 0, "no name is left");
    let mut text = [0; 10];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut text, 0)?;
    ensure!(&text == b"still here", "contents stay while it is open");
    fs::write(&path, "another")?;
    file.write_all(b", and growing")?;
    ensure!(file.metadata()?.len() == 23 && fs::metadata(&path)?.len() == 7, "two files");
    Ok(())
}

pub(super) fn odd_names(dir: &Path) -> Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    let names: [&[u8]; 5] = [b"\xff\xfe", "äöü 漢字".as_bytes(), b"new\nline", b"-rf", &[b'l'; 255]];
    for name in names {
        fs::write(dir.join(std::ffi::OsStr::from_bytes(name)), name)?;
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        ensure!(
            fs::read(entry.path())? == entry.file_name().as_bytes(),
            "{} is another's",
            entry.path().display()
        );
    }
    shell(dir, "test \"$(find . -type f -print0 | tr -cd '\\0' | wc -c)\" = 5")?;
    Ok(())
}
