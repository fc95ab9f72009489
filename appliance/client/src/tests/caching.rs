//! What is answered without the server, and what gets a lifetime.

use super::fake::Fake;
use crate::service::*;
use std::rc::Rc;
use std::time::Duration;
use wire::Opcode;
use wire::types::{LeaseMode, Status};

/// Never has anything to do.
pub(super) struct Quiet;

impl Invalidator for Quiet {
    fn invalidate(&self, _: Recall) -> LocalFuture<()> {
        Box::pin(async {})
    }
}

fn with_file() -> (Rc<Fake>, crate::Client) {
    let fake = Fake::new();
    fake.model.borrow_mut().add(Ino(5), FileKind::Regular, b"hello");
    fake.model.borrow_mut().name(ROOT_INO, b"f", Ino(5));
    let client = fake.client();
    client.set_invalidator(Rc::new(Quiet));
    (fake, client)
}

#[test]
fn an_exclusive_directory_answers_by_itself_and_gives_names_a_lifetime() {
    let (fake, client) = with_file();
    let ctx = Ctx::default();
    for _ in 0..2 {
        let e = fake.run(client.lookup(&ctx, ROOT_INO, b"f")).and_then(Found::entry).expect("it is there");
        assert_eq!((e.entry_ttl, e.attr_ttl), (TTL_LEASED, TTL_LEASED));
        fake.run(client.getattr(&ctx, Ino(5))).expect("it is cached");
    }
    for _ in 0..2 {
        let none = fake.run(client.lookup(&ctx, ROOT_INO, b"g")).expect("an answer");
        assert!(matches!(none, Found::Absent { entry_ttl: TTL_LEASED, .. }));
    }
    let model = fake.model.borrow();
    assert_eq!((model.count(Opcode::Lookup), model.count(Opcode::GetAttr)), (2, 0));
}

#[test]
fn a_shared_directory_answers_by_itself_but_the_kernel_asks_each_time() {
    let (fake, client) = with_file();
    fake.model.borrow_mut().grants = LeaseMode::Shared;
    let ctx = Ctx::default();
    for _ in 0..2 {
        let e = fake.run(client.lookup(&ctx, ROOT_INO, b"f")).and_then(Found::entry).expect("it is there");
        assert_eq!((e.entry_ttl, e.attr_ttl), (Duration::ZERO, TTL_LEASED));
    }
    assert_eq!(fake.model.borrow().count(Opcode::Lookup), 1);
}

#[test]
fn without_leases_nothing_is_kept() {
    let (fake, client) = with_file();
    fake.model.borrow_mut().grants = LeaseMode::None;
    let ctx = Ctx::default();
    for _ in 0..2 {
        let e = fake.run(client.lookup(&ctx, ROOT_INO, b"f")).and_then(Found::entry).expect("it is there");
        assert_eq!((e.entry_ttl, e.attr_ttl), (Duration::ZERO, Duration::ZERO));
        assert!(matches!(
            fake.run(client.lookup(&ctx, ROOT_INO, b"g")),
            Ok(Found::Absent { entry_ttl: Duration::ZERO, .. })
        ));
    }
    assert_eq!(fake.model.borrow().count(Opcode::Lookup), 4);
}

#[test]
fn own_changes_are_seen_at_once() {
    let (fake, client) = with_file();
    let ctx = Ctx::default();
    assert!(fake.run(client.lookup(&ctx, ROOT_INO, b"n")).and_then(Found::entry).is_err());
    let open = Some(OpenFlags { read: true, write: true, ..OpenFlags::default() });
    let create = Create { mode: 0o100_644, rdev: 0, target: b"", open, exclusive: true, tmpfile: false };
    let made = fake.run(client.create(&ctx, ROOT_INO, b"n", create)).expect("created");
    assert_eq!(made.entry.entry_ttl, TTL_LEASED);
    let (ino, (h, _)) = (made.entry.attr.ino(), made.opened.expect("opened"));
    assert_eq!(
        fake.run(client.lookup(&ctx, ROOT_INO, b"n")).and_then(Found::entry).expect("known").attr.ino(),
        ino
    );
    let data = hugepages::Bytes::from_static(b"12345");
    fake.run(client.write(&ctx, ino, h, 0, data, WriteFlags::default())).expect("written");
    assert_eq!(fake.run(client.getattr(&ctx, ino)).expect("cached").attr.size.get(), 5);
    fake.run(client.unlink(&ctx, ROOT_INO, b"n")).expect("unlinked");
    assert!(fake.run(client.lookup(&ctx, ROOT_INO, b"n")).and_then(Found::entry).is_err());
    let model = fake.model.borrow();
    assert_eq!((model.count(Opcode::Lookup), model.count(Opcode::GetAttr)), (1, 0));
}

#[test]
fn a_file_known_to_have_no_attributes_is_not_asked_for_them() {
    let (fake, client) = with_file();
    let ctx = Ctx::default();
    fake.model.borrow_mut().flags(Ino(5), Attr::FLAG_NO_XATTRS);
    fake.run(client.getattr(&ctx, Ino(5))).expect("an answer");
    assert_eq!(fake.run(client.getxattr(&ctx, Ino(5), b"security.capability")).err(), Some(Errno::ENODATA));
    assert!(fake.run(client.listxattr(&ctx, Ino(5))).expect("an answer").is_empty());
    let counts = |fake: &Fake| {
        let model = fake.model.borrow();
        (model.count(Opcode::GetXattr), model.count(Opcode::ListXattr))
    };
    assert_eq!(counts(&fake), (0, 0));
    // What it was known to be goes with an own change.
    let value = hugepages::Bytes::from_static(b"v");
    let _ = fake.run(client.setxattr(&ctx, Ino(5), b"user.a", value, XattrFlags::default()));
    let _ = fake.run(client.getxattr(&ctx, Ino(5), b"user.a"));
    let _ = fake.run(client.listxattr(&ctx, Ino(5)));
    assert_eq!(counts(&fake), (1, 1));
}

#[test]
fn refusals_for_now_are_waited_out() {
    let (fake, client) = with_file();
    let statuses = [Status::Grace, Status::Busy, Status::Expired].into();
    fake.model.borrow_mut().refuse.insert(Opcode::Lookup, statuses);
    assert!(fake.run(client.lookup(&Ctx::default(), ROOT_INO, b"f")).and_then(Found::entry).is_ok());
    assert_eq!(client.stats().retries, 3);
}

#[test]
fn bad_names_do_not_reach_the_server() {
    let (fake, client) = with_file();
    let ctx = Ctx::default();
    for (name, error) in [
        (&b""[..], Errno::EINVAL),
        (b"..", Errno::EINVAL),
        (b"a/b", Errno::EINVAL),
        (&[b'x'; 256], Errno::ENAMETOOLONG),
    ] {
        assert_eq!(fake.run(client.lookup(&ctx, ROOT_INO, name)).map(|_| ()), Err(error));
    }
    assert_eq!(fake.model.borrow().count(Opcode::Lookup), 0);
}

/// A link in a directory that several clients use comes without a grant, and the old number of links stayed cached under the
/// lease that was held all the time.
#[test]
fn an_own_change_replaces_what_was_cached_whatever_is_granted_with_it() {
    let (fake, client) = with_file();
    let ctx = Ctx::default();
    let before = fake.run(client.getattr(&ctx, Ino(5))).expect("cached").attr.nlink.get();
    fake.model.borrow_mut().grants = LeaseMode::None;
    fake.run(client.link(&ctx, Ino(5), ROOT_INO, b"g")).expect("linked");
    let nlink = fake.run(client.getattr(&ctx, Ino(5))).expect("there").attr.nlink.get();
    assert_eq!(nlink, before + 1);
    // Nor where the lease came meanwhile, and the answer to a change carries none.
    fake.model.borrow_mut().add(Ino(6), FileKind::Regular, b"");
    fake.model.borrow_mut().held_back.insert(Opcode::Link);
    let (linker, done) = (client.clone(), Rc::new(std::cell::Cell::new(false)));
    let flag = Rc::clone(&done);
    let link = async move {
        flag.set(linker.link(&Ctx::default(), Ino(6), ROOT_INO, b"h").await.is_ok());
    };
    crate::rpc::Rpc::spawn(&*fake, Box::pin(link));
    fake.settle();
    fake.model.borrow_mut().grants = LeaseMode::Shared;
    let before = fake.run(client.getattr(&ctx, Ino(6))).expect("cached").attr.nlink.get();
    fake.model.borrow_mut().grants = LeaseMode::None;
    fake.model.borrow_mut().held_back.clear();
    fake.serve();
    fake.settle();
    assert!(done.get());
    let nlink = fake.run(client.getattr(&ctx, Ino(6))).expect("there").attr.nlink.get();
    assert_eq!(nlink, before + 1);
}
