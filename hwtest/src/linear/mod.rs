//! Are two mounts one file system? Concurrent operations on a few names and files through both, checked for linearizability.
//!
//! Each round takes new objects and lets all workers at them at once. What each operation answered, and when it was asked and
//! answered, is a history; [`search`] looks for an order of its operations that one file system on one machine could have
//! run them in. Linearizability is local, so each object has a history and a search of its own, and rounds stay small.
//!
//! Owns rounds, workers and reports. What the objects are and how they should behave is in [`objects`].

pub mod objects;
pub mod search;

use crate::rng::Rng;
use anyhow::{Context as _, Result, bail};
use objects::{Kind, Object};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// When a run ends.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// After so many rounds.
    Rounds(u64),
    /// After so long.
    Time(Duration),
}

/// A run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The same directory, as each mount shows it; workers take turns over them.
    pub dirs: Vec<PathBuf>,
    /// Workers, each with descriptors of its own.
    pub workers: usize,
    /// Operations of each worker in a round.
    pub ops: usize,
    /// Seed of what is asked; the order in which it is answered is the machine's.
    pub seed: u64,
    /// When it ends.
    pub end: End,
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Rounds.
    pub rounds: u64,
    /// Operations with an answer that fits.
    pub ops: u64,
    /// Histories too tangled to be searched within [`search::STEPS`].
    pub undecided: u64,
}

/// Operation, and nanoseconds since the round began of its question and its answer.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Who asked.
    pub worker: usize,
    /// When it was asked.
    pub asked: u64,
    /// When it was answered.
    pub answered: u64,
    /// What it was, with its answer.
    pub op: objects::Op,
}

/// Runs rounds until the end of the plan.
///
/// # Errors
/// A history that no order explains, or an operation that fails in a way no file system may.
pub fn run(plan: &Plan) -> Result<Summary> {
    let name = format!("linear-{}-{}", plan.seed, std::process::id());
    let first = plan.dirs.first().context("a run needs a directory")?.join(&name);
    std::fs::create_dir(&first).with_context(|| format!("can't create {}", first.display()))?;
    let dirs: Vec<PathBuf> = plan.dirs.iter().map(|d| d.join(&name)).collect();
    let (mut rng, mut summary, began) = (Rng::new(plan.seed), Summary::default(), Instant::now());
    loop {
        let over = match plan.end {
            End::Rounds(n) => summary.rounds >= n,
            End::Time(time) => began.elapsed() >= time,
        };
        if over {
            break;
        }
        let kind = Kind::ALL[(summary.rounds % Kind::ALL.len() as u64) as usize];
        round(plan, &dirs, kind, &mut rng, &mut summary)
            .with_context(|| format!("seed {}, round {} ({kind:?})", plan.seed, summary.rounds))?;
        summary.rounds += 1;
    }
    std::fs::remove_dir_all(&first).with_context(|| format!("can't remove {}", first.display()))?;
    Ok(summary)
}

fn round(plan: &Plan, dirs: &[PathBuf], kind: Kind, rng: &mut Rng, summary: &mut Summary) -> Result<()> {
    let own = format!("{}", summary.rounds);
    let roots: Vec<PathBuf> = dirs.iter().map(|d| d.join(&own)).collect();
    let first = roots.first().context("a run needs a directory")?;
    std::fs::create_dir(first)?;
    kind.prepare(first)?;
    let (seed, start, zero) = (rng.draw(), Barrier::new(plan.workers), Instant::now());
    let histories: Vec<Result<Vec<Event>>> = std::thread::scope(|s| {
        let work = |worker: usize| {
            let (root, start) = (&roots[worker % roots.len()], &start);
            let rng = Rng::new(seed ^ (worker as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            s.spawn(move || one(plan, kind, root, worker, rng, start, zero))
        };
        let threads: Vec<_> = (0..plan.workers).map(work).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| bail!("a worker panicked"))).collect()
    });
    let mut history = Vec::new();
    for events in histories {
        history.extend(events?);
    }
    history.sort_by_key(|e| e.asked);
    match search::order(kind, &history) {
        search::Found::Order => {}
        search::Found::Undecided => summary.undecided += 1,
        search::Found::None => bail!("no order explains this history:\n{}", tell(&history)),
    }
    kind.finish(&roots, &history)?;
    summary.ops += history.len() as u64;
    std::fs::remove_dir_all(roots.last().context("a run needs a directory")?)?;
    Ok(())
}

fn one(
    plan: &Plan,
    kind: Kind,
    root: &Path,
    worker: usize,
    mut rng: Rng,
    start: &Barrier,
    zero: Instant,
) -> Result<Vec<Event>> {
    let object = Object::open(kind, root, worker);
    // All at once, and each has seen the objects before: what can be cached is cached.
    start.wait();
    let mut object = object?;
    let now = || zero.elapsed().as_nanos() as u64;
    let mut events = Vec::new();
    for n in 0..plan.ops {
        let ask = object.next(&mut rng, n);
        let asked = now();
        let op = object.run(ask)?;
        events.push(Event { worker, asked, answered: now(), op });
    }
    Ok(events)
}

fn tell(history: &[Event]) -> String {
    let line = |e: &Event| {
        format!("  {:>9} .. {:>9} us  worker {}: {:?}", e.asked / 1000, e.answered / 1000, e.worker, e.op)
    };
    history.iter().map(line).collect::<Vec<_>>().join("\n")
}
