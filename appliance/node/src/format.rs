//! Formatting: an empty store with an empty file system in it.

use crate::base::{Base, blocking};
use crate::config::Config;
use crate::error::NodeError;
use crate::meta::wall;
use chunkstore::{FileHandle, FileOptions, FormatOptions};
use std::path::Path;

/// What formatting made.
#[derive(Clone, Copy, Debug)]
pub struct Formatted {
    /// Identity of the file system.
    pub uuid: [u8; 16],
    /// Bytes of the device.
    pub capacity: u64,
    /// Its shards.
    pub shards: u16,
}

/// How to format.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The store's own options.
    pub store: FormatOptions,
    /// Write zeros over the whole device, so that later writes find written blocks.
    pub preallocate: bool,
}

/// Makes a store and an empty file system on the device at `path`. Blocks; `progress` gets bytes done and in all.
///
/// # Errors
/// [`NodeError::Device`] names what is on the device, or why it can't be used.
pub fn format(
    path: &Path,
    options: Options,
    mut progress: impl FnMut(u64, u64) + 'static,
) -> Result<Formatted, NodeError> {
    reactor::probe()?;
    let handle = FileHandle::open(path, FileOptions::default())?;
    let mut config = Config::default();
    // One core and little memory do for an empty store.
    config.cores.count = 1;
    config.memory.arena = crate::units::ByteSize::mib(32);
    let reactor_config = crate::core::reactor_config(&config, 0, None);
    reactor::run(reactor_config, async move {
        let file = handle.attach().map_err(NodeError::reactor_io("attaching the device"))?;
        let made = chunkstore::format(&file, &options.store, &mut progress).await?;
        if options.preallocate {
            let from = made.layout.zones.start * chunkstore::BLOCK_BYTES;
            let all = file.preallocate(from, &mut progress).await;
            all.map_err(NodeError::reactor_io("writing zeros over the device"))?;
        }
        let base = Base::open(&config, file, None, None).await?;
        let mut volumes = base.volumes();
        let (uuid, now) = (made.uuid, wall());
        let done = blocking("format", move || {
            let volume = volumes()?;
            namespace::applier::format(volume, &namespace::mkfs(uuid, now))
        });
        done.await??;
        base.stop().await?;
        Ok(Formatted { uuid, capacity: made.layout.capacity, shards: made.layout.shards })
    })?
}
