//! Cross-checks all rows of a namespace, and its chunk maps against what the shards hold.
//!
//! Owns the rules that must hold between rows, and the rows that would make them hold where nothing has to be guessed. Must not
//! write any, and must not need the rows in any place but key order: memory is about 150 bytes per inode and 24 per name.

mod chunks;
mod repair;
mod report;
#[cfg(test)]
mod tests;

pub use repair::corrections;
pub use report::{Class, Problem, Report, Severity};

use crate::acl;
use crate::kv::{Counter, Key, Table};
use crate::layout::{self, FreeRow, InodeRow};
use report::{Field, Fix};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use wire::{FileKind, ROOT_INO};

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
    size: u64,
}

struct Body {
    ino: u64,
    map_pages: u32,
    dirty: bool,
    size: u64,
    /// Units of 512 bytes that the inode counts, and that its chunks have.
    blocks: u64,
    blocks_seen: u64,
    /// Where the last byte of its chunks stands.
    end: u64,
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
    /// Pages of chunk maps that belong to no inode.
    pages: Vec<Key>,
    names: HashMap<(u64, u64), u64>,
    sessions: HashSet<u64>,
    orphans_left: u64,
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
            pages: Vec::new(),
            names: HashMap::new(),
            sessions: HashSet::new(),
            orphans_left: 0,
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
    fn wrong(&mut self, ino: u64, text: String) {
        self.report.add(Class::Name, Severity::Wrong, Some(ino), text);
    }
    fn lost(&mut self, ino: Option<u64>, text: String) {
        self.report.add(Class::Name, Severity::Lost, ino, text);
    }
    fn bad_row(&mut self, text: String) {
        self.report.unsure = true;
        self.report.add(Class::Row, Severity::Lost, None, text);
    }
    fn leftover(&mut self, text: String, key: &Key) {
        let fix = Fix::Row(key.clone(), None);
        self.report.add_fixable(Class::Leftover, Severity::Waste, None, text, fix);
    }
    fn count(&mut self, ino: u64, field: Field, text: String) {
        let fix = Fix::Inode(ino, field);
        self.report.add_fixable(Class::Count, Severity::Wrong, Some(ino), text, fix);
    }
    /// A position or kind in a directory is not what its names say.
    fn listing(&mut self, dir: u64, text: String) {
        self.report.add_fixable(Class::Name, Severity::Wrong, Some(dir), text, Fix::Listing(dir));
    }

    /// Takes the next row.
    pub fn row(&mut self, key: &[u8], value: &[u8]) {
        let key = Key::raw(key);
        if self.last.as_ref().is_some_and(|l| *l >= key) {
            self.bad_row(format!("{key:?} is out of order"));
        }
        self.last = Some(key.clone());
        if !key.validate() {
            return self.bad_row(format!("{key:?} fits no table"));
        }
        if let Err(why) = self.typed(&key, value) {
            self.bad_row(format!("{key:?} does not decode: {why}"));
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
            Table::Xattr => self.xattr(key, id, rest, value),
            Table::Symlink => self.target(key, id, value),
            Table::ChunkMap => {
                let page = u32::from_be_bytes(rest.try_into().map_err(|_| "key")?);
                self.page(key, id, page, &layout::page(value)?);
            }
            Table::Orphan => match self.nodes.get_mut(&id) {
                Some(n) => n.orphan = true,
                None => self.leftover(format!("orphan mark without an inode: {id}"), key),
            },
            Table::Free => self.free(&layout::free(value)?),
            Table::Dirty => {
                self.report.dirty += 1;
                if let Some(b) = self.nodes.get(&id).and_then(|n| self.bodies.get_mut(&n.object)) {
                    b.dirty = true;
                }
            }
            Table::Session => drop(self.sessions.insert(id)),
            Table::Replay => {
                let (_, body) = layout::replay(value)?;
                let _ = crate::reply::decode(body)?;
                if !self.sessions.contains(&id) {
                    self.leftover(format!("kept reply of session {id:x}, which is not there"), key);
                }
            }
            Table::Intent => layout::intent(value).map(|_| ())?,
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
                size: r.size.get(),
            },
        );
        if !r.is_file() {
            return;
        }
        let object = r.object.get();
        self.max_object = self.max_object.max(object);
        let body = Body {
            ino,
            map_pages: r.map_pages.get(),
            dirty: false,
            size: r.size.get(),
            blocks: r.blocks.get(),
            blocks_seen: 0,
            end: 0,
        };
        if let Some(other) = self.bodies.insert(object, body) {
            let other = other.ino;
            self.lost(Some(ino), format!("inodes {other} and {ino} share body of data {object}"));
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
                let text = format!("name {shown} in directory {dir} means inode {ino}, which is not there");
                self.lost(Some(dir), text);
            }
            Some(n) => {
                n.links += 1;
                let (real, parent) = (n.kind, n.parent);
                if real.dirent_type() != kind {
                    let text =
                        format!("name {shown} in directory {dir} says kind {kind}, inode {ino} is {real:?}");
                    self.listing(dir, text);
                }
                if real == FileKind::Directory {
                    if parent != dir {
                        let text =
                            format!("directory {ino} names {parent} as its parent, but stands in {dir}");
                        let fix = Fix::Inode(ino, Field::Parent(dir));
                        self.report.add_fixable(Class::Name, Severity::Wrong, Some(ino), text, fix);
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
                    let text =
                        format!("name {shown} in directory {dir} has cookie {cookie}, the next is {next}");
                    self.listing(dir, text);
                }
            }
            _ => self.lost(Some(dir), format!("name {shown} stands in {dir}, which is no directory")),
        }
        let hash = self.hasher.hash_one((name, ino, kind));
        if self.names.insert((dir, cookie), hash).is_some() {
            self.listing(dir, format!("cookie {cookie} of directory {dir} stands for two names"));
        }
    }

    fn position(&mut self, dir: u64, cookie: u64, kind: u8, ino: u64, name: &[u8]) {
        let hash = self.hasher.hash_one((name, ino, kind));
        match self.names.remove(&(dir, cookie)) {
            Some(found) if found == hash => {}
            Some(_) => {
                let name = name.escape_ascii();
                let text =
                    format!("cookie {cookie} of directory {dir} lists {name}, it stands for another name");
                self.listing(dir, text);
            }
            // Which of the two is right can't be told.
            None => {
                let name = name.escape_ascii();
                let text = format!(
                    "cookie {cookie} of directory {dir} lists {name}, the directory does not have it so"
                );
                self.wrong(dir, text);
            }
        }
    }

    fn xattr(&mut self, key: &Key, ino: u64, name: &[u8], value: &[u8]) {
        let acl = name == acl::ACCESS || name == acl::DEFAULT;
        if acl && !matches!(acl::Acl::parse(value), Ok(Some(_))) {
            self.wrong(ino, format!("ACL of inode {ino} is invalid"));
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
                    let name = name.escape_ascii();
                    self.wrong(ino, format!("inode {ino} does not know of its attribute {name}"));
                }
            }
            None => self.leftover(format!("attribute of inode {ino}, which is not there"), key),
        }
    }

    fn target(&mut self, key: &Key, ino: u64, value: &[u8]) {
        match self.nodes.get_mut(&ino) {
            Some(n) if n.kind == FileKind::Symlink => {
                n.symlink = true;
                let (says, has) = (n.size, value.len() as u64);
                if says != has {
                    self.wrong(ino, format!("symbolic link {ino} says {says} bytes, its target has {has}"));
                }
            }
            _ => self.leftover(format!("target without a symbolic link: inode {ino}"), key),
        }
    }

    fn page(&mut self, key: &Key, object: u64, n: u32, page: &layout::Page) {
        let Some(b) = self.bodies.get(&object) else {
            // Belongs to an entry of the free list, or to nobody: known when that table has passed.
            return self.pages.push(key.clone());
        };
        let (ino, pages) = (b.ino, b.map_pages);
        if n >= pages {
            self.wrong(ino, format!("inode {ino} knows of {pages} pages of its chunk map, page {n} exists"));
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
                let ino = self.bodies.get(&object).map(|b| b.ino);
                self.lost(ino, format!("body of data {object} is in use and on the free list"));
            }
            self.dying.insert(object);
        }
    }

    /// All rows were given: the rules between them.
    pub fn rows_done(&mut self) {
        if !self.has_super {
            self.bad_row("there is no superblock row".into());
        }
        let nodes = core::mem::take(&mut self.nodes);
        if nodes.get(&ROOT_INO.0).is_none_or(|n| n.kind != FileKind::Directory) {
            self.bad_row("there is no root directory".into());
        }
        for (ino, n) in &nodes {
            self.node(*ino, n);
        }
        self.loops(&nodes);
        let left: Vec<_> = self.names.drain().map(|((dir, cookie), _)| (dir, cookie)).collect();
        for (dir, cookie) in left {
            let text =
                format!("a name of directory {dir} is at cookie {cookie}, where the listing has nothing");
            self.listing(dir, text);
        }
        for key in std::mem::take(&mut self.pages) {
            let object = key.id().unwrap_or(0);
            if !self.dying.contains(&object) && !self.cuts.contains_key(&object) {
                self.leftover(format!("chunk map of body of data {object}, which nobody has"), &key);
            }
        }
        self.numbers();
    }

    fn numbers(&mut self) {
        let counter = |c: Counter| self.counters.get(&(c as u8)).copied().unwrap_or(0);
        let inodes = (Counter::Inodes, counter(Counter::Inodes), self.report.inodes);
        let ino = (Counter::Ino, counter(Counter::Ino), self.max_ino + 1);
        let object = (Counter::Object, counter(Counter::Object), self.max_object.saturating_add(1));
        let mut fix = |severity, (counter, _, right): (Counter, u64, u64), text| {
            let fix = Fix::Row(Key::counter(counter), Some(right.to_le_bytes().into()));
            self.report.add_fixable(Class::Count, severity, None, text, fix);
        };
        if inodes.1 != inodes.2 {
            fix(Severity::Waste, inodes, format!("{} inodes are counted, {} are there", inodes.1, inodes.2));
        }
        for (what, c) in [("inode", ino), ("body of data", object)] {
            if c.1 < c.2 {
                let text = format!("{what} {} is in use, but {} comes next", c.2 - 1, c.1);
                fix(Severity::Wrong, c, text);
            }
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
        let nameless = n.links == 0 && !root;
        if nameless && !n.orphan {
            let text = format!("inode {ino} has no name and is not kept for an open");
            if n.nlink == 0 {
                let fix = Fix::Row(Key::orphan(wire::Ino(ino)), Some(Box::default()));
                self.report.add_fixable(Class::Leftover, Severity::Waste, Some(ino), text, fix);
            } else {
                self.lost(Some(ino), text);
            }
        } else if links != n.nlink {
            let text = format!("inode {ino} says {} links and has {links}", n.nlink);
            self.count(ino, Field::Links(links), text);
        }
        if is_dir && n.links > 1 {
            self.wrong(ino, format!("directory {ino} has {} names", n.links));
        }
        if n.orphan && n.links > 0 {
            let text = format!("inode {ino} has a name and is marked as kept for an open");
            let fix = Fix::Row(Key::orphan(wire::Ino(ino)), None);
            self.report.add_fixable(Class::Leftover, Severity::Wrong, Some(ino), text, fix);
        }
        if n.entries != n.listed {
            let text = format!("directory {ino} says {} entries and has {}", n.entries, n.listed);
            self.count(ino, Field::Entries(n.listed), text);
        }
        if n.xattr_list != n.xattr_seen {
            let text =
                format!("inode {ino} says {} bytes of attribute names, has {}", n.xattr_list, n.xattr_seen);
            self.count(ino, Field::XattrList(n.xattr_seen), text);
        }
        if n.kind == FileKind::Symlink && !n.symlink {
            self.lost(Some(ino), format!("symbolic link {ino} has no target"));
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
                self.lost(Some(*ino), format!("directory {ino} does not lead up to the root"));
            }
        }
    }

    /// The findings, worst first.
    #[must_use]
    pub fn finish(mut self) -> Report {
        if self.report.unsure {
            self.report.fixes.clear();
            self.report.orphans.clear();
            self.report.problems.iter_mut().for_each(|p| p.fixable = false);
        }
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
