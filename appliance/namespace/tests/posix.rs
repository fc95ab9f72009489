//! Rules by example: ACLs, attributes, setgid, unnamed files, truncation, lazy updates, stored replies, limits.

mod common;

use common::{CLIENT, ROOT, World, create};
use namespace::dirty::{ChunkFact, Wrote};
use namespace::op::{XATTR_ACL_KILL_SGID, XATTR_CREATE, XATTR_REPLACE, open_flags};
use namespace::{
    Access, Create, Effect, LazyError, Namespace, Op, OpCtx, Replayed, Reply, Space, acl, limits,
};
use wire::{Attr, CHUNK_SIZE, ClientId, Errno, Ino, ObjectId, RequestId, SetAttr, SetTime, Slot, Timestamp};

fn acl_value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut v = vec![2, 0, 0, 0];
    for (tag, perm, id) in entries {
        v.extend_from_slice(&tag.to_le_bytes());
        v.extend_from_slice(&perm.to_le_bytes());
        v.extend_from_slice(&id.to_le_bytes());
    }
    v
}
const NO_ID: u32 = u32::MAX;
const NAMED: &[(u16, u16, u32)] =
    &[(1, 7, NO_ID), (2, 7, 1000), (4, 5, NO_ID), (0x10, 7, NO_ID), (0x20, 0, NO_ID)];

fn mode(a: &Attr) -> u32 {
    a.mode.get() & 0o7777
}
fn set_mode(w: &mut World, ino: Ino, mode: u32) {
    w.ok(&Op::SetAttr { ino, set: SetAttr { mode: Some(mode), ..SetAttr::default() } });
}
fn wrote(w: &mut World, ino: Ino, object: ObjectId, index: u32, end: u64) -> Result<Attr, LazyError> {
    w.now += 1;
    let time = Timestamp::new(w.now, 0);
    let update = Wrote { ino, object, index, end, blocks_delta: 8, time, kill_suidgid: false };
    let u = w.lazy(|ns| ns.wrote(&update))?;
    w.push(u.record);
    Ok(u.attr)
}

#[test]
fn acl_and_mode_follow_each_other() {
    let mut w = World::new(1);
    let f = w.file(ROOT, "f");
    let get = |w: &mut World, ino, name| w.run(&Op::GetXattr { ino, name });
    assert_eq!(get(&mut w, f, acl::ACCESS), Err(Errno::ENODATA));
    let named = acl_value(NAMED);
    w.ok(&Op::SetXattr { ino: f, name: acl::ACCESS, value: &named, flags: 0 });
    let a = w.attr(f);
    assert_eq!((mode(&a), a.flags.get()), (0o770, Attr::FLAG_HAS_ACL), "the group bits show the mask");
    set_mode(&mut w, f, 0o640);
    let mut after = NAMED.to_vec();
    (after[0].1, after[3].1, after[4].1) = (6, 4, 0);
    assert_eq!(
        get(&mut w, f, acl::ACCESS),
        Ok(Reply::Bytes(acl_value(&after).into())),
        "chmod changes the mask"
    );
    // One that says no more than a mode is not kept.
    let plain = acl_value(&[(1, 6, NO_ID), (4, 0, NO_ID), (0x20, 4, NO_ID)]);
    w.ok(&Op::SetXattr { ino: f, name: acl::ACCESS, value: &plain, flags: 0 });
    let a = w.attr(f);
    assert_eq!((mode(&a), a.flags.get()), (0o604, Attr::FLAG_NO_XATTRS));
    assert_eq!(get(&mut w, f, acl::ACCESS), Err(Errno::ENODATA));
    // set-group-ID goes where the kernel says so.
    set_mode(&mut w, f, 0o2770);
    w.ok(&Op::SetXattr { ino: f, name: acl::ACCESS, value: &named, flags: XATTR_ACL_KILL_SGID });
    assert_eq!(mode(&w.attr(f)), 0o770);
    w.ok(&Op::RemoveXattr { ino: f, name: acl::ACCESS });
    w.ok(&Op::RemoveXattr { ino: f, name: acl::ACCESS });
    assert_eq!(w.attr(f).flags.get(), Attr::FLAG_NO_XATTRS);
    assert_eq!(w.err(&Op::SetXattr { ino: f, name: acl::DEFAULT, value: &named, flags: 0 }), Errno::EACCES);
    assert_eq!(
        w.err(&Op::SetXattr { ino: f, name: acl::ACCESS, value: b"junk", flags: 0 }),
        Errno::EOPNOTSUPP
    );
    assert_eq!(
        w.err(&Op::SetXattr { ino: f, name: acl::ACCESS, value: &named[..12], flags: 0 }),
        Errno::EINVAL
    );
    w.check();
}

#[test]
fn default_acl_is_inherited() {
    let mut w = World::new(2);
    let d = w.mkdir(ROOT, "d");
    let default = acl_value(NAMED);
    w.ok(&Op::SetXattr { ino: d, name: acl::DEFAULT, value: &default, flags: 0 });
    assert_eq!(mode(&w.attr(d)), 0o755, "a default ACL leaves the directory's own mode alone");
    let f = w.make(d, "f", 0o100_666);
    assert_eq!(mode(&w.attr(f)), 0o660, "the umask plays no part, the requested mode does");
    let mut want = NAMED.to_vec();
    (want[0].1, want[3].1) = (6, 6);
    assert_eq!(w.ok(&Op::GetXattr { ino: f, name: acl::ACCESS }), Reply::Bytes(acl_value(&want).into()));
    let sub = w.mkdir(d, "sub");
    assert_eq!(w.ok(&Op::GetXattr { ino: sub, name: acl::DEFAULT }), Reply::Bytes(default.into()));
    let deep = w.make(sub, "f", 0o100_600);
    assert_eq!(mode(&w.attr(deep)), 0o600);
    w.ok(&Op::RemoveXattr { ino: d, name: acl::DEFAULT });
    let g = w.make(d, "g", 0o100_666);
    assert_eq!(mode(&w.attr(g)), 0o644, "without it the umask counts again");
    w.check();
}

#[test]
fn extended_attributes() {
    let mut w = World::new(3);
    let f = w.file(ROOT, "f");
    let set = |w: &mut World, name: &[u8], value: &[u8], flags| {
        w.run(&Op::SetXattr { ino: f, name, value, flags }).map(|_| ())
    };
    assert_eq!(set(&mut w, b"user.a", b"1", XATTR_REPLACE), Err(Errno::ENODATA));
    assert_eq!(set(&mut w, b"user.a", b"1", XATTR_CREATE), Ok(()));
    assert_eq!(set(&mut w, b"user.a", b"2", XATTR_CREATE), Err(Errno::EEXIST));
    assert_eq!(set(&mut w, b"user.a", b"", XATTR_REPLACE), Ok(()));
    assert_eq!(set(&mut w, b"trusted.t", b"t", 0), Ok(()));
    assert_eq!(set(&mut w, b"security.s", b"s", 0), Ok(()));
    assert_eq!(set(&mut w, b"system.other", b"", 0), Err(Errno::EOPNOTSUPP));
    assert_eq!(set(&mut w, b"nothing", b"", 0), Err(Errno::EOPNOTSUPP));
    assert_eq!(set(&mut w, b"user.", b"", 0), Err(Errno::EINVAL));
    assert_eq!(set(&mut w, &[b"user.".to_vec(), vec![b'x'; 251]].concat(), b"", 0), Err(Errno::ERANGE));
    assert_eq!(set(&mut w, b"user.big", &vec![0; limits::XATTR_VALUE_MAX + 1], 0), Err(Errno::E2BIG));
    assert_eq!(set(&mut w, b"user.big", &vec![7; limits::XATTR_VALUE_MAX], 0), Ok(()));
    assert_eq!(w.ok(&Op::GetXattr { ino: f, name: b"user.a" }), Reply::Bytes(Box::default()));
    let all = w.ok(&Op::ListXattr { ino: f });
    assert_eq!(all, Reply::Bytes(b"security.s\0trusted.t\0user.a\0user.big\0"[..].into()));
    let user = OpCtx { uid: 1000, ..w.ctx() };
    let some = w.execute(&user, &Op::ListXattr { ino: f }).outcome;
    assert_eq!(
        some,
        Ok(Reply::Bytes(b"security.s\0user.a\0user.big\0"[..].into())),
        "trusted is the superuser's"
    );
    let mut n = 0;
    let full = loop {
        let name = format!("user.{n:0200}");
        match set(&mut w, name.as_bytes(), b"", 0) {
            Ok(()) => n += 1,
            Err(e) => break e,
        }
    };
    assert_eq!((full, n > 70), (Errno::ENOSPC, true), "after {n}");
    w.check();
    w.ok(&Op::Unlink { dir: ROOT, name: b"f" });
    w.check();
}

#[test]
fn privileges_die_with_owner_and_contents() {
    let mut w = World::new(4);
    let f = w.file(ROOT, "f");
    let caps =
        |w: &mut World| w.ok(&Op::SetXattr { ino: f, name: b"security.capability", value: b"c", flags: 0 });
    caps(&mut w);
    set_mode(&mut w, f, 0o6755);
    w.ok(&Op::SetAttr { ino: f, set: SetAttr { uid: Some(5), ..SetAttr::default() } });
    assert_eq!(mode(&w.attr(f)), 0o755);
    assert_eq!(w.err(&Op::GetXattr { ino: f, name: b"security.capability" }), Errno::ENODATA);
    set_mode(&mut w, f, 0o6745);
    w.ok(&Op::SetAttr { ino: f, set: SetAttr { gid: Some(5), ..SetAttr::default() } });
    assert_eq!(mode(&w.attr(f)), 0o2745, "set-group-ID without group execution means locking");
    set_mode(&mut w, f, 0o6755);
    caps(&mut w);
    let object = w.attr(f).object();
    let update = Wrote {
        ino: f,
        object,
        index: 0,
        end: 5,
        blocks_delta: 8,
        time: Timestamp::new(9, 0),
        kill_suidgid: true,
    };
    let u = w.lazy(|ns| ns.wrote(&update)).expect("written");
    assert!(u.record.is_some(), "lost privileges are logged at once");
    w.push(u.record);
    w.crash();
    assert_eq!((mode(&w.attr(f)), w.attr(f).size.get()), (0o755, 5));
    assert_eq!(w.err(&Op::GetXattr { ino: f, name: b"security.capability" }), Errno::ENODATA);
    let d = w.mkdir(ROOT, "d");
    set_mode(&mut w, d, 0o2775);
    w.ok(&Op::SetAttr { ino: d, set: SetAttr { uid: Some(5), gid: Some(99), ..SetAttr::default() } });
    assert_eq!(mode(&w.attr(d)), 0o2775, "directories keep it");
    let (sub, file) = (w.mkdir(d, "sub"), w.file(d, "file"));
    let (sub, file) = (w.attr(sub), w.attr(file));
    assert_eq!((sub.gid.get(), mode(&sub), file.gid.get(), mode(&file)), (99, 0o2755, 99, 0o644));
    w.check();
}

#[test]
fn times_and_relatime() {
    let mut w = World::new(5);
    let f = w.file(ROOT, "f");
    let born = w.attr(f).btime;
    let at = Timestamp::new(-7, 123_456_789);
    let set = SetAttr { atime: Some(SetTime::At(at)), mtime: Some(SetTime::At(at)), ..SetAttr::default() };
    w.ok(&Op::SetAttr { ino: f, set });
    let a = w.attr(f);
    assert_eq!((a.atime, a.mtime, a.btime, a.ctime > born), (at, at, born, true));
    let soon = Timestamp::new(w.now + 5, 0);
    let read = |w: &mut World, t| w.lazy(|ns| ns.accessed(f, t)).expect("accessed");
    assert!(read(&mut w, soon), "not newer than mtime");
    let later = Timestamp::new(w.now + 600, 0);
    assert!(!read(&mut w, later), "newer than mtime and ctime, younger than a day");
    let next_day = Timestamp::new(w.now + 90_000, 0);
    assert!(read(&mut w, next_day));
    let a = w.attr(f);
    assert_eq!((a.atime, a.ctime > soon), (next_day, false), "reading is no change");
    for r in w.ns.commit_all_dirty() {
        w.push(Some(r));
    }
    w.crash();
    assert_eq!(w.attr(f).atime, next_day);
    w.check();
}

/// A lazy value waits for the record that it was made from: what a reader saw must not vanish in a crash.
#[test]
fn lazy_values_depend_on_what_is_beneath() {
    let mut w = World::new(17);
    w.chaos = false;
    let f = w.file(ROOT, "f");
    let made = w.ns.last_seq();
    let time = Timestamp::new(w.now + 9, 0);
    assert!(w.lazy(|ns| ns.accessed(f, time)).expect("accessed"));
    let ctx = w.ctx();
    assert_eq!(w.execute(&ctx, &Op::GetAttr { ino: f }).depends_on, made);
}

/// POSIX rename(): two names of one inode both stay. Who caches names must be able to tell, or it takes the old one for gone.
#[test]
fn renaming_a_link_onto_its_twin_changes_nothing_and_says_so() {
    let mut w = World::new(5);
    let f = w.file(ROOT, "a");
    w.ok(&Op::Link { ino: f, dir: ROOT, name: b"b" });
    let rename = Op::Rename { dir: ROOT, name: b"a", new_dir: ROOT, new_name: b"b", flags: 0 };
    assert_eq!(w.ok(&rename), Reply::Renamed { moved: f, replaced: Some(f) });
    assert_eq!(w.attr(f).nlink.get(), 2);
}

#[test]
fn unnamed_files() {
    let mut w = World::new(6);
    let tmp = Create { tmpfile: true, open: Some(open_flags::WRITE), ..create(ROOT, b"", 0o100_600) };
    let Reply::Created { attr, handle: Some(handle), .. } = w.ok(&Op::Create(tmp)) else {
        panic!("not opened")
    };
    assert_eq!((attr.nlink.get(), w.list(ROOT).len()), (0, 0));
    let ino = attr.ino();
    w.check();
    w.ok(&Op::Link { ino, dir: ROOT, name: b"now" });
    w.ok(&Op::Close { ino, handle });
    assert_eq!(w.lookup(ROOT, "now").map(|a| a.ino()), Ok(ino));
    w.check();
    let Reply::Created { attr, handle: Some(handle), .. } = w.ok(&Op::Create(tmp)) else {
        panic!("not opened")
    };
    w.ok(&Op::Close { ino: attr.ino(), handle });
    assert_eq!(w.err(&Op::GetAttr { ino: attr.ino() }), Errno::ESTALE);
    // A file whose last name is gone gets no new one.
    let h = w.open(ino, open_flags::READ);
    w.ok(&Op::Unlink { dir: ROOT, name: b"now" });
    assert_eq!(w.err(&Op::Link { ino, dir: ROOT, name: b"again" }), Errno::ENOENT);
    w.ok(&Op::Close { ino, handle: h });
    w.check();
}

#[test]
fn names_and_targets_have_limits() {
    let mut w = World::new(7);
    let long = "n".repeat(256);
    let make = |name: &str, mode, target: &[u8]| -> Errno {
        let mut w = World::new(8);
        w.err(&Op::Create(Create { target, ..create(ROOT, name.as_bytes(), mode) }))
    };
    assert_eq!(make(&long, 0o100_644, b""), Errno::ENAMETOOLONG);
    assert_eq!(make("", 0o100_644, b""), Errno::ENOENT);
    assert_eq!(make("a/b", 0o100_644, b""), Errno::EINVAL);
    assert_eq!(make(".", 0o040_755, b""), Errno::EEXIST);
    assert_eq!(make("l", 0o120_777, &[b'x'; 4096]), Errno::ENAMETOOLONG);
    assert_eq!(make("l", 0o120_777, b""), Errno::ENOENT);
    assert_eq!(make("x", 0, b""), Errno::EINVAL);
    let target = [b'x'; 4095];
    let link = Create { target: &target, ..create(ROOT, &long.as_bytes()[1..], 0o120_777) };
    let Reply::Created { attr, .. } = w.ok(&Op::Create(link)) else { panic!("not created") };
    assert_eq!(w.ok(&Op::ReadLink { ino: attr.ino() }), Reply::Bytes(target.into()));
    assert_eq!(attr.size.get(), 4095);
    let f = w.file(ROOT, "f");
    let grow = |size| Op::SetAttr { ino: f, set: SetAttr { size: Some(size), ..SetAttr::default() } };
    assert_eq!(w.err(&grow(limits::FILE_MAX + 1)), Errno::EFBIG);
    w.ok(&grow(limits::FILE_MAX));
    w.chaos = false;
    for i in 1..limits::LINK_MAX {
        w.ok(&Op::Link { ino: f, dir: ROOT, name: format!("{i}").as_bytes() });
    }
    assert_eq!(w.err(&Op::Link { ino: f, dir: ROOT, name: b"one more" }), Errno::EMLINK);
    w.check();
}

#[test]
fn full_takes_deletions() {
    let mut w = World::new(9);
    let f = w.file(ROOT, "f");
    w.ns.set_space(Space { room: 0, ..Space::default() });
    assert_eq!(w.err(&Op::Create(create(ROOT, b"g", 0o100_644))), Errno::ENOSPC);
    assert_eq!(w.err(&Op::Link { ino: f, dir: ROOT, name: b"g" }), Errno::ENOSPC);
    let rename = |from, to| Op::Rename { dir: ROOT, name: from, new_dir: ROOT, new_name: to, flags: 0 };
    assert_eq!(w.err(&rename(b"f", b"longer")), Errno::ENOSPC);
    w.ok(&rename(b"f", b"g"));
    w.ok(&Op::Unlink { dir: ROOT, name: b"g" });
    w.ns.set_space(Space { blocks: 100, free: 50, available: 40, block_size: 4096, ..Space::default() });
    let Reply::StatFs(s) = w.ok(&Op::StatFs) else { panic!("not totals") };
    assert_eq!((s.files.get(), s.files_free.get(), s.name_max.get()), (41, 40, 255));
}

#[test]
fn touches_name_what_is_read_and_changed() {
    let mut w = World::new(10);
    let (d, f) = (w.mkdir(ROOT, "d"), w.file(ROOT, "f"));
    let g = w.file(d, "g");
    let mut touched = |op: Op<'_>| w.settle(|ns| ns.touches(&op)).to_vec();
    assert_eq!(touched(Op::Lookup { dir: ROOT, name: b"f" }), [(ROOT, Access::Read), (f, Access::Read)]);
    let rename = Op::Rename { dir: ROOT, name: b"f", new_dir: d, new_name: b"g", flags: 0 };
    let mut want =
        vec![(ROOT, Access::Modify), (d, Access::Modify), (f, Access::Modify), (g, Access::Modify)];
    want.sort();
    assert_eq!(touched(rename), want);
    assert_eq!(touched(Op::Unlink { dir: ROOT, name: b"none" }), [(ROOT, Access::Modify)]);
}

#[test]
fn truncation_and_the_free_list() {
    let mut w = World::new(11);
    let f = w.file(ROOT, "f");
    let object = w.attr(f).object();
    let far = 5000;
    for i in [0, 1, 3, 70, far] {
        wrote(&mut w, f, object, i, u64::from(i + 1) * CHUNK_SIZE).expect("written");
    }
    assert_eq!(w.lazy(|ns| ns.next_chunk(f, 4)).expect("known"), Some(70));
    assert_eq!(w.lazy(|ns| ns.next_chunk(f, 71)).expect("known"), Some(far));
    assert_eq!(w.lazy(|ns| ns.next_gap(f, 0)).expect("known"), 2);
    let size = 3 * CHUNK_SIZE + 100;
    w.ok(&Op::SetAttr { ino: f, set: SetAttr { size: Some(size), ..SetAttr::default() } });
    let Some(Effect::Truncate { entry, from, to, .. }) = w.effects.pop() else { panic!("no cut") };
    assert_eq!((from, to), (u64::from(far + 1) * CHUNK_SIZE, size));
    // The daemon dies before the cut was made: it is still known.
    w.crash();
    assert_eq!(w.settle(|ns| ns.pending_cuts(0, 10)), [entry]);
    let flushed = w.ns.last_seq();
    assert!(
        w.settle(|ns| ns.free_work(flushed, 0, 10)).is_empty(),
        "a living object is not for the free list"
    );
    let part = w.settle(|ns| ns.free_chunks(entry, 0, 1)).expect("it is there");
    assert_eq!((part.cut, &part.chunks[..], part.next.is_some()), (Some((3, 100)), &[70][..], true));
    let part = w.settle(|ns| ns.free_chunks(entry, part.next.unwrap_or(0), 1)).expect("it is there");
    assert_eq!((&part.chunks[..], part.next), (&[far][..], None));
    while let Some(r) = w.settle(|ns| ns.freed(entry)) {
        w.push(Some(r));
    }
    assert!(w.settle(|ns| ns.pending_cuts(0, 10)).is_empty());
    assert_eq!(w.lazy(|ns| ns.next_chunk(f, 4)).expect("known"), None);
    w.check();
    // To zero: a fresh object, the old one is dead as a whole.
    w.ok(&Op::SetAttr { ino: f, set: SetAttr { size: Some(0), ..SetAttr::default() } });
    let a = w.attr(f);
    assert_ne!(a.object(), object);
    assert!(matches!(wrote(&mut w, f, object, 0, 9), Err(LazyError::StaleObject)));
    let seq = w.ns.last_seq();
    assert!(
        w.settle(|ns| ns.free_work(0, 0, 10)).is_empty() || w.ns.pressure().records == 0,
        "not flushed yet"
    );
    let work = w.settle(|ns| ns.free_work(seq, 0, 10));
    let part = w.settle(|ns| ns.free_chunks(work[0], 0, 100)).expect("it is there");
    assert_eq!((part.object, &part.chunks[..], part.cut), (object, &[0, 1, 3][..], None));
    let r = w.settle(|ns| ns.freed(work[0]));
    w.push(r);
    assert_eq!(w.settle(|ns| ns.freed(work[0])), None);
    w.check();
}

#[test]
fn lazy_updates_survive_by_commit_or_rebuild() {
    let mut w = World::new(12);
    let f = w.file(ROOT, "f");
    let object = w.attr(f).object();
    let p = w.lazy(|ns| ns.prepare_write(f, object)).expect("prepared");
    assert!(p.record.is_some(), "the mark comes first");
    w.push(p.record);
    assert!(w.lazy(|ns| ns.prepare_write(f, object)).expect("prepared").record.is_none());
    (0..2).for_each(|_| w.ns.write_ended(f));
    let a = wrote(&mut w, f, object, 2, 2 * CHUNK_SIZE + 10).expect("written");
    assert_eq!((a.size.get(), a.blocks.get()), (2 * CHUNK_SIZE + 10, 8));
    let stamp = w.ns.lazy_stamp();
    let r = w.ns.commit_dirty(f);
    assert!(r.is_some());
    w.push(r);
    assert_eq!(w.ns.commit_dirty(f), None);
    wrote(&mut w, f, object, 0, 1).expect("written");
    assert!(w.ns.clear_marks(stamp).is_empty(), "a later write is not covered");
    w.crash();
    assert_eq!(w.settle(|ns| ns.dirty_inodes(Ino(0), 10)), [f]);
    assert_eq!(w.attr(f).size.get(), 2 * CHUNK_SIZE + 10);
    assert!(!w.lazy(|ns| ns.has_chunk(f, 0)).expect("known"), "that was in memory only");
    let fact = |index, len, at| ChunkFact { index, len, mtime: Timestamp::new(at, 0), blocks: 16 };
    let late = w.now + 50;
    let facts = [fact(0, 4096, late), fact(9000, 77, late + 1)];
    let done = w.lazy(|ns| ns.rebuild(f, facts)).expect("rebuilt");
    assert_eq!(done.missing, [2], "its row was logged, its data never flushed");
    for r in done.records {
        w.push(Some(r));
    }
    w.crash();
    let a = w.attr(f);
    assert_eq!(
        (a.size.get(), a.blocks.get(), a.mtime),
        (9000 * CHUNK_SIZE + 77, 32, Timestamp::new(late + 1, 0))
    );
    assert!(w.lazy(|ns| ns.has_chunk(f, 9000)).expect("known"));
    assert!(w.settle(|ns| ns.dirty_inodes(Ino(0), 10)).is_empty());
    wrote(&mut w, f, object, 1, 0).expect("written");
    for r in w.ns.commit_all_dirty() {
        w.push(Some(r));
    }
    let stamp = w.ns.lazy_stamp();
    for r in w.ns.clear_marks(stamp) {
        w.push(Some(r));
    }
    assert_eq!(w.ns.stats().dirty, 0);
    assert!(w.settle(|ns| ns.dirty_inodes(Ino(0), 10)).is_empty());
    w.check();
}

#[test]
fn replies_are_repeated_even_after_a_crash() {
    let mut w = World::new(13);
    let client = CLIENT;
    let request = |slot, sequence| RequestId { client, slot: Slot(slot), sequence };
    let c = Create { open: Some(open_flags::WRITE), ..create(ROOT, b"f", 0o100_644) };
    let ctx = OpCtx { request: request(4, 10), ..w.ctx() };
    let record = w.ns.put_session(client, b"who");
    w.push(Some(record));
    assert_eq!(w.ns.replayed(ctx.request), Replayed::New);
    let first = w.execute(&ctx, &Op::Create(c)).outcome;
    for crash in [false, true, false] {
        if crash {
            w.crash();
        }
        match w.ns.replayed(ctx.request) {
            Replayed::Repeat { outcome, .. } => assert_eq!(*outcome, first),
            other => panic!("{other:?}"),
        }
    }
    let Ok(Reply::Created { attr, handle: Some(handle), .. }) = first else { panic!("not created") };
    assert_eq!(
        w.ns.handle(client, handle).map(|h| h.0),
        Some(attr.ino()),
        "the open came back with the reply"
    );
    assert_eq!(w.ns.replayed(request(4, 9)), Replayed::Bad);
    assert_eq!(w.ns.replayed(request(4, 11)), Replayed::New);
    let ctx = OpCtx { request: request(4, 11), ..w.ctx() };
    let failed = w.execute(&ctx, &Op::Create(c)).outcome;
    assert_eq!(failed, Err(Errno::EEXIST));
    assert!(matches!(w.ns.replayed(ctx.request), Replayed::Repeat { .. }), "errors are repeated too");
    w.ok(&Op::Unlink { dir: ROOT, name: b"f" });
    assert_eq!(w.attr(attr.ino()).nlink.get(), 0, "it is open");
    let now = Timestamp::new(w.now, 0);
    while let Some(done) = w.settle(|ns| ns.end_session(client, now)) {
        w.push(done.record);
    }
    assert_eq!(w.err(&Op::GetAttr { ino: attr.ino() }), Errno::ESTALE);
    w.crash();
    assert_eq!(w.ns.sessions().count(), 0);
    assert_eq!(w.ns.replayed(request(4, 1)), Replayed::New, "nothing is left of the session");
    w.check();
}

#[test]
fn an_open_known_only_from_a_reply_ends_with_its_slot() {
    let mut w = World::new(14);
    w.open_session();
    let request = |sequence| RequestId { client: CLIENT, slot: Slot(1), sequence };
    let c = Create { open: Some(open_flags::WRITE), tmpfile: true, ..create(ROOT, b"", 0o100_600) };
    let ctx = OpCtx { request: request(1), ..w.ctx() };
    let Ok(Reply::Created { attr, handle: Some(handle), .. }) = w.execute(&ctx, &Op::Create(c)).outcome
    else {
        panic!()
    };
    w.crash();
    w.reap();
    assert_eq!(w.attr(attr.ino()).nlink.get(), 0, "the client may still ask for the reply");
    assert_eq!(w.ns.stale_open(request(2)), Some((attr.ino(), handle)));
    w.ok(&Op::Close { ino: attr.ino(), handle });
    assert_eq!(w.err(&Op::GetAttr { ino: attr.ino() }), Errno::ESTALE);
    w.check();
}

#[test]
fn listing_while_names_come_and_go() {
    let mut w = World::new(15);
    let d = w.mkdir(ROOT, "d");
    for i in 0..300 {
        w.file(d, &format!("keep{i}"));
        w.file(d, &format!("drop{i}"));
    }
    let (mut cookie, mut seen, mut n) = (0, Vec::new(), 0);
    loop {
        let Reply::DirPage { entries, eof } = w.ok(&Op::ReadDir { dir: d, cookie, max: 900, plus: false })
        else {
            panic!()
        };
        cookie = entries.last().map_or(cookie, |e| e.cookie);
        seen.extend(entries.into_iter().map(|e| String::from_utf8_lossy(&e.name).into_owned()));
        if eof {
            break;
        }
        for _ in 0..5 {
            if n < 300 {
                w.ok(&Op::Unlink { dir: d, name: format!("drop{n}").as_bytes() });
                if n < 20 {
                    w.file(d, &format!("new{n}"));
                }
                n += 1;
            }
        }
    }
    for i in 0..300 {
        let name = format!("keep{i}");
        assert_eq!(seen.iter().filter(|s| **s == name).count(), 1, "{name} is there throughout");
    }
    seen.sort();
    let all = seen.len();
    seen.dedup();
    assert_eq!(seen.len(), all, "nothing is listed twice");
    assert_eq!(w.err(&Op::ReadDir { dir: d, cookie: 5, max: 10, plus: false }), Errno::EINVAL);
    w.check();
}

#[test]
fn a_damaged_row_means_read_only() {
    let mut w = World::new(16);
    w.file(ROOT, "f");
    w.apply(1000);
    let seq = w.ns.last_seq();
    w.ns.applied(seq);
    w.ns.drop_caches();
    let key = namespace::kv::Key::inode(Ino(limits::FIRST_INO));
    let ctx = OpCtx::plain(ClientId(1), Timestamp::default());
    let op = Op::GetAttr { ino: Ino(limits::FIRST_INO) };
    let Err(miss) = w.ns.execute(&ctx, &op) else { panic!("it was dropped") };
    let mut rows = w.fetch(&miss);
    for (k, v) in &mut rows.rows {
        if *k == key {
            *v = Some(Box::from(&b"garbage"[..]));
        }
    }
    assert!(w.ns.fetched(rows));
    let run = |ns: &mut Namespace, op: &Op<'_>| ns.execute(&ctx, op).expect("cached").outcome;
    assert_eq!(run(&mut w.ns, &op), Err(Errno::EIO));
    assert_eq!(w.ns.damage().len(), 1);
    assert_eq!(run(&mut w.ns, &Op::Create(create(ROOT, b"g", 0o100_644))), Err(Errno::EROFS));
    w.chaos = false;
    assert!(w.lookup(ROOT, "..").is_ok(), "what is whole can be read");
}
