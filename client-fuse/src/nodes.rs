//! Node numbers of a mount, and where the kernel believes each directory to be.
//!
//! A node is an inode's number, except for the root of the mount, which may be any directory and is node 1. Inode numbers are never reused, so a
//! node's generation is always 0.
//!
//! The kernel gives a directory one place in its tree. When another mount has moved the directory, a lookup at the new place makes the kernel move its
//! own entry there, for which it needs a lock that every rename between two directories holds: looked up inside of such a rename, the directory is
//! ESTALE, and one that moved below what was its own child is ELOOP. So a directory that is found under another parent than the kernel knows gets a
//! *second node* for the new place, and the old place is dropped from the kernel; while a directory has two, nothing of it is cached, since the kernel
//! can't know that one changes with the other.
//!
//! Must not know the device; who answers a lookup asks here for the node.

use crate::abi::ROOT_NODE;
use client::service::Ino;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::cell::RefCell;
use std::time::Duration;

/// Second nodes are numbered from here; inode numbers stay far below.
const SECOND: u64 = 1 << 63;

/// A parent that is not known: a directory found by its handle.
const NOWHERE: u64 = 0;

/// A directory's entry in the kernel's tree.
#[derive(Debug)]
struct Place {
    node: u64,
    parent: u64,
    name: Box<[u8]>,
    /// Replies that named the node and are not forgotten.
    lookups: u64,
}

#[derive(Debug, Default)]
struct Dirs {
    /// Those that the kernel knows: some 100 bytes each.
    places: FxHashMap<Ino, SmallVec<[Place; 1]>>,
    seconds: FxHashMap<u64, Ino>,
    last: u64,
}

/// The node to name in a reply.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entered {
    pub(crate) node: u64,
    /// Entries (directory and name) that lead to an outdated place, where the kernel had one.
    pub(crate) outdated: Vec<(u64, Box<[u8]>)>,
}

/// The nodes of a mount.
#[derive(Debug)]
pub(crate) struct Nodes {
    root: Ino,
    dirs: RefCell<Dirs>,
}

impl Nodes {
    /// Of a mount with this root.
    pub(crate) fn new(root: Ino) -> Self {
        Self { root, dirs: RefCell::default() }
    }

    /// The inode of a node.
    pub(crate) fn ino(&self, node: u64) -> Ino {
        match node {
            ROOT_NODE => self.root,
            SECOND.. => self.dirs.borrow().seconds.get(&node).copied().unwrap_or(Ino(node)),
            node => Ino(node),
        }
    }

    /// The first node of an inode; `None` for the file system's root where a directory below it is mounted.
    fn first(&self, ino: Ino) -> Option<u64> {
        match ino {
            ino if ino == self.root => Some(ROOT_NODE),
            Ino(ROOT_NODE) => None,
            Ino(n) => Some(n),
        }
    }

    /// All nodes that an inode may have in the kernel.
    pub(crate) fn all(&self, ino: Ino) -> SmallVec<[u64; 2]> {
        match self.dirs.borrow().places.get(&ino) {
            Some(places) => places.iter().map(|p| p.node).collect(),
            None => self.first(ino).into_iter().collect(),
        }
    }

    /// Has this directory two nodes? Then none of its names and attributes may have a lifetime.
    pub(crate) fn is_split(&self, ino: Ino) -> bool {
        self.dirs.borrow().places.get(&ino).is_some_and(|places| places.len() > 1)
    }

    /// A lifetime for what is in a directory, or for what it is itself.
    pub(crate) fn ttl(&self, ino: Ino, ttl: Duration) -> Duration {
        if self.is_split(ino) { Duration::ZERO } else { ttl }
    }

    /// A reply is about to say that `name` in the directory `parent` leads to `ino`.
    pub(crate) fn enter(&self, ino: Ino, is_dir: bool, parent: u64, name: &[u8]) -> Option<Entered> {
        let first = self.first(ino)?;
        if !is_dir || ino == self.root {
            return Some(Entered { node: first, outdated: Vec::new() });
        }
        let dirs = &mut *self.dirs.borrow_mut();
        let places = dirs.places.entry(ino).or_default();
        if let Some(known) =
            places.iter_mut().find(|p| p.parent == parent || p.parent == NOWHERE || parent == NOWHERE)
        {
            known.lookups += 1;
            if parent != NOWHERE {
                (known.parent, known.name) = (parent, name.into());
            }
            return Some(Entered { node: known.node, outdated: Vec::new() });
        }
        let node = if places.iter().all(|p| p.node != first) {
            first
        } else {
            dirs.last += 1;
            dirs.seconds.insert(SECOND + dirs.last, ino);
            SECOND + dirs.last
        };
        let outdated = places.iter().map(|p| (p.parent, p.name.clone())).collect();
        places.push(Place { node, parent, name: name.into(), lookups: 1 });
        Some(Entered { node, outdated })
    }

    /// The inode that ".." of a directory leads to, where it is known; the mount's root is its own parent.
    pub(crate) fn parent(&self, node: u64) -> Option<Ino> {
        let ino = self.ino(node);
        let parent = match self.dirs.borrow().places.get(&ino) {
            _ if node == ROOT_NODE => ROOT_NODE,
            places => places?.iter().find(|p| p.node == node)?.parent,
        };
        (parent != NOWHERE).then(|| self.ino(parent))
    }

    /// A reply is about to name a node that the kernel has named itself.
    pub(crate) fn enter_again(&self, node: u64) {
        let ino = self.ino(node);
        if ino == self.root {
            return;
        }
        let mut dirs = self.dirs.borrow_mut();
        let places = dirs.places.entry(ino).or_default();
        match places.iter_mut().find(|p| p.node == node) {
            Some(place) => place.lookups += 1,
            None => places.push(Place { node, parent: NOWHERE, name: Box::default(), lookups: 1 }),
        }
    }

    /// The kernel's own rename moved the directory.
    pub(crate) fn moved(&self, ino: Ino, from: u64, to: u64, name: &[u8]) {
        let mut dirs = self.dirs.borrow_mut();
        let places = dirs.places.get_mut(&ino);
        if let Some(place) = places.and_then(|list| list.iter_mut().find(|p| p.parent == from)) {
            (place.parent, place.name) = (to, name.into());
        }
    }

    /// The kernel forgets. Tells whether it knows nothing of the inode any more.
    pub(crate) fn forget(&self, node: u64, n: u64) -> bool {
        let ino = self.ino(node);
        let dirs = &mut *self.dirs.borrow_mut();
        let Some(places) = dirs.places.get_mut(&ino) else { return true };
        if let Some(at) = places.iter().position(|p| p.node == node) {
            places[at].lookups = places[at].lookups.saturating_sub(n);
            if places[at].lookups == 0 {
                places.remove(at);
                dirs.seconds.remove(&node);
            }
        }
        let gone = places.is_empty();
        if gone {
            dirs.places.remove(&ino);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(nodes: &Nodes, ino: u64, parent: u64, name: &[u8]) -> (u64, usize) {
        let entered = nodes.enter(Ino(ino), true, parent, name).expect("it has a node");
        (entered.node, entered.outdated.len())
    }

    #[test]
    fn a_directory_below_the_root_becomes_node_1() {
        let nodes = Nodes::new(Ino(40));
        assert_eq!((nodes.ino(1), nodes.ino(7)), (Ino(40), Ino(7)));
        assert_eq!(
            (nodes.first(Ino(40)), nodes.first(Ino(7)), nodes.first(Ino(1))),
            (Some(1), Some(7), None)
        );
        let whole = Nodes::new(Ino(1));
        assert_eq!((whole.ino(1), whole.first(Ino(1))), (Ino(1), Some(1)));
    }

    #[test]
    fn a_directory_that_another_mount_moved_has_a_node_for_each_place() {
        let nodes = Nodes::new(Ino(1));
        assert_eq!(enter(&nodes, 7, 1, b"d"), (7, 0));
        assert_eq!(enter(&nodes, 7, 1, b"renamed"), (7, 0), "in one directory the kernel moves it itself");
        let second = nodes.enter(Ino(7), true, 9, b"d").expect("a node");
        assert_eq!(second.outdated, [(1, Box::from(&b"renamed"[..]))]);
        assert_eq!((nodes.ino(second.node), &nodes.all(Ino(7))[..]), (Ino(7), &[7, second.node][..]));
        assert!(nodes.is_split(Ino(7)));
        // The old place is forgotten, then the number can be used again.
        assert!(!nodes.forget(7, 2) && !nodes.is_split(Ino(7)));
        assert_eq!(enter(&nodes, 7, 1, b"back").0, 7);
        assert!(!nodes.forget(second.node, 1) && nodes.forget(7, 1));
        assert_eq!((nodes.ino(second.node), nodes.dirs.borrow().places.len()), (Ino(second.node), 0));
    }

    #[test]
    fn the_kernels_own_renames_are_followed() {
        let nodes = Nodes::new(Ino(1));
        enter(&nodes, 7, 1, b"d");
        nodes.moved(Ino(7), 1, 9, b"e");
        assert_eq!((nodes.parent(7), nodes.parent(1), nodes.parent(33)), (Some(Ino(9)), Some(Ino(1)), None));
        assert_eq!(enter(&nodes, 7, 9, b"e"), (7, 0));
        nodes.enter_again(8);
        assert_eq!(enter(&nodes, 8, 9, b"by handle before"), (8, 0));
        assert!(!nodes.forget(8, 1) && nodes.forget(8, 1) && nodes.forget(33, 1));
    }
}
