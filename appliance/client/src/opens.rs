//! Open files: this client's handles and what stands behind them at the server.
//!
//! A handle outlives a session: when the server forgot the old one, `session.rs` opens the inode anew behind it.

use crate::hold::Counter;
use crate::service::{Handle, IoMode, OpenFlags};
use rustc_hash::FxHashMap;
use std::cell::Cell;
use std::rc::Rc;
use wire::message::{self, Cred};
use wire::types::{Errno, Ino, ObjectId};

/// Handles of one client at most: a million open files cost about 120 MB here.
pub(crate) const MAX_HANDLES: usize = 1 << 20;

/// One open file.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) ino: Ino,
    pub(crate) flags: OpenFlags,
    pub(crate) cred: Cred,
    pub(crate) io: IoMode,
    /// Its handle at the server; 0 while it has none.
    pub(crate) remote: Cell<u64>,
    /// The data, as last heard.
    pub(crate) object: Cell<ObjectId>,
    /// Why nothing works on it any more.
    pub(crate) dead: Cell<Option<Errno>>,
    /// Its close has begun.
    pub(crate) closed: Cell<bool>,
    /// Operations under way.
    pub(crate) busy: Rc<Counter>,
}

/// All open files.
#[derive(Debug, Default)]
pub(crate) struct Opens {
    map: FxHashMap<Handle, Rc<Open>>,
    last: u64,
}

impl Opens {
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }
    pub(crate) fn insert(&mut self, open: Open) -> Handle {
        self.last += 1;
        let handle = Handle(self.last);
        self.map.insert(handle, Rc::new(open));
        handle
    }
    pub(crate) fn get(&self, ino: Ino, handle: Handle) -> Result<Rc<Open>, Errno> {
        self.map.get(&handle).filter(|o| o.ino == ino).cloned().ok_or(Errno::EBADF)
    }
    pub(crate) fn remove(&mut self, ino: Ino, handle: Handle) -> Result<Rc<Open>, Errno> {
        let open = self.get(ino, handle)?;
        self.map.remove(&handle);
        Ok(open)
    }
    pub(crate) fn all(&self) -> Vec<Rc<Open>> {
        self.map.values().cloned().collect()
    }
}

/// Flags on the wire; `again` leaves out what was done at the first open.
pub(crate) fn wire_flags(f: OpenFlags, again: bool) -> message::OpenFlags {
    use message::OpenFlags as W;
    let mut flags = W::none();
    let mut set = |on: bool, flag: W| flags = if on { flags | flag } else { flags };
    set(f.read, W::READ);
    set(f.write, W::WRITE);
    set(f.append, W::APPEND);
    set(f.truncate && !again, W::TRUNC);
    set(f.kill_suidgid && !again, W::KILL_SUIDGID);
    set(f.direct, W::DIRECT);
    flags
}
