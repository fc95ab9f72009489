//! Writes of data that a crash falls into: the mark in the log, the change counter, stored answers.
#![expect(clippy::expect_used, clippy::panic, reason = "a failed test says why")]

mod common;

use common::{CLIENT, ROOT, World};
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
    w.ns.slot_used(request(5));
    assert_eq!(w.ns.replayed(request(5)), Replayed::New, "it is under way");
    wrote(&mut w, f, object, 77);
    let record = w.ns.answered(request(5), f, &Reply::Count(77));
    w.push(Some(record));
    w.crash();
    assert_eq!(w.attr(f).size.get(), 77);
    match w.ns.replayed(request(5)) {
        Replayed::Repeat { outcome, .. } => assert_eq!(*outcome, Ok(Reply::Count(77))),
        other => panic!("{other:?}"),
    }
    assert_eq!(w.ns.replayed(request(4)), Replayed::Bad);
}
