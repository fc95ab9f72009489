//! The thread that answers fetches from snapshots of the database.
//!
//! Must not interpret rows: `snapshot` does.

use super::base::{Base, guard};
use super::snapshot::Snapshot;
use super::{Error, Event, RETRY_FIRST, Shared};
use crate::view::Miss;
use std::sync::PoisonError;

/// Fetches answered from one snapshot.
const FETCH_BATCH: usize = 64;
/// Openings of the database after which a fetch that still fails is given up.
const FETCH_ATTEMPTS: u32 = 4;

pub(super) fn run(shared: &Shared) {
    let mut batch: Vec<(u64, Miss)> = Vec::new();
    let mut failures = 0;
    loop {
        let base = {
            let mut q = shared.lock();
            loop {
                if q.stop {
                    return;
                }
                if let (Some(base), true) = (&q.base, !(q.fetches.is_empty() && batch.is_empty())) {
                    let base = base.clone();
                    let n = q.fetches.len().min(FETCH_BATCH - batch.len().min(FETCH_BATCH));
                    batch.extend(q.fetches.drain(..n));
                    break base;
                }
                q = shared.reader.wait(q).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let Err(error) = guard(|| answer(shared, &base, &mut batch)) else {
            failures = 0;
            continue;
        };
        drop(base);
        failures += 1;
        if failures >= FETCH_ATTEMPTS
            && let Some((id, _)) = batch.pop()
        {
            failures = 0;
            shared.tell(Event::FetchFailed { id, error: error.to_string() });
        }
        shared.lock().reopen = true;
        shared.writer.notify_one();
        let q = shared.lock();
        drop(shared.reader.wait_timeout(q, RETRY_FIRST).unwrap_or_else(PoisonError::into_inner));
    }
}

/// Answers fetches from one snapshot; those that were answered leave the batch.
fn answer(shared: &Shared, base: &Base, batch: &mut Vec<(u64, Miss)>) -> Result<(), Error> {
    let snapshot = Snapshot::of(&base.db)?;
    while let Some((id, miss)) = batch.last() {
        let (id, out) = (*id, snapshot.fetch(miss)?);
        batch.pop();
        shared.tell(Event::Fetched { id, rows: out });
    }
    Ok(())
}
