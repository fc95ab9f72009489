//! GETLK, SETLK, SETLKW, and which owners locked through which handle.
//!
//! FUSE tells of the end of fcntl locks only indirectly: each close(2) is a FLUSH with the closing *process* as owner. Locks of an open file
//! description (F_OFD_SETLK) have another owner, which no FLUSH ever names; they end with the file's RELEASE. A process's owner, on the other hand, has always
//! flushed before the RELEASE of a handle that it used. So whoever locked through a handle and has not flushed by the time of its RELEASE was an
//! open file description, and its locks end there.
//!
//! close(2) does not wait for its RELEASE, but the kernel has queued it by then. So a lock that is asked for after the close comes here after the
//! RELEASE, and waits until that is done: within a mount a closed file's locks are gone when close(2) returns.

use super::Result;
use crate::abi::flags::LK_FLOCK;
use crate::abi::reply::LkOut;
use crate::abi::request::LkIn;
use crate::convert;
use crate::reply::Reply;
use crate::session::{Rq, Session};
use client::FileService;
use client::service::{Handle, Ino, LockType};
use reactor::sync::Event;
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::rc::Rc;

/// Owners of fcntl locks by inode: (handle, owner). Bounded by the locks that processes take.
#[derive(Debug, Default)]
pub(crate) struct LockTable(RefCell<FxHashMap<Ino, Vec<(u64, u64)>>>);

impl LockTable {
    fn locked(&self, ino: Ino, fh: u64, owner: u64) {
        let mut table = self.0.borrow_mut();
        let list = table.entry(ino).or_default();
        if !list.contains(&(fh, owner)) {
            list.push((fh, owner));
        }
    }

    /// A process closed a descriptor. Whether it had locked anything in the file.
    pub(crate) fn flushed(&self, ino: Ino, owner: u64) -> bool {
        !self.take(ino, |&(_, o)| o == owner).is_empty()
    }

    /// The last close of a handle: owners whose locks end with it.
    pub(crate) fn released(&self, ino: Ino, fh: u64) -> Vec<u64> {
        self.take(ino, |&(h, _)| h == fh).into_iter().map(|(_, owner)| owner).collect()
    }

    fn take(&self, ino: Ino, which: impl Fn(&(u64, u64)) -> bool) -> Vec<(u64, u64)> {
        let mut table = self.0.borrow_mut();
        let Some(list) = table.get_mut(&ino) else { return Vec::new() };
        let taken = list.iter().copied().filter(&which).collect();
        list.retain(|e| !which(e));
        if list.is_empty() {
            table.remove(&ino);
        }
        taken
    }
}

/// Releases under way that give back locks, by inode.
#[derive(Default)]
pub(crate) struct Releasing(RefCell<FxHashMap<Ino, (u32, Rc<Event>)>>);

impl Releasing {
    pub(crate) fn begin(&self, ino: Ino) {
        self.0.borrow_mut().entry(ino).or_default().0 += 1;
    }

    pub(crate) fn end(&self, ino: Ino) {
        let mut table = self.0.borrow_mut();
        let Some((left, over)) = table.get_mut(&ino) else { return };
        *left -= 1;
        if *left == 0 {
            over.set();
            table.remove(&ino);
        }
    }

    /// Waits for those that have begun.
    async fn done(&self, ino: Ino) {
        let over = self.0.borrow().get(&ino).map(|(_, over)| Rc::clone(over));
        if let Some(over) = over {
            over.wait().await;
        }
    }
}

impl<S: FileService> Session<S> {
    pub(super) async fn getlk(&self, rq: &Rq, arg: &LkIn) -> Result {
        self.releasing.done(rq.ino).await;
        let lock = convert::lock_request(&arg.lk, arg.owner, arg.lk_flags & LK_FLOCK != 0)?;
        let conflict = self.service.getlk(&rq.ctx, rq.ino, Handle(arg.fh), lock).await?;
        Ok(Reply::Lock(LkOut { lk: convert::lock_out(conflict) }).into())
    }

    pub(super) async fn setlk(&self, rq: &Rq, arg: &LkIn, wait: bool) -> Result {
        let flock = arg.lk_flags & LK_FLOCK != 0;
        let lock = convert::lock_request(&arg.lk, arg.owner, flock)?;
        self.releasing.done(rq.ino).await;
        if !flock && lock.kind != LockType::Unlock {
            self.locks.locked(rq.ino, arg.fh, arg.owner);
        }
        self.service.setlk(&rq.ctx, rq.ino, Handle(arg.fh), lock, wait).await?;
        Ok(Reply::Empty.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_flush_and_open_file_descriptions_are_released() {
        let table = LockTable::default();
        let ino = Ino(5);
        table.locked(ino, 1, 100);
        table.locked(ino, 1, 100);
        table.locked(ino, 1, 200);
        table.locked(ino, 2, 100);
        assert!(table.flushed(ino, 100), "the process locked through both handles");
        assert!(!table.flushed(ino, 100) && !table.flushed(Ino(6), 100));
        assert_eq!(table.released(ino, 2), [] as [u64; 0]);
        assert_eq!(table.released(ino, 1), [200], "an open file description never flushes");
        assert!(table.0.borrow().is_empty());
    }
}
