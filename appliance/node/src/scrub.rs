//! Scrubbing a running node: every shard on whichever core, step by step, and whose files are bad.
//!
//! Owns the one scrub there is and what is told of it. Must not repair anything itself: the chunk store does.

use crate::naming::{Files, Naming};
use crate::store::{Scrubbed, Store, StoreError};
use chunkstore::{BlockDevice, Key, SCRUB_STEPS, ScrubOptions};
use namespace::paths::Named;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use wire::Status;
use wire::message::{Scrub, ScrubAction};

/// Bad chunks that a report lists; the rest is counted.
const BAD_LISTED: usize = 100;

/// A chunk that can't be read.
struct Bad {
    key: Key,
    error: String,
    ino: Option<u64>,
    named: Named,
}

impl Bad {
    /// Whose it is: the path where it is known.
    fn whose(&self) -> Option<String> {
        match self.named.path {
            Some(_) => Some(self.named.shown()),
            None if is_volume(self.key) => Some("(namespace volume)".to_owned()),
            None => None,
        }
    }

    fn json(&self) -> Value {
        json!({ "object": self.key.object, "chunk": self.key.index, "ino": self.ino, "path": self.whose(),
            "names": self.named.names, "error": self.error })
    }
}

#[derive(Default)]
struct State {
    running: bool,
    stop: bool,
    repair: bool,
    steps: usize,
    done: usize,
    shards: Vec<(u16, Scrubbed)>,
    bad: Vec<Bad>,
    lost: Vec<String>,
    error: Option<String>,
}

struct Inner<D> {
    store: Store<D>,
    naming: Naming,
    state: RefCell<State>,
}

/// See the module; clones are cheap.
pub(crate) struct Scrubber<D>(Rc<Inner<D>>);

impl<D> Clone for Scrubber<D> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

fn is_volume(key: Key) -> bool {
    crate::volume::COPIES.iter().any(|copy| copy.0 == key.object)
}

impl<D: BlockDevice> Scrubber<D> {
    pub(crate) fn new(store: Store<D>, naming: Naming) -> Self {
        Self(Rc::new(Inner { store, naming, state: RefCell::default() }))
    }

    /// Starts, stops, or tells.
    pub(crate) fn ask(&self, r: &Scrub) -> Result<Value, Status> {
        match r.action {
            ScrubAction::Start if self.0.state.borrow().running => return Err(Status::Busy),
            ScrubAction::Start => {
                let steps = SCRUB_STEPS * usize::from(self.0.store.shards());
                let (running, repair) = (true, r.repair);
                *self.0.state.borrow_mut() = State { running, repair, steps, ..State::default() };
                let this = self.clone();
                drop(reactor::spawn(async move { this.run(repair).await }));
            }
            ScrubAction::Stop => self.0.state.borrow_mut().stop = true,
            ScrubAction::Status => {}
        }
        Ok(self.report())
    }

    async fn run(&self, repair: bool) {
        for shard in 0..self.0.store.shards() {
            self.0.state.borrow_mut().shards.push((shard, Scrubbed::default()));
            let ended = self.shard(shard, repair).await;
            self.name().await;
            if ended {
                break;
            }
        }
        self.0.state.borrow_mut().running = false;
    }

    /// Scrubs one shard; true when it is time to stop.
    async fn shard(&self, shard: u16, repair: bool) -> bool {
        for step in 0..SCRUB_STEPS {
            let result = self.0.store.scrub(shard, step, ScrubOptions { repair, data: true }).await;
            if self.0.state.borrow_mut().step(shard, result) {
                return true;
            }
            reactor::yield_now().await;
        }
        false
    }

    /// Finds out whose the bad chunks are.
    async fn name(&self) {
        let objects: HashSet<u64> = {
            let state = self.0.state.borrow();
            let unknown = state.bad.iter().filter(|b| b.ino.is_none() && !is_volume(b.key));
            unknown.map(|b| b.key.object).collect()
        };
        if objects.is_empty() {
            return;
        }
        match self.0.naming.files(objects, HashSet::new()).await {
            Ok(Files { owners, named }) => {
                for bad in &mut self.0.state.borrow_mut().bad {
                    let Some(ino) = owners.get(&bad.key.object).copied().filter(|_| bad.ino.is_none()) else {
                        continue;
                    };
                    bad.ino = Some(ino);
                    bad.named = named.get(&ino).cloned().unwrap_or_default();
                    let path = bad.whose();
                    tracing::error!(ino, path, chunk = bad.key.index, error = bad.error, "bad file data");
                }
            }
            Err(e) => tracing::warn!(error = e, "the names of files with bad data can't be found"),
        }
    }

    fn report(&self) -> Value {
        let s = self.0.state.borrow();
        let sum = |f: fn(&Scrubbed) -> u64| s.shards.iter().map(|(_, found)| f(found)).sum::<u64>();
        let shards = s.shards.iter().map(|(shard, f)| {
            json!({ "shard": shard, "chunks": f.chunks, "data_blocks": f.data_blocks,
                "metadata_blocks": f.metadata_blocks, "metadata_damaged": f.metadata_damaged,
                "bad_chunks": f.bad_chunks })
        });
        let line = |b: &Bad| match b.whose() {
            Some(path) => format!("{path}: {}", b.error),
            None => b.error.clone(),
        };
        json!({ "running": s.running, "repair": s.repair, "steps": s.steps, "done": s.done,
            "chunks": sum(|f| f.chunks), "data_blocks": sum(|f| f.data_blocks),
            "metadata_blocks": sum(|f| f.metadata_blocks), "metadata_damaged": sum(|f| f.metadata_damaged),
            "bad_chunks": sum(|f| f.bad_chunks), "lost": s.lost, "error": s.error,
            "bad": s.bad.iter().map(line).collect::<Vec<_>>(),
            "bad_files": s.bad.iter().map(Bad::json).collect::<Vec<_>>(),
            "shards": shards.collect::<Vec<_>>() })
    }
}

impl State {
    /// Takes the result of a step; true when it is time to stop.
    fn step(&mut self, shard: u16, result: Result<Scrubbed, StoreError>) -> bool {
        self.done += 1;
        match result {
            Ok(found) => self.take(found),
            Err(e) => self.error = Some(format!("shard {shard}: {e}")),
        }
        self.stop || self.error.is_some()
    }

    fn take(&mut self, mut found: Scrubbed) {
        let room = BAD_LISTED.saturating_sub(self.bad.len());
        let new = found.bad.drain(..).take(room);
        self.bad.extend(new.map(|(key, error)| Bad { key, error, ino: None, named: Named::default() }));
        let room = BAD_LISTED.saturating_sub(self.lost.len());
        self.lost.extend(found.lost.drain(..).take(room));
        if let Some((_, sum)) = self.shards.last_mut() {
            sum.chunks += found.chunks;
            sum.data_blocks += found.data_blocks;
            sum.metadata_blocks += found.metadata_blocks;
            sum.metadata_damaged += found.metadata_damaged;
            sum.bad_chunks += found.bad_chunks;
        }
    }
}
