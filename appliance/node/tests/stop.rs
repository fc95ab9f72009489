//! The stop that systemd asks for: nothing acknowledged is lost, no error reaches a client, the device is clean.
#![expect(clippy::expect_used, reason = "a test ends at the first surprise")]

mod common;

use common::load::{PATIENCE, acknowledged, verify, worker};
use common::{Client, Daemon, ROOT, Rig, pattern};
use node::{Control, Ended};
use std::cell::Cell;
use std::rc::Rc;
use wire::{LockKind, LockOwner, LockRange, LockSpace, LockType, Status, message as m};

const STOPS: usize = 4;

/// Clients ask without a pause while daemons come and go. What a daemon did not answer the next one does.
#[test]
fn sigterm_under_load_loses_nothing_and_fails_nothing() {
    let rig = Rig::new(1 << 30, 1).patient();
    let mut daemon = Daemon(rig.spawn());
    rig.with_client(1, async |first| {
        let second = Client::connect(rig.address(), rig.key(), 2).await;
        let (stop, done) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
        let workers: Vec<_> = [(first.clone(), 1), (first.clone(), 2), (second.clone(), 3)]
            .into_iter()
            .map(|(c, id)| reactor::spawn(worker(c, id, Rc::clone(&stop), Rc::clone(&done))))
            .collect();
        for _ in 0..STOPS {
            acknowledged(&done, 30).await;
            assert_eq!(daemon.terminate(), Some(0), "a stop under load is a clean one");
            rig.assert_clean();
            daemon = Daemon(rig.spawn());
        }
        acknowledged(&done, 30).await;
        stop.set(true);
        for w in workers {
            let mut r = w.await.expect("the worker ends");
            verify(&second, &mut r).await.expect("no request fails");
        }
    });
    assert_eq!(daemon.terminate(), Some(0));
    rig.assert_clean();
}

/// Nobody waits for it: it may last for days. The wait goes on with the next daemon.
#[test]
fn a_lock_wait_neither_holds_up_a_stop_nor_fails() {
    let rig = Rig::new(256 << 20, 1).patient();
    let node = rig.start();
    let lock = |ino, owner| m::SetLock {
        ino,
        space: LockSpace::Flock,
        owner: LockOwner(owner),
        lock: LockType::Lock(LockKind::Write),
        range: LockRange::ALL,
        pid: 1,
        wait: true,
    };
    let node = rig.with_client(1, async |c| {
        let (ino, _) = c.create(ROOT, "f").await.expect("create");
        c.call(lock(ino, 1), &[]).await.expect("nobody has it");
        let waiting = c.clone();
        let wait = reactor::spawn(async move { waiting.call(lock(ino, 2), &[]).await.map(drop) });
        // Requests of a connection are taken in order: an answer says that the wait came in before it.
        c.getattr(ino).await.expect("attributes");
        node.stop();
        rig.assert_clean();
        let next = rig.start();
        // This client reclaims no locks, so that nobody holds one now.
        let got = reactor::timeout(PATIENCE, wait).await.expect("the wait ends").expect("it does not panic");
        assert_eq!(got, Ok(()), "the stop never reached who waits");
        next
    });
    node.stop();
}

/// A start may take long after a crash; the signal was heard of only when it was over.
#[test]
fn a_node_that_is_told_to_stop_before_it_serves_ends_and_starts_again() {
    let rig = Rig::new(256 << 20, 2);
    let node = rig.start();
    let ino = rig.with_client(1, async |c: Client| {
        let (ino, object) = c.create(ROOT, "file").await.expect("create");
        c.write(ino, object, 0, &pattern(1, 300_000)).await.expect("write");
        ino
    });
    node.drop_dead();
    for _ in 0..3 {
        let (control, told) = reactor::mail::channel(1);
        control.send_blocking(Control::Stop).expect("room for one");
        let ended = node::run(&rig.config, told, |_| panic!("it must not serve"));
        assert_eq!(ended.expect("it is no error"), Ended::Early);
    }
    let node = rig.start();
    rig.with_client(2, async |c| {
        assert!(c.read(ino).await.expect("read") == pattern(1, 300_000));
        assert_eq!(c.lookup(ROOT, "none").await.err(), Some(Status::Errno(wire::Errno::ENOENT)));
    });
    node.stop();
    rig.assert_clean();
}
