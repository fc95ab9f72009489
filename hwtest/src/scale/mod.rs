//! Scale: what a directory of very many names and a start with very many chunks cost in time and memory.
//!
//! Owns the figures: how processes are watched and how a run is reported. Must assert nothing about time or memory: the
//! figures are for `docs/PERFORMANCE.md`; what is asserted is that every answer is right.

pub mod names;
pub mod restart;

use anyhow::{Context as _, Result};
use serde::Serialize;
use std::fmt;
use std::time::Instant;

const MIB: f64 = (1 << 20) as f64;

/// A process whose memory and time are watched.
#[derive(Clone, Debug)]
pub struct Watched {
    /// What to call it.
    pub label: String,
    /// Its number.
    pub pid: u32,
}

/// A process at one moment.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Usage {
    /// Resident memory that is the process's own, in MiB (`RssAnon`); pages of the program's file are not in it.
    pub anonymous_mib: f64,
    /// The most that was resident since the last [`reset_peak`], in MiB, pages of the program's file included (`VmHWM`).
    pub peak_mib: f64,
    /// Seconds of processor time since its start.
    pub cpu_s: f64,
}

/// Looks at a process.
///
/// # Errors
/// It is gone.
pub fn usage(pid: u32) -> Result<Usage> {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid}"))?;
    let kib = |key: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(key));
        line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0)
    };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields after the name, which may hold spaces: utime and stime are the 14th and 15th of all, proc(5).
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field =
        |n: usize| after.split_whitespace().nth(n - 3).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    Ok(Usage {
        anonymous_mib: kib("RssAnon:") / 1024.0,
        peak_mib: kib("VmHWM:") / 1024.0,
        cpu_s: (field(14) + field(15)) / ticks,
    })
}

/// Lets [`Usage::peak_mib`] begin anew.
///
/// # Errors
/// It is gone, or is somebody else's.
pub fn reset_peak(pid: u32) -> Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").with_context(|| format!("process {pid}"))
}

/// What one process did in a phase.
#[derive(Clone, Debug, Serialize)]
pub struct Share {
    /// What it is called.
    pub process: String,
    /// Processor time in the phase, seconds.
    pub cpu_s: f64,
    /// Memory of its own at the end, MiB.
    pub anonymous_mib: f64,
    /// Resident at most, MiB.
    pub peak_mib: f64,
}

/// One step of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    /// What was done.
    pub name: String,
    /// How often.
    pub count: u64,
    /// Seconds on the wall.
    pub seconds: f64,
    /// Reclaimable kernel memory of the whole machine at its end (inodes and dentries are in it), MiB.
    pub kernel_mib: f64,
    /// What it cost the watched processes.
    pub processes: Vec<Share>,
}

/// Measures steps.
#[derive(Debug)]
pub struct Meter {
    watched: Vec<Watched>,
    phases: Vec<Phase>,
    progress: bool,
}

impl Meter {
    /// Watches these; with `progress` each step is printed as it ends.
    #[must_use]
    pub fn new(watched: Vec<Watched>, progress: bool) -> Self {
        Self { watched, phases: Vec::new(), progress }
    }

    /// Runs a step, which says how many things it did.
    ///
    /// # Errors
    /// The step's own, or a watched process is gone.
    pub fn phase(&mut self, name: &str, step: impl FnOnce() -> Result<u64>) -> Result<()> {
        let mut before = Vec::new();
        for w in &self.watched {
            // Kernels without page monitoring can't: then the peak is that since the process's start.
            reset_peak(w.pid).ok();
            before.push(usage(w.pid)?);
        }
        let begun = Instant::now();
        let count = step().with_context(|| format!("step \"{name}\""))?;
        let seconds = begun.elapsed().as_secs_f64();
        let mut processes = Vec::new();
        for (w, before) in self.watched.iter().zip(before) {
            let now = usage(w.pid)?;
            processes.push(Share {
                process: w.label.clone(),
                cpu_s: now.cpu_s - before.cpu_s,
                anonymous_mib: now.anonymous_mib,
                peak_mib: now.peak_mib,
            });
        }
        let phase = Phase { name: name.to_owned(), count, seconds, kernel_mib: kernel_mib(), processes };
        if self.progress {
            eprint!("{phase}");
        }
        self.phases.push(phase);
        Ok(())
    }

    /// What was measured.
    #[must_use]
    pub fn finish(self) -> Vec<Phase> {
        self.phases
    }
}

fn kernel_mib() -> f64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|l| l.strip_prefix("SReclaimable:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) * 1024.0 / MIB
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.count as f64 / self.seconds.max(1e-6);
        writeln!(
            f,
            "{:<34}{:>9}{:>9.1} s{:>9.0}/s   kernel {:>6.0} MiB",
            self.name, self.count, self.seconds, rate, self.kernel_mib
        )?;
        for p in &self.processes {
            writeln!(
                f,
                "    {:<30}{:>9.1} s cpu, {:>6.0} MiB of its own at the end, {:>6.0} MiB resident at most",
                p.process, p.cpu_s, p.anonymous_mib, p.peak_mib
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_watched() {
        let own = Watched { label: "own".into(), pid: std::process::id() };
        let mut meter = Meter::new(vec![own], false);
        let mut kept = Vec::new();
        let step = || {
            kept = vec![1_u8; 64 << 20];
            Ok(7)
        };
        meter.phase("a step", step).expect("watched");
        let phases = meter.finish();
        let share = &phases[0].processes[0];
        assert_eq!((phases[0].count, kept.len()), (7, 64 << 20));
        assert!(share.anonymous_mib >= 32.0 && share.peak_mib >= share.anonymous_mib, "{share:?}");
        assert!(usage(0).is_err() && reset_peak(0).is_err());
        assert!(Meter::new(Vec::new(), false).phase("fails", || anyhow::bail!("no")).is_err());
    }
}
