//! Work by the clock: committing inodes, flushing the device, trimming the log, telling the time.
//!
//! Owns the promise that nothing acknowledged is older than the flush interval without being durable.

use crate::config::Config;
use crate::data::Data;
use crate::freeing::Freeing;
use crate::meta::Meta;
use crate::server::Dispatch;
use chunkstore::{BlockDevice, Device};
use namespace::Space;
use namespace::machine::Event;
use reactor::JoinHandle;
use reactor::sync::Event as Flag;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use transport::Server;
use wire::Ino;
use wire::message::Role;

/// How often the machine is told the time: leases and sessions expire no more exactly than this.
const TICK: Duration = Duration::from_millis(100);
/// Longest that a flush waits for the free list, where somebody waits for space.
const FREEING: Duration = Duration::from_secs(3);
/// Bytes of a block, for statfs.
const BLOCK: u64 = chunkstore::BLOCK_BYTES;

/// The tasks; they end with [`Flusher::stop`].
pub(crate) struct Flusher {
    stop: Rc<Flag>,
    /// Rouses what waits for a flush.
    awake: Box<dyn Fn()>,
    tasks: Vec<JoinHandle<()>>,
}

struct Work<D: BlockDevice> {
    meta: Meta<D>,
    data: Data<D>,
    device: Rc<Device<D>>,
    server: Server<Dispatch<D>>,
    freeing: Freeing<D>,
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
        let freeing = Freeing::new(meta.clone(), Rc::clone(&stop));
        let (freer, awake) = (freeing.clone(), freeing.clone());
        let work = Rc::new(Work { meta, data, device, server, freeing, stop: Rc::clone(&stop) });
        work.meta.room.open();
        let every = config.durability.flush_ms.duration();
        let (ticking, flushing) = (Rc::clone(&work), work);
        let tasks = vec![
            reactor::spawn(async move { ticking.tick().await }),
            reactor::spawn(async move { flushing.flush(every).await }),
            // Beside the flush: a long list must not hold up the next one.
            reactor::spawn(async move { freer.run().await }),
        ];
        Self { stop, awake: Box::new(move || awake.look_up()), tasks }
    }

    /// Ends the tasks and waits for them.
    pub(crate) async fn stop(self) {
        self.stop.set();
        (self.awake)();
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

    /// As [`Work::pause`], but no longer than until somebody wants space.
    async fn pause_or_asked(&self, time: Duration) -> bool {
        let (mut stop, mut asked) = (pin!(self.stop.wait()), pin!(self.meta.room.asked()));
        let either = poll_fn(|cx| match (stop.as_mut().poll(cx), asked.as_mut().poll(cx)) {
            (Poll::Pending, Poll::Pending) => Poll::Pending,
            _ => Poll::Ready(()),
        });
        let _ = reactor::timeout(time, either).await;
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
        while self.pause_or_asked(every).await {
            let wanted = self.meta.room.begin();
            self.once_unless_failed().await;
            if wanted {
                // What the flush lets go is deleted, and usable after another.
                let _ = reactor::timeout(FREEING, self.freeing.idle()).await;
                self.once_unless_failed().await;
            }
            self.measure().await;
            self.meta.room.end();
        }
    }

    async fn once_unless_failed(&self) {
        if self.meta.failed().is_none()
            && let Err(e) = self.once().await
        {
            tracing::error!(error = e, "the periodic flush failed");
        }
    }

    async fn once(&self) -> Result<(), String> {
        let deleted = self.freeing.flushing();
        let result = self.make_durable().await;
        self.freeing.flushed(deleted, result.is_ok());
        self.meta.shorten_log();
        result
    }

    async fn make_durable(&self) -> Result<(), String> {
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
        Ok(())
    }

    /// Tells the namespace how much space there is.
    async fn measure(&self) {
        let since = self.meta.machine(|m| m.view().applied_bytes());
        let d = self.device.stats();
        let shards = self.meta.store.stats().await;
        let [own, system] = [0, 1].map(|i| shards.iter().map(|s| s.space.free[i]).sum::<u64>());
        // What the database's volume may take without growing: where it was never written, it has no blocks. A row in memory counts
        // about twice what it takes on the device, both copies and half-empty pages included. Free blocks of the shards' own
        // don't count: the shard that needs them may be another.
        let (volume, used) =
            (self.meta.applying.size().0, shards.iter().map(|s| s.space.system).sum::<u64>());
        let sparse = (2 * volume).saturating_sub(used * BLOCK);
        let space = Space {
            blocks: d.zone_bytes / BLOCK,
            free: d.free_bytes / BLOCK + own + system,
            available: d.user_free_bytes / BLOCK + own,
            block_size: BLOCK as u32,
            room: d.system_free_bytes.saturating_sub(sparse),
            since,
        };
        self.meta.machine_mut(|m| m.namespace().set_space(space));
    }
}
