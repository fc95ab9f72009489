//! Checking and mending: a store that was killed is clean, every kind of damage is found and named, what is promised to be
//! mended is mended, and the daemon serves afterwards.
#![expect(clippy::expect_used, reason = "a test ends at the first surprise")]

mod common;

use common::{Client, Daemon, ROOT, Rig, pattern};
use node::fsck::{self, Options, Report};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use wire::{Errno, Ino, Status};

const BLOCK: u64 = 4096;

fn check(rig: &Rig, options: Options) -> Report {
    let handle = fsck::open(&rig.config.devices[0], false).expect("nobody has it");
    fsck::check(&handle, options, Box::new(|_, _, _| {})).expect("it can be checked")
}

fn repair(rig: &Rig) -> Report {
    let handle = fsck::open(&rig.config.devices[0], true).expect("nobody has it");
    fsck::repair(&handle, Options::default(), Box::new(|_, _, _| {})).expect("it can be mended")
}

#[track_caller]
fn clean(rig: &Rig) -> Report {
    let report = check(rig, Options { data: true });
    assert!(report.is_clean(), "{report:#?}");
    report
}

fn classes(report: &Report) -> Vec<&str> {
    let mut all: Vec<&str> = report.findings.iter().map(|f| f.class.as_str()).collect();
    all.dedup();
    all
}

/// `/dir/file` with three chunks, `/dir/small`, and `/gone`, which is deleted.
async fn fill(c: &Client) -> Ino {
    let dir = c.mkdir(ROOT, "dir").await.expect("mkdir");
    let (file, object) = c.create(dir, "file").await.expect("create");
    c.write(file, object, 0, &pattern(1, 5 << 19)).await.expect("write");
    let (small, object) = c.create(dir, "small").await.expect("create");
    c.write(small, object, 0, &pattern(2, 5000)).await.expect("write");
    let (gone, object) = c.create(ROOT, "gone").await.expect("create");
    c.write(gone, object, 0, &pattern(3, 3 << 20)).await.expect("write");
    c.unlink(ROOT, "gone").await.expect("unlink");
    file
}

async fn serves(c: &Client) {
    let dir = c.lookup(ROOT, "dir").await.expect("lookup").ino();
    let file = c.lookup(dir, "file").await.expect("lookup").ino();
    assert!(c.read(file).await.expect("read") == pattern(1, 5 << 19));
    let (new, object) = c.create(dir, "new").await.expect("create");
    c.write(new, object, 0, &pattern(4, 70_000)).await.expect("write");
    assert!(c.read(new).await.expect("read") == pattern(4, 70_000));
}

fn stopped(shards_on: u16) -> Rig {
    let rig = Rig::new(1 << 29, shards_on);
    let node = rig.start();
    rig.with_client(1, async |c| fill(&c).await);
    node.stop();
    rig
}

fn flip(device: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(device).expect("the device");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    byte[0] ^= 0x55;
    file.write_all_at(&byte, offset).expect("written");
}

/// Places of the device that hold this block.
fn places(device: &Path, block: &[u8]) -> Vec<u64> {
    let bytes = std::fs::read(device).expect("the device");
    let blocks = bytes.chunks_exact(BLOCK as usize).enumerate();
    blocks.filter(|(_, b)| *b == block).map(|(n, _)| n as u64 * BLOCK).collect()
}

#[test]
fn a_store_is_clean_after_a_stop_and_after_kills() {
    let rig = stopped(1);
    let report = clean(&rig);
    assert!(report.clean_stop && report.inodes >= 4 && report.chunks >= 4, "{report:#?}");
    for life in 0..3 {
        let mut daemon = Daemon(rig.spawn());
        rig.with_client(10 + life, async |c| {
            serves(&c).await;
            let dir = c.lookup(ROOT, "dir").await.expect("lookup").ino();
            c.unlink(dir, "new").await.expect("unlink");
            let (_, _) = c.create(dir, "left").await.expect("create");
            c.unlink(dir, "left").await.expect("unlink");
            daemon.kill();
        });
        let report = clean(&rig);
        assert!(!report.clean_stop);
    }
}

#[test]
fn a_check_changes_nothing_and_a_device_in_use_is_refused() {
    let rig = stopped(1);
    let device = &rig.config.devices[0];
    let before = std::fs::read(device).expect("the device");
    clean(&rig);
    assert!(before == std::fs::read(device).expect("the device"), "a check wrote to the device");
    let node = rig.start();
    let refused = fsck::open(device, false).expect_err("the node has it");
    assert!(refused.to_string().contains("in use"), "{refused}");
    node.stop();
}

#[test]
fn a_damaged_copy_of_each_structure_is_found_and_mended() {
    let rig = stopped(1);
    let device = rig.config.devices[0].clone();
    let layout = {
        let handle = fsck::open(&device, false).expect("nobody has it");
        let inspect = async move {
            let file = handle.attach().expect("attached");
            chunkstore::inspect(&file).await.expect("a store").layout
        };
        reactor::run(reactor::Config::default(), inspect).expect("a reactor")
    };
    let roots = layout.root_slot(0, 0).map(|b| b * BLOCK + 64);
    let other = layout.root_slot(0, 1).map(|b| b * BLOCK + 64);
    let log = layout.shard_log(0)[1].start * BLOCK + 100;
    for (offsets, class) in [
        (vec![100], "superblock"),
        (vec![chunkstore::SUPER_B * BLOCK + 100], "superblock"),
        // One of the two slots is the newest.
        (vec![roots[1], other[1]], "metadata"),
        (vec![log], "metadata"),
    ] {
        offsets.iter().for_each(|o| flip(&device, *o));
        let report = check(&rig, Options::default());
        if class == "metadata" && report.is_clean() && offsets.len() == 1 {
            // The log was trimmed beyond what was damaged.
            continue;
        }
        assert_eq!(classes(&report), [class], "{report:#?}");
        assert_eq!(report.fixable() as u64, report.count);
        repair(&rig);
        clean(&rig);
    }
    let node = rig.start();
    rig.with_client(2, async |c| serves(&c).await);
    node.stop();
}

#[test]
fn a_bad_block_of_a_file_is_an_error_with_its_name() {
    let rig = stopped(2);
    let device = rig.config.devices[0].clone();
    let found = places(&device, &pattern(1, 5 << 19)[1 << 20..(1 << 20) + BLOCK as usize]);
    assert_eq!(found.len(), 1);
    flip(&device, found[0] + 9);
    let report = check(&rig, Options::default());
    assert!(report.is_clean(), "data is read on request only: {report:#?}");
    let report = check(&rig, Options { data: true });
    assert_eq!(classes(&report), ["data"], "{report:#?}");
    assert_eq!(report.findings[0].path.as_deref(), Some("/dir/file"));
    assert!(!report.findings[0].fixable && report.findings[0].text.contains("chunk 1 "), "{report:#?}");

    let (log, child) = rig.spawn_with_log();
    let mut daemon = Daemon(child);
    rig.with_client(2, async |c| {
        let dir = c.lookup(ROOT, "dir").await.expect("lookup").ino();
        let file = c.lookup(dir, "file").await.expect("lookup").ino();
        assert_eq!(c.read(file).await.expect_err("a bad block"), Status::Errno(Errno::EIO));
        let scrubbed = rig.scrub().await;
        assert_eq!(scrubbed["bad_chunks"], 1, "{scrubbed}");
        assert_eq!(scrubbed["bad_files"][0]["path"], "/dir/file", "{scrubbed}");
        assert_eq!(scrubbed["bad_files"][0]["chunk"], 1, "{scrubbed}");
        let shards = scrubbed["shards"].as_array().expect("a list");
        assert_eq!(shards.len(), 16, "those of both cores: {scrubbed}");
        let sum: u64 = shards.iter().filter_map(|s| s["chunks"].as_u64()).sum();
        assert_eq!(scrubbed["chunks"], sum);
        common::said(&log, &["file data failed", "chunk=1", "path=\"/dir/file\""]).await;
    });
    daemon.kill();
}
