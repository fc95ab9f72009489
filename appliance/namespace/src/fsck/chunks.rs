//! Files against what the shards hold.

use super::report::{Class, Field, Fix, Problem, Severity};
use super::{Check, Report};
use crate::dirty::ChunkFact;
use std::collections::BTreeMap;
use wire::{CHUNK_SIZE, ObjectId};

impl Check {
    /// A chunk that a shard holds. After [`Check::rows_done`].
    pub fn chunk(&mut self, object: ObjectId, fact: &ChunkFact) {
        let index = fact.index;
        let named = self.expected.remove(&(object.0, index));
        if let Some(body) = self.bodies.get_mut(&object.0) {
            body.blocks_seen = body.blocks_seen.saturating_add(fact.blocks);
            if fact.len > 0 {
                let end = u64::from(index) * CHUNK_SIZE + u64::from(fact.len);
                body.end = body.end.max(end);
            }
        }
        let cut = self.cut(object.0, index);
        if cut || self.dying.contains(&object.0) {
            self.report.deleting += 1;
        } else if !named && !self.bodies.get(&object.0).is_some_and(|b| b.dirty) {
            if self.report.orphans.len() < Report::ORPHANS {
                self.report.orphans.push((object, index));
            } else {
                self.orphans_left += 1;
            }
        }
    }

    /// Is it behind the end of a truncation that is not carried out yet?
    fn cut(&self, object: u64, index: u32) -> bool {
        self.cuts.get(&object).is_some_and(|k| u64::from(index) * CHUNK_SIZE >= *k)
    }

    /// All chunks were given: what files speak of and no shard holds, what shards hold and no file speaks of. `complete`: all
    /// shards could be asked; otherwise chunks may be anywhere.
    pub fn chunks_done(&mut self, complete: bool) {
        self.orphans_done();
        if complete {
            self.lost_done();
            self.bodies_done();
        }
    }

    fn orphans_done(&mut self) {
        let mut objects: BTreeMap<u64, u64> = BTreeMap::new();
        for (object, _) in &self.report.orphans {
            *objects.entry(object.0).or_default() += 1;
        }
        for (object, n) in objects {
            let ino = self.bodies.get(&object).map(|b| b.ino);
            let text = match ino {
                Some(ino) => format!("{n} chunks of inode {ino} (body of data {object}) are not in its map"),
                None => format!("{n} chunks of body of data {object} belong to no file"),
            };
            let class = Class::OrphanChunk;
            self.report.push(Problem { class, severity: Severity::Waste, text, ino, fixable: true });
        }
        if self.orphans_left > 0 {
            let text =
                format!("{} more chunks belong to no file; check again after a repair", self.orphans_left);
            self.report.add(Class::OrphanChunk, Severity::Waste, None, text);
        }
    }

    fn lost_done(&mut self) {
        let mut lost: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
        for (object, index) in std::mem::take(&mut self.expected) {
            let dirty = self.bodies.get(&object).is_none_or(|b| b.dirty);
            if !dirty && !self.cut(object, index) {
                let (n, first) = lost.entry(object).or_insert((0, index));
                *n += 1;
                *first = index.min(*first);
            }
        }
        for (object, (n, first)) in lost {
            let ino = self.bodies.get(&object).map(|b| b.ino);
            let text = format!(
                "{n} chunks of inode {} (body of data {object}) are lost, the first is {first}",
                ino.unwrap_or(0)
            );
            self.report.add(Class::LostChunk, Severity::Lost, ino, text);
        }
    }

    fn bodies_done(&mut self) {
        let bodies = std::mem::take(&mut self.bodies);
        for (object, b) in &bodies {
            if b.dirty || self.cuts.contains_key(object) {
                continue;
            }
            let ino = Some(b.ino);
            if b.blocks != b.blocks_seen {
                let text = format!(
                    "inode {} counts {} sectors of data, its chunks have {}",
                    b.ino, b.blocks, b.blocks_seen
                );
                let fix = Fix::Inode(b.ino, Field::Blocks(b.blocks_seen));
                self.report.add_fixable(Class::Count, Severity::Waste, ino, text, fix);
            }
            if b.end > b.size {
                let text = format!("inode {} has {} bytes, its chunks reach to {}", b.ino, b.size, b.end);
                self.report.add(Class::Count, Severity::Wrong, ino, text);
            }
        }
        self.bodies = bodies;
    }
}
