//! Cross-checks all rows of a namespace, and its chunk maps against what the shards hold.
//!
//! Owns the rules that must hold between rows. Must not repair, and must not need the rows in any place but key order: memory
//! is about 80 bytes per inode and 24 per name.

use crate::acl;
use crate::kv::{Counter, Key, Table};
use crate::layout::{self, FreeRow, InodeRow};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use wire::{CHUNK_SIZE, FileKind, ObjectId, ROOT_INO};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Space or numbers are wrong; no file is.
    Waste,
    /// A file or name shows something wrong.
    Wrong,
    /// A file or name is lost or unreadable.
    Lost,
}

/// Something that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, with the numbers that it is about.
    pub text: String,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The first [`Report::KEPT`] problems.
    pub problems: Vec<Problem>,
    /// How many there are.
    pub count: u64,
    /// Inodes seen.
    pub inodes: u64,
    /// Names seen.
    pub names: u64,
    /// Chunks that files and free list speak of.
    pub chunks: u64,
}

impl Report {
    /// Problems that are listed; more are only counted.
    pub const KEPT: usize = 10_000;

    fn add(&mut self, severity: Severity, text: String) {
        self.count += 1;
        if self.problems.len() < Self::KEPT {
            self.problems.push(Problem { severity, text });
        }
    }
    /// Nothing found?
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.count == 0
    }
}

struct Node {
    kind: FileKind,
    nlink: u32,
    links: u32,
    subdirs: u32,
    entries: u64,
    listed: u64,
    next_cookie: u64,
    parent: u64,
    xattr_list: u32,
    xattr_seen: u32,
    flags: u16,
    symlink: bool,
    orphan: bool,
    object: u64,
}

struct Body {
    ino: u64,
    map_pages: u32,
    dirty: bool,
}

/// Feed it every row in key order, then every chunk in any order, then finish.
pub struct Check {
    report: Report,
    nodes: HashMap<u64, Node>,
    bodies: HashMap<u64, Body>,
    /// Chunks that must exist.
    expected: HashSet<(u64, u32)>,
    /// Chunks that may exist: they wait on the free list.
    dying: HashSet<u64>,
    cuts: HashMap<u64, u64>,
    names: HashMap<(u64, u64), u64>,
    hasher: RandomState,
    counters: BTreeMap<u8, u64>,
    last: Option<Key>,
    has_super: bool,
    max_ino: u64,
    max_object: u64,
}

impl Default for Check {
    fn default() -> Self {
        Self {
            report: Report::default(),
            nodes: HashMap::new(),
            bodies: HashMap::new(),
            expected: HashSet::new(),
            dying: HashSet::new(),
            cuts: HashMap::new(),
            names: HashMap::new(),
            hasher: RandomState::new(),
            counters: BTreeMap::new(),
            last: None,
            has_super: false,
            max_ino: 0,
            max_object: 0,
        }
    }
}

impl core::fmt::Debug for Check {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Check").field("report", &self.report).finish_non_exhaustive()
    }
}

impl Check {
    fn wrong(&mut self, text: String) {
        self.report.add(Severity::Wrong, text);
    }
    fn lost(&mut self, text: String) {
        self.report.add(Severity::Lost, text);
    }

    /// Takes the next row.
    pub fn row(&mut self, key: &[u8], value: &[u8]) {
        let key = Key::raw(key);
        if self.last.as_ref().is_some_and(|l| *l >= key) {
            self.wrong(format!("{key:?} is out of order"));
        }
        self.last = Some(key.clone());
        if !key.validate() {
            return self.wrong(format!("{key:?} fits no table"));
        }
        if let Err(why) = self.typed(&key, value) {
            self.lost(format!("{key:?} does not decode: {why}"));
        }
    }

    fn typed(&mut self, key: &Key, value: &[u8]) -> Result<(), &'static str> {
        let id = key.id().unwrap_or(0);
        let rest = key.rest().unwrap_or_default();
        match key.table().ok_or("unknown table")? {
            Table::Super => self.has_super = layout::superblock(value).map(|_| true)?,
            Table::Counter => {
                self.counters.insert(key.bytes()[1], layout::counter(value)?);
            }
            Table::Inode => self.inode(id, &layout::inode(value)?),
            Table::Dentry => {
                let d = layout::dentry(value)?;
                self.name(id, rest, d.kind, d.ino.get(), d.cookie.get());
            }
            Table::DirCookie => {
                let (c, name) = layout::cookie(value)?;
                let cookie = u64::from_be_bytes(rest.try_into().map_err(|_| "key")?);
                self.position(id, cookie, c.kind, c.ino.get(), name);
            }
            Table::Xattr => self.xattr(id, rest, value),
            Table::Symlink => match self.nodes.get_mut(&id) {
                Some(n) if n.kind == FileKind::Symlink => n.symlink = true,
                _ => self.report.add(Severity::Waste, format!("target without a symbolic link: inode {id}")),
            },
            Table::ChunkMap => {
                let page = u32::from_be_bytes(rest.try_into().map_err(|_| "key")?);
                self.page(id, page, &layout::page(value)?);
            }
            Table::Orphan => match self.nodes.get_mut(&id) {
                Some(n) => n.orphan = true,
                None => self.report.add(Severity::Waste, format!("orphan mark without an inode: {id}")),
            },
            Table::Free => self.free(&layout::free(value)?),
            Table::Dirty => {
                if let Some(b) = self.nodes.get(&id).and_then(|n| self.bodies.get_mut(&n.object)) {
                    b.dirty = true;
                }
            }
            Table::Session => {}
            Table::Replay => {
                layout::replay(value)?;
            }
        }
        Ok(())
    }

    fn inode(&mut self, ino: u64, r: &InodeRow) {
        self.report.inodes += 1;
        self.max_ino = self.max_ino.max(ino);
        self.nodes.insert(
            ino,
            Node {
                kind: r.kind(),
                nlink: r.nlink.get(),
                links: 0,
                subdirs: 0,
                entries: r.entries.get(),
                listed: 0,
                next_cookie: r.next_cookie.get(),
                parent: r.parent.get(),
                xattr_list: r.xattr_list.get(),
                xattr_seen: 0,
                flags: r.flags.get(),
                symlink: false,
                orphan: false,
                object: r.object.get(),
            },
        );
        if !r.is_file() {
            return;
        }
        let object = r.object.get();
        self.max_object = self.max_object.max(object);
        let body = Body { ino, map_pages: r.map_pages.get(), dirty: false };
        if let Some(other) = self.bodies.insert(object, body) {
            let other = other.ino;
            self.lost(format!("inodes {other} and {ino} share body of data {object}"));
        }
        for i in layout::inline_chunks(r.chunks.get()) {
            self.expect(object, i);
        }
    }

    fn expect(&mut self, object: u64, index: u32) {
        self.expected.insert((object, index));
        self.report.chunks += 1;
    }

    fn name(&mut self, dir: u64, name: &[u8], kind: u8, ino: u64, cookie: u64) {
        self.report.names += 1;
        let shown = name.escape_ascii();
        match self.nodes.get_mut(&ino) {
            None => {
                self.lost(format!("name {shown} in directory {dir} means inode {ino}, which is not there"));
            }
            Some(n) => {
                n.links += 1;
                let (real, parent) = (n.kind, n.parent);
                if real.dirent_type() != kind {
                    self.wrong(format!(
                        "name {shown} in directory {dir} says kind {kind}, inode {ino} is {real:?}"
                    ));
                }
                if real == FileKind::Directory {
                    if parent != dir {
                        self.wrong(format!(
                            "directory {ino} names {parent} as its parent, but stands in {dir}"
                        ));
                    }
                    if let Some(d) = self.nodes.get_mut(&dir) {
                        d.subdirs += 1;
                    }
                }
            }
        }
        match self.nodes.get_mut(&dir) {
            Some(d) if d.kind == FileKind::Directory => {
                d.listed += 1;
                if cookie >= d.next_cookie || cookie < crate::limits::FIRST_COOKIE {
                    let next = d.next_cookie;
                    self.wrong(format!(
                        "name {shown} in directory {dir} has cookie {cookie}, the next is {next}"
                    ));
                }
            }
            _ => self.lost(format!("name {shown} stands in {dir}, which is no directory")),
        }
        let hash = self.hasher.hash_one((name, ino, kind));
        if self.names.insert((dir, cookie), hash).is_some() {
            self.wrong(format!("cookie {cookie} of directory {dir} stands for two names"));
        }
    }

    fn position(&mut self, dir: u64, cookie: u64, kind: u8, ino: u64, name: &[u8]) {
        let hash = self.hasher.hash_one((name, ino, kind));
        if self.names.remove(&(dir, cookie)) != Some(hash) {
            let name = name.escape_ascii();
            self.wrong(format!(
                "cookie {cookie} of directory {dir} lists {name}, the directory does not have it so"
            ));
        }
    }

    fn xattr(&mut self, ino: u64, name: &[u8], value: &[u8]) {
        let acl = name == acl::ACCESS || name == acl::DEFAULT;
        if acl && !matches!(acl::Acl::parse(value), Ok(Some(_))) {
            self.wrong(format!("ACL of inode {ino} is invalid"));
        }
        match self.nodes.get_mut(&ino) {
            Some(n) => {
                n.xattr_seen += name.len() as u32 + 1;
                let flag = match name {
                    acl::ACCESS => InodeRow::FLAG_ACL,
                    acl::DEFAULT => InodeRow::FLAG_DEFAULT_ACL,
                    b"security.capability" => InodeRow::FLAG_CAPS,
                    _ => 0,
                };
                if n.flags & flag != flag {
                    self.wrong(format!("inode {ino} does not know of its attribute {}", name.escape_ascii()));
                }
            }
            None => self.report.add(Severity::Waste, format!("attribute of inode {ino}, which is not there")),
        }
    }

    fn page(&mut self, object: u64, n: u32, page: &layout::Page) {
        let Some(b) = self.bodies.get(&object) else {
            // Belongs to an entry of the free list, or to nobody: known when that table has passed.
            self.cuts.entry(object).or_insert(u64::MAX);
            return;
        };
        let (ino, pages) = (b.ino, b.map_pages);
        if n >= pages {
            self.wrong(format!("inode {ino} knows of {pages} pages of its chunk map, page {n} exists"));
        }
        for i in layout::page_chunks(n, page) {
            self.expect(object, i);
        }
    }

    fn free(&mut self, r: &FreeRow) {
        let object = r.object.get();
        if r.kind.get() == FreeRow::CUT {
            self.cuts.insert(object, r.keep.get());
        } else {
            if self.bodies.contains_key(&object) {
                self.lost(format!("body of data {object} is in use and on the free list"));
            }
            self.dying.insert(object);
        }
    }

    /// All rows were given: the rules between them.
    pub fn rows_done(&mut self) {
        if !self.has_super {
            self.lost("there is no superblock row".into());
        }
        let nodes = core::mem::take(&mut self.nodes);
        if nodes.get(&ROOT_INO.0).is_none_or(|n| n.kind != FileKind::Directory) {
            self.lost("there is no root directory".into());
        }
        for (ino, n) in &nodes {
            self.node(*ino, n);
        }
        self.loops(&nodes);
        let left: Vec<_> = self.names.drain().map(|((dir, cookie), _)| (dir, cookie)).collect();
        for (dir, cookie) in left {
            self.wrong(format!(
                "a name of directory {dir} is at cookie {cookie}, where the listing has nothing"
            ));
        }
        for (object, keep) in &self.cuts {
            if *keep == u64::MAX && !self.dying.contains(object) {
                self.report
                    .add(Severity::Waste, format!("chunk map of body of data {object}, which nobody has"));
            }
        }
        let counter = |c: Counter| self.counters.get(&(c as u8)).copied().unwrap_or(0);
        let (inodes, ino, object) =
            (counter(Counter::Inodes), counter(Counter::Ino), counter(Counter::Object));
        if inodes != self.report.inodes {
            let n = self.report.inodes;
            self.report.add(Severity::Waste, format!("{inodes} inodes are counted, {n} are there"));
        }
        if ino <= self.max_ino || object <= self.max_object {
            self.lost(format!(
                "numbers in use ({}, {}) are not below those that come next ({ino}, {object})",
                self.max_ino, self.max_object
            ));
        }
    }

    fn node(&mut self, ino: u64, n: &Node) {
        let is_dir = n.kind == FileKind::Directory;
        let root = ino == ROOT_INO.0;
        let links = match (is_dir, n.links, root) {
            (true, 0, false) => 0,
            (true, ..) => 2 + n.subdirs,
            (false, l, _) => l,
        };
        if links != n.nlink {
            self.wrong(format!("inode {ino} says {} links and has {links}", n.nlink));
        }
        if is_dir && n.links > 1 {
            self.wrong(format!("directory {ino} has {} names", n.links));
        }
        if n.links == 0 && !root && !n.orphan {
            self.report.add(Severity::Waste, format!("inode {ino} has no name and is not kept for an open"));
        }
        if n.orphan && n.links > 0 {
            self.wrong(format!("inode {ino} has a name and is marked as kept for an open"));
        }
        if n.entries != n.listed {
            self.wrong(format!("directory {ino} says {} entries and has {}", n.entries, n.listed));
        }
        if n.xattr_list != n.xattr_seen {
            self.wrong(format!(
                "inode {ino} says {} bytes of attribute names, has {}",
                n.xattr_list, n.xattr_seen
            ));
        }
        if n.kind == FileKind::Symlink && !n.symlink {
            self.lost(format!("symbolic link {ino} has no target"));
        }
    }

    /// Every directory with a name leads up to the root.
    fn loops(&mut self, nodes: &HashMap<u64, Node>) {
        let mut good: HashSet<u64> = HashSet::from([ROOT_INO.0]);
        for (ino, n) in nodes.iter().filter(|(_, n)| n.kind == FileKind::Directory && n.links > 0) {
            let (mut at, mut path) = (*ino, vec![*ino]);
            let mut next = n.parent;
            while !good.contains(&at) {
                match nodes.get(&next) {
                    Some(p) if path.len() <= nodes.len() && !path.contains(&next) || good.contains(&next) => {
                        path.push(next);
                        at = next;
                        next = p.parent;
                    }
                    _ => break,
                }
            }
            if good.contains(&at) {
                good.extend(path);
            } else {
                self.lost(format!("directory {ino} does not lead up to the root"));
            }
        }
    }

    /// A chunk that a shard holds.
    pub fn chunk(&mut self, object: ObjectId, index: u32) {
        if self.expected.remove(&(object.0, index)) || self.dying.contains(&object.0) {
            return;
        }
        let cut = self.cuts.get(&object.0).is_some_and(|k| u64::from(index) * CHUNK_SIZE >= *k);
        let dirty = self.bodies.get(&object.0).is_some_and(|b| b.dirty);
        if !cut && !dirty {
            self.report
                .add(Severity::Waste, format!("chunk {index} of body of data {object} belongs to no file"));
        }
    }

    /// All chunks were given: what files speak of and no shard holds. Only after [`Check::chunk`] for every chunk.
    pub fn chunks_done(&mut self) {
        let mut left: Vec<_> = self.expected.drain().collect();
        left.sort_unstable();
        for (object, index) in left {
            let cut = self.cuts.get(&object).is_some_and(|k| u64::from(index) * CHUNK_SIZE >= *k);
            if let Some(b) = self.bodies.get(&object).filter(|b| !b.dirty && !cut) {
                let ino = b.ino;
                self.lost(format!("chunk {index} of inode {ino} (body of data {object}) is lost"));
            }
        }
    }

    /// The findings, worst first.
    #[must_use]
    pub fn finish(mut self) -> Report {
        self.report.problems.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.text.cmp(&b.text)));
        self.report
    }
}

/// Checks rows given in key order.
pub fn check<'a>(rows: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Report {
    let mut c = Check::default();
    for (k, v) in rows {
        c.row(k, v);
    }
    c.rows_done();
    c.finish()
}
