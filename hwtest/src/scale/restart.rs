//! From the start of a daemon with very many files and chunks to its first answer, after a kill and after a clean stop.
//!
//! Owns the load and the clock. Chunks are allocated with fallocate(2): they have all that a written chunk has in the index
//! and in its maps, but the device, a sparse file, takes no space for their data. Files are really written.

use super::{Usage, usage};
use crate::rig::{Rig, Setup};
use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{FallocateFlags, fallocate};
use serde::Serialize;
use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Files of a directory.
const PER_DIR: u64 = 1000;
/// Chunks of an allocated file: 1 GiB.
const PER_FILE: u64 = 1024;
const CHUNK: u64 = 1 << 20;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the device and all else goes.
    pub dir: PathBuf,
    /// Bytes of the device.
    pub device: u64,
    /// Files that are written, in directories of 1000.
    pub files: u64,
    /// Bytes of each.
    pub file_bytes: usize,
    /// Chunks of 1 MiB that are allocated besides.
    pub chunks: u64,
    /// Files that are being written when the daemon is killed.
    pub dirty: u64,
    /// Starts after a kill, and as many after a clean stop.
    pub rounds: u64,
    /// Threads that write.
    pub workers: u64,
    /// Tell what is going on.
    pub progress: bool,
}

/// One start.
#[derive(Clone, Debug, Serialize)]
pub struct Start {
    /// What went before: `kill` or `stop`.
    pub after: &'static str,
    /// Seconds until the daemon said that it serves, from the moment it was started.
    pub serving_s: f64,
    /// Seconds until a listing through a mount that was there before was answered.
    pub answered_s: f64,
    /// Processor time of the daemon until then, and its memory.
    pub daemon: Usage,
    /// What the daemon's log says of the parts of its start, milliseconds.
    pub parts: serde_json::Map<String, serde_json::Value>,
}

/// All figures.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Files written.
    pub files: u64,
    /// Chunks of 1 MiB allocated besides.
    pub chunks: u64,
    /// Chunks in all, as the daemon counts them.
    pub all_chunks: u64,
    /// Seconds that the load took.
    pub load_s: f64,
    /// The daemon after the load, before the first stop.
    pub loaded: Usage,
    /// Bytes that the device takes on the file system below.
    pub device_bytes: u64,
    /// Each start.
    pub starts: Vec<Start>,
    /// `claudefs fsck` after the last stop: seconds on the wall, processor time and memory.
    pub fsck: Option<(f64, Usage)>,
}

/// Runs it all.
///
/// # Errors
/// A step fails, or a file is not what it was before the daemon ended.
pub fn run(plan: &Plan) -> Result<Figures> {
    let say = |text: &str| {
        if plan.progress {
            eprintln!("{text}");
        }
    };
    let setup = Setup {
        size: plan.device,
        config: "[log]\nformat = \"json\"".to_owned(),
        dir: Some(plan.dir.clone()),
    };
    let mut rig = Rig::start(&setup)?;
    let mnt = rig.mount("mnt")?;
    let begun = Instant::now();
    allocate(&mnt, plan.chunks)?;
    say(&format!("allocated {} chunks in {:.0} s", plan.chunks, begun.elapsed().as_secs_f64()));
    write_files(plan, &mnt)?;
    let load_s = begun.elapsed().as_secs_f64();
    say(&format!("wrote {} files, {load_s:.0} s in all", plan.files));
    let daemon = |rig: &Rig| rig.daemon_pid().context("no daemon runs").and_then(usage);
    let mut figures = Figures {
        files: plan.files,
        chunks: plan.chunks,
        all_chunks: chunks_of(&rig)?,
        load_s,
        loaded: daemon(&rig)?,
        device_bytes: 0,
        starts: Vec::new(),
        fsck: None,
    };
    let mut open = Vec::new();
    for round in 0..plan.rounds * 2 {
        let kill = round % 2 == 0;
        let text = format!("round {round}");
        if kill {
            open = touch(plan, &mnt, &text)?;
            rig.kill_daemon()?;
        } else {
            rig.stop_daemon()?;
        }
        let start = start(&mut rig, &mnt, plan, if kill { "kill" } else { "stop" })?;
        open.clear();
        say(&start.to_string());
        figures.starts.push(start);
        check(plan, &mnt, round, &text)?;
    }
    rig.unmount(&mnt)?;
    rig.stop_daemon()?;
    figures.fsck = Some(fsck(&rig)?);
    figures.device_bytes = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(rig.device())?) * 512;
    Ok(figures)
}

fn allocate(mnt: &Path, chunks: u64) -> Result<()> {
    let dir = mnt.join("allocated");
    std::fs::create_dir(&dir)?;
    for n in 0..chunks.div_ceil(PER_FILE) {
        let file = File::create(dir.join(format!("{n:06}")))?;
        let count = PER_FILE.min(chunks - n * PER_FILE);
        fallocate(&file, FallocateFlags::empty(), 0, count * CHUNK).context("allocating")?;
    }
    Ok(())
}

fn path_of(mnt: &Path, n: u64) -> PathBuf {
    mnt.join(format!("d{:05}/f{n:08}", n / PER_DIR))
}

fn contents(plan: &Plan, n: u64) -> Vec<u8> {
    crate::rng::bytes(n, plan.file_bytes)
}

fn write_files(plan: &Plan, mnt: &Path) -> Result<()> {
    let (workers, dirs) = (plan.workers.max(1), plan.files.div_ceil(PER_DIR));
    std::thread::scope(|scope| {
        let one = |dir: u64| -> Result<()> {
            std::fs::create_dir(mnt.join(format!("d{dir:05}")))?;
            for n in dir * PER_DIR..((dir + 1) * PER_DIR).min(plan.files) {
                File::create_new(path_of(mnt, n))?.write_all(&contents(plan, n))?;
            }
            Ok(())
        };
        let threads: Vec<_> = (0..workers)
            .map(|w| scope.spawn(move || (w..dirs).step_by(workers as usize).try_for_each(one)))
            .collect();
        threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|_| bail!("a worker panicked")))
    })
}

/// Writes into files that nobody closes or syncs before the daemon is killed: their rows are older than their data.
fn touch(plan: &Plan, mnt: &Path, text: &str) -> Result<Vec<File>> {
    let one = |n| -> Result<File> {
        let file = File::options().write(true).open(path_of(mnt, n))?;
        file.write_all_at(text.as_bytes(), plan.file_bytes as u64)?;
        Ok(file)
    };
    (0..plan.dirty.min(plan.files)).map(one).collect()
}

fn check(plan: &Plan, mnt: &Path, round: u64, text: &str) -> Result<()> {
    let whole = |n: u64| -> Result<Vec<u8>> {
        let path = path_of(mnt, n);
        std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
    };
    // A few of all; after a kill those that were being written, too.
    for n in (0..plan.files).step_by(997) {
        let found = whole(n)?;
        ensure!(
            found.starts_with(&contents(plan, n)),
            "{} is not what was written",
            path_of(mnt, n).display()
        );
    }
    for n in (0..plan.dirty.min(plan.files)).filter(|_| round.is_multiple_of(2)) {
        ensure!(whole(n)?.ends_with(text.as_bytes()), "{} lost its last write", path_of(mnt, n).display());
    }
    Ok(())
}

/// Starts the daemon and waits for the first answer. The directory that is listed is another each time.
fn start(rig: &mut Rig, mnt: &Path, plan: &Plan, after: &'static str) -> Result<Start> {
    let old = std::fs::metadata(rig.log()).map_or(0, |m| m.len()) as usize;
    let begun = Instant::now();
    rig.start_daemon()?;
    let pid = rig.daemon_pid().context("no daemon runs")?;
    let names = std::fs::read_dir(mnt)?.count() as u64;
    let answered_s = begun.elapsed().as_secs_f64();
    let daemon = usage(pid)?;
    ensure!(names == plan.files.div_ceil(PER_DIR) + 1, "the root shows {names} names");
    let log = std::fs::read(rig.log())?;
    let log = String::from_utf8_lossy(log.get(old..).unwrap_or_default()).into_owned();
    let parts = said(&log, "the store is open").unwrap_or_default();
    let serving_s = parts.get("ms").and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN) / 1000.0;
    Ok(Start { after, serving_s, answered_s, daemon, parts })
}

/// Checks the device with `claudefs fsck`; its usage is that of the last look at it before its end.
fn fsck(rig: &Rig) -> Result<(f64, Usage)> {
    let begun = Instant::now();
    let mut command = Command::new(&rig.programs.claudefs);
    let mut child = command.arg("fsck").arg(rig.device()).stdout(Stdio::null()).spawn()?;
    let mut last = Usage::default();
    loop {
        // What has ended, but is not waited for, has no memory any more.
        last = usage(child.id()).ok().filter(|u| u.peak_mib > 0.0).unwrap_or(last);
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "claudefs fsck ended with {status}");
            return Ok((begun.elapsed().as_secs_f64(), last));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The fields of a line of a JSON log, by its message.
fn said(log: &str, message: &str) -> Option<serde_json::Map<String, serde_json::Value>> {
    log.lines().rev().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        let mut fields = line.get("fields")?.as_object()?.clone();
        (fields.remove("message")?.as_str()? == message).then_some(fields)
    })
}

fn chunks_of(rig: &Rig) -> Result<u64> {
    let args = rig.server_args();
    let mut all: Vec<&str> = vec!["status", "--json"];
    all.extend(args.iter().map(String::as_str));
    let status: serde_json::Value = serde_json::from_str(&rig.claudefs(&all)?)?;
    let shards = status.pointer("/device/0/shards").and_then(serde_json::Value::as_array);
    let shards = shards.context("the status tells no shards")?;
    Ok(shards.iter().filter_map(|s| s.get("chunks")?.as_u64()).sum())
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "after a {}: store open {:.2} s, first answer {:.2} s, {:.2} s cpu, {:.0} MiB of its own, {:.0} MiB at most;",
            self.after,
            self.serving_s,
            self.answered_s,
            self.daemon.cpu_s,
            self.daemon.anonymous_mib,
            self.daemon.peak_mib
        )?;
        for (part, ms) in &self.parts {
            write!(f, " {part} {ms}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { files, chunks, all_chunks, load_s, loaded, device_bytes, starts, fsck } = self;
        writeln!(
            f,
            "{files} files, {chunks} chunks allocated, {all_chunks} chunks in all, loaded in {load_s:.0} s"
        )?;
        writeln!(
            f,
            "daemon after the load: {:.0} MiB of its own, {:.0} MiB at most; the device takes {} MiB below",
            loaded.anonymous_mib,
            loaded.peak_mib,
            device_bytes >> 20
        )?;
        starts.iter().try_for_each(|s| writeln!(f, "{s}"))?;
        let Some((seconds, usage)) = fsck else { return Ok(()) };
        let Usage { cpu_s, peak_mib, .. } = usage;
        writeln!(f, "fsck: clean in {seconds:.1} s, {cpu_s:.1} s cpu, {peak_mib:.0} MiB resident at most")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_that_says_it_counts() {
        let log = "{\"fields\":{\"message\":\"the store is open\",\"ms\":3}}\nno json\n\
                   {\"fields\":{\"message\":\"the store is open\",\"ms\":4}}\n{\"fields\":{\"message\":\"serving\"}}\n";
        let fields = said(log, "the store is open").expect("it was said");
        assert_eq!((fields.len(), fields["ms"].as_u64()), (1, Some(4)));
        assert!(said(log, "stopped").is_none());
    }
}
