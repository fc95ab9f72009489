//! Recalls against a kernel that locks pages while they are read.

use super::data::opened;
use super::fake::Fake;
use crate::rpc::Rpc as _;
use crate::service::*;
use reactor::sync::Event;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use wire::Opcode;
use wire::message;
use wire::types::LeaseMode;

/// Keeps what it was asked, and ends when it is let go.
#[derive(Default)]
struct Kernel {
    asked: RefCell<Vec<Recall>>,
    go: Rc<Event>,
}

impl Invalidator for Kernel {
    fn invalidate(&self, r: Recall) -> LocalFuture<()> {
        self.asked.borrow_mut().push(r);
        let go = Rc::clone(&self.go);
        Box::pin(async move { go.wait().await })
    }
}

fn recall(fake: &Fake, ino: Ino, keep: LeaseMode) {
    let serial = fake.model.borrow().serial_of(ino);
    assert_ne!(serial, 0, "a lease is held");
    fake.notify(message::Recall { ino, serial, keep });
    fake.settle();
}

fn kernel(client: &crate::Client) -> Rc<Kernel> {
    let kernel = Rc::<Kernel>::default();
    client.set_invalidator(Rc::clone(&kernel) as Rc<dyn Invalidator>);
    kernel
}

#[test]
fn a_name_is_invalidated_after_its_reply_and_before_the_return() {
    let fake = Fake::new();
    fake.model.borrow_mut().add(Ino(5), FileKind::Regular, b"");
    fake.model.borrow_mut().name(ROOT_INO, b"f", Ino(5));
    let client = fake.client();
    let (kernel, ctx) = (kernel(&client), Ctx::default());
    let e = fake.run(client.lookup(&ctx, ROOT_INO, b"f")).and_then(Found::entry).expect("there");
    recall(&fake, ROOT_INO, LeaseMode::None);
    assert!(kernel.asked.borrow().is_empty(), "the reply is not written yet");
    // Meanwhile names are looked up, but get no lifetime.
    let again = fake.run(client.lookup(&ctx, ROOT_INO, b"f")).and_then(Found::entry).expect("there");
    assert!(again.entry_ttl.is_zero());
    drop(e);
    fake.settle();
    assert_eq!(kernel.asked.borrow()[0].names, [Box::from(&b"f"[..])]);
    assert!(fake.model.borrow().returned.is_empty(), "the kernel is not done yet");
    kernel.go.set();
    fake.settle();
    assert_eq!(fake.model.borrow().returned.len(), 1);
    assert_eq!(fake.model.borrow().returned[0].keep, LeaseMode::None);
}

/// A kernel that had a name with a lifetime kept it through its own rename, and showed the new name long after another
/// mount had given it to another file: nobody had told it to forget the new name.
#[test]
fn a_name_keeps_its_lifetime_through_a_rename_and_is_recalled_under_the_new_one() {
    let fake = Fake::new();
    for (ino, kind) in [(5, FileKind::Regular), (6, FileKind::Directory), (7, FileKind::Directory)] {
        fake.model.borrow_mut().add(Ino(ino), kind, b"");
    }
    fake.model.borrow_mut().name(ROOT_INO, b"f", Ino(5));
    let client = fake.client();
    let (kernel, ctx) = (kernel(&client), Ctx::default());
    kernel.go.set();
    fake.run(client.lookup(&ctx, ROOT_INO, b"f")).expect("there");
    // Nothing is held of the new directory yet.
    fake.run(client.rename(&ctx, ROOT_INO, b"f", Ino(6), b"g", RenameMode::Replace)).expect("renamed");
    assert_eq!(fake.model.borrow().count(Opcode::AcquireLease), 1);
    recall(&fake, Ino(6), LeaseMode::None);
    assert_eq!(kernel.asked.borrow()[0].names, [Box::from(&b"g"[..])]);
    // Where no lease is to be had, the name goes right after the rename.
    fake.run(client.lookup(&ctx, Ino(6), b"g")).expect("there");
    fake.model.borrow_mut().grants = LeaseMode::None;
    fake.run(client.rename(&ctx, Ino(6), b"g", Ino(7), b"h", RenameMode::Replace)).expect("renamed");
    fake.settle();
    let asked = kernel.asked.borrow();
    assert_eq!((asked[1].ino, &asked[1].names[..]), (Ino(7), &[Box::from(&b"h"[..])][..]));
}

/// Two mounts that renamed in opposite directions between two directories stood still until one was fenced: each kernel could
/// invalidate a name only after its own rename, which waited for the other's lease.
#[test]
fn a_rename_that_a_recall_waits_for_gives_way_once() {
    let fake = Fake::new();
    for (ino, kind) in [(5, FileKind::Regular), (6, FileKind::Directory)] {
        fake.model.borrow_mut().add(Ino(ino), kind, b"");
    }
    fake.model.borrow_mut().name(ROOT_INO, b"f", Ino(5));
    let client = fake.client();
    let (kernel, ctx) = (kernel(&client), Ctx { pid: 9, ..Ctx::default() });
    fake.run(client.lookup(&ctx, ROOT_INO, b"f")).expect("there");
    let rename = || {
        let (client, ctx) = (client.clone(), ctx.clone());
        let result = Rc::new(Cell::new(None));
        let out = Rc::clone(&result);
        let work = async move {
            let to = (Ino(6), &b"g"[..]);
            out.set(Some(client.rename(&ctx, ROOT_INO, b"f", to.0, to.1, RenameMode::Replace).await));
        };
        crate::rpc::Rpc::spawn(&*fake, Box::pin(work));
        fake.settle();
        result
    };
    // The server holds the rename back, since it waits for another client's lease.
    fake.model.borrow_mut().held_back.insert(Opcode::Rename);
    let first = rename();
    recall(&fake, ROOT_INO, LeaseMode::None);
    assert_eq!((first.take(), kernel.asked.borrow().len()), (None, 1));
    fake.run(crate::rpc::Rpc::sleep(&*fake, std::time::Duration::from_millis(20)));
    assert_eq!(first.take(), Some(Err(Errno::EDEADLK)));
    assert!(fake.waiting().is_empty(), "it is withdrawn");
    // The kernel's second try waits for as long as it takes.
    let second = rename();
    fake.run(crate::rpc::Rpc::sleep(&*fake, std::time::Duration::from_millis(200)));
    assert_eq!((second.take(), fake.waiting()), (None, vec![Opcode::Rename]));
    kernel.go.set();
    fake.model.borrow_mut().held_back.clear();
    fake.serve();
    fake.settle();
    assert!(matches!(second.take(), Some(Ok(_))));
    assert_eq!(client.stats().gave_way, 1);
}

#[test]
fn what_is_not_cached_goes_back_at_once() {
    let (fake, client, h) = opened(b"abc", true);
    fake.run(client.close(&Ctx::default(), Ino(5), h, None)).expect("closed");
    let serial = fake.model.borrow().serial_of(Ino(77)).max(1);
    fake.notify(message::Recall { ino: Ino(77), serial, keep: LeaseMode::None });
    fake.settle();
    assert_eq!(fake.model.borrow().returned[0].ino, Ino(77));
}

#[test]
fn reads_go_on_during_a_recall_and_their_pages_are_invalidated_again() {
    let (fake, client, h) = opened(&[7; 65536], false);
    let (kernel, ctx) = (kernel(&client), Ctx::default());
    // One read is running: its reply is not written.
    let running = fake.run(client.read(&ctx, Ino(5), h, 0, 4096)).expect("read");
    recall(&fake, Ino(5), LeaseMode::None);
    assert_eq!(kernel.asked.borrow()[0].data, Stale::All);
    // The invalidation waits for locked pages; a new read comes and is served.
    let other = fake.run(client.read(&ctx, Ino(5), h, 8192, 100)).expect("served");
    assert_eq!(other.len(), 100);
    drop(other);
    drop(running);
    assert!(fake.model.borrow().returned.is_empty());
    kernel.go.set();
    fake.settle();
    let ranges: smallvec::SmallVec<[_; 4]> = [0..4096, 8192..12288].into_iter().collect();
    assert_eq!(kernel.asked.borrow()[1].data, Stale::Ranges(ranges));
    assert_eq!(fake.model.borrow().returned.len(), 1);
    // A read after it takes a new lease.
    fake.run(client.read(&ctx, Ino(5), h, 0, 10)).expect("read");
    assert_ne!(fake.model.borrow().serial_of(Ino(5)), 0);
    assert_eq!(client.stats().uncovered, 0);
}

/// A reader through the page cache filled a page beside a direct write of the same mount, before the server had executed that,
/// and the old page stayed: nobody recalls a lease for its holder's own write.
#[test]
fn a_direct_write_drops_what_its_own_mount_cached_beside_it() {
    let (fake, client, cached) = opened(&[7; 65536], false);
    let (kernel, ctx) = (kernel(&client), Ctx::default());
    kernel.go.set();
    let flags = OpenFlags { read: true, write: true, direct: true, ..OpenFlags::default() };
    let direct = fake.run(client.open(&ctx, Ino(5), flags)).expect("opened").handle;
    let write = |at| {
        let data = hugepages::Bytes::from(vec![8; 100]);
        fake.run(client.write(&ctx, Ino(5), direct, at, data, WriteFlags::default())).expect("written");
    };
    write(0);
    assert!(kernel.asked.borrow().is_empty(), "nothing is cached");
    drop(fake.run(client.read(&ctx, Ino(5), cached, 8192, 10)).expect("read"));
    write(8100);
    let ranges = std::iter::once(4096..12288).collect();
    assert_eq!(kernel.asked.borrow()[0].data, Stale::Ranges(ranges));
    fake.run(client.append(&ctx, Ino(5), direct, hugepages::Bytes::from_static(b"x"), WriteFlags::default()))
        .expect("appended");
    assert_eq!(kernel.asked.borrow()[1].data, Stale::Ranges(std::iter::once(65536..69632).collect()));
}

/// A read that waited for the end of a recall filled the page cache under the next lease, and the next recall believed that
/// there was nothing to take out: the page stayed, old, for as long as nobody else changed the file.
#[test]
fn what_a_read_fills_after_it_waited_for_a_recall_is_taken_out_by_the_next() {
    let (fake, client, h) = opened(&[7; 65536], false);
    let (kernel, ctx) = (kernel(&client), Ctx::default());
    kernel.go.set();
    let running = fake.run(client.read(&ctx, Ino(5), h, 0, 8192)).expect("read");
    recall(&fake, Ino(5), LeaseMode::None);
    let (reader, served) = (client.clone(), Rc::new(Cell::new(false)));
    let flag = Rc::clone(&served);
    let read = async move {
        flag.set(reader.read(&Ctx::default(), Ino(5), h, 16384, 4096).await.is_ok());
    };
    crate::rpc::Rpc::spawn(&*fake, Box::pin(read));
    fake.settle();
    assert!(!served.get(), "the gate is closed and drains");
    drop(running);
    fake.settle();
    assert!(served.get(), "under the next lease");
    let before = kernel.asked.borrow().len();
    recall(&fake, Ino(5), LeaseMode::None);
    assert_eq!(kernel.asked.borrow().get(before).map(|r| r.data.clone()), Some(Stale::All));
}

#[test]
fn a_read_that_waits_in_the_last_round_is_not_waited_for() {
    let (fake, client, h) = opened(&[7; 65536], false);
    let (kernel, ctx) = (kernel(&client), Ctx::default());
    kernel.go.set();
    let running = fake.run(client.read(&ctx, Ino(5), h, 0, 8192)).expect("read");
    recall(&fake, Ino(5), LeaseMode::None);
    // The gate is closed and drains; this read waits for its turn.
    let (done, reader) = (Rc::new(Cell::new(false)), client.clone());
    let flag = Rc::clone(&done);
    crate::rpc::Rpc::spawn(
        &*fake,
        Box::pin(async move {
            let read = reader.read(&Ctx::default(), Ino(5), h, 4096, 4096).await;
            flag.set(read.is_ok_and(|r| r.len() == 4096));
        }),
    );
    fake.settle();
    assert!(!done.get());
    drop(running);
    fake.settle();
    assert!(done.get());
    let ranges: smallvec::SmallVec<[_; 4]> = std::iter::once(0..4096).collect();
    assert_eq!(kernel.asked.borrow()[1].data, Stale::Ranges(ranges));
    assert_eq!(fake.model.borrow().returned.len(), 1);
}

#[test]
fn a_round_that_waits_for_a_held_request_lets_it_go() {
    let (fake, client, h) = opened(&[7; 65536], false);
    let (kernel, ctx) = (kernel(&client), Ctx::default());
    kernel.go.set();
    let running = fake.run(client.read(&ctx, Ino(5), h, 0, 4096)).expect("read");
    recall(&fake, Ino(5), LeaseMode::None);
    kernel.go.reset();
    drop(running);
    fake.settle();
    // The second invalidation hangs until this read, which comes now, has been served.
    let read = fake.run(client.read(&ctx, Ino(5), h, 40_960, 10)).expect("served in the end");
    kernel.go.set();
    drop(read);
    fake.settle();
    assert_eq!(fake.model.borrow().returned.len(), 1);
    assert!(client.stats().rounds >= 2);
}

#[test]
fn writes_are_served_during_a_recall() {
    let (fake, client, h) = opened(&[7; 8192], false);
    let (kernel, ctx) = (kernel(&client), Ctx::default());
    fake.run(client.read(&ctx, Ino(5), h, 0, 8192)).expect("read");
    recall(&fake, Ino(5), LeaseMode::None);
    for writeback in [false, true] {
        let data = hugepages::Bytes::from_static(b"new");
        let flags = WriteFlags { writeback, ..WriteFlags::default() };
        fake.run(client.write(&ctx, Ino(5), h, 0, data, flags)).expect("served");
    }
    kernel.go.set();
    fake.settle();
    assert_eq!(fake.model.borrow().returned.len(), 1);
    assert_eq!(kernel.asked.borrow().len(), 2);
    assert_eq!(&fake.model.borrow().files[&Ino(5)].data[..3], b"new");
}

#[test]
fn a_downgrade_writes_back_but_keeps_data() {
    let (fake, client, h) = opened(&[7; 8192], false);
    let (kernel, ctx) = (kernel(&client), Ctx::default());
    kernel.go.set();
    fake.run(client.read(&ctx, Ino(5), h, 0, 8192)).expect("read");
    recall(&fake, Ino(5), LeaseMode::Shared);
    assert_eq!(kernel.asked.borrow()[0].data, Stale::All);
    assert_eq!(fake.model.borrow().returned[0].keep, LeaseMode::Shared);
    fake.run(client.read(&ctx, Ino(5), h, 0, 10)).expect("read");
    recall(&fake, Ino(5), LeaseMode::None);
    assert_eq!(fake.model.borrow().returned.len(), 2);
    assert_eq!(client.stats().recalls, 2);
}

#[test]
fn a_grant_that_a_recall_overtook_covers_nothing() {
    let (fake, client, _) = opened(b"abc", false);
    let kernel = kernel(&client);
    kernel.go.set();
    let ctx = Ctx::default();
    fake.model.borrow_mut().add(Ino(6), FileKind::Regular, b"");
    fake.model.borrow_mut().name(ROOT_INO, b"g", Ino(6));
    fake.notify(message::Recall { ino: Ino(6), serial: 1000, keep: LeaseMode::None });
    let e = fake.run(client.lookup(&ctx, ROOT_INO, b"g")).and_then(Found::entry).expect("there");
    assert!(e.attr_ttl.is_zero());
    fake.run(client.getattr(&ctx, Ino(6))).expect("asked");
    assert_eq!(fake.model.borrow().count(Opcode::GetAttr), 1);
}

/// Unused leases went back one after the other, each with an answer of the server in between: a client that listed or
/// looked up faster than that held ever more of them.
#[test]
fn unused_leases_go_back_side_by_side() {
    let fake = Fake::new();
    let client = Rc::new(fake.client());
    let (kernel, ctx) = (kernel(&client), Ctx::default());
    for ino in 5..25 {
        fake.model.borrow_mut().add(Ino(ino), FileKind::Regular, b"");
        fake.run(client.getattr(&ctx, Ino(ino))).expect("there");
    }
    fake.spawn(Box::pin({
        let client = Rc::clone(&client);
        async move { client.shutdown().await }
    }));
    fake.settle();
    assert_eq!(kernel.asked.borrow().len(), 20, "no invalidation waits for another");
    assert!(fake.model.borrow().returned.is_empty());
    kernel.go.set();
    fake.settle();
    assert_eq!(fake.model.borrow().returned.len(), 20);
}
