//! How the namespace's database runs: on threads of its own, or step by step in a simulation.

#[cfg(feature = "sim")]
mod stepped;

use crate::base::{Base, blocking};
use crate::config::Config;
use crate::error::NodeError;
use chunkstore::BlockDevice;
use namespace::applier::{self, AllRows, Applier, Error, Event, Full, Size};
use namespace::{Boot, Miss, Record};
use reactor::mail;
use std::sync::Arc;

/// Events that may wait for the reactor; the database's threads block beyond it.
const EVENTS: usize = 1 << 14;

#[cfg(feature = "sim")]
const TIDY_ABOVE: u64 = 512 << 10;
#[cfg(feature = "sim")]
const TIDY_AFTER: std::time::Duration = std::time::Duration::from_millis(200);

/// The running database.
pub(crate) enum Engine {
    /// Threads beside the reactor.
    Threads(Applier),
    /// A thread that runs only while it is waited for.
    #[cfg(feature = "sim")]
    Stepped(stepped::Stepped),
}

/// Opens the database on the volume of `base`. What it tells comes by the queue.
pub(crate) async fn open<D: BlockDevice>(
    config: &Config,
    base: &Base<D>,
) -> Result<(Engine, Boot, mail::Receiver<Event>), NodeError> {
    let (told, events) = mail::channel(EVENTS);
    let cache_bytes = config.memory.checkpoint_cache.as_usize();
    let settings = applier::Config { cache_bytes, ..applier::Config::default() };
    #[cfg(feature = "sim")]
    if reactor::sim::is_running() {
        // A simulated file system is small, and is to see that space is given back.
        let settings = applier::Config { tidy_above: TIDY_ABOVE, tidy_after: TIDY_AFTER, ..settings };
        let (engine, boot) = stepped::Stepped::open(settings, base.volume_server(), told).await?;
        return Ok((Engine::Stepped(engine), boot, events));
    }
    let volumes = base.volumes();
    let opened = blocking("ns-open", move || {
        Applier::start(settings, volumes, move |event| drop(told.send_blocking(event)))
    });
    let (applier, boot) = opened.await??;
    Ok((Engine::Threads(applier), boot, events))
}

/// Puts the first records into an empty database.
#[cfg(feature = "sim")]
pub(crate) async fn format<D: BlockDevice>(base: &Base<D>, records: Vec<Record>) -> Result<(), NodeError> {
    let (told, _events) = mail::channel(EVENTS);
    let (engine, _) = stepped::Stepped::open(applier::Config::default(), base.volume_server(), told).await?;
    for record in records {
        engine.submit(record).map_err(|_| NodeError::Store("too many first records".to_owned()))?;
    }
    engine.stop().await
}

impl Engine {
    /// See [`Applier::submit`].
    pub(crate) fn submit(&self, record: Record) -> Result<(), Full<Record>> {
        match self {
            Self::Threads(applier) => applier.submit(record),
            #[cfg(feature = "sim")]
            Self::Stepped(stepped) => stepped.submit(record),
        }
    }

    /// See [`Applier::fetch`].
    pub(crate) fn fetch(&self, id: u64, miss: Miss) -> Result<(), Full<Miss>> {
        match self {
            Self::Threads(applier) => applier.fetch(id, miss),
            #[cfg(feature = "sim")]
            Self::Stepped(stepped) => stepped.fetch(id, miss),
        }
    }

    /// See [`Applier::look`]; a simulation has no thread for it.
    pub(crate) fn look(&self, look: impl FnOnce(Result<&AllRows, Error>) + Send + 'static) -> bool {
        match self {
            Self::Threads(applier) => applier.look(look),
            #[cfg(feature = "sim")]
            Self::Stepped(_) => false,
        }
    }

    /// See [`Applier::flush`].
    pub(crate) fn flush(&self) {
        match self {
            Self::Threads(applier) => applier.flush(),
            #[cfg(feature = "sim")]
            Self::Stepped(stepped) => stepped.flush(),
        }
    }

    /// See [`Applier::size`].
    pub(crate) fn size(&self) -> Arc<Size> {
        match self {
            Self::Threads(applier) => applier.size(),
            #[cfg(feature = "sim")]
            Self::Stepped(stepped) => stepped.size(),
        }
    }

    /// Commits what waits, then ends.
    pub(crate) async fn stop(self) -> Result<(), NodeError> {
        match self {
            // The commit needs this reactor, so its thread must not be waited for here.
            Self::Threads(applier) => blocking("ns-stop", move || drop(applier)).await,
            #[cfg(feature = "sim")]
            Self::Stepped(stepped) => stepped.stop().await,
        }
    }

    /// Ends as it is. Threads find the volume gone; they are not waited for.
    pub(crate) fn abandon(self) {
        match self {
            Self::Threads(applier) => {
                drop(std::thread::Builder::new().name("ns-drop".into()).spawn(move || drop(applier)));
            }
            #[cfg(feature = "sim")]
            Self::Stepped(stepped) => drop(stepped),
        }
    }
}
