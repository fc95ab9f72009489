//! Long lists of work: a log that fills up, and many files removed at once.
#![expect(clippy::expect_used, reason = "a test ends at the first surprise")]

mod common;

use common::load::PATIENCE;
use common::{Client, Daemon, ROOT, Rig, pattern};
use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use wire::message as m;

/// Records that fill the namespace log several times over, while a file is written all the time. The log was once full for good,
/// for what would have emptied it waited for room in it.
#[test]
fn a_full_namespace_log_drains() {
    const WRITERS: u64 = 12;
    const VALUES: u64 = 60;
    let rig = Rig::new(512 << 20, 1);
    let mut daemon = Daemon(rig.spawn());
    rig.with_client(1, async |c| {
        let (dirty, object) = c.create(ROOT, "dirty").await.expect("create");
        let stop = Rc::new(Cell::new(false));
        let writers: Vec<_> = (0..WRITERS)
            .map(|t| {
                let c = c.clone();
                reactor::spawn(async move {
                    let (ino, _) = c.create(ROOT, &format!("f{t}")).await.expect("create");
                    for i in 0..VALUES {
                        let name = format!("user.a{}", i % 8);
                        let set = m::SetXattr { ino, flags: m::XattrFlags::default(), name: name.as_bytes() };
                        c.call(set, &pattern(i, 60_000)).await.expect("an attribute");
                    }
                })
            })
            .collect();
        let (writing, until) = (c.clone(), Rc::clone(&stop));
        let lazy = reactor::spawn(async move {
            for i in 0.. {
                if until.get() {
                    break;
                }
                writing.write(dirty, object, 0, &pattern(i, 100)).await.expect("write");
            }
        });
        let all = async {
            for w in writers {
                w.await.expect("it ends");
            }
            stop.set(true);
            lazy.await.expect("it ends");
        };
        // Far longer than it takes anywhere: the alternative is for ever.
        reactor::timeout(PATIENCE * 4, all).await.expect("the log drains");
    });
    daemon.kill();
    daemon = Daemon(rig.spawn());
    rig.with_client(2, async |c| {
        c.create(ROOT, "after").await.expect("it starts again and takes changes");
    });
    assert_eq!(daemon.terminate(), Some(0));
}

/// What is done with a file's name.
type Step = fn(Client, String) -> Pin<Box<dyn Future<Output = ()>>>;

/// The status report's list of free entries and free bytes.
async fn free(c: &Client) -> (u64, u64) {
    let reply = c.call(m::Status {}, &[]).await.expect("a report");
    let report: serde_json::Value = serde_json::from_slice(&reply.payload).expect("JSON");
    let number = |v: &serde_json::Value| v.as_u64().expect("a number");
    let used = report["device"][0]["shards"].as_array().expect("shards").iter();
    (number(&report["free_list"]["entries"]), used.map(|s| number(&s["used_blocks"])).sum())
}

/// Deletions once went one after another, at most 256 files between two flushes.
#[test]
fn many_files_removed_at_once_give_their_space_back() {
    const WORKERS: u64 = 16;
    const FILES: u64 = 100;
    let mut rig = Rig::new(256 << 20, 1);
    // Fewer flushes than batches of the list, however fast the machine is.
    rig.config.durability.flush_ms = node::units::Millis(200);
    let node = rig.start();
    rig.with_client(1, async |c| {
        let each = async |f: Step| {
            let workers: Vec<_> = (0..WORKERS)
                .map(|w| {
                    let c = c.clone();
                    reactor::spawn(async move {
                        for i in 0..FILES {
                            f(c.clone(), format!("{w}-{i}")).await;
                        }
                    })
                })
                .collect();
            for w in workers {
                w.await.expect("it ends");
            }
        };
        let before = free(&c).await.1;
        each(|c, name| {
            Box::pin(async move {
                let (ino, object) = c.create(ROOT, &name).await.expect("create");
                c.write(ino, object, 0, &[7; 10]).await.expect("write");
            })
        })
        .await;
        let full = free(&c).await.1;
        assert!(full >= before + WORKERS * FILES, "each file has a block: {before}, {full}");
        each(|c, name| Box::pin(async move { c.unlink(ROOT, &name).await.expect("unlink") })).await;
        let back = async {
            while free(&c).await.0 < WORKERS * FILES {
                reactor::sleep(Duration::from_millis(20)).await;
            }
        };
        reactor::timeout(PATIENCE, back).await.expect("every entry is worked off");
        let empty = free(&c).await.1;
        assert!(empty + WORKERS * FILES / 2 < full, "the space is there again: {before}, {full}, {empty}");
    });
    node.stop();
}
