//! Truncations and sizes over the end of a daemon: what a damaged block and a kill leave of them.
#![expect(clippy::expect_used, reason = "a test ends at the first surprise")]

mod common;

use common::{CRED, Client, ROOT, Rig, errno, pattern};
use std::os::unix::fs::FileExt;
use wire::message as m;
use wire::{Errno, Ino, Status};

const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2;
const ZERO_RANGE: u32 = 16;

async fn fallocate(c: &Client, ino: Ino, mode: u32, offset: u64, len: u64) -> Result<(), Status> {
    c.call(m::Fallocate { ino, mode, offset, len, cred: CRED }, &[]).await.map(drop)
}

/// Spoils the block of the device that holds these bytes.
fn spoil(rig: &Rig, block: &[u8]) {
    let device = &rig.config.devices[0];
    let device = std::fs::OpenOptions::new().read(true).write(true).open(device).expect("the device");
    let mut have = vec![0; block.len()];
    let blocks = device.metadata().expect("its length").len() / block.len() as u64;
    let places = (0..blocks).map(|b| b * block.len() as u64).filter(|at| {
        device.read_exact_at(&mut have, *at).expect("a read");
        have == block
    });
    let places: Vec<u64> = places.collect();
    assert_eq!(places.len(), 1, "the block is on the device");
    device.write_all_at(&[0xff; 64], places[0] + 100).expect("a write");
}

/// The start once ended at a truncation into a damaged block, and every one after it.
#[test]
fn a_bad_block_under_a_truncation_does_not_stop_the_next_start() {
    let rig = Rig::new(256 << 20, 1);
    let node = rig.start();
    let data = pattern(77, 8192);
    let (ino, object) = rig.with_client(1, async |c| {
        let (ino, object) = c.create(ROOT, "f").await.expect("create");
        c.write(ino, object, 0, &data).await.expect("write");
        c.call(m::CloseSession {}, &[]).await.expect("the session ends");
        (ino, object)
    });
    node.stop();
    spoil(&rig, &data[..4096]);
    let node = rig.start();
    let node = rig.with_client(2, async |c| {
        let cut = c.truncate(ino, 1000).await;
        assert_eq!(cut.map(drop), Err(errno(Errno::EIO)));
        // The next start cuts: what is written until then would be lost.
        assert_eq!(c.write(ino, object, 0, &data).await, Err(errno(Errno::EIO)));
        node.drop_dead();
        let node = rig.start();
        assert_eq!(c.write(ino, object, 0, &data).await, Err(errno(Errno::EIO)));
        assert_eq!(
            c.truncate(ino, 2000).await.map(drop),
            Err(errno(Errno::EIO)),
            "what was cut off stays away"
        );
        let attr = c.truncate(ino, 0).await.expect("the damaged body is dropped");
        c.write(ino, attr.object(), 0, &data).await.expect("a new body takes writes");
        assert_eq!(c.read(ino).await.as_deref(), Ok(&data[..]));
        node
    });
    node.stop();
}

/// A rebuild once took the place of a chunk without bytes for the end of the file.
#[test]
fn keep_size_keeps_the_size_over_a_kill() {
    let rig = Rig::new(256 << 20, 1);
    let node = rig.start();
    let inos = rig.with_client(1, async |c| {
        let (f, object) = c.create(ROOT, "f").await.expect("create");
        c.write(f, object, 0, &pattern(1, 100)).await.expect("write");
        fallocate(&c, f, KEEP_SIZE, 0, 8 << 20).await.expect("preallocate");
        let (z, object) = c.create(ROOT, "z").await.expect("create");
        c.write(z, object, 0, &pattern(1, 100)).await.expect("write");
        fallocate(&c, z, ZERO_RANGE | KEEP_SIZE, 50, 8000).await.expect("zero");
        [f, z]
    });
    node.drop_dead();
    let node = rig.start();
    rig.with_client(1, async |c| {
        for ino in inos {
            assert_eq!(c.getattr(ino).await.expect("attributes").size.get(), 100);
        }
    });
    node.drop_dead();
}

/// A punch once went through every chunk up to its end, those that do not exist too, and nothing else ran meanwhile.
#[test]
fn a_huge_punch_does_not_stop_the_node() {
    let rig = Rig::new(256 << 20, 1);
    let node = rig.start();
    rig.with_client(1, async |c| {
        let (ino, object) = c.create(ROOT, "f").await.expect("create");
        c.write(ino, object, 0, &pattern(1, 100)).await.expect("write");
        fallocate(&c, ino, PUNCH_HOLE | KEEP_SIZE, 0, 1 << 51).await.expect("punch");
        assert_eq!(c.read(ino).await, Ok(vec![0; 100]));
    });
    node.drop_dead();
}
