//! Names of one directory: what is known of them, and which a kernel may hold with a lifetime.
//!
//! Must not know leases; the table asks only while one covers the directory.

use rustc_hash::FxHashMap;
use wire::types::Ino;

/// What is known of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// Nothing (any more).
    Unknown,
    /// It leads here.
    Leads(Ino),
    /// It does not exist.
    Absent,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    name: Name,
    kernel: bool,
}

/// The names of a directory.
#[derive(Debug, Default)]
pub(crate) struct Names {
    map: FxHashMap<Box<[u8]>, Slot>,
    /// Own changes of names under way.
    pub(crate) changing: u32,
    /// Stamp of the last one that ended.
    pub(crate) changed: u64,
}

impl Names {
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }
    pub(crate) fn get(&self, name: &[u8]) -> Name {
        self.map.get(name).map_or(Name::Unknown, |s| s.name)
    }
    pub(crate) fn any_in_kernel(&self) -> bool {
        self.map.values().any(|s| s.kernel)
    }
    pub(crate) fn in_kernel(&self, name: &[u8]) -> bool {
        self.map.get(name).is_some_and(|s| s.kernel)
    }
    pub(crate) fn has(&self, name: &[u8]) -> bool {
        self.map.contains_key(name)
    }
    /// Remembers.
    pub(crate) fn put(&mut self, name: &[u8], what: Name, kernel: bool) {
        if let Some(slot) = self.map.get_mut(name) {
            slot.name = what;
            slot.kernel |= kernel;
        } else {
            self.map.insert(name.into(), Slot { name: what, kernel });
        }
    }
    /// An own change of this name begins: nothing is known of it until it ends.
    pub(crate) fn begin(&mut self, name: &[u8]) {
        self.changing += 1;
        if let Some(slot) = self.map.get_mut(name) {
            slot.name = Name::Unknown;
        }
    }
    /// It ended.
    pub(crate) fn end(&mut self, stamp: u64) {
        self.changing -= 1;
        self.changed = stamp;
    }
    /// Forgets everything; returns what a kernel may hold.
    pub(crate) fn take_kernel_names(&mut self) -> Vec<Box<[u8]>> {
        self.map.drain().filter(|(_, s)| s.kernel).map(|(n, _)| n).collect()
    }
    /// Forgets everything; returns how many.
    pub(crate) fn drop_client_names(&mut self) -> usize {
        let n = self.map.len();
        self.map.clear();
        n
    }
}
