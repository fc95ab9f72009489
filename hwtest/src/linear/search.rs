//! The search for an order: Wing and Gong's, with the memory of Lowe ("Testing for linearizability", 2016).
//!
//! Must not know what operations mean; [`super::objects`] does.

use super::Event;
use super::objects::{Kind, State};
use std::collections::HashSet;

/// Steps after which a search gives up.
pub const STEPS: usize = 1 << 17;

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
    if history.len() > 128 {
        return Found::Undecided;
    }
    let history = &if kind == Kind::Direct { history.to_vec() } else { widened(history) };
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
        let may = || (0..history.len()).filter(left).take_while(|&i| history[i].asked <= limit);
        let fits = |i: usize| state.step(&history[i].op).map(|next| (done | (1 << i), next));
        // What changes nothing and is right now may as well come now.
        let free = may().filter(|&i| !history[i].op.changes()).find_map(fits);
        let next: Vec<_> = free.map_or_else(|| may().filter_map(fits).collect(), |then| vec![then]);
        todo.extend(next.into_iter().filter(|then| seen.insert(then.clone())));
    }
    Found::None
}

/// A change under way may look done to one mount and not yet to another, until its call returns: caches show it a little
/// earlier or later than the server has it. So what was seen during changes may have been so at any time of theirs.
fn widened(history: &[Event]) -> Vec<Event> {
    let mut wide = history.to_vec();
    for e in wide.iter_mut().filter(|e| !e.op.changes()) {
        let (asked, answered) = (e.asked, e.answered);
        for c in history.iter().filter(|c| c.op.changes()) {
            if c.asked < asked && asked < c.answered {
                e.asked = e.asked.min(c.asked);
            }
            if c.asked < answered && answered < c.answered {
                e.answered = e.answered.max(c.answered);
            }
        }
    }
    wide.sort_by_key(|e| e.asked);
    wide
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::objects::Op;

    fn event(worker: usize, asked: u64, answered: u64, op: Op) -> Event {
        Event { worker, asked, answered, op }
    }

    #[test]
    fn a_direct_read_may_see_a_write_under_way_but_not_go_back() {
        let write = event(0, 0, 100, Op::Set { value: 7 });
        let read = |asked, value| event(1, asked, asked + 5, Op::Get { value });
        let order = |events: &[Event]| order(Kind::Direct, events);
        assert_eq!(order(&[write, read(10, 7), read(20, 7)]), Found::Order);
        assert_eq!(order(&[write, read(10, 0), read(20, 7)]), Found::Order);
        assert_eq!(order(&[write, read(10, 7), read(20, 0)]), Found::None);
        assert_eq!(order(&[write, read(110, 0)]), Found::None);
    }

    #[test]
    fn a_cache_may_not_show_what_was_overwritten() {
        let write = |asked, value| event(0, asked, asked + 10, Op::Set { value });
        let read = |asked, value| event(1, asked, asked + 5, Op::Get { value });
        let order = |events: &[Event]| order(Kind::Cached, events);
        assert_eq!(order(&[write(0, 1), read(2, 1), read(4, 0), write(20, 2), read(22, 1)]), Found::Order);
        assert_eq!(order(&[write(0, 1), write(20, 2), read(31, 1)]), Found::None);
        assert_eq!(order(&[write(0, 1), read(11, 0)]), Found::None);
        assert_eq!(order(&[read(11, 5)]), Found::None);
        // Of two at once one is the last, for everybody.
        let both = [write(0, 1), write(1, 2), read(20, 1), read(30, 2)];
        assert_eq!(order(&both), Found::None);
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
