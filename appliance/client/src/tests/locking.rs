//! Locks: waiting, giving up, and a server that is gone.

use super::data::opened;
use super::fake::Fake;
use crate::service::*;
use crate::{CancelToken, Interrupt};
use std::rc::Rc;
use wire::Opcode;
use wire::message::SessionPhase;

pub(super) fn lock(kind: LockType) -> LockRequest {
    LockRequest { space: LockSpace::Posix, owner: LockOwner(9), kind, range: LockRange::ALL, pid: 4 }
}

pub(super) const WRITE: LockType = LockType::Lock(LockKind::Write);

/// Starts waiting for a lock; the second part tells the result once there is one.
fn waiting(
    fake: &Rc<Fake>,
    client: &crate::Client,
    h: Handle,
) -> (CancelToken, Rc<std::cell::Cell<Option<Result<()>>>>) {
    let token = CancelToken::new();
    let ctx = Ctx { cancel: token.clone(), ..Ctx::default() };
    let result = Rc::default();
    let (client, out) = (client.clone(), Rc::clone(&result));
    crate::rpc::Rpc::spawn(
        &**fake,
        Box::pin(async move { out_set(&out, client.setlk(&ctx, Ino(5), h, lock(WRITE), true).await) }),
    );
    fake.settle();
    (token, result)
}

fn out_set(out: &std::cell::Cell<Option<Result<()>>>, r: Result<()>) {
    out.set(Some(r));
}

#[test]
fn an_interrupted_wait_ends_at_once() {
    let (fake, client, h) = opened(b"", false);
    fake.model.borrow_mut().held_back.insert(Opcode::SetLock);
    let (token, result) = waiting(&fake, &client, h);
    assert_eq!(result.get(), None);
    token.fire(Interrupt::Signal);
    fake.settle();
    assert_eq!(result.get(), Some(Err(Errno::EINTR)));
    assert_eq!(client.stats().lock_owners, 0);
}

#[test]
fn waits_for_locks_leave_slots_for_the_unlock() {
    let (fake, client, h) = opened(b"", false);
    fake.model.borrow_mut().held_back.insert(Opcode::SetLock);
    let waits: Vec<_> = (0..2).map(|_| waiting(&fake, &client, h)).collect();
    let eagain = wire::Status::Errno(Errno::EAGAIN);
    fake.model.borrow_mut().refuse.insert(Opcode::SetLock, [eagain; 3].into());
    assert_eq!(fake.waiting(), [Opcode::SetLock; 2]);
    // The third asks again and again instead.
    assert_eq!(fake.run(client.setlk(&Ctx::default(), Ino(5), h, lock(WRITE), true)), Ok(()));
    assert!(waits.iter().all(|w| w.1.get().is_none()));
}

#[test]
fn a_grant_that_won_the_race_is_given_back() {
    let (fake, client, h) = opened(b"", false);
    fake.model.borrow_mut().held_back.insert(Opcode::SetLock);
    fake.model.borrow_mut().grant_wins = true;
    let (token, result) = waiting(&fake, &client, h);
    token.fire(Interrupt::Signal);
    fake.settle();
    assert_eq!(result.get(), Some(Err(Errno::EINTR)));
    assert_eq!(fake.model.borrow().count(Opcode::SetLock), 2);
    assert_eq!(client.stats().lock_owners, 0);
}

#[test]
fn a_dead_server_keeps_a_signal_waiting_but_not_a_kill() {
    let (fake, client, h) = opened(b"", false);
    fake.up.set(false);
    fake.cut();
    let (token, result) = waiting(&fake, &client, h);
    token.fire(Interrupt::Signal);
    fake.settle();
    assert_eq!(result.get(), None);
    token.fire(Interrupt::Kill);
    fake.settle();
    assert_eq!(result.get(), Some(Err(Errno::EINTR)));
}

#[test]
fn every_operation_dies_with_its_process() {
    let (fake, client, h) = opened(b"abc", false);
    fake.up.set(false);
    fake.cut();
    let token = CancelToken::new();
    token.fire(Interrupt::Kill);
    let ctx = Ctx { cancel: token, ..Ctx::default() };
    assert_eq!(fake.run(client.read(&ctx, Ino(5), h, 0, 1)).map(|_| ()), Err(Errno::EINTR));
    assert_eq!(fake.run(client.unlink(&ctx, ROOT_INO, b"x")), Err(Errno::EINTR));
}

#[test]
fn a_close_of_a_descriptor_gives_back_only_what_is_held() {
    let (fake, client, h) = opened(b"", false);
    let ctx = Ctx::default();
    fake.run(client.flush(&ctx, Ino(5), h, LockOwner(9))).expect("nothing to do");
    fake.run(client.setlk(&ctx, Ino(5), h, lock(WRITE), false)).expect("locked");
    fake.run(client.flush(&ctx, Ino(5), h, LockOwner(9))).expect("released");
    assert_eq!(fake.model.borrow().count(Opcode::ReleaseOwner), 1);
    assert_eq!(client.stats().lock_owners, 0);
}

/// A file that another mount had just closed was still flocked for a moment, since close(2) does not wait for the server.
/// A conflict that does not last is none; one that lasts is told, and record locks are exact at once.
#[test]
fn a_flock_that_a_close_is_about_to_free_is_asked_for_again() {
    let (fake, client, h) = opened(b"", false);
    let busy = || std::iter::repeat_n(wire::types::Status::Errno(Errno::EAGAIN), 3);
    let flock = LockRequest { space: LockSpace::Flock, ..lock(WRITE) };
    fake.model.borrow_mut().refuse.insert(Opcode::SetLock, busy().collect());
    assert_eq!(fake.run(client.setlk(&Ctx::default(), Ino(5), h, flock, false)), Ok(()));
    fake.model.borrow_mut().refuse.insert(Opcode::SetLock, busy().cycle().take(100).collect());
    assert_eq!(fake.run(client.setlk(&Ctx::default(), Ino(5), h, flock, false)), Err(Errno::EAGAIN));
    fake.model.borrow_mut().refuse.insert(Opcode::SetLock, busy().collect());
    let ctx = Ctx::default();
    let record = client.setlk(&ctx, Ino(5), h, lock(WRITE), false);
    assert_eq!(fake.run(record), Err(Errno::EAGAIN));
}

/// A restart of the server brought a lock back whose file was closed already, and everybody else waited for it.
#[test]
fn a_lock_whose_release_has_begun_is_not_reclaimed() {
    let (fake, client, h) = opened(b"", false);
    let flock = LockRequest { space: LockSpace::Flock, ..lock(WRITE) };
    fake.run(client.setlk(&Ctx::default(), Ino(5), h, flock, false)).expect("locked");
    fake.model.borrow_mut().held_back.insert(Opcode::ReleaseOwner);
    let closing = client.clone();
    let close = async move {
        let closed = closing.close(&Ctx::default(), Ino(5), h, Some(flock.owner)).await;
        assert_eq!(closed, Ok(()));
    };
    crate::rpc::Rpc::spawn(&*fake, Box::pin(close));
    fake.settle();
    assert_eq!(fake.waiting(), [Opcode::ReleaseOwner]);
    fake.model.borrow_mut().phases.push_back(Ok(SessionPhase::Reclaim));
    fake.cut();
    fake.settle();
    let model = fake.model.borrow();
    assert_eq!((client.stats().reclaims, model.reclaimed_locks.len()), (1, 0));
}

/// A flock whose conversion was refused is lost (flock(2)), but the client went on to believe in it and reclaimed it after a
/// restart, against whoever had got it since.
#[test]
fn a_flock_that_a_refused_conversion_lost_is_not_reclaimed() {
    let (fake, client, h) = opened(b"", false);
    let (ctx, read) = (Ctx::default(), LockType::Lock(LockKind::Read));
    let flock = |kind| LockRequest { space: LockSpace::Flock, ..lock(kind) };
    fake.run(client.setlk(&ctx, Ino(5), h, flock(read), false)).expect("locked");
    let eagain = wire::Status::Errno(Errno::EAGAIN);
    fake.model.borrow_mut().refuse.insert(Opcode::SetLock, std::iter::repeat_n(eagain, 200).collect());
    let refused = fake.run(client.setlk(&ctx, Ino(5), h, flock(WRITE), false));
    assert_eq!((refused, client.stats().lock_owners), (Err(Errno::EAGAIN), 0));
    assert_eq!(fake.model.borrow().count(Opcode::ReleaseOwner), 1);
}
