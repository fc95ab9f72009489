//! The namespace: its rows against each other, and against what the shards have.

use super::open::Opened;
use super::report::{Finding, Next};
use super::{Progress, Report, is_volume};
use crate::base::blocking;
use crate::error::NodeError;
use chunkstore::{BlockDevice, Class as Taker, Key, Stamp};
use namespace::applier::{self, AllRows, OpenVolume};
use namespace::dirty::ChunkFact;
use namespace::fsck::{self, Check, Severity};
use namespace::paths::{self, Named};
use namespace::{Record, Seq};
use std::collections::{HashMap, HashSet};
use wire::{ChunkKey, ObjectId, Timestamp};

/// Units of `Attr::blocks` in a block of the store.
const UNITS: u64 = 8;

pub(super) struct Names<'a, D: BlockDevice> {
    pub(super) opened: &'a Opened<D>,
    /// Chunks of files whose data or map is bad, and why.
    pub(super) bad: Vec<(Key, String)>,
    pub(super) repair: bool,
}

/// What the thread that reads the database finds.
struct Found {
    report: fsck::Report,
    /// Records that correct it.
    corrections: Vec<Record>,
    /// Inode of a body of data with bad chunks.
    owners: HashMap<u64, u64>,
    named: HashMap<u64, Named>,
}

impl<D: BlockDevice> Names<'_, D> {
    pub(super) async fn check(
        self,
        mut volumes: OpenVolume,
        report: &mut Report,
        progress: &mut Progress,
    ) -> Result<(), NodeError> {
        let mut facts = Vec::new();
        for shard in self.opened.shards.iter().flatten() {
            let each = shard.for_each_chunk(|key, stat| {
                if !is_volume(key.object) {
                    let blocks = u64::from(stat.blocks) * UNITS;
                    let mtime = Timestamp::default();
                    let fact = ChunkFact { index: key.index, len: stat.length, mtime, blocks };
                    facts.push((ObjectId(key.object), fact));
                }
            });
            each.await;
        }
        report.chunks = facts.len() as u64;
        if self.opened.log.is_none() {
            report.skipped("names, and chunks against names");
            return Ok(());
        }
        progress("reading the namespace", 0, 0);
        let complete = self.opened.is_whole();
        let logged = self.opened.logged.clone();
        let objects: HashSet<u64> = self.bad.iter().map(|(key, _)| key.object).collect();
        let found = blocking("fsck", move || {
            let result = volumes().map_err(applier::Error::Volume).and_then(|volume| {
                applier::look(volume, &logged, |rows, last| read(rows, last, &facts, complete, &objects))
            });
            (result, volumes)
        });
        let (found, volumes) = found.await?;
        match found {
            Ok(found) => {
                if self.repair && complete {
                    progress("mending the namespace", 0, 0);
                    self.mend(&found, volumes).await?;
                }
                self.tell(found, report);
            }
            Err(e) => {
                let text = format!("the namespace's database can't be read: {e}");
                report.add("volume", Severity::Lost, text, false, Next::Restore);
                report.skipped("names, and chunks against names");
            }
        }
        Ok(())
    }

    fn tell(&self, found: Found, report: &mut Report) {
        let Found { report: names, owners, named, .. } = found;
        (report.inodes, report.names) = (names.inodes, names.names);
        (report.deleting, report.dirty) = (names.deleting, names.dirty);
        let complete = self.opened.is_whole();
        let path = |ino: Option<u64>| ino.and_then(|i| named.get(&i)).map(Named::shown);
        for (key, why) in &self.bad {
            let ino = owners.get(&key.object).copied();
            report.push(Finding {
                class: "data".to_owned(),
                severity: Severity::Lost,
                text: match ino {
                    Some(ino) => format!("chunk {} of inode {ino}: {why}", key.index),
                    None => why.clone(),
                },
                ino,
                path: path(ino),
                fixable: false,
                next: Report::next_of(fsck::Class::LostChunk, false),
            });
        }
        let listed = names.problems.len() as u64;
        for p in names.problems {
            let fixable = p.fixable && complete;
            report.push(Finding {
                class: p.class.to_string(),
                severity: p.severity,
                text: p.text,
                ino: p.ino,
                path: path(p.ino),
                fixable,
                next: Report::next_of(p.class, fixable),
            });
        }
        report.count += names.count - listed;
    }

    /// One commit for the rows, then chunks that no row names.
    async fn mend(&self, found: &Found, mut volumes: OpenVolume) -> Result<(), NodeError> {
        if !found.corrections.is_empty() {
            let records: Vec<Record> = self.opened.logged.iter().chain(&found.corrections).cloned().collect();
            let amended = blocking("fsck", move || {
                let volume = volumes().map_err(applier::Error::Volume)?;
                applier::amend(volume, &records)
            });
            amended.await??;
            // The log is behind the database now, and goes on behind its last record.
            if let Some(log) = &self.opened.log {
                log.trim(self.opened.last_place).await.map_err(NodeError::store)?;
            }
        }
        for (object, index) in &found.report.orphans {
            let key = ChunkKey { object: *object, index: *index };
            let stamp = Stamp { time: 0, request: None, class: Taker::System, min_length: 0 };
            self.opened.store.delete(key, stamp).await.map_err(|e| NodeError::Store(e.text))?;
        }
        Ok(())
    }
}

fn read(
    rows: &AllRows,
    last: Seq,
    facts: &[(ObjectId, ChunkFact)],
    complete: bool,
    objects: &HashSet<u64>,
) -> Result<Found, applier::Error> {
    let mut check = Check::default();
    rows.all(|key, value| {
        check.row(key, value);
        true
    })?;
    check.rows_done();
    for (object, fact) in facts {
        check.chunk(*object, fact);
    }
    check.chunks_done(complete);
    let report = check.finish();
    let corrections = fsck::corrections(rows, &report, last)?;
    let owners = paths::owners(rows, objects)?;
    let inos = report.problems.iter().filter_map(|p| p.ino).chain(owners.values().copied());
    let named = paths::find(rows, &inos.collect())?;
    Ok(Found { report, corrections, owners, named })
}
