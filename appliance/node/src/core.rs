//! The threads of a node: which core has which shards, and the cores that have nothing but shards.
//!
//! Owns the map of shards to cores. Core 0 runs all connections, the namespace and its share of the shards; the others run
//! shards alone, so with many clients core 0 is full first. Spreading connections is for the work on several cores.

use crate::base::blocking;
use crate::config::{Config, Pages, WaitMode};
use crate::error::NodeError;
use crate::store::{self, Letter, letters, serve};
use chunkstore::{Device, FileHandle, Shard, ShardOptions, Shared, Spawner};
use hugepages::{Arena, ArenaConfig, PageChoice};
use reactor::mail;
use rustc_hash::FxHashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Up to so many processors one data core does everything: more would take time from clients on the same machine.
const ONE_CORE_UP_TO: usize = 4;

/// How many data cores to run for a device of so many shards.
pub(crate) fn count(config: &Config, shards: u16) -> u16 {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let wanted = match config.cores.count {
        0 if processors <= ONE_CORE_UP_TO => 1,
        0 => u16::try_from(processors - 2).unwrap_or(u16::MAX),
        n => n,
    };
    wanted.clamp(1, shards.max(1))
}

/// The core that has a shard.
pub(crate) fn core_of(shard: u16, cores: u16) -> u16 {
    shard % cores
}

/// What a core's tasks are spawned with.
pub(crate) fn spawner() -> Spawner {
    Rc::new(|task| drop(reactor::spawn(task)))
}

/// Memory of one core; `None` where none could be had, and buffers come from the heap.
pub(crate) fn arena(config: &Config) -> Option<Arena> {
    let pages = match config.memory.pages {
        Pages::Best => PageChoice::Best,
        Pages::Huge1G => PageChoice::Huge1G,
        Pages::Huge2M => PageChoice::Huge2M,
        Pages::Small => PageChoice::Small,
    };
    match Arena::new(ArenaConfig { bytes: config.memory.arena.as_usize(), pages }) {
        Ok(arena) => Some(arena),
        Err(e) => {
            tracing::warn!(error = %e, "no arena for I/O buffers: going on with the heap, at some cost in speed");
            None
        }
    }
}

/// The reactor of a core.
pub(crate) fn reactor_config(config: &Config, core: u16, arena: Option<&Arena>) -> reactor::Config {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let wait = match config.cores.wait {
        WaitMode::Adaptive => reactor::Wait::Adaptive { spin_us: config.cores.spin_us },
        WaitMode::Busy => reactor::Wait::Busy,
        WaitMode::Sleep => reactor::Wait::Sleep,
    };
    reactor::Config {
        name: format!("core-{core}"),
        // Pinning the only core of a small machine would keep it beside whatever else runs on that processor.
        cpu: (config.cores.pin && processors > ONE_CORE_UP_TO).then_some(usize::from(core)),
        entries: 1024,
        wait,
        arenas: arena.into_iter().cloned().collect(),
    }
}

/// How a shard uses memory when the device has `shards` of them.
pub(crate) fn shard_options(config: &Config, shards: u16, arena: Option<&Arena>) -> ShardOptions {
    let leaf_cache = config.memory.leaf_cache.as_usize() / usize::from(shards.max(1));
    ShardOptions { leaf_cache, arena: arena.cloned() }
}

/// A core that has shards alone.
pub(crate) struct Other {
    pub(crate) letters: mail::Sender<Letter>,
    pub(crate) thread: JoinHandle<()>,
}

/// Whom a core tells what.
pub(crate) struct Tell {
    /// Whether its shards are open.
    pub(crate) ready: mail::Sender<Result<(), String>>,
    /// Its number, where it ends although it is still needed.
    pub(crate) died: mail::Sender<u16>,
}

/// Tells of a core's death when it is dropped, also by a panic.
struct Obituary {
    core: u16,
    died: Option<mail::Sender<u16>>,
}

impl Obituary {
    /// It ended as it should.
    fn none(mut self) {
        self.died = None;
    }
}

impl Drop for Obituary {
    fn drop(&mut self) {
        if let Some(died) = &self.died {
            tracing::error!(core = self.core, "the thread of this core died");
            // One death that is heard of is enough.
            let _ = died.try_send(self.core);
        }
    }
}

/// Starts a core.
pub(crate) fn start(
    config: &Config,
    core: u16,
    cores: u16,
    handle: &FileHandle,
    shared: &Arc<Shared>,
    tell: Tell,
) -> std::io::Result<Other> {
    let (sender, receiver) = letters();
    let (config, handle, shared) = (config.clone(), handle.clone(), Arc::clone(shared));
    let thread = std::thread::Builder::new().name(format!("core-{core}")).spawn(move || {
        let Tell { ready, died } = tell;
        let obituary = Obituary { core, died: Some(died) };
        let arena = arena(&config);
        let failed = ready.clone();
        let run = reactor::run(reactor_config(&config, core, arena.as_ref()), async move {
            match open(&config, core, cores, &handle, shared, arena.as_ref()).await {
                Ok(shards) => {
                    let _ = ready.send(Ok(())).await;
                    drop(ready);
                    serve(shards, receiver).await;
                }
                Err(e) => drop(ready.send(Err(e)).await),
            }
        });
        match run {
            Ok(()) => obituary.none(),
            Err(e) => {
                tracing::error!(core, error = %e, "the reactor of this core failed");
                // Nobody listens any more where the node serves already.
                let _ = failed.send_blocking(Err(e.to_string()));
            }
        }
    })?;
    Ok(Other { letters: sender, thread })
}

async fn open(
    config: &Config,
    core: u16,
    cores: u16,
    handle: &FileHandle,
    shared: Arc<Shared>,
    arena: Option<&Arena>,
) -> Result<FxHashMap<u16, Shard<chunkstore::FileDevice>>, String> {
    let file = handle.attach().map_err(|e| e.to_string())?;
    let device = Device::attach(file, spawner(), shared);
    let shards = device.shards();
    let mut opened = FxHashMap::default();
    for number in (0..shards).filter(|s| core_of(*s, cores) == core) {
        let options = shard_options(config, shards, arena);
        opened.insert(number, device.open_shard(number, options).await.map_err(|e| e.to_string())?);
    }
    Ok(opened)
}

/// Ends cores whose shards are stopped, and waits for their threads.
pub(crate) async fn end(others: Vec<Other>) -> Result<(), NodeError> {
    // No thread for nothing: the simulator has none.
    if others.is_empty() {
        return Ok(());
    }
    for other in &others {
        store::end(&other.letters).await;
    }
    let join = move || others.into_iter().all(|other| other.thread.join().is_ok());
    if blocking("cores", join).await? { Ok(()) } else { Err(NodeError::Core) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Job;
    use chunkstore::FileOptions;

    /// Runs `f` with the second of two cores of a fresh device, and what hears of its death.
    fn with_core<T>(f: impl AsyncFnOnce(Other, mail::Receiver<u16>) -> T) -> T {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("device");
        std::fs::File::create(&path).and_then(|f| f.set_len(256 << 20)).expect("a device");
        crate::format(&path, crate::FormatOptions::default(), |_, _| {}).expect("formatted");
        let mut config = Config::default();
        config.memory.arena = crate::units::ByteSize::mib(8);
        config.memory.pages = Pages::Small;
        let handle = FileHandle::open(&path, FileOptions::default()).expect("nobody has it");
        reactor::run(reactor::Config::default(), async move {
            let device = handle.attach().expect("attached");
            let device = Device::open(device, spawner()).await.expect("a store");
            let (told, mut ready) = mail::channel(1);
            let (died, deaths) = mail::channel(1);
            let tell = Tell { ready: told, died };
            let other = start(&config, 1, 2, &handle, &device.shared(), tell).expect("a thread");
            assert_eq!(ready.recv().await, Some(Ok(())));
            f(other, deaths).await
        })
        .expect("a reactor")
    }

    /// A stop once left the threads of the other cores to themselves.
    #[test]
    fn a_core_that_is_told_to_end_is_waited_for_and_reports_no_death() {
        with_core(async |other, mut deaths| {
            let held = other.letters.clone();
            assert!(end(vec![other]).await.is_ok());
            // The thread had the only other sender of deaths, and is gone although somebody could still write to it.
            assert_eq!(deaths.recv().await, None);
            drop(held);
        });
    }

    #[test]
    fn a_panic_ends_the_core_and_is_told() {
        with_core(async |other, mut deaths| {
            let (back, _answers) = mail::channel(1);
            let letter = Letter { shard: 1, job: Job::Panic, number: 1, back };
            assert!(other.letters.send(letter).await.is_ok());
            assert_eq!(deaths.recv().await, Some(1));
            assert!(matches!(end(vec![other]).await, Err(NodeError::Core)));
            // systemd starts the daemon again on this code.
            assert_eq!(NodeError::Core.exit_code(), crate::error::exit::STORE);
        });
    }
}
