//! What works: payloads, concurrency, cancelling, notifications.

use crate::common::{SIZES, append, entry, name, options, parts, pattern, read, run, serve, session};
use reactor::sync::Event;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use transport::{CallOptions, Connection, Error, Parts, Session};
use wire::message::{
    Appended, AttrReply, Copied, CopyRange, Cred, DirEntries, DirPage, Done, Fallocate, LeaseReturn, ReadDir,
    ReadReply, Recall, Seek, SeekReply, SetLock, Whence,
};
use wire::{Ino, LeaseMode, LockKind, LockOwner, LockRange, LockSpace, LockType, Request, Status};

#[test]
fn payloads_of_all_sizes_both_ways() {
    run(async {
        let (server, address) = serve(1000, 8);
        let session = session(address).await;
        let mut sum = 0;
        for len in SIZES {
            let reply =
                session.call(&read(len as u32), Parts::new(), CallOptions::default()).await.expect("read");
            assert_eq!(reply.status(), Status::Ok);
            assert_eq!(reply.decode::<ReadReply>().expect("a reply").size, 1 << 20);
            assert_eq!((&*reply.payload, reply.header.incarnation), (&*pattern(len), 5));
            let reply =
                session.call(&append(), parts(pattern(len)), CallOptions::default()).await.expect("append");
            assert_eq!(reply.decode::<Appended>().expect("a reply").offset, sum);
            sum += len as u64;
        }
        assert_eq!(server.handler().sum.get(), sum);
        let too_long = session.call(&read(1), parts(vec![1]), CallOptions::default()).await;
        assert!(matches!(too_long, Err(Error::TooLong(_))));
        session.stop();
        server.stop();
    });
}

#[test]
fn many_at_once_within_slots_and_credits() {
    run(async {
        let (server, address) = serve(1000, 8);
        let session = session(address).await;
        let calls: Vec<_> = (0..64)
            .map(|i| {
                let session = session.clone();
                reactor::spawn(async move {
                    let len = SIZES[i % 10];
                    let request = if i % 2 == 0 { append() } else { read(len as u32) };
                    let payload = if i % 2 == 0 { parts(pattern(len)) } else { Parts::new() };
                    session.call(&request, payload, CallOptions::default()).await.expect("answered").status()
                })
            })
            .collect();
        for call in calls {
            assert_eq!(call.await.expect("not aborted"), Status::Ok);
        }
        assert!(server.handler().ran.borrow().values().all(|&times| times == 1));
        assert_eq!(server.handler().ran.borrow().len(), 32);
        session.stop();
        server.stop();
    });
}

pub(crate) fn lock() -> Request<'static> {
    let range = LockRange::ALL;
    let (owner, lock) = (LockOwner(1), LockType::Lock(LockKind::Write));
    SetLock { ino: Ino(2), space: LockSpace::Posix, owner, lock, range, pid: 1, wait: true }.into()
}

#[test]
fn a_dropped_call_is_cancelled_and_its_slot_comes_back() {
    run(async {
        let (server, address) = serve(1000, 8);
        let session = session(address).await;
        for _ in 0..20 {
            server.handler().waiting.reset();
            server.handler().cancelled.reset();
            let waiter = session.clone();
            let call =
                reactor::spawn(
                    async move { waiter.call(&lock(), Parts::new(), CallOptions::default()).await },
                );
            server.handler().waiting.wait().await;
            call.abort();
            server.handler().cancelled.wait().await;
        }
        let late = CallOptions { deadline: Some(Duration::from_millis(20)), ..CallOptions::default() };
        assert!(matches!(session.call(&lock(), Parts::new(), late).await, Err(Error::Deadline)));
        let reply =
            session.call(&append(), parts(pattern(5)), CallOptions::default()).await.expect("answered");
        assert_eq!(reply.status(), Status::Ok);
        session.stop();
        server.stop();
    });
}

/// A wait that was repeated over a new connection once heard of no cancellation any more.
#[test]
fn a_wait_is_cancelled_after_a_reconnect_by_word_or_by_dropping_it() {
    run(async {
        let (server, address) = serve(1000, 8);
        let session = session(address).await;
        let echo = server.handler();
        for drops in [false, true] {
            echo.waiting.reset();
            echo.cancelled.reset();
            let (waiter, cancel) = (session.clone(), Rc::new(Event::new()));
            let till = Rc::clone(&cancel);
            let call = reactor::spawn(async move {
                let options = CallOptions::default();
                waiter.call_until(&lock(), Parts::new(), options, till).await
            });
            echo.waiting.wait().await;
            session.current().expect("a connection").close();
            // Requests of a connection are taken in order, so the repeat came in before this one.
            session.call(&read(1), Parts::new(), CallOptions::default()).await.expect("answered");
            assert!(!echo.cancelled.is_set(), "the end of a connection cancels nothing that is repeated");
            if drops {
                call.abort();
            } else {
                cancel.set();
                let reply = call.await.expect("not aborted").expect("answered");
                assert_eq!(reply.status(), Status::Cancelled);
            }
            echo.cancelled.wait().await;
        }
        let reply =
            session.call(&append(), parts(pattern(5)), CallOptions::default()).await.expect("answered");
        assert_eq!(reply.status(), Status::Ok, "the slot is free again");
        session.stop();
        server.stop();
    });
}

#[test]
fn notifications_arrive_in_order_and_may_be_answered() {
    run(async {
        let (server, address) = serve(1000, 8);
        let seen = Rc::new(RefCell::new(Vec::new()));
        let (log, done) = (Rc::clone(&seen), Rc::new(Event::new()));
        let ring = Rc::clone(&done);
        let on_notification = Box::new(move |n: transport::Notification| {
            let (log, ring) = (Rc::clone(&log), Rc::clone(&ring));
            Box::pin(async move {
                let Ok(Request::Recall(recall)) = n.request() else { panic!("not a recall: {n:?}") };
                log.borrow_mut().push(recall.serial);
                if recall.serial == 99 {
                    ring.set();
                }
            }) as _
        });
        let hooked = Rc::new(Cell::new(0));
        let count = Rc::clone(&hooked);
        let hook = Box::new(move |connection: Connection| {
            count.set(count.get() + 1);
            Box::pin(async move {
                let back = wire::message::Returned { ino: Ino(1), serial: 1, keep: LeaseMode::None };
                let leases = [back, back];
                let request = LeaseReturn { leases: leases.as_slice().into() }.into();
                let reply = connection.call(&request, CallOptions::default()).await?;
                assert_eq!((reply.status(), reply.decode::<Done>()), (Status::Ok, Ok(Done {})));
                Ok(())
            }) as _
        });
        let session = Session::connect(options(address), hook, on_notification).await.expect("a session");
        let peer = server.peers().pop().expect("one peer");
        for serial in 0..100 {
            peer.notify(Recall { ino: Ino(5), serial, keep: LeaseMode::Shared }).expect("open");
        }
        done.wait().await;
        assert!(seen.borrow().iter().copied().eq(0..100));
        peer.close();
        assert!(peer.notify(Recall { ino: Ino(5), serial: 1, keep: LeaseMode::None }).is_err());
        let reply = session.call(&read(1), Parts::new(), CallOptions::default()).await.expect("answered");
        assert_eq!((reply.status(), hooked.get()), (Status::Ok, 2));
        session.stop();
        server.stop();
    });
}

#[test]
fn a_directory_is_listed_page_by_page() {
    run(async {
        let (server, address) = serve(1000, 8);
        let session = session(address).await;
        let (mut cookie, mut pages) = (0, 0);
        for max in [400, 4096, 65_536, 1 << 20] {
            let list = ReadDir { dir: Ino(1), cookie, max, plus: false, noatime: false };
            let reply =
                session.call(&list.into(), Parts::new(), CallOptions::default()).await.expect("answered");
            assert!(!reply.decode::<DirPage>().expect("a page").eof);
            assert!(reply.payload.len() <= max as usize);
            for got in DirEntries::new(&reply.payload) {
                cookie += 1;
                assert_eq!(got.expect("a sound entry"), entry(cookie, &name(cookie)));
            }
            pages += 1;
        }
        assert!(pages == 4 && cookie > 6000, "a page takes what fits: {cookie}");
        session.stop();
        server.stop();
    });
}

#[test]
fn seek_copy_and_fallocate_carry_all_their_numbers() {
    run(async {
        let (server, address) = serve(1000, 8);
        let session = session(address).await;
        let ask = async |request: Request<'static>| {
            let reply = session.call(&request, Parts::new(), CallOptions::default()).await.expect("answered");
            assert_eq!(reply.status(), Status::Ok);
            reply
        };
        let far = 1 << 50;
        let reply = ask(Seek { ino: Ino(2), offset: far, whence: Whence::Data }.into()).await;
        assert_eq!(reply.decode::<SeekReply>().expect("a reply").offset, far + 1);
        let copy = CopyRange { src: Ino(2), src_offset: 5, dst: Ino(3), dst_offset: far, len: far };
        assert_eq!(ask(copy.into()).await.decode::<Copied>().expect("a reply").len, far - 5);
        let cred = Cred { uid: 1, gid: 2 };
        let reply = ask(Fallocate { ino: Ino(2), mode: 1, offset: far, len: 77, cred }.into()).await;
        assert_eq!(reply.decode::<AttrReply>().expect("a reply").attr.size.get(), far + 77);
        session.stop();
        server.stop();
    });
}

/// Requests that wait at the server once took every slot and credit: the write that ended their wait found none.
#[test]
fn what_is_urgent_finds_a_slot_and_a_credit_where_all_others_wait() {
    run(async {
        let (server, address) = serve(1000, 8);
        let session = session(address).await;
        for _ in 0..20 {
            let waiting = session.clone();
            drop(reactor::spawn(async move {
                let _ = waiting.call(&lock(), Parts::new(), CallOptions::default()).await;
            }));
        }
        let connection = session.ready().await.expect("connected");
        // Of 8 slots one is kept back, of 16 credits 8 and one.
        while connection.in_flight() < 7 {
            reactor::sleep(Duration::from_millis(1)).await;
        }
        let urgent = CallOptions { urgent: true, ..CallOptions::default() };
        for _ in 0..3 {
            let reply = session.call(&append(), parts(pattern(10)), urgent).await.expect("an answer");
            assert_eq!(reply.status(), Status::Ok);
        }
        session.stop();
        server.stop();
    });
}
