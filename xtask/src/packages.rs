//! Debian packages that the demo and the tests need: one list, installed only when something is missing.

use crate::command::{find_program, note, run_bounded, step};
use anyhow::{Result, bail};
use std::process::Command;
use std::time::Duration;

/// One package and the program whose presence shows that it is there.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    /// Name in Debian.
    pub deb: &'static str,
    /// A program that it brings.
    pub program: &'static str,
    /// What it is needed for.
    pub why: &'static str,
}

/// What `cargo xtask up` needs.
pub const DEMO: &[Package] = &[
    Package { deb: "build-essential", program: "cc", why: "the linker" },
    Package { deb: "fuse3", program: "fusermount3", why: "mounting for users who are not root" },
];

/// What `cargo xtask test` needs beyond that.
pub const TESTS: &[Package] = &[
    Package { deb: "acl", program: "setfacl", why: "tests of POSIX ACLs" },
    Package { deb: "attr", program: "setfattr", why: "tests of extended attributes" },
    Package { deb: "e2fsprogs", program: "mkfs.ext4", why: "a file system within a sparse image" },
    Package { deb: "git", program: "git", why: "a repository on the mount" },
    Package {
        deb: "python3-minimal",
        program: "python3",
        why: "shared memory maps, which safe Rust does not offer",
    },
    Package { deb: "rsync", program: "rsync", why: "copies compared by checksum" },
    Package { deb: "sqlite3", program: "sqlite3", why: "a database with two writers" },
    Package { deb: "util-linux", program: "flock", why: "locks, mount and loop devices" },
];

/// Installation is given up after this long: a mirror that does not answer should not look like a hang.
const APT_LIMIT: Duration = Duration::from_secs(600);

/// Those of `wanted` that this machine lacks.
#[must_use]
pub fn missing<'a>(wanted: &[&'a [Package]]) -> Vec<&'a Package> {
    wanted.iter().flat_map(|list| list.iter()).filter(|p| find_program(p.program).is_none()).collect()
}

/// Makes sure that all of `wanted` is installed.
///
/// # Errors
/// Something is missing and can't be installed from here; the message holds the command that does it.
pub fn ensure(wanted: &[&[Package]]) -> Result<()> {
    let missing = missing(wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|p| p.deb).collect();
    step(format!("Installing Debian packages: {}", names.join(" ")));
    for p in &missing {
        note(format!("{} for {}", p.deb, p.why));
    }
    let command = format!("apt-get install --yes --no-install-recommends {}", names.join(" "));
    if find_program("apt-get").is_none() {
        bail!("this machine has no apt-get: install what brings these programs, then run this again: {}", {
            missing.iter().map(|p| p.program).collect::<Vec<_>>().join(" ")
        });
    }
    if !rustix::process::geteuid().is_root() {
        bail!("this needs root. Run\n    sudo {command}\nand then this command again");
    }
    let apt = |args: &[&str]| {
        let mut c = Command::new("apt-get");
        c.env("DEBIAN_FRONTEND", "noninteractive").args(args);
        c
    };
    let install: Vec<&str> = command.split(' ').skip(1).collect();
    if run_bounded(apt(&install).args(["-o", "Dpkg::Use-Pty=0"]), APT_LIMIT).is_err() {
        note("trying again with fresh package lists");
        run_bounded(&mut apt(&["update"]), APT_LIMIT)?;
        run_bounded(apt(&install).args(["-o", "Dpkg::Use-Pty=0"]), APT_LIMIT)?;
    }
    Ok(())
}
