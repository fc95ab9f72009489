//! Attributes and permissions, tried as another user.

use super::{program, shell};
use anyhow::{Result, ensure};
use rustix::fs::{Gid, XattrFlags};
use rustix::io::Errno;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

/// A user that owns nothing.
const SOMEBODY: &str = "12345";

/// The shell's `!` hides a failure from `-e`, so what must be refused is run by `not`.
const NOT: &str = "not() { if sh -c \"$1\" 2>/dev/null; then echo \"not refused: $1\" >&2; exit 1; fi; }";

fn as_somebody(dir: &Path, script: &str) -> Result<String> {
    let script = format!("{NOT}\n{script}");
    program(
        dir,
        "setpriv",
        &["--reuid", SOMEBODY, "--regid", SOMEBODY, "--clear-groups", "sh", "-euc", &script],
    )
}

/// Every folder on the way must let others through; those above the mount are the rig's.
fn open_up(dir: &Path) -> Result<()> {
    for folder in dir.ancestors().take_while(|d| d.parent().is_some() && *d != Path::new("/tmp")) {
        let mode = fs::metadata(folder)?.permissions().mode();
        if mode & 0o001 == 0 {
            fs::set_permissions(folder, fs::Permissions::from_mode(mode | 0o055))?;
        }
    }
    Ok(())
}

pub(super) fn xattrs(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    fs::write(&path, "")?;
    let set = |name, value: &[u8], flags| rustix::fs::setxattr(&path, name, value, flags);
    set("user.a", b"1", XattrFlags::empty())?;
    set("user.long", &[b'v'; 3000], XattrFlags::CREATE)?;
    ensure!(set("user.a", b"2", XattrFlags::CREATE) == Err(Errno::EXIST), "CREATE replaces nothing");
    ensure!(set("user.none", b"2", XattrFlags::REPLACE) == Err(Errno::NODATA), "REPLACE creates nothing");
    let mut small = [0_u8; 10];
    ensure!(
        rustix::fs::getxattr(&path, "user.long", &mut small[..]) == Err(Errno::RANGE),
        "too small a buffer"
    );
    let text = program(dir, "getfattr", &["-d", "file"])?;
    ensure!(text.contains("user.a=\"1\""), "getfattr shows it: {text}");
    fs::rename(&path, dir.join("moved"))?;
    ensure!(rustix::fs::getxattr(dir.join("moved"), "user.a", &mut small[..])? == 1, "it moves along");
    rustix::fs::removexattr(dir.join("moved"), "user.a")?;
    ensure!(
        rustix::fs::getxattr(dir.join("moved"), "user.a", &mut small[..]) == Err(Errno::NODATA),
        "it is gone"
    );
    let both = XattrFlags::CREATE | XattrFlags::REPLACE;
    let set = |name| rustix::fs::setxattr(dir.join("moved"), name, b"3", both);
    ensure!(set("user.long") == Err(Errno::EXIST), "CREATE and REPLACE of what is there");
    ensure!(set("user.none") == Err(Errno::NODATA), "CREATE and REPLACE of what is not there");
    open_up(dir)?;
    fs::set_permissions(dir.join("moved"), fs::Permissions::from_mode(0o666))?;
    program(dir, "setfattr", &["-n", "trusted.secret", "-v", "x", "moved"])?;
    let list = "getfattr -m - moved";
    ensure!(shell(dir, list)?.contains("trusted.secret"), "root sees trusted names");
    let theirs = as_somebody(dir, list)?;
    ensure!(theirs.contains("user.long") && !theirs.contains("trusted"), "others do not: {theirs}");
    Ok(())
}

/// Whoever changes a file's contents without being root takes its set-id bits away, and so does chown(2), even to nobody new.
pub(super) fn set_id_bits_go(dir: &Path) -> Result<()> {
    open_up(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777))?;
    fs::write(dir.join("source"), "source")?;
    let path = dir.join("file");
    let mode = || -> Result<u32> { Ok(fs::metadata(&path)?.mode() & 0o7777) };
    let changes = [
        ("write", "echo x >>file"),
        ("truncate", "truncate -s 1 file"),
        ("fallocate", "fallocate -l 9000 file"),
        ("punch", "fallocate -p -o 0 -l 2 file"),
        (
            "copy",
            "python3 -c 'import os; os.copy_file_range(os.open(\"source\", os.O_RDONLY), os.open(\"file\", os.O_WRONLY), 3, 0, 0)'",
        ),
    ];
    for (what, script) in changes {
        fs::write(&path, "0123")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777))?;
        shell(dir, script)?;
        ensure!(mode()? == 0o6777, "{what} by root leaves {:o}", mode()?);
        as_somebody(dir, script)?;
        ensure!(mode()? == 0o777, "{what} leaves {:o}", mode()?);
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777))?;
    rustix::fs::chown(&path, None, None)?;
    ensure!(mode()? == 0o777, "chown to nobody new leaves {:o}", mode()?);
    Ok(())
}

pub(super) fn permissions(dir: &Path) -> Result<()> {
    open_up(dir)?;
    fs::write(dir.join("secret"), "x")?;
    fs::set_permissions(dir.join("secret"), fs::Permissions::from_mode(0o640))?;
    fs::write(dir.join("public"), "x")?;
    fs::set_permissions(dir.join("public"), fs::Permissions::from_mode(0o644))?;
    as_somebody(dir, "cat public >/dev/null; not 'cat secret'; not 'touch new'; not 'echo >>public'")?;
    fs::create_dir(dir.join("sticky"))?;
    fs::set_permissions(dir.join("sticky"), fs::Permissions::from_mode(0o1777))?;
    fs::write(dir.join("sticky/ours"), "x")?;
    as_somebody(dir, "touch sticky/mine; not 'rm -f sticky/ours'; rm sticky/mine")?;
    // chown by root takes set-user-ID away.
    fs::set_permissions(dir.join("public"), fs::Permissions::from_mode(0o4755))?;
    std::os::unix::fs::chown(dir.join("public"), Some(1), Some(1))?;
    ensure!(fs::metadata(dir.join("public"))?.mode() & 0o7777 == 0o755, "set-user-ID is gone after chown");
    Ok(())
}

pub(super) fn acls(dir: &Path) -> Result<()> {
    open_up(dir)?;
    fs::write(dir.join("file"), "x")?;
    fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o600))?;
    as_somebody(dir, "not 'cat file'")?;
    program(dir, "setfacl", &["-m", &format!("u:{SOMEBODY}:r"), "file"])?;
    as_somebody(dir, "cat file >/dev/null; not 'echo >>file'")?;
    ensure!(fs::metadata(dir.join("file"))?.mode() & 0o070 == 0o040, "the group bits show the mask");
    fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o600))?;
    as_somebody(dir, "not 'cat file'")?;
    fs::create_dir(dir.join("folder"))?;
    program(dir, "setfacl", &["-d", "-m", &format!("u:{SOMEBODY}:rwx"), "folder"])?;
    program(dir, "setfacl", &["-m", &format!("u:{SOMEBODY}:rwx"), "folder"])?;
    fs::write(dir.join("folder/inside"), "x")?;
    let text = program(dir, "getfacl", &["-cn", "folder/inside"])?;
    ensure!(text.contains(&format!("user:{SOMEBODY}:rwx")), "a default ACL is inherited: {text}");
    as_somebody(dir, "echo more >>folder/inside")?;
    Ok(())
}

pub(super) fn setgid(dir: &Path) -> Result<()> {
    fs::create_dir(dir.join("shared"))?;
    rustix::fs::chown(dir.join("shared"), None, Some(Gid::from_raw(54321)))?;
    fs::set_permissions(dir.join("shared"), fs::Permissions::from_mode(0o2775))?;
    shell(dir, "umask 022; touch shared/file; mkdir shared/folder")?;
    let (file, folder) = (fs::metadata(dir.join("shared/file"))?, fs::metadata(dir.join("shared/folder"))?);
    ensure!(file.gid() == 54321 && folder.gid() == 54321, "the group is inherited");
    ensure!(folder.mode() & 0o2000 != 0 && file.mode() & 0o2000 == 0, "folders hand the bit on");
    Ok(())
}
