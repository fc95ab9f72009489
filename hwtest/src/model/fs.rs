//! The reference model: what Linux says a file system does, in memory, with no thought for speed.
//!
//! Error precedence follows the kernel's path walk and `fs/namei.c`. Must not share code with the product.

use super::ops::{Kind, Op, Renaming, Reply, Stat};
use std::collections::{BTreeMap, HashMap};

/// The root's number in the model.
pub(super) const ROOT: u64 = 1;
/// Longest name.
const NAME_MAX: usize = 255;
/// Links that a path walk follows (MAXSYMLINKS).
const LINKS_MAX: u32 = 40;

/// An error by name, as a worker words it.
pub(super) type Error = &'static str;
pub(super) type Outcome<T> = Result<T, Error>;

/// What the model expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// This answer.
    Exactly(Reply),
    /// These attributes; inode number and time are compared where the model knows them.
    Attributes {
        /// The inode in the model.
        node: u64,
        /// All but `ino` and `mtime`.
        stat: Stat,
        /// Set by the last `Utimes`, unless something changed the contents since.
        mtime: Option<(i64, u32)>,
    },
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    File(Vec<u8>),
    Dir { entries: BTreeMap<String, u64>, parent: u64 },
    Link(String),
    Fifo,
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) body: Body,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) nlink: u64,
    pub(super) mtime: Option<(i64, u32)>,
    /// Length and hash of each value.
    pub(super) xattrs: BTreeMap<String, (usize, u64)>,
}

/// A file that a worker has open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    pub(super) node: u64,
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) append: bool,
}

/// Where a path leads.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) dir: u64,
    pub(super) name: String,
    pub(super) node: Option<u64>,
}

/// The file system, and what workers have open in it.
#[derive(Clone, Debug)]
pub struct Model {
    pub(super) nodes: HashMap<u64, Node>,
    pub(super) next: u64,
    pub(super) opens: HashMap<(usize, usize), Open>,
    pub(super) locks: super::locks::Locks,
    /// Inode numbers as the file system under test has them.
    real: HashMap<u64, u64>,
    owner_of_real: HashMap<u64, u64>,
}

impl Default for Model {
    fn default() -> Self {
        let root = Node {
            body: Body::Dir { entries: BTreeMap::new(), parent: ROOT },
            mode: 0o755,
            uid: 0,
            gid: 0,
            nlink: 2,
            mtime: None,
            xattrs: BTreeMap::new(),
        };
        Self {
            nodes: [(ROOT, root)].into(),
            next: ROOT + 1,
            opens: HashMap::new(),
            locks: super::locks::Locks::default(),
            real: HashMap::new(),
            owner_of_real: HashMap::new(),
        }
    }
}

impl Model {
    /// Does an operation on behalf of a worker and says what the worker should answer.
    pub fn apply(&mut self, worker: usize, op: &Op) -> Expected {
        let outcome = match op {
            Op::Stat { path } => match self.existing(path, false) {
                Ok(node) => return self.attributes(node),
                Err(e) => Err(e),
            },
            Op::SlotStat { slot } => match self.opens.get(&(worker, *slot)) {
                Some(open) => return self.attributes(open.node),
                None => Err("EBADF"),
            },
            _ => self.perform(worker, op),
        };
        Expected::Exactly(outcome.unwrap_or_else(|e| Reply::Error(e.to_owned())))
    }

    fn perform(&mut self, worker: usize, op: &Op) -> Outcome<Reply> {
        match op {
            Op::Create { path, mode, excl } => self.create(worker, path, *mode, *excl),
            Op::Mkdir { path, mode } => {
                let body = Body::Dir { entries: BTreeMap::new(), parent: ROOT };
                self.make(path, body, *mode)
            }
            Op::Rmdir { path } => self.rmdir(path),
            Op::Unlink { path } => self.unlink(path),
            Op::Rename { from, to, how } => self.rename(from, to, *how),
            Op::Link { from, to } => self.link(from, to),
            Op::Symlink { target, path } => self.make(path, Body::Link(target.clone()), 0o777),
            Op::Readlink { path } => match &self.node(self.existing(path, false)?).body {
                Body::Link(target) => Ok(Reply::Text(target.clone())),
                _ => Err("EINVAL"),
            },
            Op::Fifo { path, mode } => self.make(path, Body::Fifo, *mode),
            Op::List { path } => self.list(path),
            Op::Chmod { path, mode } => {
                let node = self.existing(path, true)?;
                self.node_mut(node).mode = *mode;
                Ok(Reply::Ok)
            }
            Op::Chown { path, uid, gid } => {
                let node = self.existing(path, true)?;
                self.node_mut(node).chown(*uid, *gid);
                Ok(Reply::Ok)
            }
            Op::Utimes { path, sec, nsec } => {
                let node = self.existing(path, true)?;
                self.node_mut(node).mtime = Some((*sec, *nsec));
                Ok(Reply::Ok)
            }
            _ => self.perform_on_contents(worker, op),
        }
    }

    pub(super) fn node(&self, node: u64) -> &Node {
        &self.nodes[&node]
    }

    /// A node that is known to be there.
    #[expect(clippy::expect_used, reason = "numbers come from the model's own tables")]
    pub(super) fn node_mut(&mut self, node: u64) -> &mut Node {
        self.nodes.get_mut(&node).expect("the model holds every node that it names")
    }

    pub(super) fn entries(&self, dir: u64) -> Outcome<&BTreeMap<String, u64>> {
        match &self.node(dir).body {
            Body::Dir { entries, .. } => Ok(entries),
            _ => Err("ENOTDIR"),
        }
    }

    fn entries_mut(&mut self, dir: u64) -> &mut BTreeMap<String, u64> {
        let node = self.node_mut(dir);
        node.mtime = None;
        match &mut node.body {
            Body::Dir { entries, .. } => entries,
            _ => unreachable!("only directories are changed"),
        }
    }

    /// Walks a path as the kernel does.
    pub(super) fn find(&self, path: &str, follow: bool) -> Outcome<Found> {
        if path.is_empty() {
            return Ok(Found { dir: ROOT, name: String::new(), node: Some(ROOT) });
        }
        self.walk(ROOT, path, follow, &mut 0)
    }

    fn walk(&self, start: u64, path: &str, follow: bool, links: &mut u32) -> Outcome<Found> {
        let mut dir = start;
        let mut parts = path.split('/').peekable();
        loop {
            let name = parts.next().unwrap_or_default();
            let entries = self.entries(dir)?;
            if name.len() > NAME_MAX {
                return Err("ENAMETOOLONG");
            }
            let node = entries.get(name).copied();
            let last = parts.peek().is_none();
            let target = match node.map(|n| &self.node(n).body) {
                Some(Body::Link(target)) if follow || !last => Some(target),
                _ => None,
            };
            let found = match target {
                Some(target) => {
                    *links += 1;
                    if *links > LINKS_MAX {
                        return Err("ELOOP");
                    }
                    self.walk(dir, target, true, links)?
                }
                None => Found { dir, name: name.to_owned(), node },
            };
            if last {
                return Ok(found);
            }
            dir = found.node.ok_or("ENOENT")?;
        }
    }

    pub(super) fn existing(&self, path: &str, follow: bool) -> Outcome<u64> {
        self.find(path, follow)?.node.ok_or("ENOENT")
    }

    fn attributes(&self, id: u64) -> Expected {
        let node = self.node(id);
        let (kind, size) = match &node.body {
            Body::File(data) => (Kind::File, data.len() as u64),
            Body::Dir { .. } => (Kind::Dir, 0),
            Body::Link(target) => (Kind::Link, target.len() as u64),
            Body::Fifo => (Kind::Fifo, 0),
        };
        let stat = Stat {
            kind,
            mode: node.mode,
            nlink: node.nlink,
            uid: node.uid,
            gid: node.gid,
            size,
            ino: 0,
            mtime: (0, 0),
        };
        Expected::Attributes { node: id, stat, mtime: node.mtime }
    }

    /// Compares an answer with what was expected, and learns the inode number from the first that tells it.
    ///
    /// # Errors
    /// What differs.
    pub fn compare(&mut self, expected: &Expected, got: &Reply) -> Result<(), String> {
        match (expected, got) {
            (Expected::Exactly(reply), got) if reply == got => Ok(()),
            (Expected::Attributes { node, stat, mtime }, Reply::Stat(got)) => {
                let same = Stat { ino: got.ino, mtime: got.mtime, ..stat.clone() };
                if same != *got {
                    return Err(format!("expected {same:?}\n     got {got:?}"));
                }
                if let Some(mtime) = mtime
                    && *mtime != got.mtime
                {
                    return Err(format!("mtime was set to {mtime:?} and is {:?}", got.mtime));
                }
                let known = *self.real.entry(*node).or_insert(got.ino);
                let owner = *self.owner_of_real.entry(got.ino).or_insert(*node);
                if known != got.ino || owner != *node {
                    return Err(format!(
                        "inode number {} seen: this file had {known}, and number {} is of node {owner}",
                        got.ino, got.ino
                    ));
                }
                Ok(())
            }
            (expected, got) => Err(format!("expected {expected:?}\n     got {got:?}")),
        }
    }

    /// Adds a node; set-group-ID directories hand their group on.
    pub(super) fn add(&mut self, dir: u64, name: &str, body: Body, mode: u32) -> u64 {
        let id = self.next;
        self.next += 1;
        let parent = self.node(dir);
        let setgid = parent.mode & 0o2000 != 0;
        let gid = if setgid { parent.gid } else { 0 };
        let is_dir = matches!(body, Body::Dir { .. });
        let body = if is_dir { Body::Dir { entries: BTreeMap::new(), parent: dir } } else { body };
        let mode = if is_dir && setgid { mode | 0o2000 } else { mode };
        let nlink = if is_dir { 2 } else { 1 };
        self.nodes.insert(id, Node { body, mode, uid: 0, gid, nlink, mtime: None, xattrs: BTreeMap::new() });
        self.entries_mut(dir).insert(name.to_owned(), id);
        if is_dir {
            self.node_mut(dir).nlink += 1;
        }
        id
    }

    fn make(&mut self, path: &str, body: Body, mode: u32) -> Outcome<Reply> {
        let found = self.find(path, false)?;
        if found.node.is_some() {
            return Err("EEXIST");
        }
        self.add(found.dir, &found.name, body, mode);
        Ok(Reply::Ok)
    }

    fn create(&mut self, worker: usize, path: &str, mode: u32, excl: bool) -> Outcome<Reply> {
        let found = self.find(path, !excl)?;
        match found.node {
            Some(_) if excl => return Err("EEXIST"),
            Some(node) if self.is_dir(node) => return Err("EISDIR"),
            Some(node) => self.locks.closed(worker, node),
            None => {
                self.add(found.dir, &found.name, Body::File(Vec::new()), mode);
            }
        }
        Ok(Reply::Ok)
    }

    fn list(&self, path: &str) -> Outcome<Reply> {
        let dir = self.existing(path, true)?;
        let kind = |n: &u64| match self.node(*n).body {
            Body::File(_) => Kind::File,
            Body::Dir { .. } => Kind::Dir,
            Body::Link(_) => Kind::Link,
            Body::Fifo => Kind::Fifo,
        };
        Ok(Reply::Names(self.entries(dir)?.iter().map(|(name, n)| (name.clone(), kind(n))).collect()))
    }

    fn rmdir(&mut self, path: &str) -> Outcome<Reply> {
        let found = self.find(path, false)?;
        let node = found.node.ok_or("ENOENT")?;
        if !self.entries(node)?.is_empty() {
            return Err("ENOTEMPTY");
        }
        self.entries_mut(found.dir).remove(&found.name);
        self.dropped_dir(found.dir, node);
        Ok(Reply::Ok)
    }

    fn unlink(&mut self, path: &str) -> Outcome<Reply> {
        let found = self.find(path, false)?;
        let node = found.node.ok_or("ENOENT")?;
        if self.is_dir(node) {
            return Err("EISDIR");
        }
        self.entries_mut(found.dir).remove(&found.name);
        self.node_mut(node).nlink -= 1;
        self.reap(node);
        Ok(Reply::Ok)
    }

    fn link(&mut self, from: &str, to: &str) -> Outcome<Reply> {
        let node = self.existing(from, false)?;
        let found = self.find(to, false)?;
        if found.node.is_some() {
            return Err("EEXIST");
        }
        if self.is_dir(node) {
            return Err("EPERM");
        }
        self.entries_mut(found.dir).insert(found.name, node);
        self.node_mut(node).nlink += 1;
        Ok(Reply::Ok)
    }

    /// The order of the checks is that of `do_renameat2` and `vfs_rename` in `fs/namei.c`. A path's parent is walked for
    /// both before either last name is looked up.
    fn rename(&mut self, from: &str, to: &str, how: Renaming) -> Outcome<Reply> {
        self.parent_of(from)?;
        self.parent_of(to)?;
        let from = self.find(from, false)?;
        let source = from.node.ok_or("ENOENT")?;
        let to = self.find(to, false)?;
        match (how, to.node) {
            (Renaming::NoReplace, Some(_)) => return Err("EEXIST"),
            (Renaming::Exchange, None) => return Err("ENOENT"),
            _ => {}
        }
        if self.is_within(to.dir, source) {
            return Err("EINVAL");
        }
        if to.node.is_some_and(|t| self.is_within(from.dir, t)) {
            return Err(if how == Renaming::Exchange { "EINVAL" } else { "ENOTEMPTY" });
        }
        if to.node == Some(source) {
            return Ok(Reply::Ok);
        }
        if let (Renaming::Exchange, Some(target)) = (how, to.node) {
            self.entries_mut(from.dir).insert(from.name, target);
            self.entries_mut(to.dir).insert(to.name, source);
            self.moved(source, from.dir, to.dir);
            self.moved(target, to.dir, from.dir);
            return Ok(Reply::Ok);
        }
        if let Some(target) = to.node {
            match (self.is_dir(source), self.is_dir(target)) {
                (true, false) => return Err("ENOTDIR"),
                (false, true) => return Err("EISDIR"),
                (true, true) if !self.entries(target)?.is_empty() => return Err("ENOTEMPTY"),
                _ => {}
            }
        }
        self.entries_mut(from.dir).remove(&from.name);
        self.entries_mut(to.dir).insert(to.name, source);
        self.moved(source, from.dir, to.dir);
        if let Some(target) = to.node {
            if self.is_dir(target) {
                self.dropped_dir(to.dir, target);
            } else {
                self.node_mut(target).nlink -= 1;
                self.reap(target);
            }
        }
        Ok(Reply::Ok)
    }

    fn parent_of(&self, path: &str) -> Outcome<()> {
        let Some((parent, _)) = path.rsplit_once('/') else { return Ok(()) };
        let dir = self.existing(parent, true)?;
        self.entries(dir).map(|_| ())
    }

    /// Whether `node` is `ancestor` or lies below it.
    fn is_within(&self, mut node: u64, ancestor: u64) -> bool {
        loop {
            if node == ancestor {
                return true;
            }
            match self.node(node).body {
                Body::Dir { parent, .. } if node != ROOT => node = parent,
                _ => return false,
            }
        }
    }

    /// A directory that moves takes its link to the parent along.
    fn moved(&mut self, node: u64, from: u64, to: u64) {
        let moving = self.node_mut(node);
        if let Body::Dir { parent, .. } = &mut moving.body {
            *parent = to;
            moving.mtime = None;
            self.node_mut(from).nlink -= 1;
            self.node_mut(to).nlink += 1;
        }
    }

    fn dropped_dir(&mut self, parent: u64, node: u64) {
        self.node_mut(parent).nlink -= 1;
        self.node_mut(node).nlink = 0;
        self.reap(node);
    }

    pub(super) fn is_dir(&self, node: u64) -> bool {
        matches!(self.node(node).body, Body::Dir { .. })
    }

    /// Frees a node without names that nobody has open.
    pub(super) fn reap(&mut self, node: u64) {
        if self.node(node).nlink == 0 && !self.opens.values().any(|o| o.node == node) {
            self.nodes.remove(&node);
            self.locks.freed(node);
            if let Some(real) = self.real.remove(&node) {
                self.owner_of_real.remove(&real);
            }
        }
    }
}

impl Node {
    /// chown(2) takes set-user-ID away from what is no directory, and set-group-ID where the group may execute.
    fn chown(&mut self, uid: u32, gid: u32) {
        self.uid = uid;
        self.gid = gid;
        if !matches!(self.body, Body::Dir { .. }) {
            self.mode &= !0o4000;
            if self.mode & 0o010 != 0 {
                self.mode &= !0o2000;
            }
        }
    }
}
