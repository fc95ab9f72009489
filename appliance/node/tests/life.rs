//! A node in this process: what was acknowledged is there after it was stopped, and after it was just dropped.
#![expect(clippy::expect_used, reason = "a test ends at the first surprise")]

mod common;

use common::{Client, ROOT, Rig, errno, pattern};
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
fn a_full_device_says_so_and_deletion_gives_space_back() {
    let rig = Rig::new(256 << 20, 1);
    let node = rig.start();
    rig.with_client(1, async |c| {
        let mut names = Vec::new();
        let full = 'fill: loop {
            let name = format!("f{}", names.len());
            let (ino, object) = c.create(ROOT, &name).await.expect("names are made on a full device, too");
            names.push(name);
            for i in 0..8_u64 {
                if let Err(e) = c.write(ino, object, i << 20, &pattern(i, 1 << 20)).await {
                    break 'fill e;
                }
            }
            assert!(names.len() < 64, "256 MiB are full at last");
        };
        assert_eq!(full, errno(Errno::ENOSPC));
        for name in &names {
            c.unlink(ROOT, name).await.expect("deletion works on a full device");
        }
        // Freed after the next flush, which comes by the clock.
        let (ino, object) = c.create(ROOT, "again").await.expect("create");
        let mut tries = 0;
        while let Err(e) = c.write(ino, object, 0, &pattern(3, 1 << 20)).await {
            assert_eq!(e, errno(Errno::ENOSPC));
            tries += 1;
            assert!(tries < 200, "space comes back");
            reactor::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    node.stop();
}
