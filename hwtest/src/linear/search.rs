//! The search for an order: Wing and Gong's, with the memory of Lowe ("Testing for linearizability", 2016).
//!
//! Must not know what operations mean; [`super::objects`] does.

use super::Event;
use super::objects::{Kind, Op, State};
use std::collections::HashSet;

/// Steps after which a search gives up.
pub const STEPS: usize = 1 << 20;

/// How a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// There is an order.
    Order,
    /// There is none.
    None,
    /// Too many possibilities.
    Undecided,
}

/// Is there an order of these operations, each between its question and its answer, in which every answer is right?
/// At most 128 operations, in the order of their questions.
#[must_use]
pub fn order(kind: Kind, history: &[Event]) -> Found {
    if kind == Kind::Cached {
        return if history.iter().all(|e| is_fresh(e, history)) { Found::Order } else { Found::None };
    }
    if history.len() > 128 {
        return Found::Undecided;
    }
    let all = if history.is_empty() { 0 } else { u128::MAX >> (128 - history.len()) };
    let mut seen: HashSet<(u128, State)> = HashSet::new();
    let mut todo: Vec<(u128, State)> = vec![(0, kind.start())];
    while let Some((done, state)) = todo.pop() {
        if done == all {
            return Found::Order;
        }
        if seen.len() >= STEPS {
            return Found::Undecided;
        }
        let left = |i: &usize| done & (1 << *i) == 0;
        // What was asked only after another had been answered can't come before it.
        let limit = (0..history.len()).filter(left).map(|i| history[i].answered).min().unwrap_or(u64::MAX);
        for i in (0..history.len()).filter(left).take_while(|&i| history[i].asked <= limit) {
            if let Some(next) = state.step(&history[i].op) {
                let then = (done | (1 << i), next);
                if seen.insert(then.clone()) {
                    todo.push(then);
                }
            }
        }
    }
    Found::None
}

/// A read gives what was written last, or what is being written.
fn is_fresh(read: &Event, history: &[Event]) -> bool {
    let Op::Get { value } = read.op else { return true };
    let written = history.iter().find(|e| e.op == Op::Set { value });
    let since = match written {
        Some(w) if w.asked < read.answered => w.answered,
        None if value == 0 => 0,
        _ => return false,
    };
    let over = |e: &Event| matches!(e.op, Op::Set { .. }) && e.asked > since && e.answered < read.asked;
    !history.iter().any(over)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(worker: usize, asked: u64, answered: u64, op: Op) -> Event {
        Event { worker, asked, answered, op }
    }

    #[test]
    fn a_read_may_see_a_write_under_way_but_not_go_back() {
        let write = event(0, 0, 100, Op::Set { value: 7 });
        let read = |asked, value| event(1, asked, asked + 5, Op::Get { value });
        assert_eq!(order(Kind::Mode, &[write, read(10, 7), read(20, 7)]), Found::Order);
        assert_eq!(order(Kind::Mode, &[write, read(10, 0), read(20, 7)]), Found::Order);
        assert_eq!(order(Kind::Mode, &[write, read(10, 7), read(20, 0)]), Found::None);
        assert_eq!(order(Kind::Mode, &[write, read(110, 0)]), Found::None);
    }

    #[test]
    fn a_cache_may_not_show_what_was_overwritten() {
        let write = |asked, value| event(0, asked, asked + 10, Op::Set { value });
        let read = |asked, value| event(1, asked, asked + 5, Op::Get { value });
        let order = |events: &[Event]| order(Kind::Cached, events);
        assert_eq!(order(&[write(0, 1), read(2, 1), read(8, 0), write(20, 2), read(22, 1)]), Found::Order);
        assert_eq!(order(&[write(0, 1), write(20, 2), read(31, 1)]), Found::None);
        assert_eq!(order(&[write(0, 1), read(11, 0)]), Found::None);
        assert_eq!(order(&[read(11, 5)]), Found::None);
    }

    #[test]
    fn only_one_creates_a_name_and_a_rename_moves_it() {
        let op = |worker, asked, op| event(worker, asked, asked + 5, op);
        let made = op(0, 0, Op::Create { name: 0, made: Some(9) });
        let also = op(1, 1, Op::Create { name: 0, made: Some(10) });
        assert_eq!(order(Kind::Names, &[made, also]), Found::None);
        let moved = op(1, 10, Op::Rename { from: 0, to: 3, done: true });
        let at = |asked, name, ino| op(0, asked, Op::Stat { name, ino });
        assert_eq!(order(Kind::Names, &[made, moved, at(20, 0, None), at(30, 3, Some(9))]), Found::Order);
        assert_eq!(order(Kind::Names, &[made, moved, at(20, 0, Some(9))]), Found::None);
        assert_eq!(order(Kind::Names, &[made, moved, at(20, 3, None)]), Found::None);
    }
}
