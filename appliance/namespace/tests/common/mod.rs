//! A world for tests: a namespace over an in-memory database, with misses, evictions, late applying and crashes by a seed.
#![allow(dead_code, reason = "each test file uses its own part")]

use namespace::kv::Key;
use namespace::view::FetchedRange;
use namespace::{
    Boot, CacheConfig, Create, Effect, Executed, Fetched, LastStop, LazyError, Miss, Namespace, Op, OpCtx,
    Outcome, Record, Reply, mkfs,
};
use std::collections::BTreeMap;
use wire::{Attr, ClientId, Errno, Ino, ROOT_INO, RequestId, Slot, Timestamp};

pub(crate) const CLIENT: ClientId = ClientId(77);

pub(crate) struct World {
    pub(crate) ns: Namespace,
    store: BTreeMap<Vec<u8>, Vec<u8>>,
    applied: u64,
    log: Vec<Record>,
    rng: u64,
    pub(crate) now: i64,
    pub(crate) misses: u64,
    pub(crate) effects: Vec<Effect>,
    pub(crate) sequence: u64,
    /// Evicts, applies and so on by chance.
    pub(crate) chaos: bool,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let log = mkfs([7; 16], Timestamp::new(1, 0));
        let mut w = Self {
            ns: Namespace::open(Boot::default(), CacheConfig::default()).expect("empty boot"),
            store: BTreeMap::new(),
            applied: 0,
            log,
            rng: seed | 1,
            now: 1000,
            misses: 0,
            effects: Vec::new(),
            sequence: 0,
            chaos: true,
        };
        w.restart(LastStop::Clean);
        w
    }

    pub(crate) fn rand(&mut self, n: u64) -> u64 {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        (self.rng >> 11) % n
    }

    /// The daemon dies and starts again: everything in memory is gone, the log is not.
    pub(crate) fn crash(&mut self) {
        self.restart(LastStop::Unclean);
    }

    /// As [`World::crash`], and records behind `flushed` are lost.
    pub(crate) fn power_cut(&mut self, flushed: u64) {
        assert!(self.applied <= flushed, "only what is flushed is applied");
        self.log.retain(|r| r.seq() <= flushed);
        self.crash();
    }

    fn restart(&mut self, last: LastStop) {
        let rows =
            self.store.iter().filter(|(k, _)| Key::raw(k).table().is_some_and(|t| Boot::TABLES.contains(&t)));
        let rows = rows.map(|(k, v)| (Key::raw(k), Box::from(&v[..]))).collect();
        let cache = CacheConfig { rows: 6000, pages: 40_000, filters: 2000 };
        let mut ns =
            Namespace::open(Boot { applied: self.applied, rows }, cache).expect("rows were written by it");
        for r in &self.log {
            let r = Record::decode(r.bytes().to_vec()).expect("a record reads back");
            ns.replay(&r).expect("no gap");
        }
        self.ns = ns;
        let start = self.ns.start(last).expect("a file system is there");
        self.push(Some(start));
        self.effects.clear();
    }

    pub(crate) fn push(&mut self, r: Option<Record>) {
        self.log.extend(r);
    }

    /// Moves some records into the database and tells the namespace (perhaps later than a fetch sees them).
    pub(crate) fn apply(&mut self, n: usize) {
        let n = n.min(self.log.len());
        for r in self.log.drain(..n) {
            for (k, v) in r.rows() {
                match v {
                    Some(v) => drop(self.store.insert(k.to_vec(), v.to_vec())),
                    None => drop(self.store.remove(k)),
                }
            }
            self.applied = r.seq();
        }
    }

    pub(crate) fn disturb(&mut self) {
        if !self.chaos {
            return;
        }
        match self.rand(12) {
            0 => self.ns.drop_caches(),
            1 | 2 => {
                let n = self.rand(8) as usize;
                self.apply(n);
            }
            3 | 4 => self.ns.applied(self.applied),
            5 => {
                let n = self.rand(8) as usize;
                self.apply(n);
                self.ns.applied(self.applied);
            }
            _ => {}
        }
    }

    pub(crate) fn fetch(&mut self, miss: &Miss) -> Fetched {
        self.misses += 1;
        let mut f = Fetched { applied: self.applied, ..Fetched::default() };
        for k in &miss.keys {
            f.rows.push((k.clone(), self.store.get(k.bytes()).map(|v| Box::from(&v[..]))));
        }
        for r in &miss.ranges {
            let limit = 1 + self.rand(r.limit.min(40) as u64) as usize;
            let range = r.range.start.bytes().to_vec()..r.range.end.bytes().to_vec();
            let rows: Vec<_> =
                self.store.range(range).take(limit).map(|(k, v)| (Key::raw(k), Box::from(&v[..]))).collect();
            let mut range = r.range.clone();
            if rows.len() == limit
                && let Some((k, _)) = rows.last()
            {
                range.end = k.successor();
            }
            f.ranges.push(FetchedRange { range, rows });
        }
        f
    }

    /// Repeats until nothing is missing. A miss must have changed nothing.
    pub(crate) fn settle<T>(&mut self, mut f: impl FnMut(&mut Namespace) -> Result<T, Miss>) -> T {
        for _ in 0..20_000 {
            let before = self.ns.last_seq();
            match f(&mut self.ns) {
                Ok(t) => return t,
                Err(miss) => {
                    assert_eq!(before, self.ns.last_seq(), "a miss changed something");
                    assert!(!miss.keys.is_empty() || !miss.ranges.is_empty(), "a miss that misses nothing");
                    let rows = self.fetch(&miss);
                    if self.chaos && self.rand(5) == 0 {
                        self.apply(1);
                        self.ns.applied(self.applied);
                    }
                    let fresh = rows.applied == self.applied;
                    let taken = self.ns.fetched(rows);
                    assert!(taken || !fresh, "fresh rows were refused");
                }
            }
        }
        panic!("misses without end");
    }

    pub(crate) fn lazy<T>(
        &mut self,
        mut f: impl FnMut(&mut Namespace) -> Result<T, LazyError>,
    ) -> Result<T, LazyError> {
        self.settle(|ns| match f(ns) {
            Err(LazyError::Miss(m)) => Err(m),
            other => Ok(other),
        })
    }

    pub(crate) fn ctx(&self) -> OpCtx {
        OpCtx { now: Timestamp::new(self.now, 5), ..OpCtx::plain(CLIENT, Timestamp::default()) }
    }

    pub(crate) fn execute(&mut self, ctx: &OpCtx, op: &Op<'_>) -> Executed {
        self.disturb();
        self.settle(|ns| ns.touches(op));
        let done = self.settle(|ns| ns.execute(ctx, op));
        if let Some(r) = &done.record {
            assert_eq!(done.depends_on, r.seq());
        }
        self.push(done.record.clone());
        self.effects.extend(done.effects.iter().copied());
        done
    }

    pub(crate) fn run(&mut self, op: &Op<'_>) -> Outcome {
        self.now += 1;
        let ctx = self.ctx();
        self.execute(&ctx, op).outcome
    }

    /// The client of all slots, once.
    pub(crate) fn open_session(&mut self) {
        if self.ns.sessions().next().is_none() {
            let session = self.ns.put_session(CLIENT, b"");
            self.push(Some(session));
        }
    }

    /// With a slot, as a client's request.
    pub(crate) fn run_slot(&mut self, slot: u16, op: &Op<'_>) -> Outcome {
        self.now += 1;
        self.sequence += 1;
        self.open_session();
        let request = RequestId { client: CLIENT, slot: Slot(slot), sequence: self.sequence };
        let ctx = OpCtx { request, ..self.ctx() };
        self.execute(&ctx, op).outcome
    }

    pub(crate) fn ok(&mut self, op: &Op<'_>) -> Reply {
        self.run(op).unwrap_or_else(|e| panic!("{op:?}: {e:?}"))
    }
    pub(crate) fn err(&mut self, op: &Op<'_>) -> Errno {
        match self.run(op) {
            Err(e) => e,
            Ok(r) => panic!("{op:?} went well: {r:?}"),
        }
    }

    pub(crate) fn make(&mut self, dir: Ino, name: &str, mode: u32) -> Ino {
        match self.ok(&Op::Create(create(dir, name.as_bytes(), mode))) {
            Reply::Created { attr, .. } => attr.ino(),
            r => panic!("{r:?}"),
        }
    }
    pub(crate) fn mkdir(&mut self, dir: Ino, name: &str) -> Ino {
        self.make(dir, name, 0o040_755)
    }
    pub(crate) fn file(&mut self, dir: Ino, name: &str) -> Ino {
        self.make(dir, name, 0o100_644)
    }
    pub(crate) fn open(&mut self, ino: Ino, flags: u32) -> u64 {
        match self.ok(&Op::Open { ino, flags }) {
            Reply::Opened { handle, .. } => handle,
            r => panic!("{r:?}"),
        }
    }
    pub(crate) fn attr(&mut self, ino: Ino) -> Attr {
        match self.ok(&Op::GetAttr { ino }) {
            Reply::Attr(a) => a,
            r => panic!("{r:?}"),
        }
    }
    pub(crate) fn lookup(&mut self, dir: Ino, name: &str) -> Result<Attr, Errno> {
        self.run(&Op::Lookup { dir, name: name.as_bytes() }).map(|r| match r {
            Reply::Entry(a) => a,
            r => panic!("{r:?}"),
        })
    }
    /// Names of a directory, without dots, listed in pages of any size.
    pub(crate) fn list(&mut self, dir: Ino) -> Vec<(String, Ino, u64)> {
        let mut out = Vec::new();
        let mut cookie = 0;
        loop {
            let max = 300 + self.rand(2000) as u32;
            let plus = self.rand(2) == 0;
            match self.ok(&Op::ReadDir { dir, cookie, max, plus }) {
                Reply::DirPage { entries, eof } => {
                    for e in entries {
                        assert!(e.cookie > cookie, "cookies ascend");
                        cookie = e.cookie;
                        if cookie > 2 {
                            assert_eq!(e.attr.is_some(), plus);
                            out.push((String::from_utf8_lossy(&e.name).into_owned(), e.ino, e.cookie));
                        }
                    }
                    if eof {
                        return out;
                    }
                }
                r => panic!("{r:?}"),
            }
        }
    }

    /// All rows as database and log have them.
    pub(crate) fn rows(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut all = self.store.clone();
        for r in &self.log {
            for (k, v) in r.rows() {
                match v {
                    Some(v) => drop(all.insert(k.to_vec(), v.to_vec())),
                    None => drop(all.remove(k)),
                }
            }
        }
        all
    }

    /// Nothing is wrong with the rows.
    pub(crate) fn check(&self) {
        let rows = self.rows();
        let report = namespace::fsck::check(rows.iter().map(|(k, v)| (&k[..], &v[..])));
        assert!(report.is_clean(), "{:#?}", report.problems);
        assert!(self.ns.damage().is_empty(), "{:?}", self.ns.damage());
    }

    /// Frees orphans as after the grace window.
    pub(crate) fn reap(&mut self) {
        loop {
            let orphans = self.settle(|ns| {
                ns.orphans(Ino(0), 3).map(|v| v.into_iter().filter(|i| !ns.is_open(*i)).collect::<Vec<_>>())
            });
            if orphans.is_empty() {
                // Open ones may stand before closed ones.
                let all = self.settle(|ns| ns.orphans(Ino(0), 10_000));
                let closed: Vec<_> = all.into_iter().filter(|i| !self.ns.is_open(*i)).collect();
                if closed.is_empty() {
                    return;
                }
                for i in closed {
                    self.reap_one(i);
                }
            }
            for i in orphans {
                self.reap_one(i);
            }
        }
    }
    fn reap_one(&mut self, ino: Ino) {
        let now = Timestamp::new(self.now, 0);
        if let Some(done) = self.settle(|ns| ns.reap_orphan(ino, now)) {
            self.push(done.record);
        }
    }
}

pub(crate) fn create(dir: Ino, name: &[u8], mode: u32) -> Create<'_> {
    Create { dir, name, mode, umask: 0o022, rdev: 0, target: b"", excl: true, tmpfile: false, open: None }
}

pub(crate) const ROOT: Ino = ROOT_INO;
