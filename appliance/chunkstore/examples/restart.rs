//! Measures a store on a file: filling it with chunks, restarting after a kill and after a clean stop, and memory.
//!
//! `cargo run --release -p chunkstore --example restart -- FILE [CHUNKS [WRITERS]]`: FILE is created, 12 GiB and sparse;
//! `... -- FILE open` only opens it.

use chunkstore::{
    Device, ENTRY_BYTES, FileDevice, FileHandle, FileOptions, FormatOptions, Key, Shard, ShardOptions,
    Spawner, Stamp,
};
use hugepages::Buf;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

const BYTES: u64 = 12 << 30;

type Error = Box<dyn std::error::Error>;

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0) * 1024
}

async fn open(path: &Path) -> Result<(Device<FileDevice>, Vec<Shard<FileDevice>>), Error> {
    let spawner: Spawner = Rc::new(|task| drop(reactor::spawn(task)));
    let (start, before) = (Instant::now(), resident());
    let device = Device::open(FileHandle::open(path, FileOptions::default())?.attach()?, spawner).await?;
    let mut shards = Vec::new();
    for number in 0..device.shards() {
        shards.push(device.open_shard(number, ShardOptions::default()).await?);
    }
    let chunks: u64 = shards.iter().map(|s| s.stats().chunks).sum();
    let grown = resident().saturating_sub(before);
    println!(
        "opened {chunks} chunks in {:?}; resident memory grew by {} MiB, {} bytes a chunk",
        start.elapsed(),
        grown >> 20,
        grown / chunks.max(1),
    );
    Ok((device, shards))
}

async fn fill(shards: &[Shard<FileDevice>], chunks: u64, depth: u64) -> Result<(), Error> {
    let start = Instant::now();
    let data = Buf::heap(4096).freeze();
    let mut writers = Vec::new();
    for writer in 0..depth {
        let (shards, data) = (shards.to_vec(), data.clone());
        writers.push(reactor::spawn(async move {
            for object in (writer..chunks).step_by(depth as usize) {
                let shard = &shards[object as usize % shards.len()];
                shard.write(Key { object, index: 0 }, 0, data.clone(), &Stamp::at(1)).await?;
            }
            Ok::<(), chunkstore::Error>(())
        }));
    }
    for writer in writers {
        writer.await.map_err(|_| "a writer was aborted")??;
    }
    let seconds = start.elapsed().as_secs_f64();
    let groups: u64 = shards.iter().map(|s| s.stats().log[0]).sum();
    println!("{groups} log groups, {:.1} records each", chunks as f64 / groups as f64);
    println!("wrote {chunks} chunks of 4 KiB in {seconds:.1} s, {:.0} a second", chunks as f64 / seconds);
    Ok(())
}

fn run(step: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    reactor::run(reactor::Config::default(), step)?
}

fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let path = PathBuf::from(args.next().ok_or("usage: restart FILE [CHUNKS [WRITERS]]")?);
    let what = args.next();
    if what.as_deref() == Some("open") {
        // In a process of its own the growth of memory is what the store takes.
        return run(async { open(&path).await.map(drop) });
    }
    let chunks = what.map_or(Ok(1_000_000), |n| n.parse())?;
    let depth = args.next().map_or(Ok(64), |n| n.parse())?;
    std::fs::File::create_new(&path)?.set_len(BYTES)?;
    println!("crc: {}; an entry takes at most {ENTRY_BYTES} bytes", chunkstore::crc_target());
    run(async {
        let start = Instant::now();
        let device = FileHandle::open(&path, FileOptions::default())?.attach()?;
        chunkstore::format(&device, &FormatOptions::default(), |_, _| {}).await?;
        println!("formatted in {:?}", start.elapsed());
        Ok(())
    })?;
    run(async {
        let (device, shards) = open(&path).await?;
        fill(&shards, chunks, depth).await?;
        device.flush().await?;
        Ok(())
    })?;
    println!("-- restart without a stop");
    run(async {
        let (device, shards) = open(&path).await?;
        for shard in &shards {
            shard.stop().await?;
        }
        device.stop().await?;
        Ok(())
    })?;
    println!("-- restart after a clean stop");
    run(async { open(&path).await.map(drop) })
}
