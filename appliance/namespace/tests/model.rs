//! Random operations against a small model of POSIX, with misses at any read, evictions, late applying and crashes.

mod common;

use common::{CLIENT, ROOT, World, create};
use namespace::op::{RENAME_EXCHANGE, RENAME_NOREPLACE};
use namespace::{Create, Op, Reply};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use wire::{Attr, Errno, FileKind, Ino, SetAttr};

#[derive(Clone, Debug)]
struct Node {
    kind: FileKind,
    nlink: u32,
    mode: u32,
    size: u64,
    parent: Ino,
    names: BTreeMap<String, Ino>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    change: u64,
}

#[derive(Default)]
struct Model {
    nodes: BTreeMap<Ino, Node>,
    opens: BTreeMap<u64, Ino>,
}

type R<T> = Result<T, Errno>;

impl Model {
    fn new() -> Self {
        let mut m = Self::default();
        m.nodes.insert(ROOT, Self::node(FileKind::Directory, 0o755, ROOT));
        m
    }
    fn node(kind: FileKind, mode: u32, parent: Ino) -> Node {
        let nlink = if kind == FileKind::Directory { 2 } else { 1 };
        Node {
            kind,
            nlink,
            mode,
            size: 0,
            parent,
            names: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            change: 0,
        }
    }
    fn dir(&self, ino: Ino) -> R<&Node> {
        let n = self.nodes.get(&ino).ok_or(Errno::ESTALE)?;
        if n.kind == FileKind::Directory { Ok(n) } else { Err(Errno::ENOTDIR) }
    }
    fn live(&self, ino: Ino) -> R<&Node> {
        let n = self.dir(ino)?;
        if n.nlink == 0 { Err(Errno::ENOENT) } else { Ok(n) }
    }
    fn name(&self, dir: Ino, name: &str) -> R<Option<Ino>> {
        Ok(self.dir(dir)?.names.get(name).copied())
    }
    fn n(&mut self, ino: Ino) -> &mut Node {
        self.nodes.get_mut(&ino).expect("the model knows it")
    }
    fn gone(&mut self, ino: Ino) {
        if self.n(ino).nlink == 0 && !self.opens.values().any(|i| *i == ino) {
            self.nodes.remove(&ino);
        }
    }
    fn drop_link(&mut self, ino: Ino) {
        let n = self.n(ino);
        n.nlink = if n.kind == FileKind::Directory { 0 } else { n.nlink - 1 };
        self.gone(ino);
    }
    fn may_create(&self, dir: Ino, name: &str) -> R<()> {
        self.live(dir)?;
        if self.name(dir, name)?.is_some() { Err(Errno::EEXIST) } else { Ok(()) }
    }
    fn created(&mut self, dir: Ino, name: &str, ino: Ino, kind: FileKind, mode: u32) {
        self.nodes.insert(ino, Self::node(kind, mode, dir));
        self.n(dir).names.insert(name.into(), ino);
        if kind == FileKind::Directory {
            self.n(dir).nlink += 1;
        }
    }
    fn link(&mut self, ino: Ino, dir: Ino, name: &str) -> R<()> {
        let n = self.nodes.get(&ino).ok_or(Errno::ESTALE)?.clone();
        self.live(dir)?;
        if n.kind == FileKind::Directory {
            return Err(Errno::EPERM);
        }
        self.may_create(dir, name)?;
        if n.nlink == 0 {
            return Err(Errno::ENOENT);
        }
        self.n(ino).nlink += 1;
        self.n(dir).names.insert(name.into(), ino);
        Ok(())
    }
    fn remove(&mut self, dir: Ino, name: &str, rmdir: bool) -> R<()> {
        let ino = self.name(dir, name)?.ok_or(Errno::ENOENT)?;
        let n = &self.nodes[&ino];
        match (rmdir, n.kind == FileKind::Directory) {
            (true, false) => return Err(Errno::ENOTDIR),
            (false, true) => return Err(Errno::EISDIR),
            (true, true) if !n.names.is_empty() => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        self.n(dir).names.remove(name);
        if rmdir {
            self.n(dir).nlink -= 1;
        }
        self.drop_link(ino);
        Ok(())
    }
    fn within(&self, mut at: Ino, top: Ino) -> bool {
        loop {
            if at == top {
                return true;
            }
            if at == ROOT {
                return false;
            }
            at = self.nodes[&at].parent;
        }
    }
    fn rename(&mut self, a: (Ino, &str), b: (Ino, &str), flags: u32) -> R<()> {
        let from = self.name(a.0, a.1)?.ok_or(Errno::ENOENT)?;
        self.live(b.0)?;
        let to = self.name(b.0, b.1)?;
        let dir = |m: &Self, i: Ino| m.nodes[&i].kind == FileKind::Directory;
        if dir(self, from) && a.0 != b.0 && self.within(b.0, from) {
            return Err(Errno::EINVAL);
        }
        let exchange = flags == RENAME_EXCHANGE;
        match to {
            None if exchange => return Err(Errno::ENOENT),
            Some(_) if flags == RENAME_NOREPLACE => return Err(Errno::EEXIST),
            Some(t) if t == from => return Ok(()),
            Some(t) if exchange && dir(self, t) && a.0 != b.0 && self.within(a.0, t) => {
                return Err(Errno::EINVAL);
            }
            Some(t) if !exchange => match (dir(self, from), dir(self, t)) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) if !self.nodes[&t].names.is_empty() => return Err(Errno::ENOTEMPTY),
                _ => {}
            },
            _ => {}
        }
        self.n(a.0).names.remove(a.1);
        self.n(b.0).names.insert(b.1.into(), from);
        if dir(self, from) {
            self.n(a.0).nlink -= 1;
            self.n(b.0).nlink += 1;
            self.n(from).parent = b.0;
        }
        if let Some(t) = to {
            if dir(self, t) {
                self.n(b.0).nlink -= 1;
            }
            if exchange {
                self.n(a.0).names.insert(a.1.into(), t);
                if dir(self, t) {
                    self.n(a.0).nlink += 1;
                    self.n(t).parent = a.0;
                }
            } else {
                self.drop_link(t);
            }
        }
        Ok(())
    }
}

const NAMES: [&str; 6] = ["a", "b", "c", "dd", "a-long-name-that-does-not-fit-a-key-inline", "z"];

/// One step: which operation, and picks for what it is applied to.
type Step = (u8, u16, u16, u8, u8);

struct Run {
    w: World,
    m: Model,
    /// All inodes ever, so that stale ones are used too.
    known: Vec<Ino>,
    cookies: BTreeMap<Ino, BTreeMap<u64, String>>,
}

impl Run {
    fn pick(&self, n: u16) -> Ino {
        self.known[n as usize % self.known.len()]
    }
    /// Mostly directories.
    fn pick_dir(&self, n: u16) -> Ino {
        let dirs: Vec<_> =
            self.m.nodes.iter().filter(|(_, n)| n.kind == FileKind::Directory).map(|(i, _)| *i).collect();
        if n % 16 == 15 { self.pick(n) } else { dirs[n as usize % dirs.len()] }
    }

    fn step(&mut self, (what, x, y, a, b): Step) {
        let (na, nb) = (NAMES[a as usize % NAMES.len()], NAMES[b as usize % NAMES.len()]);
        match what % 16 {
            0 | 1 => self.create(self.pick_dir(x), na, FileKind::Regular, 0o100_644),
            2 => self.create(self.pick_dir(x), na, FileKind::Directory, 0o040_755),
            3 => {
                let kinds = [FileKind::Fifo, FileKind::Socket, FileKind::CharDevice, FileKind::Symlink];
                let kind = kinds[b as usize % 4];
                self.create(self.pick_dir(x), na, kind, kind as u32 | 0o600);
            }
            4 => {
                let (dir, ino) = (self.pick_dir(x), self.pick(y));
                let want = self.m.link(ino, dir, na);
                let got = self.w.run(&Op::Link { ino, dir, name: na.as_bytes() });
                assert_eq!(got.map(|_| ()), want, "link");
            }
            5 | 6 => {
                let dir = self.pick_dir(x);
                let want = self.m.remove(dir, na, false);
                let got = self.w.run_slot(a.into(), &Op::Unlink { dir, name: na.as_bytes() });
                assert_eq!(got.map(|_| ()), want, "unlink");
            }
            7 => {
                let dir = self.pick_dir(x);
                let want = self.m.remove(dir, na, true);
                let got = self.w.run(&Op::Rmdir { dir, name: na.as_bytes() });
                assert_eq!(got.map(|_| ()), want, "rmdir");
            }
            8 | 9 => {
                let (dir, new_dir, flags) = (self.pick_dir(x), self.pick_dir(y), u32::from(a ^ b) % 3);
                let want = self.m.rename((dir, na), (new_dir, nb), flags);
                let op = Op::Rename { dir, name: na.as_bytes(), new_dir, new_name: nb.as_bytes(), flags };
                let got = self.w.run_slot(b.into(), &op);
                assert_eq!(got.map(|_| ()), want, "rename {na} {nb} {flags}");
            }
            10 => self.open(x),
            11 => self.close(x),
            12 => self.set(x, a, b),
            13 => self.xattr(x, a, b),
            14 => self.verify_some(x),
            _ if a < 40 => self.crash(b % 2 == 0),
            _ => self.listing(self.pick_dir(x)),
        }
    }

    fn create(&mut self, dir: Ino, name: &str, kind: FileKind, mode: u32) {
        let target: &[u8] = if kind == FileKind::Symlink { b"to" } else { b"" };
        let c = Create { target, ..create(dir, name.as_bytes(), mode) };
        let want = self.m.may_create(dir, name);
        match (self.w.run_slot(3, &Op::Create(c)), want) {
            (Ok(Reply::Created { attr, existed: false, .. }), Ok(())) => {
                let ino = attr.ino();
                assert!(!self.known.contains(&ino), "a number is used twice");
                self.known.push(ino);
                let perm = if kind == FileKind::Symlink { 0o777 } else { mode & 0o7777 & !0o022 };
                self.m.created(dir, name, ino, kind, perm);
                self.m.n(ino).size = target.len() as u64;
            }
            (got, want) => assert_eq!(got.map(|_| ()), want, "create {name}"),
        }
    }

    fn open(&mut self, x: u16) {
        let ino = self.pick(x);
        match self.w.run(&Op::Open { ino, flags: 1 }) {
            Ok(Reply::Opened { handle, .. }) => {
                assert!(self.m.nodes.contains_key(&ino));
                assert_eq!(self.m.opens.insert(handle, ino), None, "a handle is used twice");
            }
            got => {
                assert_eq!(got.map(|_| ()), Err(Errno::ESTALE));
                assert!(!self.m.nodes.contains_key(&ino));
            }
        }
    }
    fn close(&mut self, x: u16) {
        let handles: Vec<_> = self.m.opens.keys().copied().collect();
        if handles.is_empty() {
            return;
        }
        let handle = handles[x as usize % handles.len()];
        let ino = self.m.opens.remove(&handle).expect("it was listed");
        assert_eq!(self.w.run(&Op::Close { ino, handle }), Ok(Reply::Done));
        self.m.gone(ino);
    }
    fn set(&mut self, x: u16, a: u8, b: u8) {
        let ino = self.pick(x);
        let (mode, size) = (u32::from(a) * 2 % 0o1000, u64::from(b) * 70_000);
        let mut set = SetAttr { mode: Some(mode), ..SetAttr::default() };
        if a.is_multiple_of(2) {
            set.size = Some(size);
        }
        let want = match self.m.nodes.get(&ino).map(|n| n.kind) {
            None => Err(Errno::ESTALE),
            Some(FileKind::Directory) if set.size.is_some() => Err(Errno::EISDIR),
            Some(FileKind::Regular) => Ok(()),
            Some(_) if set.size.is_some() => Err(Errno::EINVAL),
            Some(_) => Ok(()),
        };
        assert_eq!(self.w.run(&Op::SetAttr { ino, set }).map(|_| ()), want, "setattr");
        if want.is_ok() {
            let n = self.m.n(ino);
            n.mode = mode;
            n.size = set.size.unwrap_or(n.size);
        }
    }
    fn xattr(&mut self, x: u16, a: u8, b: u8) {
        let ino = self.pick(x);
        let name = format!("user.{}", a % 3);
        let value = vec![b; b as usize];
        let (op, removes) = if b.is_multiple_of(3) {
            (Op::RemoveXattr { ino, name: name.as_bytes() }, true)
        } else {
            (Op::SetXattr { ino, name: name.as_bytes(), value: &value, flags: 0 }, false)
        };
        let want = match self.m.nodes.get(&ino) {
            None => Err(Errno::ESTALE),
            Some(n) if removes && !n.xattrs.contains_key(name.as_bytes()) => Err(Errno::ENODATA),
            Some(_) => Ok(()),
        };
        assert_eq!(self.w.run(&op).map(|_| ()), want, "xattr");
        if want.is_ok() {
            let x = &mut self.m.n(ino).xattrs;
            if removes {
                x.remove(name.as_bytes());
            } else {
                x.insert(name.into_bytes(), value);
            }
        }
    }

    fn crash(&mut self, reclaim: bool) {
        let opens = std::mem::take(&mut self.m.opens);
        self.w.crash();
        for (handle, ino) in opens {
            if reclaim {
                assert!(self.w.settle(|ns| ns.reclaim_open(CLIENT, ino, handle, 1)));
                self.m.opens.insert(handle, ino);
            } else if self.m.nodes.contains_key(&ino) {
                self.m.gone(ino);
            }
        }
        self.w.reap();
    }

    fn compare(&mut self, ino: Ino) {
        let got = self.w.run(&Op::GetAttr { ino });
        match (got, self.m.nodes.get_mut(&ino)) {
            (Err(e), None) => assert_eq!(e, Errno::ESTALE),
            (Ok(Reply::Attr(a)), Some(n)) => {
                let attr: Attr = a;
                assert_eq!(attr.kind(), Some(n.kind));
                assert_eq!((attr.nlink.get(), attr.mode.get() & 0o7777), (n.nlink, n.mode), "inode {ino}");
                if n.kind != FileKind::Directory {
                    assert_eq!(attr.size.get(), n.size, "size of {ino}");
                }
                assert!(attr.change.get() >= n.change, "change counter of {ino} goes back");
                n.change = attr.change.get();
            }
            (got, want) => panic!("inode {ino}: {got:?}, model {want:?}"),
        }
    }
    fn verify_some(&mut self, x: u16) {
        let ino = self.pick(x);
        self.compare(ino);
        if let Some(n) = self.m.nodes.get(&ino).cloned() {
            let Ok(Reply::Bytes(list)) = self.w.run(&Op::ListXattr { ino }) else { panic!("listxattr") };
            let got: BTreeSet<&[u8]> = list.split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
            assert_eq!(got, n.xattrs.keys().map(|k| &k[..]).collect());
            for (k, v) in &n.xattrs {
                assert_eq!(self.w.run(&Op::GetXattr { ino, name: k }), Ok(Reply::Bytes(v[..].into())));
            }
            if n.kind == FileKind::Directory {
                let up = self.w.lookup(ino, "..");
                let want =
                    if self.m.nodes.contains_key(&n.parent) { Ok(n.parent) } else { Err(Errno::ESTALE) };
                assert_eq!(up.map(|a| a.ino()), want, ".. of {ino}");
            }
        }
    }
    fn listing(&mut self, dir: Ino) {
        if self.m.dir(dir).is_err() {
            return;
        }
        let got = self.w.list(dir);
        let want: BTreeMap<_, _> = self.m.nodes[&dir].names.clone();
        assert_eq!(got.iter().map(|(n, i, _)| (n.clone(), *i)).collect::<BTreeMap<_, _>>(), want);
        assert_eq!(got.len(), want.len(), "a name is listed twice");
        let seen = self.cookies.entry(dir).or_default();
        for (name, _, cookie) in got {
            let before = seen.entry(cookie).or_insert_with(|| name.clone());
            assert_eq!(*before, name, "cookie {cookie} was given to another name");
        }
    }
    fn all(&mut self) {
        for ino in self.known.clone() {
            self.compare(ino);
            self.listing(ino);
        }
        self.w.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 400, ..ProptestConfig::default() })]
    #[test]
    fn agrees_with_the_model(seed in any::<u64>(), steps in proptest::collection::vec(any::<Step>(), 1..400)) {
        let mut r = Run { w: World::new(seed), m: Model::new(), known: vec![ROOT], cookies: BTreeMap::new() };
        for s in steps {
            r.step(s);
        }
        r.all();
        r.crash(false);
        r.all();
    }
}
