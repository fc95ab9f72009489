//! Tests of the gate.

use super::*;
use std::pin::pin;
use std::task::Context;

fn poll<F: Future>(f: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    f.poll(&mut Context::from_waker(Waker::noop()))
}

fn gate() -> (Rc<Gate>, Rc<Late>) {
    let late = Rc::<Late>::default();
    (Rc::new(Gate::new(Ino(5), Rc::clone(&late))), late)
}

fn now(gate: &Rc<Gate>, range: Range<u64>, access: Access) -> Pass {
    match poll(pin!(gate.enter(range, access))) {
        Poll::Ready(pass) => pass,
        Poll::Pending => unreachable!("the gate is open for this"),
    }
}

#[test]
fn what_runs_when_tracking_begins_is_dirty() {
    let (gate, _) = gate();
    let running = now(&gate, 0..4096, Access::Read);
    gate.track();
    drop(running);
    drop(now(&gate, 8192..12288, Access::Write));
    let dirty: Ranges = [0..4096, 8192..12288].into_iter().collect();
    assert_eq!(gate.take_dirty(), dirty);
    assert!(gate.take_dirty().is_empty());
}

#[test]
fn a_waiting_read_is_left_out_of_the_invalidation_and_runs_later() {
    let (gate, late) = gate();
    gate.track();
    drop(now(&gate, 0..16384, Access::Read));
    gate.close(Closed::Reads);
    let mut waiting = pin!(gate.enter(4096..8192, Access::Read));
    assert!(poll(waiting.as_mut()).is_pending());
    let dirty: Ranges = [0..4096, 8192..16384].into_iter().collect();
    assert_eq!(gate.take_dirty(), dirty);
    drop(now(&gate, 0..1, Access::Write));
    drop(now(&gate, 0..1, Access::Writeback));
    gate.reset();
    assert!(poll(waiting.as_mut()).is_ready());
    assert!(gate.is_idle());
    assert!(poll(pin!(late.next())).is_pending());
}

#[test]
fn a_write_that_waited_is_invalidated_after_its_reply() {
    let (gate, late) = gate();
    gate.close(Closed::All);
    let mut waiting = pin!(gate.enter(0..10, Access::Write));
    assert!(poll(waiting.as_mut()).is_pending());
    drop(now(&gate, 0..1, Access::Writeback));
    gate.open();
    let Poll::Ready(pass) = poll(waiting.as_mut()) else { unreachable!("the gate is open") };
    assert!(poll(pin!(late.next())).is_pending());
    drop(pass);
    assert_eq!(poll(pin!(late.next())), Poll::Ready(vec![(Ino(5), 0..10)]));
}

/// A write through the page cache was on its way with its page unlocked; a recall took the page out, a read filled it with what
/// the server had before the write, and there it stayed.
#[test]
fn a_read_waits_for_the_writes_before_it() {
    let (gate, _) = gate();
    let write = now(&gate, 0..4096, Access::Write);
    drop(now(&gate, 4096..8192, Access::Read));
    let mut read = pin!(gate.enter(0..8192, Access::Read));
    assert!(poll(read.as_mut()).is_pending());
    drop(now(&gate, 0..4096, Access::Write));
    assert!(poll(read.as_mut()).is_pending());
    drop(write);
    let Poll::Ready(pass) = poll(read.as_mut()) else { unreachable!("nothing is in its way") };
    drop(pass);
    // Also where both wait for the end of a recall.
    gate.close(Closed::All);
    let mut write = pin!(gate.enter(0..4096, Access::Write));
    assert!(poll(write.as_mut()).is_pending());
    let mut read = pin!(gate.enter(0..4096, Access::Read));
    gate.reset();
    assert!(poll(read.as_mut()).is_pending());
    let Poll::Ready(pass) = poll(write.as_mut()) else { unreachable!("the gate is open") };
    assert!(poll(read.as_mut()).is_pending());
    drop(pass);
    assert!(poll(read.as_mut()).is_ready());
}

#[test]
fn giving_up_leaves_nothing_behind() {
    let (gate, _) = gate();
    gate.close(Closed::All);
    {
        let mut waiting = pin!(gate.enter(0..10, Access::Read));
        assert!(poll(waiting.as_mut()).is_pending());
    }
    assert!(gate.is_idle());
    let pass = now(&gate, 0..1, Access::Writeback);
    let mut drained = pin!(gate.drained());
    assert!(poll(drained.as_mut()).is_pending());
    drop(pass);
    assert!(poll(drained.as_mut()).is_ready());
}
