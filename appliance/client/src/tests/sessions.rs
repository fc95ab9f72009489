//! Lost connections, restarted servers, lost sessions, silence, and the end.

use super::caching::Quiet;
use super::data::opened;
use super::fake::Fake;
use super::locking::{WRITE, lock};
use crate::service::*;
use hugepages::Bytes;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use wire::Opcode;
use wire::message::SessionPhase;
use wire::types::Status;

fn spawn<T: 'static>(fake: &Rc<Fake>, f: impl Future<Output = T> + 'static) -> Rc<Cell<Option<T>>> {
    let out = Rc::new(Cell::new(None));
    let result = Rc::clone(&out);
    crate::rpc::Rpc::spawn(&**fake, Box::pin(async move { out.set(Some(f.await)) }));
    fake.settle();
    result
}

fn unlink(client: &crate::Client) -> impl Future<Output = Result<()>> + 'static {
    let client = client.clone();
    async move { client.unlink(&Ctx::default(), ROOT_INO, b"f").await }
}

#[test]
fn an_answer_that_was_lost_is_heard_after_the_reconnect() {
    let (fake, client, _) = opened(b"", false);
    fake.model.borrow_mut().name(ROOT_INO, b"f", Ino(5));
    fake.model.borrow_mut().lose.insert(Opcode::Unlink);
    let result = spawn(&fake, unlink(&client));
    assert_eq!(result.take(), None);
    fake.model.borrow_mut().phases.push_back(Ok(SessionPhase::Resumed));
    fake.cut();
    fake.settle();
    assert_eq!(result.take(), Some(Ok(())));
    assert_eq!(fake.model.borrow().count(Opcode::Unlink), 1);
}

#[test]
fn operations_wait_for_a_server_that_is_away() {
    let (fake, client, h) = opened(b"abc", false);
    fake.up.set(false);
    fake.cut();
    let reader = client.clone();
    let result =
        spawn(&fake, async move { reader.read(&Ctx::default(), Ino(5), h, 0, 3).await.map(|r| r.to_vec()) });
    assert_eq!(result.take(), None);
    fake.model.borrow_mut().phases.push_back(Ok(SessionPhase::Resumed));
    fake.up.set(true);
    fake.run(crate::rpc::Rpc::sleep(&*fake, Duration::from_millis(50)));
    assert_eq!(result.take(), Some(Ok(b"abc".to_vec())));
}

#[test]
fn a_restarted_server_is_told_everything() {
    let (fake, client, h) = opened(b"abc", false);
    let ctx = Ctx::default();
    fake.model.borrow_mut().add(Ino(6), FileKind::Regular, b"");
    fake.run(client.setlk(&ctx, Ino(5), h, lock(WRITE), false)).expect("locked");
    fake.run(client.getattr(&ctx, Ino(6))).expect("attr");
    assert_eq!(client.stats().leases, 2);
    fake.model.borrow_mut().not_yours.insert(Ino(6));
    fake.model.borrow_mut().phases.push_back(Ok(SessionPhase::Reclaim));
    fake.cut();
    fake.settle();
    {
        let model = fake.model.borrow();
        assert_eq!(model.reclaimed_locks.len(), 1);
        assert_eq!(model.reclaimed_opens.iter().map(|o| o.ino).collect::<Vec<_>>(), [Ino(5)]);
        assert_eq!(model.reclaimed, [Ino(5)]);
        assert_eq!(model.log.last(), Some(&Opcode::ReclaimDone));
    }
    assert_eq!((client.stats().leases, client.stats().reclaims), (1, 1));
    // Attributes are asked for once more: a power loss may have taken changes back.
    fake.run(client.getattr(&ctx, Ino(5))).expect("asked");
    fake.run(client.getattr(&ctx, Ino(5))).expect("cached");
    fake.run(client.getattr(&ctx, Ino(6))).expect("asked");
    assert_eq!(fake.model.borrow().count(Opcode::GetAttr), 3);
    // Recalls name the serials of the restarted server.
    fake.notify(wire::message::Recall { ino: Ino(5), serial: 7, keep: wire::LeaseMode::None });
    fake.settle();
    assert_eq!(fake.model.borrow().returned.last().map(|r| (r.ino, r.serial)), Some((Ino(5), 7)));
}

/// The size from before the write was once shown for as long as the lease was held.
#[test]
fn a_change_that_a_restart_fell_into_is_seen() {
    let (fake, client, h) = opened(b"abc", true);
    let ctx = Ctx::default();
    let size = |client: &crate::Client| fake.run(client.getattr(&ctx, Ino(5))).expect("attr").attr.size.get();
    assert_eq!(size(&client), 3);
    fake.model.borrow_mut().lose.insert(Opcode::ChunkWrite);
    let writer = client.clone();
    let written = spawn(&fake, async move {
        let data = Bytes::from_static(b"xyzuv");
        writer.write(&Ctx::default(), Ino(5), h, 0, data, WriteFlags::default()).await.map(|w| w.len)
    });
    fake.model.borrow_mut().phases.push_back(Ok(SessionPhase::Reclaim));
    fake.cut();
    fake.settle();
    assert_eq!(written.take(), Some(Ok(5)));
    assert_eq!(size(&client), 5);
    assert!(client.stats().leases > 0);
}

#[test]
fn a_lost_session_loses_locks_and_caches_but_not_open_files() {
    let (fake, client, h) = opened(b"abc", false);
    let ctx = Ctx::default();
    fake.model.borrow_mut().add(Ino(6), FileKind::Regular, b"xyz");
    fake.model.borrow_mut().add(Ino(7), FileKind::Regular, b"gone");
    let flags = OpenFlags { read: true, ..OpenFlags::default() };
    let other = fake.run(client.open(&ctx, Ino(6), flags)).expect("opened").handle;
    let gone = fake.run(client.open(&ctx, Ino(7), flags)).expect("opened").handle;
    fake.run(client.setlk(&ctx, Ino(5), h, lock(WRITE), false)).expect("locked");
    fake.model.borrow_mut().files.remove(&Ino(7));
    fake.model.borrow_mut().held.clear();
    fake.model.borrow_mut().phases.push_back(Err(Status::Fenced));
    fake.notify(wire::message::Fenced { reason: wire::FenceReason::RecallTimeout });
    fake.settle();
    assert_eq!(fake.model.borrow().count(Opcode::OpenSession), 3);
    assert_eq!((client.stats().fenced, client.stats().leases > 2), (1, false));
    // The file with the lock fails until it is closed, so that nobody believes to be alone with it.
    assert_eq!(fake.run(client.read(&ctx, Ino(5), h, 0, 3)).map(|_| ()), Err(Errno::EIO));
    assert_eq!(fake.run(client.setlk(&ctx, Ino(5), h, lock(WRITE), false)), Err(Errno::ENOLCK));
    assert_eq!(fake.run(client.setlk(&ctx, Ino(5), h, lock(LockType::Unlock), false)), Ok(()));
    fake.run(client.flush(&ctx, Ino(5), h, LockOwner(9))).expect("forgotten");
    fake.run(client.close(&ctx, Ino(5), h, None)).expect("closed");
    let h = fake.run(client.open(&ctx, Ino(5), flags)).expect("opened").handle;
    fake.run(client.setlk(&ctx, Ino(5), h, lock(WRITE), false)).expect("locked again");
    // Others go on.
    assert_eq!(fake.run(client.read(&ctx, Ino(6), other, 0, 3)).expect("read").to_vec(), b"xyz");
    assert_eq!(fake.run(client.read(&ctx, Ino(7), gone, 0, 3)).map(|_| ()), Err(Errno::ESTALE));
}

#[test]
fn what_a_lost_session_may_have_done_is_an_error_and_what_it_refused_is_repeated() {
    let (fake, client, _) = opened(b"", false);
    fake.model.borrow_mut().name(ROOT_INO, b"f", Ino(5));
    fake.model.borrow_mut().held_back.insert(Opcode::Unlink);
    let unsure = spawn(&fake, unlink(&client));
    fake.cut();
    fake.settle();
    assert_eq!(unsure.take(), Some(Err(Errno::EIO)));
    fake.model.borrow_mut().held_back.clear();
    fake.model.borrow_mut().refuse.insert(Opcode::Unlink, [Status::UnknownSession].into());
    assert_eq!(fake.run(unlink(&client)), Ok(()));
}

#[test]
fn after_a_silence_of_a_lease_nothing_is_cached() {
    let (fake, client, _) = opened(b"abc", false);
    assert_eq!(client.stats().leases, 1);
    fake.up.set(false);
    fake.cut();
    fake.run(crate::rpc::Rpc::sleep(&*fake, Duration::from_secs(13)));
    assert_eq!((client.stats().leases, client.stats().lapses), (0, 1));
    fake.model.borrow_mut().phases.push_back(Ok(SessionPhase::Resumed));
    fake.up.set(true);
    fake.run(client.getattr(&Ctx::default(), Ino(5))).expect("asked");
    assert_eq!(fake.model.borrow().count(Opcode::GetAttr), 1);
    assert_eq!(client.stats().leases, 1);
}

#[test]
fn the_end_gives_everything_back() {
    let (fake, client, h) = opened(b"abc", false);
    let ctx = Ctx::default();
    fake.run(client.write(&ctx, Ino(5), h, 0, Bytes::from_static(b"z"), WriteFlags::default()))
        .expect("written");
    fake.run(client.close(&ctx, Ino(5), h, None)).expect("closed");
    fake.run(client.shutdown());
    let model = fake.model.borrow();
    assert!(model.held.is_empty());
    assert_eq!(model.log[model.log.len() - 3..], [Opcode::Commit, Opcode::LeaseReturn, Opcode::CloseSession]);
}

#[test]
fn unused_and_forgotten_leases_go_back() {
    let (fake, client, h) = opened(b"abc", false);
    let ctx = Ctx::default();
    client.set_invalidator(Rc::new(Quiet));
    fake.model.borrow_mut().add(Ino(6), FileKind::Regular, b"");
    fake.run(client.getattr(&ctx, Ino(6))).expect("attr");
    client.forget(Ino(6), 1);
    fake.run(crate::rpc::Rpc::sleep(&*fake, Duration::from_secs(2)));
    assert_eq!(fake.model.borrow().held.keys().copied().collect::<Vec<_>>(), [Ino(5)]);
    fake.run(crate::rpc::Rpc::sleep(&*fake, Duration::from_secs(1200)));
    assert_eq!(fake.model.borrow().held.len(), 1, "an open file keeps its lease");
    fake.run(client.close(&ctx, Ino(5), h, None)).expect("closed");
    fake.run(crate::rpc::Rpc::sleep(&*fake, Duration::from_secs(1200)));
    assert!(fake.model.borrow().held.is_empty());
}

/// The answer to ReclaimDone was lost, and the next connection resumed a session whose leases had not been settled: what the
/// restarted server had not given back stayed cached.
#[test]
fn leases_are_settled_before_reclaiming_is_done() {
    let (fake, client, _) = opened(b"abc", false);
    fake.model.borrow_mut().add(Ino(6), FileKind::Regular, b"");
    fake.run(client.getattr(&Ctx::default(), Ino(6))).expect("attr");
    fake.model.borrow_mut().not_yours.insert(Ino(6));
    fake.model.borrow_mut().phases.extend([Ok(SessionPhase::Reclaim), Ok(SessionPhase::Resumed)]);
    fake.model.borrow_mut().held_back.insert(Opcode::ReclaimDone);
    fake.cut();
    fake.settle();
    assert_eq!(fake.waiting(), [Opcode::ReclaimDone]);
    fake.cut();
    fake.run(crate::rpc::Rpc::sleep(&*fake, Duration::from_secs(1)));
    assert_eq!((client.stats().leases, fake.waiting()), (1, vec![]), "what was not given back is not cached");
}

/// A lease that went back on a new connection, before the session was opened there, met a server that did not know the session
/// yet: the client gave a good session up, and what was under way got EIO.
#[test]
fn a_return_that_comes_before_the_opening_does_not_end_the_session() {
    let (fake, client, _) = opened(b"abc", false);
    client.set_invalidator(Rc::new(Quiet));
    fake.model.borrow_mut().add(Ino(6), FileKind::Regular, b"");
    fake.run(client.getattr(&Ctx::default(), Ino(6))).expect("attr");
    fake.model.borrow_mut().held_back.insert(Opcode::OpenSession);
    fake.cut();
    fake.settle();
    assert_eq!(fake.waiting(), [Opcode::OpenSession]);
    fake.model.borrow_mut().refuse.insert(Opcode::LeaseReturn, [Status::UnknownSession].into());
    client.forget(Ino(6), 1);
    fake.run(crate::rpc::Rpc::sleep(&*fake, Duration::from_secs(2)));
    assert!(!fake.fresh.get(), "no other session is asked for");
    fake.model.borrow_mut().phases.push_back(Ok(SessionPhase::Resumed));
    fake.model.borrow_mut().held_back.clear();
    fake.serve();
    fake.run(crate::rpc::Rpc::sleep(&*fake, Duration::from_secs(2)));
    assert!(fake.model.borrow().refuse[&Opcode::LeaseReturn].is_empty(), "it was refused once");
    assert_eq!(fake.model.borrow().held.keys().copied().collect::<Vec<_>>(), [Ino(5)], "it went back");
}
