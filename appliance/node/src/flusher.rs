//! Work by the clock: committing inodes, flushing the device, freeing chunks, trimming the log, telling the time.
//!
//! Owns the promise that nothing acknowledged is older than the flush interval without being durable. Freed chunks go
//! only after the record that drops them was flushed.

use crate::config::Config;
use crate::data::Data;
use crate::meta::Meta;
use crate::server::Dispatch;
use chunkstore::{BlockDevice, Device};
use namespace::Space;
use namespace::machine::Event;
use reactor::JoinHandle;
use reactor::sync::Event as Flag;
use std::rc::Rc;
use std::time::Duration;
use transport::Server;
use wire::Ino;
use wire::message::Role;

/// How often the machine is told the time: leases and sessions expire no more exactly than this.
const TICK: Duration = Duration::from_millis(100);
/// Entries of the free list worked off before other tasks have their turn.
const FREE_AT_ONCE: usize = 256;
/// Bytes of a block, for statfs.
const BLOCK: u64 = chunkstore::BLOCK_BYTES;
/// Bytes that the namespace volume keeps: below this nothing that makes rows is taken.
const NAMESPACE_RESERVE: u64 = 16 << 20;

/// The tasks; they end with [`Flusher::stop`].
pub(crate) struct Flusher {
    stop: Rc<Flag>,
    tasks: Vec<JoinHandle<()>>,
}

struct Work<D: BlockDevice> {
    meta: Meta<D>,
    data: Data<D>,
    device: Rc<Device<D>>,
    server: Server<Dispatch<D>>,
    stop: Rc<Flag>,
}

impl Flusher {
    pub(crate) fn start<D: BlockDevice>(
        config: &Config,
        meta: Meta<D>,
        data: Data<D>,
        device: Rc<Device<D>>,
        server: Server<Dispatch<D>>,
    ) -> Self {
        let stop = Rc::new(Flag::new());
        let work = Rc::new(Work { meta, data, device, server, stop: Rc::clone(&stop) });
        let every = config.durability.flush_ms.duration();
        let (ticking, flushing) = (Rc::clone(&work), work);
        let tasks = vec![
            reactor::spawn(async move { ticking.tick().await }),
            reactor::spawn(async move { flushing.flush(every).await }),
        ];
        Self { stop, tasks }
    }

    /// Ends the tasks and waits for them.
    pub(crate) async fn stop(self) {
        self.stop.set();
        for task in self.tasks {
            let _ = task.await;
        }
    }
}

impl<D: BlockDevice> Work<D> {
    /// Waits; false when it is time to stop.
    async fn pause(&self, time: Duration) -> bool {
        let _ = reactor::timeout(time, self.stop.wait()).await;
        !self.stop.is_set()
    }

    async fn tick(&self) {
        while self.pause(TICK).await {
            // A connection that stands is a sign of life; transport closes those that are silent.
            for peer in self.server.peers() {
                if peer.identity().role == Role::Client && !peer.is_closed() {
                    self.meta.post(Event::Heard(peer.identity().client));
                }
            }
            self.meta.post(Event::Tick);
        }
    }

    async fn flush(&self, every: Duration) {
        self.measure().await;
        while self.pause(every).await {
            self.measure().await;
            if self.meta.failed().is_some() {
                continue;
            }
            if let Err(e) = self.once().await {
                tracing::error!(error = e, "the periodic flush failed");
            }
        }
    }

    async fn once(&self) -> Result<(), String> {
        // Whatever was changed up to here is on the device after this flush, so its marks can go.
        let stamp = self.meta.machine(|m| m.view().lazy_stamp());
        let dirty = self.meta.machine(|m| m.view().stats().dirty > 0);
        if dirty {
            self.data.commit(Ino(0)).await.map_err(|_| "committing inodes".to_owned())?;
            let cleared = self.meta.ns(|ns, log| {
                log.extend(ns.clear_marks(stamp));
                Ok(())
            });
            cleared.await.map_err(|e| e.to_string())?;
        } else if self.device.needs_flush() {
            self.device.flush().await.map_err(|e| e.to_string())?;
        }
        if let Err(e) = self.free().await {
            tracing::error!(error = e, "freeing chunks failed");
        }
        self.meta.shorten_log();
        Ok(())
    }

    /// Works off the free list, as far as its records are flushed.
    async fn free(&self) -> Result<(), String> {
        if !self.meta.free_work.replace(false) {
            return Ok(());
        }
        let flushed = self.meta.flushed_seq();
        let mut after = 0;
        loop {
            let entries = self.meta.ns(|ns, _| Ok(ns.free_work(flushed, after, FREE_AT_ONCE)?)).await;
            let entries = entries.map_err(|e| e.to_string())?;
            let Some(last) = entries.last() else { break };
            after = *last;
            for entry in entries {
                match self.meta.work_entry(entry).await {
                    Ok(()) => self.meta.finish_entry(entry).await.map_err(|e| e.to_string())?,
                    // It stays in the list; the others are not held up by it.
                    Err(e) => tracing::error!(entry, error = e, "a deleted file's chunks are not free yet"),
                }
            }
            reactor::yield_now().await;
        }
        let more =
            self.meta.ns(|ns, _| Ok(ns.free_work(u64::MAX, 0, 1)?)).await.map_err(|e| e.to_string())?;
        self.meta.free_work.set(!more.is_empty());
        Ok(())
    }

    /// Tells the namespace how much space there is.
    async fn measure(&self) {
        let d = self.device.stats();
        let shards = self.meta.store.stats().await;
        let own: u64 = shards.iter().map(|s| s.free_blocks[0]).sum();
        let space = Space {
            blocks: d.zone_bytes / BLOCK,
            free: d.free_bytes / BLOCK + own,
            available: d.user_free_bytes / BLOCK + own,
            block_size: BLOCK as u32,
            full: d.free_bytes < NAMESPACE_RESERVE,
        };
        self.meta.machine_mut(|m| m.namespace().set_space(space));
    }
}
