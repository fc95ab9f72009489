//! A daemon that is killed again and again below two mounts, under loads that check each answer exactly.
//!
//! An error that reaches an application, or an acknowledged change that is lost, is an answer that differs from the model's.
//! Afterwards `claudefs fsck --data` must find nothing, both on a device whose daemon was killed and on one that was stopped.
//!
//! Owns the order of kills, loads and checks. The loads are [`crate::model`] runs, and commands of the caller's.

use crate::model;
use crate::rig::{Rig, Setup};
use crate::rng::Rng;
use anyhow::{Context as _, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A campaign.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The program that is started as `PROGRAM worker DIR` (`hwtest`).
    pub program: PathBuf,
    /// Decides what the loads do, and when the kills come.
    pub seed: u64,
    /// Kills.
    pub kills: u64,
    /// Independent model runs at a time, each through both mounts.
    pub loads: u64,
    /// Operations of one model run; a load does one after the other.
    pub ops: u64,
    /// Shell commands that run again and again beside the model, in a folder of their own, and must end with success.
    /// `$OTHER` is the same folder through the other mount.
    pub commands: Vec<String>,
    /// Bytes of the device, a sparse file.
    pub size: u64,
    /// Where the device and the logs are kept after a failure.
    pub keep: Option<PathBuf>,
}

/// What a campaign did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Operations that agreed with the model.
    pub ops: u64,
    /// Commands that ended with success.
    pub commands: u64,
}

/// An answer that takes longer is a hang. A recall of a lease, a restart, a check of the device and a grace window fit in.
const PATIENCE: Duration = Duration::from_secs(120);
/// Milliseconds between two kills. Load runs meanwhile; how much does not matter to the result.
const BETWEEN: std::ops::Range<u64> = 200..1200;

type Load = JoinHandle<Result<Summary>>;

/// Runs a campaign on a rig of its own.
///
/// # Errors
/// A load failed, the daemon did not start again, or fsck found something. The seed is in the message.
pub fn run(plan: &Plan) -> Result<Summary> {
    let mut rig = Rig::start(&Setup { size: plan.size, ..Setup::patient() })?;
    let result = on(&mut rig, plan).with_context(|| format!("seed {}", plan.seed));
    if let (Err(_), Some(keep)) = (&result, &plan.keep) {
        rig.kill_daemon().ok();
        std::fs::create_dir_all(keep)?;
        for file in ["device.img", "claudefsd.log", "mount.log", "claudefsd.toml", "key"] {
            let copied = Command::new("cp").arg("--sparse=always").arg(rig.dir.join(file)).arg(keep).status();
            if !copied.is_ok_and(|s| s.success()) {
                eprintln!("{file} could not be kept in {}", keep.display());
            }
        }
    }
    result.map_err(|e| e.context(rig.tail()))
}

fn on(rig: &mut Rig, plan: &Plan) -> Result<Summary> {
    let mounts = [rig.mount("one")?, rig.mount("two")?];
    let stop = Arc::new(AtomicBool::new(false));
    let mut loads = Vec::new();
    for n in 0..plan.loads + plan.commands.len() as u64 {
        let name = format!("load{n}");
        let dirs = mounts.each_ref().map(|m| m.join(&name));
        std::fs::create_dir(&dirs[0])?;
        let (plan, stop) = (plan.clone(), Arc::clone(&stop));
        let command =
            n.checked_sub(plan.loads).and_then(|i| plan.commands.get(usize::try_from(i).ok()?)).cloned();
        loads.push(std::thread::spawn(move || match command {
            Some(command) => again(&command, &dirs, &stop),
            None => models(&plan, n, &dirs, &stop),
        }));
    }
    let killed = kill(rig, plan, &loads);
    stop.store(true, Ordering::Relaxed);
    let mut summary = Summary::default();
    // What a load has seen says more than what the kills have.
    for load in loads {
        let Ok(did) = load.join() else { bail!("a load panicked") };
        let did = did?;
        ensure!(did.ops + did.commands > 0, "a load did nothing");
        summary.ops += did.ops;
        summary.commands += did.commands;
    }
    killed?;
    for mount in &mounts {
        rig.unmount(mount)?;
    }
    rig.stop_daemon()?;
    rig.fsck().context("after a clean stop")?;
    Ok(summary)
}

fn kill(rig: &mut Rig, plan: &Plan, loads: &[Load]) -> Result<()> {
    let mut rng = Rng::new(plan.seed);
    for n in 1..=plan.kills {
        std::thread::sleep(Duration::from_millis(BETWEEN.start + rng.below(BETWEEN.end - BETWEEN.start)));
        if loads.iter().any(JoinHandle::is_finished) {
            break;
        }
        rig.kill_daemon()?;
        let sound = if n == plan.kills { rig.fsck().context("after the last kill") } else { Ok(()) };
        // The loads wait for it, also where the check failed.
        rig.start_daemon().with_context(|| format!("after kill {n}"))?;
        sound?;
    }
    Ok(())
}

/// Model runs until it is time to stop, at least one.
fn models(plan: &Plan, load: u64, dirs: &[PathBuf; 2], stop: &AtomicBool) -> Result<Summary> {
    let mut done = Summary::default();
    for round in 0.. {
        let run = model::Plan {
            program: plan.program.clone(),
            dirs: dirs.to_vec(),
            workers: 4,
            ops: plan.ops,
            seed: plan.seed.wrapping_mul(1_000_000) + load * 1000 + round,
            patience: PATIENCE,
            progress: false,
        };
        done.ops += model::run(&run)?.ops;
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(done)
}

/// A command until it is time to stop, at least once.
fn again(command: &str, dirs: &[PathBuf; 2], stop: &AtomicBool) -> Result<Summary> {
    let mut done = Summary::default();
    loop {
        run_in(&dirs[0], &dirs[1], command)?;
        done.commands += 1;
        if stop.load(Ordering::Relaxed) {
            return Ok(done);
        }
    }
}

fn run_in(dir: &Path, other: &Path, command: &str) -> Result<()> {
    let out = Command::new("sh")
        .args(["-c", command])
        .current_dir(dir)
        .env("OTHER", other)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("can't run {command}"))?;
    ensure!(out.status.success(), "{command} ended with {}: {}", out.status, crate::rig::said(&out));
    Ok(())
}
