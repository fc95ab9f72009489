//! Two directories that are one: the same directory through two mounts agrees as through one.

use super::{fails, special};
use anyhow::{Context as _, Result, bail, ensure};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A check of one directory, seen twice.
pub type Pair = fn(&Path, &Path) -> Result<()>;

/// Every check.
pub const PAIRS: &[(&str, Pair)] = &[
    ("append and sizes", append),
    ("truncate", truncate),
    ("rename and unlink", rename_and_unlink),
    ("moved directories", moved_directories),
    ("renames in opposite directions", opposite),
    ("overwriting", overwrite),
    ("shared maps", maps),
    ("locks", locks),
    ("directories", directories),
];

/// Runs all, each in a folder of its own that both see.
///
/// # Errors
/// The first that fails, by name.
pub fn run(a: &Path, b: &Path) -> Result<()> {
    for (n, (name, check)) in PAIRS.iter().enumerate() {
        let own = format!("pair-{n}-{}", std::process::id());
        fs::create_dir(a.join(&own))?;
        check(&a.join(&own), &b.join(&own)).with_context(|| (*name).to_owned())?;
        fs::remove_dir_all(b.join(&own))?;
        ensure!(!a.join(&own).exists(), "{name}: what one removes is gone for the other");
        println!("ok      {name}");
    }
    Ok(())
}

fn append(a: &Path, b: &Path) -> Result<()> {
    let open = |p: &Path| File::options().create(true).append(true).open(p.join("file"));
    let (mut first, mut second) = (open(a)?, open(b)?);
    let mut expected = String::new();
    for n in 0..300 {
        let line = format!("line {n} {}\n", "x".repeat(n));
        if n % 2 == 0 { &mut first } else { &mut second }.write_all(line.as_bytes())?;
        expected += &line;
        let other = if n % 2 == 0 { &second } else { &first };
        ensure!(other.metadata()?.len() == expected.len() as u64, "fstat through the other mount, line {n}");
        let by_name = fs::metadata(if n % 2 == 0 { b } else { a }.join("file"))?;
        ensure!(by_name.len() == expected.len() as u64, "stat through the other mount, line {n}");
    }
    for dir in [a, b] {
        ensure!(fs::read_to_string(dir.join("file"))? == expected, "both read every line in order");
    }
    Ok(())
}

fn truncate(a: &Path, b: &Path) -> Result<()> {
    fs::write(a.join("file"), vec![7; 3 << 20])?;
    let reader = File::open(b.join("file"))?;
    let mut byte = [0];
    reader.read_exact_at(&mut byte, 2 << 20)?;
    File::options().write(true).open(a.join("file"))?.set_len(1000)?;
    ensure!(reader.read_at(&mut byte, 2 << 20)? == 0, "what is cut off can't be read from a cache");
    File::options().write(true).open(b.join("file"))?.set_len(2 << 20)?;
    let data = fs::read(a.join("file"))?;
    ensure!(data.len() == 2 << 20 && data[..1000] == [7; 1000], "the kept part stays");
    ensure!(data[1000..].iter().all(|x| *x == 0), "cut off and grown reads as zeros");
    Ok(())
}

fn rename_and_unlink(a: &Path, b: &Path) -> Result<()> {
    for n in 0..100 {
        let (from, to) = if n % 2 == 0 { (a, b) } else { (b, a) };
        fs::write(from.join("one"), format!("{n}"))?;
        ensure!(fs::read_to_string(to.join("one"))? == format!("{n}"), "a new file is seen");
        fs::rename(to.join("one"), to.join("two"))?;
        fails("the old name", Errno::NOENT, fs::metadata(from.join("one")))?;
        let mut open = File::open(from.join("two"))?;
        fs::remove_file(to.join("two"))?;
        fails("the removed name", Errno::NOENT, fs::metadata(from.join("two")))?;
        let mut text = String::new();
        open.read_to_string(&mut text)?;
        ensure!(text == format!("{n}"), "what is open stays readable");
    }
    Ok(())
}

/// A rename that met a directory which the other mount had moved was ESTALE: the kernel knew the directory at its old place,
/// and could not follow it there while it held its own locks. In use at the old place or not, the answer is that of one mount.
fn moved_directories(a: &Path, b: &Path) -> Result<()> {
    for n in 0..20 {
        let name = |p: &Path, rest: &str| p.join(format!("{n}{rest}"));
        for dir in ["old", "old/dir", "new", "else"] {
            fs::create_dir(name(a, dir))?;
        }
        fs::write(name(a, "old/dir/file"), "kept")?;
        fs::write(name(a, "else/file"), "")?;
        let used = File::open(name(b, "old/dir/file"))?;
        let kept = (n % 2 == 0).then_some(used);
        fs::rename(name(a, "old/dir"), name(a, "new/dir"))?;
        fails("a file onto a directory", Errno::ISDIR, fs::rename(name(b, "else/file"), name(b, "new/dir")))?;
        fs::rename(name(b, "new/dir"), name(b, "else/dir"))?;
        ensure!(fs::read_to_string(name(a, "else/dir/file"))? == "kept", "it is there for the other");
        fs::rename(name(b, "else/file"), name(b, "else/dir/file"))?;
        ensure!(fs::read_to_string(name(b, "else/dir/file"))?.is_empty(), "the new file is there");
        if let Some(mut file) = kept {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            ensure!(text == "kept", "what was opened at the old place stays readable");
        }
    }
    Ok(())
}

/// Each side has a folder to itself, which its kernel caches; then both move things into the other's at once. Each kernel could
/// forget its names only after its own rename, and each rename waited for the other's: nothing went on until one was fenced.
fn opposite(a: &Path, b: &Path) -> Result<()> {
    for n in 0..20 {
        let folders = [format!("{n}-a"), format!("{n}-b")];
        for folder in &folders {
            fs::create_dir(a.join(folder))?;
        }
        let start = Barrier::new(2);
        let side = |dir: &Path, here: &str, there: &str| -> Result<()> {
            let (here, there) = (dir.join(here), dir.join(there));
            let made = (0..3).try_for_each(|i| {
                fs::write(here.join(format!("file{i}")), "x")?;
                fs::create_dir(here.join(format!("folder{i}")))
            });
            start.wait();
            made?;
            for i in 0..3 {
                let other = there.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                fs::rename(here.join(format!("file{i}")), there.join(format!("file{i}-to-{other}")))?;
                fs::rename(here.join(format!("folder{i}")), there.join(format!("folder{i}-to-{other}")))?;
                fs::remove_dir(there.join(format!("folder{i}-to-{other}")))?;
            }
            Ok(())
        };
        let [first, second] = &folders;
        std::thread::scope(|s| {
            let one = s.spawn(|| side(a, first, second));
            side(b, second, first)?;
            one.join().unwrap_or_else(|_| bail!("a side panicked"))
        })?;
        for (dir, folder) in [(a, second), (b, first)] {
            let left = fs::read_dir(dir.join(folder))?.count();
            ensure!(left == 3, "{left} of 3 files arrived in {folder}");
        }
    }
    Ok(())
}

/// A page in one kernel's cache follows a write through the other mount, also through descriptors kept open.
fn overwrite(a: &Path, b: &Path) -> Result<()> {
    fs::write(a.join("file"), vec![0; 64 << 10])?;
    let open = |p: &Path| File::options().read(true).write(true).open(p.join("file"));
    let (first, second) = (open(a)?, open(b)?);
    for n in 0..300_u32 {
        let (writer, reader) = if n % 2 == 0 { (&first, &second) } else { (&second, &first) };
        let offset = u64::from(n * 211 % (60 << 10));
        writer.write_all_at(&n.to_le_bytes(), offset)?;
        let mut seen = [0; 4];
        reader.read_exact_at(&mut seen, offset)?;
        ensure!(seen == n.to_le_bytes(), "write {n} is seen through the other mount");
    }
    Ok(())
}

/// A map on one mount sees what is written through the other, and the other way round after msync.
fn maps(a: &Path, b: &Path) -> Result<()> {
    const SCRIPT: &str = r#"
import mmap, sys
f = open(sys.argv[1], "r+b")
m = mmap.mmap(f.fileno(), 0)
print("mapped", m[0:5], flush=True)
sys.stdin.readline()
print(m[0:5].decode(), flush=True)
m[4096:4101] = b"store"
m.flush()
print("stored", flush=True)
sys.stdin.readline()
"#;
    fs::write(a.join("file"), vec![b'0'; 16 << 10])?;
    let mut child = Command::new("python3")
        .args(["-c", SCRIPT])
        .arg(a.join("file"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let (mut ask, answers) = (child.stdin.take().context("stdin")?, child.stdout.take().context("stdout")?);
    let mut answers = BufReader::new(answers).lines();
    let mut next = || answers.next().context("the other process has died")?.context("its output");
    ensure!(next()?.starts_with("mapped"), "the file is mapped");
    File::options().write(true).open(b.join("file"))?.write_all_at(b"fresh", 0)?;
    ask.write_all(b"\n")?;
    ensure!(next()? == "fresh", "a write through the other mount is loaded from the map");
    ensure!(next()? == "stored", "the map is stored to");
    let mut seen = [0; 5];
    File::open(b.join("file"))?.read_exact_at(&mut seen, 4096)?;
    ask.write_all(b"\n")?;
    ensure!(
        crate::rig::wait(&mut child, Duration::from_secs(20))?.is_some_and(|s| s.success()),
        "it ends well"
    );
    ensure!(&seen == b"store", "a synced store is read through the other mount");
    Ok(())
}

fn locks(a: &Path, b: &Path) -> Result<()> {
    special::lock_two(&a.join("file"), &b.join("file"))
}

fn directories(a: &Path, b: &Path) -> Result<()> {
    for n in 0..50 {
        let (here, there) = if n % 2 == 0 { (a, b) } else { (b, a) };
        fs::create_dir(here.join(format!("d{n}")))?;
        let seen = fs::read_dir(there)?.count();
        ensure!(seen == n + 1, "{seen} of {} folders are listed through the other mount", n + 1);
        fails("a second mkdir", Errno::EXIST, fs::create_dir(there.join(format!("d{n}"))))?;
    }
    Ok(())
}

/// Both create, rename, stat and unlink in one directory for a while; neither may stand still for long.
///
/// # Errors
/// An operation fails, or one side makes no progress for `patience`.
pub fn contend(a: &Path, b: &Path, time: Duration, patience: Duration) -> Result<u64> {
    let stop = Arc::new(AtomicBool::new(false));
    let done = [Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0))];
    // Threads of their own: one that stands still in the kernel must not keep the report.
    let sides: Vec<JoinHandle<Result<()>>> = [a, b]
        .into_iter()
        .enumerate()
        .map(|(n, dir)| {
            let (dir, stop, done) = (dir.to_path_buf(), Arc::clone(&stop), Arc::clone(&done[n]));
            std::thread::spawn(move || one_side(&dir, n, &stop, &done))
        })
        .collect();
    let end = Instant::now() + time;
    let mut last = [(0, Instant::now()); 2];
    let mut stopping = false;
    while !sides.iter().all(JoinHandle::is_finished) {
        std::thread::sleep(Duration::from_millis(20));
        if Instant::now() > end || sides.iter().any(JoinHandle::is_finished) {
            stopping = true;
            stop.store(true, Ordering::Relaxed);
        }
        for (n, (count, since)) in last.iter_mut().enumerate() {
            let now = done[n].load(Ordering::Relaxed);
            if now != *count || sides[n].is_finished() {
                (*count, *since) = (now, Instant::now());
            } else if since.elapsed() > patience {
                let when = if stopping { "at the end" } else { "" };
                bail!("side {n} has stood still for {patience:?} {when} after {now} operations");
            }
        }
    }
    for side in sides {
        match side.join() {
            Ok(result) => result?,
            Err(_) => bail!("a side panicked"),
        }
    }
    Ok(done.iter().map(|d| d.load(Ordering::Relaxed)).sum())
}

fn one_side(dir: &Path, side: usize, stop: &AtomicBool, done: &AtomicU64) -> Result<()> {
    let mut n = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let (fresh, moved) =
            (dir.join(format!("new-{side}-{n}")), dir.join(format!("moved-{side}-{}", n % 20)));
        fs::write(&fresh, "x").with_context(|| format!("create {}", fresh.display()))?;
        fs::rename(&fresh, &moved).with_context(|| format!("rename to {}", moved.display()))?;
        fs::metadata(&moved).with_context(|| format!("stat {}", moved.display()))?;
        // The other side's names come and go: either answer is right.
        fs::metadata(dir.join(format!("moved-{}-{}", 1 - side, n % 20))).ok();
        if n % 5 == 4 {
            fs::remove_file(&moved).with_context(|| format!("unlink {}", moved.display()))?;
        }
        done.fetch_add(1, Ordering::Relaxed);
        n += 1;
    }
    Ok(())
}
