//! What a start has to mend after a crash: truncations that were under way, inodes whose last updates were in memory, stored
//! requests of sessions that have ended.
//!
//! Runs before any client is served. Must not decide what is right (the namespace does), only gather what shards hold.

use crate::error::NodeError;
use crate::meta::Meta;
use crate::store::Store;
use chunkstore::BlockDevice;
use namespace::FreeChunks;
use namespace::dirty::ChunkFact;
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;
use wire::{Ino, ObjectId, Timestamp};

/// Entries and inodes looked at together.
const BATCH: usize = 1024;
/// Units of `Attr::blocks` in a block of the store.
const UNITS: u64 = 8;

/// Mends all of it.
pub(crate) async fn run<D: BlockDevice>(meta: &Meta<D>, store: &Store<D>) -> Result<(), NodeError> {
    let cut = cut(meta).await?;
    rebuild(meta, store, cut).await?;
    forget_gone(meta, store).await
}

/// A session's row goes before the shards have forgotten its requests. One that takes its name must not find them.
async fn forget_gone<D: BlockDevice>(meta: &Meta<D>, store: &Store<D>) -> Result<(), NodeError> {
    let sessions: BTreeSet<u64> = meta.machine(|m| m.view().sessions().map(|(client, _)| client.0).collect());
    let mut gone = BTreeSet::new();
    for shard in 0..store.shards() {
        let clients = store.clients(shard).await.map_err(|e| NodeError::Store(e.text))?;
        gone.extend(clients.into_iter().filter(|c| !sessions.contains(c)));
    }
    for client in gone {
        if let Err(e) = store.forget(client).await {
            tracing::warn!(error = %e, "stored requests of an ended session stay until the next start");
        }
    }
    Ok(())
}

/// Carries out truncations whose reply never left. One that can't be, for a damaged block, must not keep the rest from being
/// served: its file takes no writes. Gives the files: how much an earlier life freed of them only their shards know.
async fn cut<D: BlockDevice>(meta: &Meta<D>) -> Result<BTreeSet<Ino>, NodeError> {
    let mut inos = BTreeSet::new();
    let mut after = 0;
    loop {
        let entries = meta.ns(|ns, _| Ok(ns.pending_cuts(after, BATCH)?)).await.map_err(namespace_failed)?;
        if after == 0 && !entries.is_empty() {
            // Their records were read back, which is not to say that a power cut can't take them; freed blocks are reused.
            meta.log.flush().await.map_err(NodeError::store)?;
        }
        for &entry in &entries {
            after = entry;
            let part = meta.ns(|ns, _| Ok(ns.free_chunks(entry, 0, 1)?)).await.map_err(namespace_failed)?;
            inos.extend(part.as_ref().map(|p| p.ino));
            if let Err(e) = meta.work_entry(entry).await {
                part.into_iter().for_each(|part| leave_uncut(meta, entry, &part, &e));
                continue;
            }
            meta.finish_entry(entry).await.map_err(namespace_failed)?;
        }
        if entries.len() < BATCH {
            return Ok(inos);
        }
    }
}

fn leave_uncut<D: BlockDevice>(meta: &Meta<D>, entry: u64, part: &FreeChunks, e: &str) {
    tracing::error!(
        ino = part.ino.0,
        object = part.object.0,
        error = e,
        "a truncation can't be carried out: the file takes no writes; truncate it to zero or restore it"
    );
    meta.machine_mut(|m| m.left_uncut(part.object, entry));
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
fn namespace_failed(e: namespace::LazyError) -> NodeError {
    NodeError::Store(format!("the namespace: {e}"))
}

/// Size, times and chunk map of files that were being written or were `cut`, from what their shards hold.
async fn rebuild<D: BlockDevice>(
    meta: &Meta<D>,
    store: &Store<D>,
    cut: BTreeSet<Ino>,
) -> Result<(), NodeError> {
    let mut dirty: FxHashMap<ObjectId, (Ino, Vec<ChunkFact>)> = FxHashMap::default();
    let mut gone = Vec::new();
    for ino in cut {
        if let Some(object) = meta.ns(|ns, _| ns.object_of(ino)).await.map_err(namespace_failed)? {
            dirty.insert(object, (ino, Vec::new()));
        }
    }
    let mut after = Ino(0);
    loop {
        let inos = meta.ns(|ns, _| Ok(ns.dirty_inodes(after, BATCH)?)).await.map_err(namespace_failed)?;
        for &ino in &inos {
            match meta.ns(|ns, _| ns.object_of(ino)).await.map_err(namespace_failed)? {
                Some(object) => drop(dirty.insert(object, (ino, Vec::new()))),
                None => gone.push(ino),
            }
            after = ino;
        }
        if inos.len() < BATCH {
            break;
        }
    }
    if dirty.is_empty() && gone.is_empty() {
        return Ok(());
    }
    for shard in 0..store.shards() {
        for (key, stat) in store.list(shard).await.map_err(|e| NodeError::Store(e.text))? {
            if let Some((_, facts)) = dirty.get_mut(&ObjectId(key.object)) {
                let mtime = Timestamp::from_nanos(i64::try_from(stat.time).unwrap_or(i64::MAX));
                let blocks = u64::from(stat.blocks) * UNITS;
                facts.push(ChunkFact { index: key.index, len: stat.length, mtime, blocks });
            }
        }
    }
    let count = dirty.len();
    let found = dirty.into_iter().map(|(object, (ino, facts))| (Some(object), ino, facts));
    let all = found.chain(gone.into_iter().map(|ino| (None, ino, Vec::new())));
    for (object, ino, mut facts) in all {
        facts.sort_unstable_by_key(|f| f.index);
        // Bytes that a truncation should have cut off belong to the file no more.
        if let Some(object) = object.filter(|o| meta.machine(|m| m.is_uncut(*o))) {
            tracing::debug!(object = object.0, "not cut: its size is that of its row");
            facts.iter_mut().for_each(|f| f.len = 0);
        }
        let missing = meta.ns(|ns, log| {
            let rebuilt = ns.rebuild(ino, facts.iter().copied())?;
            log.extend(rebuilt.records);
            Ok(rebuilt.missing)
        });
        let missing = missing.await.map_err(namespace_failed)?;
        if !missing.is_empty() {
            tracing::debug!(
                ino = ino.0,
                chunks = missing.len(),
                "chunks of unfinished changes are not there"
            );
        }
    }
    tracing::info!(files = count, "files that were being written are up to date again");
    Ok(())
}
