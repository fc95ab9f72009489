//! Real work with the programs that people use.

use super::{program, shell};
use crate::rng;
use anyhow::{Result, ensure};
use std::fs;
use std::path::Path;

/// Folders of text as a source tree has them.
fn tree(dir: &Path, files: usize) -> Result<()> {
    let mut rng = rng::Rng::new(5);
    for n in 0..files {
        let folder = dir.join(format!("part{}/sub{}", n % 7, n % 3));
        fs::create_dir_all(&folder)?;
        fs::write(
            folder.join(format!("file{n}")),
            rng::bytes(rng.draw(), usize::try_from(rng.below(30_000))?),
        )?;
    }
    Ok(())
}

pub(super) fn git(dir: &Path) -> Result<()> {
    tree(&dir.join("work"), 300)?;
    shell(
        &dir.join("work"),
        "git init -q .
         git config user.email t@example.org
         git config user.name t
         git config gc.auto 0
         git add .
         git commit -qm one
         echo more >> part0/sub0/file0
         git commit -qam two
         git gc -q
         git fsck --full --strict
         git checkout -q HEAD~1
         test -z \"$(git status --porcelain)\"",
    )?;
    shell(
        dir,
        "git clone -q work copy
         git -C copy fsck --full
         test \"$(git -C copy log --oneline --all | wc -l)\" = 2",
    )?;
    Ok(())
}

/// Two writers in both journal modes; every row of both arrives.
pub(super) fn sqlite(dir: &Path) -> Result<()> {
    for mode in ["delete", "wal"] {
        let script = format!(
            "sqlite3 {mode}.db 'pragma journal_mode={mode}; create table t(who, n);' >/dev/null
             write() {{ for n in $(seq 40); do echo \"pragma busy_timeout=60000; begin immediate; insert into t values($1,$n); commit;\"; done | sqlite3 {mode}.db >/dev/null; }}
             write 1 & first=$!
             write 2 & second=$!
             wait $first; wait $second
             test \"$(sqlite3 {mode}.db 'select count(*) from t')\" = 80
             test \"$(sqlite3 {mode}.db 'pragma integrity_check')\" = ok"
        );
        shell(dir, &script)?;
    }
    Ok(())
}

pub(super) fn tar_and_rsync(dir: &Path) -> Result<()> {
    tree(&dir.join("from"), 400)?;
    shell(
        dir,
        "tar -cf all.tar -C from .
         mkdir to
         tar -xpf all.tar -C to
         diff -r from to
         rsync -a --checksum from/ copy/
         test -z \"$(rsync -a --checksum --itemize-changes --dry-run from/ copy/)\"
         echo changed >> from/part1/sub1/file1
         rsync -a --checksum from/ copy/
         diff -r from copy",
    )?;
    Ok(())
}

/// A program of a few files, compiled, linked and run where it stands.
pub(super) fn build(dir: &Path) -> Result<()> {
    let mut main = String::from("#include <stdio.h>\n");
    let mut sum = String::from("0");
    for n in 0..40 {
        fs::write(dir.join(format!("f{n}.c")), format!("int f{n}(int x) {{ return x * {n} + 1; }}\n"))?;
        main += &format!("int f{n}(int);\n");
        sum += &format!(" + f{n}(2)");
    }
    main += &format!("int main(void) {{ printf(\"%d\\n\", {sum}); return 0; }}\n");
    fs::write(dir.join("main.c"), main)?;
    let printed = shell(dir, "cc -c *.c; ar rcs libf.a f*.o; cc main.o libf.a -o program; ./program")?;
    let expected: u32 = (0..40).map(|n| 2 * n + 1).sum();
    ensure!(printed.trim() == expected.to_string(), "the program prints {printed}");
    Ok(())
}

/// A sparse image with a file system in it, checked, and mounted through a loop device where root may.
pub(super) fn image(dir: &Path) -> Result<()> {
    program(dir, "truncate", &["-s", "10G", "image"])?;
    program(dir, "mkfs.ext4", &["-q", "-F", "image"])?;
    program(dir, "e2fsck", &["-fn", "image"])?;
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
        println!("        (not mounted: no loop devices here)");
        return Ok(());
    }
    shell(
        dir,
        "mkdir point; mount -o loop image point
         trap 'umount point 2>/dev/null || true' EXIT
         mkdir point/sub; seq 100000 > point/sub/numbers; cp point/sub/numbers point/copy; sync -f point
         umount point; e2fsck -fn image; mount -o loop image point
         test \"$(tail -n 1 point/copy)\" = 100000; cmp point/copy point/sub/numbers; umount point",
    )?;
    Ok(())
}
