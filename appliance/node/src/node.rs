//! One node: start, serve, stop.
//!
//! Owns the order of all three. Start: device and shards, then the namespace (database, then its log), truncations that
//! were under way, inodes whose last updates were only in memory, then clients. Stop: no connections, what runs ends,
//! nothing more is let in, everything is committed and flushed, then the device is marked clean. Requests that have no
//! answer by then never get one: their clients repeat them with the next daemon.

use crate::admin::{Admin, Parts};
use crate::applying::Applying;
use crate::base::{self, Base, Cores};
use crate::config::Config;
use crate::core;
use crate::data::Data;
use crate::database;
use crate::error::NodeError;
use crate::flusher::Flusher;
use crate::meta::Meta;
use crate::recovery;
use crate::server::{Dispatch, push};
use chunkstore::{BlockDevice, FileHandle, FileOptions};
use hugepages::Arena;
use namespace::leases::LeaseLimits;
use namespace::locks::LockLimits;
use namespace::machine::{Machine, MachineLimits};
use namespace::sessions::SessionLimits;
use namespace::{CacheConfig, LastStop, Namespace, Record};
use reactor::{TcpListener, mail};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};
use transport::{Key, KeyRing, Server, ServerConfig};
use wire::message::Welcome;
use wire::{CHUNK_SIZE, ClientId};

/// How long requests may take to end when the node stops; what runs longer is given up. What waits for other clients is
/// given up at once.
const DRAIN: Duration = Duration::from_secs(10);

/// Deaths of cores that may wait to be heard of; the first ends the node.
const MAX_CORES: usize = 16;

/// How long a device may stay locked before it counts as in use, by a process that may have begun to end.
const LET_GO: Duration = Duration::from_secs(5);
/// How long it may stay locked by a process that has ended: the kernel lets go when the operations of its ring are over.
const LET_GO_ENDED: Duration = Duration::from_secs(60);

/// What a running node is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Drain and stop cleanly.
    Stop,
    /// Leave everything as it lies, as a killed process would.
    Drop,
}

/// How a node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Stopped cleanly.
    Clean,
    /// Dropped on request.
    Dropped,
    /// Told to end before it served anyone; the device is as a killed process would leave it.
    Early,
}

/// Runs a node on this thread until it is told to stop. `ready` learns the addresses once clients are served.
///
/// # Errors
/// Why it can't start, or why it had to stop; see [`NodeError::exit_code`].
pub fn run(
    config: &Config,
    control: mail::Receiver<Control>,
    ready: impl FnOnce(&[SocketAddr]),
) -> Result<Ended, NodeError> {
    reactor::probe()?.for_daemon()?;
    let key = Key::load(&config.key_file)?;
    let path = config.devices.first().cloned().unwrap_or_default();
    let trim = config.device.trim == crate::config::Trim::On;
    let handle = open_device(&path, FileOptions { trim, ..FileOptions::default() })?;
    let arena = core::arena(config);
    let reactor_config = core::reactor_config(config, 0, arena.as_ref());
    let ended = reactor::run(reactor_config, async move {
        let listeners = listen(config)?;
        let device = handle.attach().map_err(NodeError::reactor_io("attaching the device"))?;
        let (died, mut deaths) = mail::channel(MAX_CORES);
        let path = handle.path().display().to_string();
        let hardware = Hardware { device, path, others: Some(Cores { handle, died: died.clone() }), arena };
        let mut control = control;
        let life = async {
            // A start may take long after a crash. What it has mended so far the next one finds mended.
            let start = unless(control.recv(), Node::start(config, key, hardware)).await;
            let Some(node) = start else { return Ok(Ended::Early) };
            node?.serve(listeners, control, ready).await
        };
        // `died` is still here: only a death ends the wait for one.
        unless(deaths.recv(), life).await.unwrap_or(Err(NodeError::Core))
    })?;
    ended.map_err(|e| e.on_device(&path))
}

/// Runs `work` to its end, unless `event` comes first.
async fn unless<E, T>(event: impl Future<Output = E>, work: impl Future<Output = T>) -> Option<T> {
    let (mut event, mut work) = (pin!(event), pin!(work));
    std::future::poll_fn(|cx| match event.as_mut().poll(cx) {
        Poll::Ready(_) => Poll::Ready(None),
        Poll::Pending => work.as_mut().poll(cx).map(Some),
    })
    .await
}

/// Opens the device. A killed daemon's ring lets go of it a moment after the process ended, so that is waited for.
pub(crate) fn open_device(path: &Path, options: FileOptions) -> Result<FileHandle, NodeError> {
    let begun = Instant::now();
    loop {
        let limit = || if holder_has_ended(path) { LET_GO_ENDED } else { LET_GO };
        match FileHandle::open(path, options) {
            Err(chunkstore::DeviceError::InUse { .. }) if begun.elapsed() < limit() => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return Ok(other?),
        }
    }
}

/// Whether the file is locked by a process that is no more (proc(5), `/proc/locks`); false where that can't be told.
fn holder_has_ended(path: &Path) -> bool {
    use rustix::fs::{major, minor, stat};
    let (Ok(stat), Ok(locks)) = (stat(path), std::fs::read_to_string("/proc/locks")) else { return false };
    let file = format!("{:02x}:{:02x}:{}", major(stat.st_dev), minor(stat.st_dev), stat.st_ino);
    locks.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        matches!(fields[..], [_, "FLOCK", _, _, pid, at, ..] if at == file && has_ended(pid))
    })
}

fn has_ended(pid: &str) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The state stands behind the name, which may hold anything.
        Ok(stat) => stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(e) => e.kind() == std::io::ErrorKind::NotFound && pid.parse().is_ok_and(|n: i32| n > 0),
    }
}

pub(crate) fn listen(config: &Config) -> Result<Vec<TcpListener>, NodeError> {
    let bind = |address: &SocketAddr| {
        TcpListener::bind(*address).map_err(|source| NodeError::Listen { address: *address, source })
    };
    config.listen.iter().map(bind).collect()
}

/// What a node runs on.
pub(crate) struct Hardware<D> {
    /// The device, as this core sees it.
    pub(crate) device: D,
    /// Its name.
    pub(crate) path: String,
    /// For the other cores; without it there are none.
    pub(crate) others: Option<Cores>,
    pub(crate) arena: Option<Arena>,
}

pub(crate) struct Node<D: BlockDevice> {
    base: Base<D>,
    meta: Meta<D>,
    server: Server<Dispatch<D>>,
    flusher: Flusher,
}

impl<D: BlockDevice> Node<D> {
    pub(crate) async fn start(config: &Config, key: Key, hardware: Hardware<D>) -> Result<Self, NodeError> {
        let started = reactor::now();
        let Hardware { device, path, others, arena } = hardware;
        let mut base = Base::open(config, device, others.as_ref(), arena.as_ref()).await?;
        let mut at = reactor::now();
        let (engine, boot, mut events) = database::open(config, &base).await?;
        let database_ms = base::lap(&mut at);
        let applying = Applying::new(engine);
        let cache = config.memory.namespace_cache.as_usize();
        let cache = CacheConfig { rows: cache / 3 * 2, pages: cache / 6, filters: cache / 6 };
        let in_database = boot.applied;
        let mut ns = Namespace::open(boot, cache)?;
        let records = base.logged.len();
        let places = replay(&mut ns, &applying, std::mem::take(&mut base.logged))?;
        let sessions: Vec<ClientId> = ns.sessions().map(|(client, _)| client).collect();
        let durable = ns.last_seq();
        let last = if base.device.was_clean() { LastStop::Clean } else { LastStop::Unclean };
        let begin = ns.start(last)?;
        let now = Meta::<D>::clock(started);
        let epoch = ns.boot_epoch();
        let uuid = ns.uuid();
        let machine = Machine::new(ns, limits(config), now, epoch, durable, sessions.iter().copied());
        let meta = Meta::new(machine, base.log.clone(), &base.store, applying, started, places, durable);
        meta.applied(in_database);
        meta.shorten_log();
        let replay_ms = base::lap(&mut at);
        let driver = meta.clone();
        drop(reactor::spawn(async move {
            while let Some(event) = events.recv().await {
                if let Some(seq) = driver.applying.on_event(event) {
                    driver.applied(seq);
                    driver.shorten_log();
                }
            }
        }));
        meta.log_record(begin);
        recovery::run(&meta, &base.store).await?;
        let recovery_ms = base::lap(&mut at);
        base.resync();
        let last = meta.machine(|m| m.view().last_seq());
        meta.durable(last).await.map_err(|e| NodeError::Store(e.to_string()))?;
        base.log.flush().await.map_err(NodeError::store)?;
        tracing::info!(
            ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            epoch,
            superblock_ms = base.took.device,
            shards_ms = base.took.shards,
            log_ms = base.took.log,
            records,
            database_ms,
            replay_ms,
            recovery_ms,
            flush_ms = base::lap(&mut at),
            sessions = sessions.len(),
            cores = base.cores,
            "the store is open"
        );
        let data = Data::new(meta.clone(), Rc::clone(&base.device));
        data.resume().await;
        let admin = Admin::new(Parts {
            meta: meta.clone(),
            device: Rc::clone(&base.device),
            path,
            cores: base.cores,
            volume: Rc::clone(&base.volume),
            started,
        });
        let dispatch = Dispatch::new(meta.clone(), data.clone(), admin);
        let server = Server::new(
            ServerConfig {
                keys: KeyRing::single(key),
                terms: terms(config, &base, epoch, uuid),
                server_uuid: uuid,
                arena,
                max_connections: config.limits.connections as usize,
                payload_crc: false,
            },
            dispatch,
        );
        let pushing = server.downgrade();
        meta.set_pusher(Box::new(move |what| {
            if let Some(server) = pushing.upgrade() {
                push(&server, what);
            }
        }));
        let flusher = Flusher::start(config, meta.clone(), data, Rc::clone(&base.device), server.clone());
        Ok(Self { base, meta, server, flusher })
    }

    pub(crate) async fn serve(
        self,
        listeners: Vec<TcpListener>,
        mut control: mail::Receiver<Control>,
        ready: impl FnOnce(&[SocketAddr]),
    ) -> Result<Ended, NodeError> {
        let addresses: Vec<SocketAddr> = listeners.iter().map(TcpListener::local_addr).collect();
        for listener in listeners {
            let server = self.server.clone();
            drop(reactor::spawn(async move { server.serve(&listener).await }));
        }
        tracing::info!(?addresses, "serving");
        ready(&addresses);
        if control.recv().await == Some(Control::Drop) {
            // What is dropped below must not begin anything more.
            self.meta.door.slam();
            self.meta.clear_pusher();
            if let Some(engine) = self.meta.applying.take() {
                engine.abandon();
            }
            return Ok(Ended::Dropped);
        }
        self.stop().await.map(|()| Ended::Clean)
    }

    async fn stop(self) -> Result<(), NodeError> {
        tracing::info!("stopping: finishing what runs");
        self.server.stop();
        self.server.handler().stop();
        let begun = reactor::now();
        let runs = || self.server.handler().running() > self.meta.machine(Machine::waiting_for_others);
        while runs() && reactor::now().duration_since(begun) < DRAIN {
            reactor::sleep(Duration::from_millis(5)).await;
        }
        self.flusher.stop().await;
        self.meta.shut().await;
        if let Some(why) = self.meta.failed() {
            return Err(NodeError::Store(why));
        }
        let last = self.meta.commit_all();
        self.meta.durable(last).await.map_err(|e| NodeError::Store(e.to_string()))?;
        self.base.log.flush().await.map_err(NodeError::store)?;
        if let Some(engine) = self.meta.applying.take() {
            engine.stop().await?;
        }
        // Waits behind a trim that may be under way: nothing may write to the device once it is marked clean.
        let place = self.meta.place_of(last).unwrap_or(0);
        self.base.log.trim(place).await.map_err(NodeError::store)?;
        let Self { base, meta, server, .. } = self;
        drop((meta, server));
        base.stop().await?;
        tracing::info!("stopped cleanly");
        Ok(())
    }
}

/// Replays the log over the database. Gives the place of each record, for trimming.
fn replay(
    ns: &mut Namespace,
    applying: &Applying,
    logged: Vec<(u64, Vec<u8>)>,
) -> Result<VecDeque<(u64, u64)>, NodeError> {
    let mut places = VecDeque::new();
    let before = ns.last_seq();
    for (place, bytes) in logged {
        let record =
            Record::decode(bytes).map_err(|e| NodeError::Store(format!("the namespace log: {e}")))?;
        ns.replay(&record)?;
        places.push_back((record.seq(), place));
        if record.seq() > before {
            applying.queue(record);
        }
    }
    applying.durable(ns.last_seq());
    Ok(places)
}

fn limits(config: &Config) -> MachineLimits {
    let lease = config.lease.time_ms.duration();
    MachineLimits {
        sessions: SessionLimits {
            sessions: config.limits.sessions as usize,
            lease,
            grace: config.lease.grace_ms.duration(),
            ..SessionLimits::default()
        },
        leases: LeaseLimits {
            per_client: config.limits.leases_per_session as usize,
            recall: lease,
            ..LeaseLimits::default()
        },
        locks: LockLimits { total: config.limits.locks as usize, ..LockLimits::default() },
        ..MachineLimits::default()
    }
}

fn terms<D: BlockDevice>(config: &Config, base: &Base<D>, epoch: u64, uuid: [u8; 16]) -> Welcome {
    let lease_ms = config.lease.time_ms.0;
    Welcome {
        credits: config.limits.credits.min(wire::limits::MAX_CREDITS),
        slots: config.limits.slots.min(wire::limits::MAX_SLOTS),
        shards: base.store.shards(),
        zero: 0,
        max_payload: wire::limits::MAX_PAYLOAD as u32,
        chunk_size: CHUNK_SIZE as u32,
        lease_ms,
        // A silent connection is closed after three of these: half of the lease time is left to come back.
        keepalive_ms: (lease_ms / 6).max(100),
        incarnation: base.device.incarnation() as u32,
        boot_epoch: epoch,
        fs_uuid: uuid,
    }
}

impl<D: BlockDevice> Meta<D> {
    /// Logs everything that is only in memory; gives the last record.
    pub(crate) fn commit_all(&self) -> u64 {
        let done = self.ns_now(|ns, log| {
            log.extend(ns.commit_all_dirty());
            Ok(ns.last_seq())
        });
        done.unwrap_or_default()
    }
}
