//! Scrubbing: reads everything in small steps, verifies it, and repairs metadata from its other copy.

use super::{Shard, offset};
use crate::device::BlockDevice;
use crate::error::Error;
use crate::index::{BUCKETS, Key, Map};
use crate::layout::BLOCK;
use crate::leaf::Leaf;
use crate::page::{self, Kind};
use crate::root::PAGES;
use hugepages::Buf;

/// Steps of a whole scrub: one for each page of the checkpoint.
pub const SCRUB_STEPS: usize = PAGES;

/// What to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubOptions {
    /// Rewrite a damaged copy of metadata from the good one.
    pub repair: bool,
    /// Read all data and verify it; otherwise metadata alone.
    pub data: bool,
}

/// Damaged metadata that a report lists; the rest is counted.
const LISTED: usize = 1000;

/// What a step of scrubbing found.
#[derive(Clone, Debug, Default)]
pub struct ScrubReport {
    /// Chunks read.
    pub chunks: u64,
    /// Blocks of data verified.
    pub data_blocks: u64,
    /// Copies of metadata blocks verified.
    pub metadata_blocks: u64,
    /// Copies of metadata that were damaged, and rewritten where repair was asked for.
    pub metadata_damaged: u64,
    /// Which they are, the first thousand, and their blocks.
    pub damaged: Vec<(String, u64)>,
    /// Metadata that is bad in both copies: only memory has it.
    pub lost: Vec<String>,
    /// Chunks with a block that can't be read or has a wrong CRC, each with its first error.
    pub bad_chunks: Vec<(Key, Error)>,
}

impl ScrubReport {
    /// Adds another step's findings.
    pub fn add(&mut self, other: ScrubReport) {
        self.chunks += other.chunks;
        self.data_blocks += other.data_blocks;
        self.metadata_blocks += other.metadata_blocks;
        self.metadata_damaged += other.metadata_damaged;
        self.damaged.extend(other.damaged);
        self.damaged.truncate(LISTED);
        self.lost.extend(other.lost);
        self.lost.truncate(LISTED);
        self.bad_chunks.extend(other.bad_chunks);
    }
}

impl<D: BlockDevice> Shard<D> {
    /// Verifies one page of the checkpoint, both copies, and for pages of the index the maps and data of its chunks.
    /// Work in between goes on.
    pub async fn scrub_step(&self, step: usize, options: ScrubOptions) -> Result<ScrubReport, Error> {
        let mut report = ScrubReport::default();
        let ScrubOptions { repair, data } = options;
        if step >= PAGES {
            return Err(Error::Invalid("no such step"));
        }
        self.scrub_chain(step, repair, &mut report).await?;
        if step >= BUCKETS {
            return Ok(report);
        }
        let keys: Vec<Key> = self.0.core.borrow().index.bucket(step).keys().copied().collect();
        for key in keys {
            self.scrub_leaf(key, repair, &mut report).await?;
            let Some(stat) = self.stat(key) else { continue };
            report.chunks += 1;
            if !data {
                continue;
            }
            report.data_blocks += u64::from(stat.blocks);
            if let Err(error) = self.read(key, 0, self.0.layout.chunk_size).await {
                report.bad_chunks.push((key, error));
            }
        }
        Ok(report)
    }

    async fn scrub_chain(&self, number: usize, repair: bool, report: &mut ScrubReport) -> Result<(), Error> {
        self.0.waiters.until(|| !self.0.checkpointing.get() || self.writable().is_err()).await;
        let chain = self.0.core.borrow().pages.chain[number].clone();
        for (ordinal, places) in chain.iter().enumerate() {
            let check = |block: &[u8]| page::decode(self.0.owner, number, ordinal, block).is_ok();
            let current = || self.0.core.borrow().pages.chain[number] == chain;
            let what = format!("page {number} of shard {}", self.0.number);
            match self.scrub_pair(&what, *places, repair, check, current, report).await {
                Err(Error::Damaged { .. }) if repair && self.writable().is_ok() => {
                    // Memory has all that the page had: the next checkpoint writes it anew.
                    tracing::warn!(
                        shard = self.0.number,
                        what,
                        "both copies damaged, the page is written anew"
                    );
                    self.0.core.borrow_mut().pages.touch(Kind::of(number));
                    self.start_checkpoint();
                    return Ok(());
                }
                Err(error @ Error::Damaged { .. }) => report.lost.push(error.to_string()),
                result => result?,
            }
        }
        Ok(())
    }

    async fn scrub_leaf(&self, key: Key, repair: bool, report: &mut ScrubReport) -> Result<(), Error> {
        self.0.waiters.until(|| !self.0.checkpointing.get() || self.writable().is_err()).await;
        let place = || match self.0.core.borrow().index.get(key).map(|e| &e.map) {
            Some(Map::Leaf { disk, .. }) if *disk != [0, 0] => Some(*disk),
            _ => None,
        };
        let Some(disk) = place() else { return Ok(()) };
        let check = |block: &[u8]| Leaf::decode(block, key, self.0.owner.tag).is_ok();
        let result = self
            .scrub_pair(
                &format!("the map of chunk {key}"),
                disk,
                repair,
                check,
                || place() == Some(disk),
                report,
            )
            .await;
        if let Err(error @ Error::Damaged { .. }) = result {
            report.bad_chunks.push((key, error));
            return Ok(());
        }
        result
    }

    /// Verifies both copies of a block; `current` says whether they are still what they were.
    async fn scrub_pair(
        &self,
        what: &str,
        places: [u64; 2],
        repair: bool,
        check: impl Fn(&[u8]) -> bool,
        current: impl Fn() -> bool,
        report: &mut ScrubReport,
    ) -> Result<(), Error> {
        let released = self.0.released.get();
        let mut good: [Option<Buf>; 2] = [None, None];
        for (slot, at) in good.iter_mut().zip(places) {
            let (result, buf) = self.0.device.read(offset(at), Buf::heap(BLOCK)).await;
            *slot = (result.is_ok() && check(&buf)).then_some(buf);
        }
        // Replaced by a checkpoint meanwhile: its blocks may hold anything now.
        if !current() || self.0.released.get() != released {
            return Ok(());
        }
        report.metadata_blocks += 2;
        let (bad, from) = match good {
            [Some(_), Some(_)] => return Ok(()),
            [Some(buf), None] => (1, buf),
            [None, Some(buf)] => (0, buf),
            [None, None] => {
                report.metadata_damaged += 2;
                let what = format!("{what} at blocks {} and {}", places[0], places[1]);
                return Err(Error::damaged(what, "wrong checksum"));
            }
        };
        report.metadata_damaged += 1;
        report.damaged.push((what.to_owned(), places[bad]));
        if repair {
            tracing::warn!(shard = self.0.number, what, block = places[bad], "copy damaged");
            self.repair(places[bad], from).await;
        }
        Ok(())
    }
}
