//! A device opened with all its shards, its namespace log and its volume: what serving, formatting and checking share.
//!
//! Owns the order in which these are opened and stopped. Must not serve anyone.

use crate::admission::Door;
use crate::config::Config;
use crate::core::{self, core_of};
use crate::error::NodeError;
use crate::store::{Place, Store};
use crate::volume::{self, CopyStore, Counters, Volume};
use chunkstore::{BlockDevice, Class, Device, FileHandle, Log, Shard, Stamp};
use hugepages::{Arena, Buf, Bytes};
use namespace::applier::OpenVolume;
use reactor::mail;
use std::io;
use std::rc::Rc;
use std::time::Instant;
use wire::{ChunkKey, Errno};

/// Everything below the namespace.
pub(crate) struct Base<D: BlockDevice> {
    pub(crate) device: Rc<Device<D>>,
    pub(crate) store: Store<D>,
    pub(crate) log: Log<D>,
    /// Shards of this core.
    pub(crate) shards: Vec<Shard<D>>,
    pub(crate) cores: u16,
    pub(crate) volume: Rc<Counters>,
    /// What the log held after its last trim: place and bytes of each record.
    pub(crate) logged: Vec<(u64, Vec<u8>)>,
    /// How long the parts of the opening took.
    pub(crate) took: Took,
    server: volume::Server<Copies<D>>,
    /// What the volume's own work goes through.
    door: Rc<Door>,
    others: Vec<core::Other>,
}

/// Milliseconds of an opening's parts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Took {
    /// Superblocks.
    pub(crate) device: u64,
    /// Shards: checkpoints, logs, all cores.
    pub(crate) shards: u64,
    /// The namespace log.
    pub(crate) log: u64,
}

/// Milliseconds since `*from`, which becomes now.
pub(crate) fn lap(from: &mut Instant) -> u64 {
    let now = reactor::now();
    let took = now.duration_since(std::mem::replace(from, now));
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

/// What further cores need.
pub(crate) struct Cores {
    /// What they open the device by.
    pub(crate) handle: FileHandle,
    /// Learns the number of a core that dies later: what was asked of it is never answered.
    pub(crate) died: mail::Sender<u16>,
}

/// The volume's chunks on the node's shards.
pub(crate) struct Copies<D: BlockDevice> {
    pub(crate) store: Store<D>,
    pub(crate) device: Rc<Device<D>>,
}

fn system() -> Stamp {
    Stamp { time: 0, request: None, class: Class::System, min_length: 0 }
}

fn failed(e: &crate::store::StoreError) -> volume::StoreError {
    if e.damaged {
        return volume::StoreError::Damaged(e.text.clone());
    }
    let kind = if e.errno == Errno::ENOSPC { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
    volume::StoreError::Io(io::Error::new(kind, e.text.clone()))
}

impl<D: BlockDevice> CopyStore for Copies<D> {
    async fn read(&self, key: ChunkKey, offset: u32, mut out: Buf) -> Result<Buf, volume::StoreError> {
        let read = self.store.read(key, offset, out.len() as u32).await.map_err(|e| failed(&e))?;
        let mut at = 0;
        for piece in &read.pieces {
            out[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
        out[at..].fill(0);
        Ok(out)
    }

    async fn write(&self, key: ChunkKey, offset: u32, data: Bytes) -> Result<(), volume::StoreError> {
        self.store.write(key, offset, data, system()).await.map(drop).map_err(|e| failed(&e))
    }

    async fn truncate(&self, key: ChunkKey, len: u32) -> Result<(), volume::StoreError> {
        let result = match len {
            0 => self.store.delete(key, system()).await,
            len => self.store.truncate(key, len, system()).await,
        };
        result.map(drop).map_err(|e| failed(&e))
    }

    async fn flush(&self) -> Result<(), volume::StoreError> {
        self.device.flush().await.map_err(|e| volume::StoreError::Io(io::Error::other(e.to_string())))
    }
}

impl<D: BlockDevice> Base<D> {
    /// Opens everything. Runs on core 0's reactor; without `others_by` there is no other core.
    pub(crate) async fn open(
        config: &Config,
        device: D,
        others_by: Option<&Cores>,
        arena: Option<&Arena>,
    ) -> Result<Self, NodeError> {
        let (mut at, mut took) = (reactor::now(), Took::default());
        let device = Device::open(device, core::spawner()).await?;
        took.device = lap(&mut at);
        let shards = device.shards();
        let cores = others_by.map_or(1, |_| core::count(config, shards));
        let (told, mut ready) = mail::channel(usize::from(cores));
        let mut others = Vec::new();
        for (core, Cores { handle, died }) in (1..cores).zip(others_by.into_iter().cycle()) {
            let tell = core::Tell { ready: told.clone(), died: died.clone() };
            let other = core::start(config, core, cores, handle, &device.shared(), tell);
            others.push(other.map_err(NodeError::reactor_io("starting a core"))?);
        }
        drop(told);
        let mut mine = Vec::new();
        for number in (0..shards).filter(|s| core_of(*s, cores) == 0) {
            let options = core::shard_options(config, shards, arena);
            mine.push(device.open_shard(number, options).await.map_err(NodeError::store)?);
        }
        for _ in 1..cores {
            match ready.recv().await {
                Some(Ok(())) => {}
                Some(Err(e)) => return Err(NodeError::Store(e)),
                None => return Err(NodeError::Store("a core ended before its shards were open".to_owned())),
            }
        }
        let place = |number: u16| match core_of(number, cores) {
            0 => mine.iter().find(|s| s.number() == number).cloned().map(Place::Here),
            core => others.get(usize::from(core) - 1).map(|o| Place::There(o.letters.clone())),
        };
        let store = Store::new((0..shards).filter_map(place).collect());
        took.shards = lap(&mut at);
        let mut logged = Vec::new();
        let log = device.open_log(arena.cloned(), |place, bytes| {
            logged.push((place, bytes.to_vec()));
            Ok(())
        });
        let log = log.await.map_err(NodeError::store)?;
        took.log = lap(&mut at);
        let (device, volume) = (Rc::new(device), Rc::new(Counters::default()));
        let door: Rc<Door> = Rc::default();
        let copies = Copies { store: store.behind(&door), device: Rc::clone(&device) };
        let server = volume::Server::new(copies, Rc::clone(&volume));
        Ok(Self { device, store, log, shards: mine, cores, volume, logged, took, server, door, others })
    }

    /// How the database opens its volume, from its own threads.
    pub(crate) fn volumes(&self) -> OpenVolume {
        volumes(self.volume_server())
    }

    /// What serves the volume's requests.
    pub(crate) fn volume_server(&self) -> volume::Server<Copies<D>> {
        self.server.clone()
    }

    /// Makes the copies of the volume equal again, beside other work.
    pub(crate) fn resync(&self) {
        let server = self.volume_server();
        drop(reactor::spawn(async move {
            if let Err(e) = server.resync(reactor::yield_now).await {
                tracing::error!(error = %e, "the namespace volume could not be compared with its copy");
            }
        }));
    }

    /// Ends logs and shards in good order and marks the device clean. Nothing may use them any more.
    pub(crate) async fn stop(self) -> Result<(), NodeError> {
        // Its copies may be under comparison.
        self.door.shut().await;
        self.log.stop().await.map_err(NodeError::store)?;
        self.store.stop().await.map_err(|e| NodeError::Store(e.text))?;
        let Self { device, store, others, shards, log, server, .. } = self;
        drop((store, shards, log, server));
        // Before the mark: nothing may write to the device behind it.
        core::end(others).await?;
        device.stop().await?;
        Ok(())
    }
}

/// Serves the volume to whoever opens it from a thread that may block, one after the other.
pub(crate) fn volumes<D: BlockDevice>(server: volume::Server<Copies<D>>) -> OpenVolume {
    let (mail, mut opened) = mail::channel::<mail::Receiver<volume::Request>>(1);
    drop(reactor::spawn(async move {
        while let Some(requests) = opened.recv().await {
            server.serve(requests).await;
        }
    }));
    Box::new(move || {
        let (volume, requests): (Volume, _) = volume::channel();
        mail.send_blocking(requests).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(Box::new(volume))
    })
}

/// Runs what blocks on a thread of its own and waits for it here.
pub(crate) async fn blocking<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NodeError> {
    let (give, mut take) = mail::channel(1);
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || drop(give.send_blocking(work())))
        .map_err(NodeError::reactor_io("starting a thread"))?;
    take.recv().await.ok_or_else(|| NodeError::Store(format!("the thread {name} panicked")))
}
