//! Own changes of names under way, and which of them give way to a recall.
//!
//! A kernel holds the locks of all directories of a rename or rmdir(2) until it is answered, and to take a name of such a
//! directory out of its cache it needs the same lock. So two clients could wait for each other: each one's rename for the
//! other's lease, and each one's invalidation for its own rename. Here that circle is broken: a change which a recall
//! waits for is cancelled at the server, if it waits there, and ends with EDEADLK, for which the FUSE front end answers ESTALE.
//! To Linux that says "look the names up anew and try once more": it lets go of its locks, the invalidation runs, and the second try meets no lease.
//!
//! A second ESTALE would reach the application, so the second try of a process is never asked to give way.

use crate::core::Core;
use crate::service::{Ctx, Ino};
use reactor::sync::Event;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// How long after it gave way an operation counts as a second try. The kernel's comes at once.
const SECOND_TRY: Duration = Duration::from_secs(5);

/// Operations remembered for that; processes that die in between leave theirs behind.
const REMEMBERED: usize = 1024;

/// The directories of a change, and what asks it to give way.
type Running = (SmallVec<[Ino; 2]>, Rc<Event>);

/// Process, directory and name of an operation.
type Try = (u32, Ino, Box<[u8]>);

/// All of a client.
#[derive(Default)]
pub(crate) struct Changes {
    running: RefCell<Vec<Running>>,
    gave_way: RefCell<FxHashMap<Try, Duration>>,
}

impl Changes {
    /// Asks changes of names of `dir` to give way; all changes with `every`, since a kernel also locks a directory that is
    /// itself moved, replaced or removed.
    pub(crate) fn give_way(&self, dir: Ino, every: bool) {
        for (dirs, event) in &*self.running.borrow() {
            if every || dirs.contains(&dir) {
                event.set();
            }
        }
    }
}

/// An own change of names, from before it is sent until it has been answered.
pub(crate) struct Change {
    core: Rc<Core>,
    dirs: SmallVec<[Ino; 2]>,
    of: Option<Try>,
    way: Option<Rc<Event>>,
}

impl Change {
    /// A change of these names begins, as told by the first of them.
    pub(crate) fn new(core: &Core, ctx: &Ctx, names: &[(Ino, &[u8])]) -> Option<Rc<Self>> {
        let core = core.me.upgrade()?;
        let mut table = core.table.borrow_mut();
        names.iter().for_each(|(dir, name)| table.change_begins(*dir, name));
        drop(table);
        let dirs: SmallVec<[Ino; 2]> = names.iter().map(|(dir, _)| *dir).collect();
        let of: Option<Try> = names.first().map(|(dir, name)| (ctx.pid, *dir, Box::from(*name)));
        let since = of.as_ref().and_then(|of| core.changes.gave_way.borrow_mut().remove(of));
        let second = since.is_some_and(|since| core.rpc.now().saturating_sub(since) < SECOND_TRY);
        let way = (!second && of.is_some()).then(Rc::<Event>::default);
        if let Some(way) = &way {
            core.changes.running.borrow_mut().push((dirs.clone(), Rc::clone(way)));
        }
        Some(Rc::new(Self { core, dirs, of, way }))
    }

    /// Rung when it is to give way; `None` where it need not.
    pub(crate) fn gives_way(&self) -> Option<Rc<Event>> {
        self.way.clone()
    }

    /// It gave way: the next of its kind will not.
    pub(crate) fn gave_way(&self) {
        let (Some(of), now) = (self.of.clone(), self.core.rpc.now()) else { return };
        let mut tries = self.core.changes.gave_way.borrow_mut();
        if tries.len() >= REMEMBERED {
            tries.retain(|_, since| now.saturating_sub(*since) < SECOND_TRY);
        }
        if tries.len() < REMEMBERED {
            tries.insert(of, now);
        }
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let mut table = self.core.table.borrow_mut();
        self.dirs.iter().for_each(|dir| table.change_ends(*dir));
        if let Some(way) = &self.way {
            self.core.changes.running.borrow_mut().retain(|(_, w)| !Rc::ptr_eq(w, way));
        }
    }
}
