//! Checking a store that no daemon serves: device, shards, namespace, and one against the other; and mending it.
//!
//! Owns the order of the parts and what is told. A check writes nothing: the store is opened over memory that takes what
//! opening would write. Must not decide what is right: chunk store and namespace do, each for its own structures.

mod names;
mod open;
mod report;
mod shards;
#[cfg(test)]
mod tests;

pub use namespace::fsck::Severity;
pub use report::{Finding, Report};

use crate::base::{self, Copies};
use crate::config::Config;
use crate::error::NodeError;
use crate::volume;
use chunkstore::{BlockDevice, FileHandle, FileOptions, Overlay};
use open::Opened;
use report::Next;
use std::path::Path;

/// Memory for what opening a store writes in a check: the end of logs, and a checkpoint where a log is half full.
const OVERLAY: usize = 1 << 30;

/// What to look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Read all file data too, and verify it.
    pub data: bool,
}

/// Told how far a part is: what it is, how much is done, of how much.
pub type Progress = Box<dyn FnMut(&'static str, u64, u64)>;

/// Opens a device for checking or, with `write`, for repairing. Nobody else can use it until the handle is dropped.
///
/// # Errors
/// [`NodeError::Device`]: it is in use, missing, or can't be opened.
pub fn open(path: &Path, write: bool) -> Result<FileHandle, NodeError> {
    reactor::probe()?;
    crate::node::open_device(path, FileOptions { write, ..FileOptions::default() })
}

/// Checks a store and changes nothing. Blocks.
///
/// # Errors
/// It can't be checked: no store of ours, both superblocks bad, not enough memory.
pub fn check(handle: &FileHandle, options: Options, progress: Progress) -> Result<Report, NodeError> {
    let handle = handle.clone();
    reactor::run(reactor_config(), async move {
        let file = handle.attach().map_err(NodeError::reactor_io("attaching the device"))?;
        let overlay = Overlay::new(file, OVERLAY);
        let report = Run { device: overlay.clone(), options, repair: false, progress }.run().await;
        if overlay.refused() {
            let why = "what the last stop left unfinished needs more memory than a check may take: \
                start and stop the daemon once, then check again";
            return Err(NodeError::Store(why.to_owned()));
        }
        report
    })?
}

/// Mends what [`check`] calls fixable, while checking once more. Blocks. What it reports is what it found before mending;
/// another check tells what is left.
///
/// # Errors
/// As [`check`], or the device takes no writes.
pub fn repair(handle: &FileHandle, options: Options, progress: Progress) -> Result<Report, NodeError> {
    let handle = handle.clone();
    reactor::run(reactor_config(), async move {
        let device = handle.attach().map_err(NodeError::reactor_io("attaching the device"))?;
        Run { device, options, repair: true, progress }.run().await
    })?
}

fn reactor_config() -> reactor::Config {
    let mut config = Config::default();
    config.cores.count = 1;
    crate::core::reactor_config(&config, 0, None)
}

struct Run<D> {
    device: D,
    options: Options,
    repair: bool,
    progress: Progress,
}

impl<D: BlockDevice> Run<D> {
    async fn run(mut self) -> Result<Report, NodeError> {
        let mut report = Report { data: self.options.data, ..Report::default() };
        let opened = Opened::open(self.device, &mut report, &mut self.progress).await?;
        let shards = shards::Shards { opened: &opened, repair: self.repair, data: self.options.data };
        let bad = shards.check(&mut report, &mut self.progress).await;
        let volume = check_volume(&opened, &mut report, &mut self.progress).await;
        if volume {
            let volumes = base::volumes(opened.server.clone());
            let names = names::Names { opened: &opened, bad, repair: self.repair };
            names.check(volumes, &mut report, &mut self.progress).await?;
        } else {
            report.skipped("names, and chunks against names");
        }
        if self.repair {
            opened.stop().await?;
        }
        report.sort();
        Ok(report)
    }
}

/// Compares the copies of the namespace volume; false where a part of it has no good copy.
async fn check_volume<D: BlockDevice>(
    opened: &Opened<D>,
    report: &mut Report,
    progress: &mut Progress,
) -> bool {
    progress("comparing the namespace's copies", 0, 0);
    let result = opened.server.resync(reactor::yield_now).await;
    let counters = &opened.counters;
    let damaged = counters.repaired.get() + counters.second_bad.get();
    if damaged > 0 {
        let text = format!("{damaged} pieces of the namespace volume are bad in one copy");
        report.add("volume", Severity::Waste, text, true, Next::Repair);
    }
    if let Err(e) = &result {
        let text = format!("the namespace volume can't be read: {e}");
        report.add("volume", Severity::Lost, text, false, Next::Restore);
    }
    result.is_ok()
}

/// The two objects that are the namespace's and no file's.
fn is_volume(object: u64) -> bool {
    volume::COPIES.iter().any(|copy| copy.0 == object)
}

type Server<D> = volume::Server<Copies<D>>;
