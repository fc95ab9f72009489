//! A device as a whole: formatting, opening, growing, stopping.
//!
//! Owns the superblocks. Shards and the namespace log are opened through it; each core attaches its own.

use crate::device::BlockDevice;
use crate::error::{DeviceError, Error};
use crate::flush::{Damage, Flusher, Mark, Mended, Shared};
use crate::group::Owner;
use crate::layout::{BLOCK, BLOCK_BYTES, Layout, MAX_CHUNK, MAX_SHARDS, MIN_DEVICE, SUPER_B};
use crate::nslog::{Log, write_root};
use crate::pool::Pool;
use crate::ring::Anchor;
use crate::root::{PAGES, Root};
use crate::shard::{Shard, ShardOptions};
use crate::signal::Spawner;
use crate::superblock::{self, FORMAT_VERSION, Invalid, Superblock};
use hugepages::{Arena, Buf};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes zeroed at a time at format.
const ZERO_STEP: u64 = 1 << 20;
/// Blocks zeroed at the end of the device: a GPT keeps its second copy there.
const TAIL: u64 = 8;

/// How a device is formatted.
#[derive(Clone, Copy, Debug)]
pub struct FormatOptions {
    /// Number of shards, fixed for ever: at least the cores that the store will ever run on.
    pub shards: u16,
    /// Bytes of a chunk, a power of two up to 1 MiB.
    pub chunk_size: u32,
    /// Destroy what is on the device.
    pub force: bool,
}

impl Default for FormatOptions {
    fn default() -> Self {
        FormatOptions { shards: 16, chunk_size: MAX_CHUNK, force: false }
    }
}

/// Figures of a device for `status` and `df`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceStats {
    /// Bytes in use by the store.
    pub capacity: u64,
    /// Bytes of all zones.
    pub zone_bytes: u64,
    /// Bytes of zones that no shard owns.
    pub free_bytes: u64,
    /// The part of them that user data may take; free blocks in the shards' own zones come on top.
    pub user_free_bytes: u64,
    /// The part of `free_bytes` by which the namespace may still grow.
    pub system_free_bytes: u64,
    /// Bytes kept back from user data.
    pub reserve_bytes: u64,
    /// Copies of metadata repaired from the other since opening.
    pub repaired: u64,
    /// Reads of file data that failed or had a wrong CRC since opening.
    pub bad_blocks: u64,
    /// Data written since the last flush began.
    pub unflushed_bytes: u64,
    /// A flush failed: nothing is written any more.
    pub failed: bool,
}

/// An open device on one core.
pub struct Device<D> {
    device: D,
    spawner: Spawner,
    flusher: Flusher<D>,
    shared: Arc<Shared>,
    /// Where the superblocks are kept; the other cores' handles have none.
    superblock: Option<RefCell<Superblock>>,
}

async fn read_block<D: BlockDevice>(device: &D, block: u64, blocks: u64) -> std::io::Result<Buf> {
    let (result, buf) = device.read(block * BLOCK_BYTES, Buf::heap(blocks as usize * BLOCK)).await;
    result.map(|()| buf)
}

async fn write_super<D: BlockDevice>(
    device: &D,
    copy: usize,
    superblock: &Superblock,
) -> Result<(), DeviceError> {
    let at = [0, SUPER_B][copy] * BLOCK_BYTES;
    let block = Buf::copy_of(&superblock.encode()).freeze();
    device.write(at, block).await.map_err(DeviceError::io("writing a superblock"))?;
    device.flush().await.map_err(DeviceError::io("flushing a superblock"))
}

async fn zero<D: BlockDevice>(
    device: &D,
    from: u64,
    blocks: u64,
    mut progress: impl FnMut(u64),
) -> Result<(), DeviceError> {
    let zeros = Buf::heap(ZERO_STEP as usize).freeze();
    let (mut at, end) = (from * BLOCK_BYTES, (from + blocks) * BLOCK_BYTES);
    while at < end {
        let len = (end - at).min(ZERO_STEP);
        let write = device.write(at, zeros.slice(..len as usize)).await;
        write.map_err(DeviceError::io("writing zeros"))?;
        at += len;
        progress(len);
    }
    Ok(())
}

/// Makes a store of a device. Writes all fixed regions; `progress` gets bytes done and in all.
pub async fn format<D: BlockDevice>(
    device: &D,
    options: &FormatOptions,
    mut progress: impl FnMut(u64, u64),
) -> Result<Superblock, DeviceError> {
    let capacity = device.capacity();
    if capacity < MIN_DEVICE {
        return Err(DeviceError::TooSmall { got: capacity });
    }
    if options.shards == 0 || options.shards > MAX_SHARDS {
        return Err(DeviceError::Option("the number of shards must be between 1 and 256"));
    }
    let chunk = options.chunk_size;
    if !chunk.is_power_of_two() || !(BLOCK as u32..=MAX_CHUNK).contains(&chunk) {
        return Err(DeviceError::Option("the chunk size must be a power of two from 4 KiB to 1 MiB"));
    }
    let layout = Layout::new(capacity, options.shards, chunk);
    if layout.validate().is_err() {
        return Err(DeviceError::Option("the device is too small for that many shards"));
    }
    if !options.force {
        let probe = (crate::signature::PROBE / BLOCK) as u64;
        let head = read_block(device, 0, probe).await.map_err(DeviceError::io("reading the device"))?;
        if let Some(found) = crate::signature::detect(&head) {
            return Err(DeviceError::Occupied { found });
        }
    }
    let mut uuid = [0; 16];
    reactor::random(&mut uuid).map_err(DeviceError::io("asking for randomness"))?;
    // Version 4, variant 1 of RFC 9562.
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let superblock =
        Superblock { version: FORMAT_VERSION, uuid, generation: 1, incarnation: 0, clean: true, layout };
    let layout = &superblock.layout;
    let all = layout.zones.start * BLOCK_BYTES;
    let mut done = 0;
    // The superblocks go with it, so that a format cut short leaves no store.
    zero(device, 0, layout.zones.start, |n| {
        done += n;
        progress(done, all);
    })
    .await?;
    zero(device, layout.capacity / BLOCK_BYTES - TAIL, TAIL, |_| {}).await?;
    for owner in 0..=layout.shards {
        let root = Root {
            generation: 1,
            incarnation: 0,
            anchor: Anchor { next: 1, at: 0, prev: 0 },
            flushed: 0,
            pages: if owner < layout.shards { vec![[0, 0]; PAGES] } else { Vec::new() },
        };
        let id = Owner { tag: superblock.tag(), owner };
        write_root(device, layout, id, 0, &root, None).await.map_err(|e| DeviceError::Io {
            what: "writing a root",
            source: std::io::Error::other(e.to_string()),
        })?;
    }
    device.flush().await.map_err(DeviceError::io("flushing the device"))?;
    write_super(device, 0, &superblock).await?;
    write_super(device, 1, &superblock).await?;
    Ok(superblock)
}

async fn read_supers<D: BlockDevice>(device: &D) -> Result<superblock::Chosen, DeviceError> {
    let capacity = device.capacity();
    if capacity < (SUPER_B + 1) * BLOCK_BYTES {
        return Err(DeviceError::TooSmall { got: capacity });
    }
    let mut copies = [Err(Invalid::Foreign), Err(Invalid::Foreign)];
    for (at, copy) in [0, SUPER_B].into_iter().zip(&mut copies) {
        *copy = match read_block(device, at, 1).await {
            Ok(block) => Superblock::decode(&block),
            Err(_) => Err(Invalid::Value("it can't be read")),
        };
    }
    let chosen = match superblock::choose(copies) {
        Ok(chosen) => chosen,
        Err([Invalid::Newer(found), _] | [_, Invalid::Newer(found)]) => {
            return Err(DeviceError::Newer { found });
        }
        Err([Invalid::Foreign, Invalid::Foreign]) => {
            let probe = (crate::signature::PROBE / BLOCK) as u64;
            let head = read_block(device, 0, probe).await.map_err(DeviceError::io("reading the device"))?;
            return Err(DeviceError::NotOurs { found: crate::signature::detect(&head) });
        }
        Err([a, b]) => return Err(DeviceError::BothSuperblocks { a, b }),
    };
    let recorded = chosen.superblock.layout.capacity;
    if capacity < recorded {
        return Err(DeviceError::Shrank { got: capacity, recorded });
    }
    Ok(chosen)
}

/// Reads what a device says of itself, without opening it for writing.
pub async fn inspect<D: BlockDevice>(device: &D) -> Result<Superblock, DeviceError> {
    Ok(read_supers(device).await?.superblock)
}

impl<D: BlockDevice> Device<D> {
    /// Opens a store for writing: counts the incarnation and clears the clean mark, durably, before anything else.
    pub async fn open(device: D, spawner: Spawner) -> Result<Device<D>, DeviceError> {
        let chosen = read_supers(&device).await?;
        let mut superblock = chosen.superblock;
        if chosen.damaged {
            tracing::warn!(copy = chosen.rewrite, "a superblock was damaged and is rewritten");
        }
        superblock.generation += 1;
        superblock.incarnation += 1;
        let clean = std::mem::replace(&mut superblock.clean, false);
        // The copy that is bad or old comes first: at every moment one of them is whole.
        let first = chosen.rewrite.unwrap_or(0);
        write_super(&device, first, &superblock).await?;
        write_super(&device, 1 - first, &superblock).await?;
        let layout = superblock.layout.clone();
        let shared = Arc::new(Shared {
            tag: superblock.tag(),
            incarnation: superblock.incarnation,
            clean,
            pool: Pool::new(layout.zone_count(), layout.reserve_zones(), layout.shards),
            marks: (0..=layout.shards).map(|_| Mark::default()).collect(),
            unflushed: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            flights: crate::flush::Flights::default(),
            damage: Damage::default(),
            capacity: AtomicU64::new(layout.capacity),
            layout,
        });
        if chosen.damaged {
            let block = [0, SUPER_B][first];
            let what = format!("superblock {}", first + 1);
            shared.damage.mended(Mended { what, block, unfinished: false });
        }
        let mut opened = Device::attach(device, spawner, shared);
        opened.superblock = Some(RefCell::new(superblock));
        Ok(opened)
    }

    /// The same store on another core, over that core's handle of the device.
    pub fn attach(device: D, spawner: Spawner, shared: Arc<Shared>) -> Device<D> {
        let flusher = Flusher::new(device.clone(), Arc::clone(&shared), Rc::clone(&spawner));
        Device { device, spawner, flusher, shared, superblock: None }
    }

    /// What the other cores attach to.
    #[must_use]
    pub fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Number of shards.
    #[must_use]
    pub fn shards(&self) -> u16 {
        self.shared.layout.shards
    }

    /// Bytes of a chunk.
    #[must_use]
    pub fn chunk_size(&self) -> u32 {
        self.shared.layout.chunk_size
    }

    /// Counts openings of the store.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.shared.incarnation
    }

    /// The superblock as last written; on the core that opened the store only.
    #[must_use]
    pub fn superblock(&self) -> Option<Superblock> {
        self.superblock.as_ref().map(|s| s.borrow().clone())
    }

    /// Copies of metadata that opening has written anew from the other, the first thousand.
    #[must_use]
    pub fn mended(&self) -> Vec<Mended> {
        self.shared.damage.all_mended()
    }

    /// Whether the store had been stopped clean before it was opened.
    #[must_use]
    pub fn was_clean(&self) -> bool {
        self.shared.clean
    }

    /// Opens a shard on this core. Space can be taken once every shard is open, on whichever core.
    pub async fn open_shard(&self, number: u16, options: ShardOptions) -> Result<Shard<D>, Error> {
        if number >= self.shards() {
            return Err(Error::Invalid("no such shard"));
        }
        let spawner = Rc::clone(&self.spawner);
        Shard::open(self.device.clone(), self.flusher.clone(), spawner, number, options).await
    }

    /// Opens the namespace log on this core; `replay` gets the records after the last trim, in order.
    pub async fn open_log(
        &self,
        arena: Option<Arena>,
        replay: impl FnMut(u64, &[u8]) -> Result<(), Error>,
    ) -> Result<Log<D>, Error> {
        let spawner = Rc::clone(&self.spawner);
        Log::open(self.device.clone(), self.flusher.clone(), spawner, arena, replay).await
    }

    /// Makes everything durable that completed before, on all shards and the log. Concurrent callers share a flush.
    pub async fn flush(&self) -> Result<(), Error> {
        self.flusher.flush().await
    }

    /// Whether anything completed since the last flush, or this core's logs should record what was flushed.
    #[must_use]
    pub fn needs_flush(&self) -> bool {
        self.flusher.needed()
    }

    /// Uses what the device has grown by since; gives the new capacity. Shards go on working meanwhile.
    pub async fn grow(&self) -> Result<u64, DeviceError> {
        let Some(cell) = &self.superblock else {
            return Err(DeviceError::Option("a device is grown on the core that opened it"));
        };
        let mut superblock = cell.borrow().clone();
        let recorded = superblock.layout.capacity;
        let capacity = self.device.capacity() / BLOCK_BYTES * BLOCK_BYTES;
        if capacity < recorded {
            return Err(DeviceError::Shrank { got: capacity, recorded });
        }
        if capacity == recorded {
            return Ok(recorded);
        }
        superblock.layout.capacity = capacity;
        superblock.layout.zones.blocks = capacity / BLOCK_BYTES - superblock.layout.zones.start;
        superblock.generation += 1;
        let zones = superblock.layout.zone_count();
        if u64::from(zones) > self.shared.pool.limit() {
            return Err(DeviceError::GrewTooFar);
        }
        // On the device before any log can name a block beyond the old end.
        write_super(&self.device, 0, &superblock).await?;
        write_super(&self.device, 1, &superblock).await?;
        self.shared.pool.grow(zones, superblock.layout.reserve_zones());
        self.shared.capacity.store(capacity, Ordering::Release);
        *cell.borrow_mut() = superblock;
        Ok(capacity)
    }

    /// Marks the store clean. Every shard and the log must have been stopped.
    pub async fn stop(&self) -> Result<(), DeviceError> {
        let Some(cell) = &self.superblock else {
            return Err(DeviceError::Option("a device is stopped on the core that opened it"));
        };
        let mut superblock = cell.borrow().clone();
        superblock.generation += 1;
        superblock.clean = !self.shared.failed.load(Ordering::Acquire);
        self.device.flush().await.map_err(DeviceError::io("flushing the device"))?;
        write_super(&self.device, 0, &superblock).await?;
        write_super(&self.device, 1, &superblock).await?;
        *cell.borrow_mut() = superblock;
        Ok(())
    }

    /// What it lies on.
    #[must_use]
    pub fn below(&self) -> &D {
        &self.device
    }

    /// Figures for `status` and `df`.
    #[must_use]
    pub fn stats(&self) -> DeviceStats {
        let shared = &self.shared;
        let zone = u64::from(shared.layout.zone_blocks) * BLOCK_BYTES;
        DeviceStats {
            capacity: shared.capacity.load(Ordering::Acquire),
            zone_bytes: u64::from(shared.pool.zones()) * zone,
            free_bytes: u64::from(shared.pool.free()) * zone,
            user_free_bytes: u64::from(shared.pool.user_free()) * zone,
            system_free_bytes: u64::from(shared.pool.system_free()) * zone,
            reserve_bytes: u64::from(shared.pool.reserve()) * zone,
            repaired: shared.damage.repaired.load(Ordering::Relaxed),
            bad_blocks: shared.damage.bad_blocks.load(Ordering::Relaxed),
            unflushed_bytes: shared.unflushed.load(Ordering::Acquire),
            failed: shared.failed.load(Ordering::Acquire),
        }
    }
}
