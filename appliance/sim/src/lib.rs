//! The whole path from a client to a disk in one thread, under faults, from one seed.
//!
//! The real node (namespace, chunk store, transport) serves the real clients; only clock, network and disk are
//! simulated (`reactor::sim`, [`chunkstore::MemDevice`]). [`run`] plays one seed: clients work, each checks what it gets, while
//! the daemon is killed, connections are cut and stalled. Afterwards everything is compared once more, before and after a
//! clean restart. What may happen, and what we promise then, stands in `docs/FAULTS.md`.
//!
//! Dev only: nothing that ships may depend on it.

mod faults;
mod load;
mod machine;

pub use faults::Faults;
pub use machine::Machine;

use anyhow::{Context, Result};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

/// Virtual time after which a run that has not ended hangs.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is played.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Everything follows from it.
    pub seed: u64,
    /// Clients.
    pub clients: usize,
    /// Operations of each client.
    pub ops: usize,
}

impl Plan {
    /// A run of the size that the tests use.
    #[must_use]
    pub fn of(seed: u64) -> Plan {
        Plan { seed, clients: 3, ops: 120 }
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Equal for two runs of one seed.
    pub digest: u64,
    /// Turns of tasks.
    pub turns: u64,
    /// Virtual time.
    pub time: Duration,
    /// Operations that were checked.
    pub ops: u64,
    /// Faults that happened.
    pub faults: Faults,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { digest, turns, time, ops, faults } = self;
        write!(
            f,
            "digest {digest:016x}, {ops} operations, {turns} turns, {:.1} s, {faults}",
            time.as_secs_f64()
        )
    }
}

/// Plays a plan.
///
/// # Errors
/// The first answer that no correct system gives, or what stopped the node.
pub fn run(plan: Plan) -> Result<Outcome> {
    let play = async move {
        match reactor::timeout(PATIENCE, play(plan)).await {
            Ok(result) => result,
            Err(_) => anyhow::bail!("still running after {} s of its time: it hangs", PATIENCE.as_secs()),
        }
    };
    reactor::sim::run(plan.seed, play)
        .map_err(anyhow::Error::from)
        .and_then(|outcome| outcome)
        .with_context(|| format!("seed {}", plan.seed))
}

async fn play(plan: Plan) -> Result<Outcome> {
    let machine = Rc::new(Machine::format().await?);
    machine.start().await?;
    let load = load::Load::start(&machine, plan).await?;
    let faults = faults::strike(&machine, &load).await?;
    let ops = load.finish(&machine).await?;
    machine.stop().await.context("the stop after the load")?;
    Ok(Outcome {
        digest: reactor::sim::digest(),
        turns: reactor::sim::turns(),
        time: reactor::sim::elapsed(),
        ops,
        faults,
    })
}
