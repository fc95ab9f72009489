//! Opening a store as far as it can be opened: what is damaged is told, the rest is checked.

use super::report::Next;
use super::{Progress, Report, Server};
use crate::base::Copies;
use crate::core;
use crate::error::NodeError;
use crate::store::{Place, Store, letters};
use crate::volume::{self, Counters};
use chunkstore::{BlockDevice, Device, Log, Shard, ShardOptions};
use namespace::Record;
use namespace::fsck::Severity;
use std::rc::Rc;

/// A store with all that could be opened.
pub(super) struct Opened<D: BlockDevice> {
    pub(super) device: Rc<Device<D>>,
    /// By number; `None` is damaged.
    pub(super) shards: Vec<Option<Shard<D>>>,
    pub(super) store: Store<D>,
    pub(super) log: Option<Log<D>>,
    /// Records of the namespace in the log, and where the last of them stands.
    pub(super) logged: Vec<Record>,
    pub(super) last_place: u64,
    pub(super) server: Server<D>,
    pub(super) counters: Rc<Counters>,
}

impl<D: BlockDevice> Opened<D> {
    pub(super) async fn open(
        device: D,
        report: &mut Report,
        progress: &mut Progress,
    ) -> Result<Self, NodeError> {
        let device = Device::open(device, core::spawner()).await?;
        if let Some(s) = device.superblock() {
            (report.uuid, report.capacity, report.shards) = (s.uuid, s.layout.capacity, s.layout.shards);
        }
        report.clean_stop = device.was_clean();
        let mut shards = Vec::new();
        for number in 0..device.shards() {
            progress("opening shards", u64::from(number), u64::from(device.shards()));
            match device.open_shard(number, ShardOptions::default()).await {
                Ok(shard) => shards.push(Some(shard)),
                Err(e) => {
                    let text = format!("shard {number} can't be opened: {e}");
                    report.add("shard", Severity::Lost, text, false, Next::Restore);
                    shards.push(None);
                }
            }
        }
        let (mut logged, mut last_place) = (Vec::new(), 0);
        let mut undecoded = None;
        let log = device.open_log(None, |place, bytes| {
            match Record::decode(bytes.to_vec()) {
                Ok(record) => logged.push(record),
                Err(e) => undecoded = Some(e),
            }
            last_place = place;
            Ok(())
        });
        let log = log.await;
        let why = match (&log, undecoded) {
            (Err(e), _) => Some(e.to_string()),
            (Ok(_), Some(e)) => Some(e.to_string()),
            _ => None,
        };
        if let Some(why) = &why {
            let text = format!("the namespace log can't be read: {why}");
            report.add("log", Severity::Lost, text, false, Next::Restore);
        }
        for m in device.mended() {
            if m.unfinished {
                report.unfinished += 1;
                continue;
            }
            let class = if m.what.starts_with("superblock") { "superblock" } else { "metadata" };
            let text = format!("{}: the copy at block {} is damaged", m.what, m.block);
            report.add(class, Severity::Waste, text, true, Next::Repair);
        }
        let place = |shard: &Option<Shard<D>>| match shard {
            Some(shard) => Place::Here(shard.clone()),
            // Nobody reads this mail, so every call to the shard fails.
            None => Place::There(letters().0),
        };
        let store = Store::new(shards.iter().map(place).collect());
        let (device, counters) = (Rc::new(device), Rc::new(Counters::default()));
        let copies = Copies { store: store.clone(), device: Rc::clone(&device) };
        let server = volume::Server::new(copies, Rc::clone(&counters));
        let log = log.ok().filter(|_| why.is_none());
        Ok(Self { device, shards, store, log, logged, last_place, server, counters })
    }

    /// All of it could be opened.
    pub(super) fn is_whole(&self) -> bool {
        self.log.is_some() && self.shards.iter().all(Option::is_some)
    }

    /// Ends what was opened for writing. A store with a damaged part is not marked clean.
    pub(super) async fn stop(self) -> Result<(), NodeError> {
        let whole = self.is_whole();
        if let Some(log) = &self.log {
            log.stop().await.map_err(NodeError::store)?;
        }
        for shard in self.shards.iter().flatten() {
            shard.stop().await.map_err(NodeError::store)?;
        }
        if whole {
            self.device.stop().await?;
        }
        Ok(())
    }
}
