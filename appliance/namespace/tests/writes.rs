//! Writes of data that a crash falls into: the mark in the log, the change counter, stored answers.
#![expect(clippy::expect_used, clippy::panic, reason = "a failed test says why")]

mod common;

use common::{CLIENT, ROOT, World};
use namespace::intents::{Change, Intent};
use namespace::{Replayed, Reply, Wrote};
use wire::{Ino, ObjectId, RequestId, Slot, Timestamp};

fn wrote(w: &mut World, ino: Ino, object: ObjectId, end: u64) {
    w.now += 1;
    let time = Timestamp::new(w.now, 0);
    let update = Wrote { ino, object, index: 0, end, blocks_delta: 8, time, kill_suidgid: false };
    let u = w.lazy(|ns| ns.wrote(&update)).expect("written");
    w.push(u.record);
}

/// The mark was once cleared under a write that a shard was still carrying out: the next start would not have found it.
#[test]
fn a_mark_stays_while_a_write_is_under_way() {
    let mut w = World::new(15);
    let f = w.file(ROOT, "f");
    let object = w.attr(f).object();
    for _ in 0..2 {
        let p = w.lazy(|ns| ns.prepare_write(f, object)).expect("prepared");
        w.push(p.record);
    }
    for left in [true, false] {
        w.ns.write_ended(f);
        let stamp = w.ns.lazy_stamp();
        let cleared = w.ns.clear_marks(stamp);
        assert_eq!(cleared.is_empty(), left);
        cleared.into_iter().for_each(|r| w.push(Some(r)));
    }
    w.check();
}

/// Clients tell old answers from new ones by the change counter; it once went back by what memory had counted.
#[test]
fn the_change_counter_grows_over_a_crash() {
    let mut w = World::new(16);
    let f = w.file(ROOT, "f");
    let object = w.attr(f).object();
    let p = w.lazy(|ns| ns.prepare_write(f, object)).expect("prepared");
    w.push(p.record);
    for end in 1..50 {
        wrote(&mut w, f, object, end);
    }
    let told = w.attr(f).change.get();
    w.crash();
    assert!(w.attr(f).change.get() < told);
    let done = w.lazy(|ns| ns.rebuild(f, [])).expect("rebuilt");
    done.records.into_iter().for_each(|r| w.push(Some(r)));
    assert!(w.attr(f).change.get() > told);
}

#[test]
fn the_answer_of_a_data_operation_survives_with_its_effect() {
    let mut w = World::new(17);
    let f = w.file(ROOT, "f");
    let object = w.attr(f).object();
    let request = |sequence| RequestId { client: CLIENT, slot: Slot(3), sequence };
    let p = w.lazy(|ns| ns.prepare_write(f, object)).expect("prepared");
    w.push(p.record);
    let record = w.ns.put_session(CLIENT, &[1]);
    w.push(Some(record));
    w.ns.slot_used(request(5));
    let change = Change::Allocate(3);
    let intent = Intent { request: request(5), ino: f, object, offset: 0, len: 77, change };
    let record = w.ns.intend(intent);
    w.push(Some(record));
    assert_eq!(w.ns.replayed(request(5)), Replayed::New, "it is under way");
    wrote(&mut w, f, object, 77);
    let record = w.ns.answered(f, &Ok(Reply::Count(77)));
    w.push(Some(record));
    w.crash();
    assert_eq!(w.attr(f).size.get(), 77);
    match w.ns.replayed(request(5)) {
        Replayed::Repeat { outcome, .. } => assert_eq!(*outcome, Ok(Reply::Count(77))),
        other => panic!("{other:?}"),
    }
    assert_eq!(w.ns.replayed(request(4)), Replayed::Bad);
}

/// A start finds what was begun, also once it stands in the database; its error is the repeat's answer.
#[test]
fn a_change_of_a_range_is_found_until_it_is_answered() {
    let mut w = World::new(18);
    let f = w.file(ROOT, "f");
    let object = w.attr(f).object();
    let session = w.ns.put_session(CLIENT, &[1]);
    w.push(Some(session));
    let request = RequestId { client: CLIENT, slot: Slot(3), sequence: 5 };
    let change = Change::Copy { src: f, object, offset: 9 };
    let intent = Intent { request, ino: f, object, offset: 1 << 30, len: 77, change };
    let p = w.lazy(|ns| ns.prepare_write(f, object)).expect("prepared");
    w.push(p.record);
    let noted = w.ns.intend(intent);
    w.push(Some(noted));
    w.crash();
    assert_eq!(w.ns.intents(), [intent]);
    w.apply(usize::MAX);
    w.crash();
    assert_eq!(w.ns.intents(), [intent]);
    let record = w.ns.answered(f, &Err(wire::Errno::ENOSPC));
    w.push(Some(record));
    w.crash();
    assert_eq!(w.ns.intents(), []);
    match w.ns.replayed(request) {
        Replayed::Repeat { outcome, .. } => assert_eq!(*outcome, Err(wire::Errno::ENOSPC)),
        other => panic!("{other:?}"),
    }
}

/// The answer of a session that has ended must not stand where the next session of its name asks.
#[test]
fn a_change_of_a_range_outlives_its_session_without_an_answer() {
    let mut w = World::new(19);
    let f = w.file(ROOT, "f");
    let object = w.attr(f).object();
    let session = w.ns.put_session(CLIENT, &[1]);
    w.push(Some(session));
    let request = RequestId { client: CLIENT, slot: Slot(3), sequence: 5 };
    let change = Change::Allocate(3);
    let noted = w.ns.intend(Intent { request, ino: f, object, offset: 0, len: 77, change });
    w.push(Some(noted));
    while let Some(step) = w.settle(|ns| ns.end_session(CLIENT, Timestamp::default())) {
        w.push(step.record);
    }
    let session = w.ns.put_session(CLIENT, &[1]);
    w.push(Some(session));
    w.crash();
    assert_eq!(w.ns.intents().len(), 1);
    let record = w.ns.answered(f, &Ok(Reply::Done));
    w.push(Some(record));
    assert_eq!(w.ns.replayed(request), Replayed::New);
    w.crash();
    assert_eq!(w.ns.replayed(request), Replayed::New);
}

/// A client that lived through the server's power cut may still write to what was made just before: the inode and object
/// numbers of lost records must not name another's file.
#[test]
fn no_number_comes_twice_after_a_power_cut() {
    let mut w = World::new(19);
    w.chaos = false;
    let mut given = (0, 0);
    for _ in 0..3 {
        let flushed = w.ns.last_seq();
        let lost = w.file(ROOT, "f");
        let numbers = (lost.0, w.attr(lost).object().0);
        assert!(numbers.0 > given.0 && numbers.1 > given.1, "{numbers:?} after {given:?}");
        given = numbers;
        w.power_cut(flushed);
    }
}
