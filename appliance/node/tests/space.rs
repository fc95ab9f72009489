//! Full devices: what is refused, what still works, and that the space comes back whole, round after round.
#![expect(clippy::expect_used, reason = "a test ends at the first surprise")]

mod common;

use common::{CRED, Client, Daemon, ROOT, Rig, errno};
use node::units::Millis;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use wire::message as m;
use wire::{Errno, Status};

/// Requests under way at once.
const WIDTH: u32 = 32;

/// Bytes in use, as df(1) counts them.
async fn used(c: &Client) -> u64 {
    let stat = c.call(m::StatFs {}, &[]).await.expect("statfs");
    let stat = stat.decode::<m::StatFsReply>().expect("StatFs").stat;
    (stat.blocks.get() - stat.free.get()) * u64::from(stat.block_size.get())
}

/// Waits until no more than `bytes` are used: freed space comes back with the next flushes, or never.
async fn until_used(c: &Client, bytes: u64) {
    while used(c).await > bytes {
        reactor::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the database, which names have made large, is small again: until then what it left free is not offered to new
/// names.
async fn until_tidied(c: &Client) {
    /// What a database may keep for good.
    const ENOUGH: u64 = 4 << 20;
    loop {
        let reply = c.call(m::Status {}, &[]).await.expect("a report");
        let report: serde_json::Value = serde_json::from_slice(&reply.payload).expect("JSON");
        if report["database"]["volume_bytes"].as_u64().expect("a size") <= ENOUGH {
            return;
        }
        reactor::sleep(Duration::from_millis(50)).await;
    }
}

/// Takes all space that file data may have; gives the number of files that it is in.
async fn fill(c: &Client, round: u32) -> u32 {
    for n in 0.. {
        let (ino, _) = c.create(ROOT, &format!("data{round}-{n}")).await.expect("a file");
        let mut offset = 0;
        while offset < 64 << 20 {
            let request = m::Fallocate { ino, mode: 0, offset, len: 1 << 20, cred: CRED };
            match c.call(request, &[]).await {
                Ok(_) => offset += 1 << 20,
                Err(e) => {
                    assert_eq!(e, errno(Errno::ENOSPC));
                    return n + 1;
                }
            }
        }
    }
    unreachable!("the device is finite")
}

/// A long name: it takes room.
fn name(round: u32, n: u32) -> String {
    format!("{round}-{n}-{}", "x".repeat(230))
}

/// Runs `each` for 0, 1, 2 and so on, some at a time, until one fails; gives how many did not, and the first failure.
async fn crowd<F>(n: u32, each: impl Fn(u32) -> F + 'static) -> (u32, Option<Status>)
where
    F: Future<Output = Result<(), Status>> + 'static,
{
    let next = Rc::new(Cell::new(0));
    let failed: Rc<Cell<Option<Status>>> = Rc::default();
    let done = Rc::new(Cell::new(0));
    let each = Rc::new(each);
    let tasks: Vec<_> = (0..WIDTH)
        .map(|_| {
            let (next, failed, done, each) = (next.clone(), failed.clone(), done.clone(), each.clone());
            reactor::spawn(async move {
                while failed.get().is_none() && next.get() < n {
                    let i = next.get();
                    next.set(i + 1);
                    match each(i).await {
                        Ok(()) => done.set(done.get() + 1),
                        Err(e) => failed.set(failed.get().or(Some(e))),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("it was not aborted");
    }
    (done.get(), failed.get())
}

/// Space that files had was not seen to come back whole.
#[test]
fn three_times_full_of_data_and_empty_again() {
    let mut rig = Rig::new(256 << 20, 1);
    rig.config.durability.flush_ms = Millis(20);
    let node = rig.start();
    rig.with_client(1, async |c| {
        // What checkpoints take comes on top of what a fresh device uses, once.
        let bound = used(&c).await + (8 << 20);
        for round in 0..4 {
            let files = fill(&c, round).await;
            // Everything else works on a full device.
            c.mkdir(ROOT, "dir").await.expect("mkdir");
            let (small, object) = c.create(ROOT, "empty").await.expect("create");
            assert_eq!(c.write(small, object, 0, &[1; 4096]).await, Err(errno(Errno::ENOSPC)));
            c.rename(ROOT, "empty", ROOT, "renamed").await.expect("rename");
            assert_eq!(c.names(ROOT).await.len() as u32, files + 2);
            c.unlink(ROOT, "renamed").await.expect("unlink");
            c.call(m::Rmdir { dir: ROOT, name: b"dir" }, &[]).await.expect("rmdir");
            for n in 0..files {
                c.unlink(ROOT, &format!("data{round}-{n}")).await.expect("unlink");
            }
            until_used(&c, bound).await;
        }
    });
    node.stop();
}

/// Many small files used to end with a database that could not be written any more, and nothing could be deleted.
#[test]
fn names_fill_the_device_and_go_again() {
    let rig = Rig::new(256 << 20, 1).patient();
    let mut daemon = Daemon(rig.spawn());
    rig.with_client(1, async |c| {
        // Twice the 4 MiB that the database may keep, and checkpoints.
        let bound = used(&c).await + (12 << 20);
        for round in 0..2 {
            let files = fill(&c, round).await;
            let dir = c.mkdir(ROOT, "dir").await.expect("mkdir");
            let creating = c.clone();
            let (made, failed) = crowd(u32::MAX, move |n| {
                let c = creating.clone();
                async move { c.create(dir, &name(round, n)).await.map(drop) }
            })
            .await;
            assert_eq!(failed, Some(errno(Errno::ENOSPC)), "after {made} files");
            // A start meets the full device as it is.
            daemon.kill();
            daemon = Daemon(rig.spawn());
            let names = c.names(dir).await;
            assert_eq!(names.len() as u32, made, "files that were made and files that are there");
            let (deleting, count) = (c.clone(), made);
            let gone = crowd(count, move |n| {
                let (c, name) = (deleting.clone(), names[n as usize].clone());
                async move { c.unlink(dir, &name).await }
            });
            assert_eq!(gone.await, (count, None));
            c.call(m::Rmdir { dir: ROOT, name: b"dir" }, &[]).await.expect("rmdir");
            for n in 0..files {
                c.unlink(ROOT, &format!("data{round}-{n}")).await.expect("unlink");
            }
            // The database shrinks, too, once nothing is asked for a while.
            until_tidied(&c).await;
            until_used(&c, bound).await;
            assert!(made > 100, "{made} files in round {round}");
        }
    });
    daemon.kill();
}
