//! The chunk store: chunks of file data on one block device, log-structured, every block with a CRC.
//!
//! `docs/chunkstore.md` is the normative format. A [`Device`] is cut into [`Shard`]s, each owned by one core;
//! a shard writes new contents to new blocks and the change of its index to a log, and checkpoints the index. The
//! namespace keeps its records in a [`Log`] of the same kind. The one seam below is [`BlockDevice`].
//!
//! The crate has no clock and no thread: time comes with each change, tasks go to a [`Spawner`]. It knows nothing
//! of files, names, sessions or networks.

mod crc;
mod device;
mod error;
mod flush;
mod gate;
mod group;
mod index;
mod layout;
mod leaf;
mod leaves;
mod local;
mod locks;
mod log;
mod nslog;
mod page;
mod pool;
mod record;
mod recovery;
mod requests;
mod ring;
mod root;
mod scan;
mod shard;
mod signal;
mod signature;
mod store;
mod superblock;
#[cfg(test)]
mod tests;
mod zones;

pub use crc::crc_target;
pub use device::{BlockDevice, FileDevice, FileHandle, FileOptions, MemDevice, MemOptions, Overlay};
pub use error::{DeviceError, Error, Shared as SharedIoError};
pub use flush::{Mended, Shared};
pub use index::{ENTRY_BYTES, Key, SYSTEM_OBJECTS};
pub use layout::{BLOCK, BLOCK_BYTES, Layout, MAX_CHUNK, MAX_SHARDS, MIN_DEVICE, Region, SUPER_B};
pub use local::LocalExecutor;
pub use nslog::{Log, LogStats, MAX_LOG_RECORD};
pub use pool::{Class, GROW_LIMIT};
pub use requests::{OUTCOME, RequestId};
pub use shard::{
    Accounts, ChunkStat, Extent, ReadOutcome, SCRUB_STEPS, ScrubOptions, ScrubReport, Shard, ShardOptions,
    ShardStats, SpaceStats, Stamp, WriteOutcome, Written,
};
pub use signal::{Spawner, Task};
pub use store::{Device, DeviceStats, FormatOptions, format, inspect};
pub use superblock::{FORMAT_VERSION, Invalid, Superblock};
