//! The shards: both copies of their metadata, the accounts of their blocks, and with `data` every block of every file.

use super::open::Opened;
use super::report::Next;
use super::{Progress, Report, is_volume};
use chunkstore::{Accounts, BlockDevice, Key, SCRUB_STEPS, ScrubOptions, ScrubReport, Shard};
use namespace::fsck::Severity;

/// Chunks with bad data that are told one by one.
const BAD_LISTED: usize = 10_000;

pub(super) struct Shards<'a, D: BlockDevice> {
    pub(super) opened: &'a Opened<D>,
    pub(super) repair: bool,
    pub(super) data: bool,
}

impl<D: BlockDevice> Shards<'_, D> {
    /// Checks all of them. Gives the chunks of files whose data or map is bad, and why.
    pub(super) async fn check(&self, report: &mut Report, progress: &mut Progress) -> Vec<(Key, String)> {
        let all = (self.opened.shards.iter().flatten().count() * SCRUB_STEPS) as u64;
        let (mut done, mut bad) = (0, Vec::new());
        let what = if self.data { "reading all data" } else { "checking metadata" };
        for shard in self.opened.shards.iter().flatten() {
            let mut found = ScrubReport::default();
            let options = ScrubOptions { repair: self.repair, data: self.data };
            for step in 0..SCRUB_STEPS {
                progress(what, done, all);
                done += 1;
                match shard.scrub_step(step, options).await {
                    Ok(part) => found.add(part),
                    Err(e) => failed(report, shard, &e),
                }
                reactor::yield_now().await;
            }
            self.tell(shard.number(), found, report, &mut bad);
            match shard.account(self.repair).await {
                Ok(accounts) => tell_accounts(shard.number(), &accounts, report),
                Err(e) => failed(report, shard, &e),
            }
        }
        bad
    }

    fn tell(&self, number: u16, found: ScrubReport, report: &mut Report, bad: &mut Vec<(Key, String)>) {
        report.data_blocks += found.data_blocks;
        report.metadata_blocks += found.metadata_blocks;
        for (what, block) in &found.damaged {
            let text = format!("shard {number}: {what}: the copy at block {block} is damaged");
            report.add("metadata", Severity::Waste, text, true, Next::Repair);
        }
        for what in &found.lost {
            let text = format!("shard {number}: {what}");
            report.add("metadata", Severity::Lost, text, false, Next::Restore);
        }
        let files = found.bad_chunks.into_iter().filter(|(key, _)| !is_volume(key.object));
        bad.extend(files.map(|(key, e)| (key, e.to_string())));
        if bad.len() > BAD_LISTED {
            let text = format!("{} more chunks with bad blocks", bad.len() - BAD_LISTED);
            report.add("data", Severity::Lost, text, false, Next::RestoreFile);
            bad.truncate(BAD_LISTED);
        }
    }
}

fn failed<D: BlockDevice>(report: &mut Report, shard: &Shard<D>, e: &chunkstore::Error) {
    let text = format!("shard {} can't be checked to its end: {e}", shard.number());
    report.add("shard", Severity::Lost, text, false, Next::Restore);
}

fn tell_accounts(number: u16, a: &Accounts, report: &mut Report) {
    report.used_blocks += a.used;
    if a.leaked > 0 && a.unknown == 0 {
        let text = format!("shard {number}: {} blocks are marked as used and nothing uses them", a.leaked);
        report.add("space", Severity::Waste, text, true, Next::Repair);
    }
    for (key, block) in &a.unmarked {
        let text = format!("shard {number}: block {block} of chunk {key} is marked as free");
        report.add("space", Severity::Wrong, text, true, Next::Repair);
    }
    for (key, block) in &a.twice {
        let text = format!("shard {number}: block {block} of chunk {key} is used by something else as well");
        report.add("space", Severity::Lost, text, false, Next::RestoreFile);
    }
    for (key, block) in &a.outside {
        let text = format!("shard {number}: block {block} of chunk {key} is not in a zone of this shard");
        report.add("space", Severity::Lost, text, false, Next::RestoreFile);
    }
    for key in &a.miscounted {
        let text = format!("shard {number}: the count of blocks of chunk {key} is not that of its map");
        report.add("space", Severity::Wrong, text, false, Next::RestoreFile);
    }
}
