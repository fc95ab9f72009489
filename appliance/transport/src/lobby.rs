//! Connections that have not proved their key: bounded in number, the oldest goes first.
//!
//! Who knows the key is through in a few milliseconds; a stranger who opens connections and says nothing holds up others of
//! its kind only. Must not do I/O beyond closing.

use crate::error::CloseReason;
use crate::link::Link;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// Connections in the handshake at most: more than clients that come back at once after a restart need at a time, each for
/// about 20 KiB.
pub const HALF_OPEN_MAX: usize = 128;

#[derive(Default)]
pub(crate) struct Lobby {
    next: Cell<u64>,
    inside: RefCell<VecDeque<(u64, Rc<Link>)>>,
}

/// A place in it, until it is dropped.
pub(crate) struct Seat {
    lobby: Rc<Lobby>,
    number: u64,
}

impl Lobby {
    /// Takes a seat, in the worst case that of the one who has sat longest.
    pub(crate) fn enter(self: &Rc<Self>, link: &Rc<Link>) -> Seat {
        let number = self.next.get();
        self.next.set(number + 1);
        let mut inside = self.inside.borrow_mut();
        inside.push_back((number, Rc::clone(link)));
        let longest = if inside.len() > HALF_OPEN_MAX { inside.pop_front() } else { None };
        drop(inside);
        if let Some((_, link)) = longest {
            link.close(CloseReason::Crowded);
        }
        Seat { lobby: Rc::clone(self), number }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.lobby.inside.borrow_mut().retain(|(number, _)| *number != self.number);
    }
}
