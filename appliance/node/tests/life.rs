//! A node in this process: what was acknowledged is there after it was stopped, and after it was just dropped.
#![expect(clippy::expect_used, reason = "a test ends at the first surprise")]

mod common;

use common::{Client, ROOT, Rig, errno, pattern};
use wire::message as m;
use wire::{Errno, Ino};

const DEVICE: u64 = 512 << 20;

async fn work(c: Client) -> (Ino, Ino) {
    let dir = c.mkdir(ROOT, "dir").await.expect("mkdir");
    let (file, object) = c.create(dir, "file").await.expect("create");
    assert_eq!(c.create(dir, "file").await.err(), Some(errno(Errno::EEXIST)));
    c.write(file, object, 0, &pattern(1, 3 << 20)).await.expect("write");
    c.write(file, object, (1 << 20) - 100, &pattern(2, 200)).await.expect("write over a boundary");
    let (log, _) = c.create(ROOT, "log").await.expect("create");
    for i in 0..40 {
        let at = c.append(log, &pattern(i, 50_000)).await.expect("append");
        assert_eq!(at, i * 50_000);
    }
    c.rename(dir, "file", ROOT, "moved").await.expect("rename");
    assert_eq!(c.truncate(file, (2 << 20) + 77).await.expect("truncate").size.get(), (2 << 20) + 77);
    let (gone, object) = c.create(ROOT, "gone").await.expect("create");
    c.write(gone, object, 0, &pattern(9, 100_000)).await.expect("write");
    c.unlink(ROOT, "gone").await.expect("unlink");
    (file, log)
}

async fn check(c: Client, file: Ino, log: Ino) {
    assert_eq!(c.lookup(ROOT, "gone").await.err(), Some(errno(Errno::ENOENT)));
    assert_eq!(c.lookup(ROOT, "moved").await.expect("lookup").ino(), file);
    let mut expect = pattern(1, 3 << 20);
    expect[(1 << 20) - 100..(1 << 20) + 100].copy_from_slice(&pattern(2, 200));
    expect.truncate((2 << 20) + 77);
    assert!(c.read(file).await.expect("read") == expect, "the file is what was written");
    let appended: Vec<u8> = (0..40).flat_map(|i| pattern(i, 50_000)).collect();
    assert!(c.read(log).await.expect("read") == appended, "the log is what was appended");
    let mut names = c.names(ROOT).await;
    names.sort();
    assert_eq!(names, ["dir", "log", "moved"]);
}

fn life(cores: u16) {
    let rig = Rig::new(DEVICE, cores);
    let node = rig.start();
    let (file, log) = rig.with_client(7, work);
    rig.with_client(8, async |c| check(c, file, log).await);
    node.drop_dead();
    let node = rig.start();
    rig.with_client(7, async |c| check(c, file, log).await);
    node.stop();
    let node = rig.start();
    rig.with_client(9, async |c| {
        check(c.clone(), file, log).await;
        // A truncated tail comes back as zeros, not as what was there.
        c.truncate(file, 3 << 20).await.expect("extend");
        let bytes = c.read(file).await.expect("read");
        assert!(bytes[(2 << 20) + 77..].iter().all(|b| *b == 0));
    });
    node.stop();
}

#[test]
fn nothing_acknowledged_is_lost_on_one_core() {
    life(1);
}

#[test]
fn nothing_acknowledged_is_lost_on_two_cores() {
    life(2);
}

#[test]
fn a_full_device_says_so_and_deletion_gives_space_back_at_once() {
    let rig = Rig::new(256 << 20, 1);
    let node = rig.start();
    rig.with_client(1, async |c| {
        let mut files = Vec::new();
        for round in 0..3 {
            files.push(c.create(ROOT, &format!("f{round}")).await.expect("create"));
        }
        let mut first = 0;
        for (round, (ino, object)) in files.into_iter().enumerate() {
            let mut written = 0_u64;
            let full = loop {
                if let Err(e) = c.write(ino, object, written << 20, &pattern(written, 1 << 20)).await {
                    break e;
                }
                written += 1;
                assert!(written < 256, "256 MiB are full at last");
            };
            assert_eq!(full, errno(Errno::ENOSPC));
            let name = format!("f{round}");
            c.unlink(ROOT, &name).await.expect("deletion works on a full device");
            // What was deleted has room for as much again at once: nobody has to wait for the next flush.
            first = if round == 0 { written } else { first };
            assert!(written >= first - first / 8, "{written} MiB in round {round}, {first} in the first");
        }
    });
    node.stop();
}

/// A listing once left the access time of its directory where it was.
#[test]
fn a_listing_moves_the_access_time_of_its_directory() {
    let rig = Rig::new(256 << 20, 1);
    let node = rig.start();
    rig.with_client(1, async |c| {
        let dir = c.mkdir(ROOT, "d").await.expect("mkdir");
        c.create(dir, "f").await.expect("create");
        let before = c.getattr(dir).await.expect("attributes");
        let noatime = m::ReadDir { dir, cookie: 0, max: 64 << 10, plus: false, noatime: true };
        c.call(noatime, &[]).await.expect("a page");
        assert_eq!(c.getattr(dir).await.expect("attributes").atime, before.atime, "it was asked to stay");
        assert_eq!(c.names(dir).await, ["f"]);
        let after = c.getattr(dir).await.expect("attributes");
        assert_ne!(after.atime, before.atime);
        assert_eq!((after.mtime, after.ctime), (before.mtime, before.ctime), "reading is no change");
    });
    node.stop();
}
