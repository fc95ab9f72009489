//! Tests over a volume that forgets what was not synced, and that fails on demand.

use super::*;
use crate::kv::{Counter, Key, KeyRange, Table};
use crate::view::RangeMiss;
use crate::{CacheConfig, Create, LastStop, Namespace, Op, OpCtx, mkfs};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use wire::{ClientId, Ino, ROOT_INO, Timestamp};

/// Bytes as written, and as of the last sync.
#[derive(Debug, Default)]
struct Disk {
    now: Mutex<Vec<u8>>,
    synced: Mutex<Vec<u8>>,
    /// Writes that still succeed; `u32::MAX` for all.
    budget: AtomicU32,
    /// Reads that fail.
    bad_reads: AtomicU32,
    /// Pages written since the last sync, and how many there may be; 0 for any number. Each takes room until the sync.
    pages: Mutex<BTreeSet<u64>>,
    most_pages: AtomicU32,
}

#[derive(Debug, Clone)]
struct Handle(Arc<Disk>);

fn get(m: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disk {
    fn new() -> Arc<Self> {
        Arc::new(Self { budget: AtomicU32::new(u32::MAX), ..Self::default() })
    }
    fn spend(&self) -> io::Result<()> {
        let left = self.budget.load(Ordering::SeqCst);
        if left == 0 {
            return Err(io::Error::other("no write any more"));
        }
        if left != u32::MAX {
            self.budget.store(left - 1, Ordering::SeqCst);
        }
        Ok(())
    }
    fn power_cut(&self) {
        *get(&self.now) = get(&self.synced).clone();
        self.budget.store(u32::MAX, Ordering::SeqCst);
    }
    fn volume(self: &Arc<Self>) -> Box<dyn StorageBackend> {
        Box::new(Handle(self.clone()))
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(get(&self.0.now).len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let left = self.0.bad_reads.load(Ordering::SeqCst);
        if left > 0 {
            self.0.bad_reads.store(left - 1, Ordering::SeqCst);
            return Err(io::Error::other("bad block"));
        }
        let data = get(&self.0.now);
        let at = offset as usize;
        out.copy_from_slice(data.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.spend()?;
        get(&self.0.now).resize(len as usize, 0);
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.spend()?;
        self.0.pages.lock().unwrap_or_else(PoisonError::into_inner).clear();
        *get(&self.0.synced) = get(&self.0.now).clone();
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.spend()?;
        let mut pages = self.0.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.extend(offset / 4096..(offset + data.len() as u64).div_ceil(4096));
        let most = self.0.most_pages.load(Ordering::SeqCst) as usize;
        if most > 0 && pages.len() > most {
            pages.clear();
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        drop(pages);
        let at = offset as usize;
        let mut now = get(&self.0.now);
        now.get_mut(at..at + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        Ok(())
    }
}

fn now() -> Timestamp {
    Timestamp::new(1, 0)
}

fn run(ns: &mut Namespace, op: &Op<'_>) -> Record {
    let ctx = OpCtx::plain(ClientId(1), now());
    loop {
        match ns.execute(&ctx, op) {
            Ok(done) => return done.record.expect("a change"),
            // The filter of a directory's names may take a new name for an old one; no database holds it.
            Err(miss) => {
                let rows = miss.keys.into_iter().map(|k| (k, None)).collect();
                ns.fetched(Fetched { rows, ..Fetched::default() });
            }
        }
    }
}

fn create(ns: &mut Namespace, name: &str) -> Record {
    let create = Create {
        dir: ROOT_INO,
        name: name.as_bytes(),
        mode: 0o100_644,
        umask: 0,
        rdev: 0,
        target: b"",
        excl: true,
        tmpfile: false,
        open: None,
    };
    run(ns, &Op::Create(create))
}

/// mkfs and some files; the namespace that made them has everything in its overlay.
fn started(files: usize) -> (Namespace, Vec<Record>) {
    let mut log = mkfs([1; 16], now());
    let mut ns = Namespace::open(Boot::default(), CacheConfig::default()).expect("empty");
    ns.replay(&log[0]).expect("first record");
    log.push(ns.start(LastStop::Clean).expect("made"));
    log.extend((0..files).map(|i| create(&mut ns, &format!("file{i}"))));
    (ns, log)
}

fn history(files: usize) -> Vec<Record> {
    started(files).1
}

fn expected(log: &[Record]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut all = BTreeMap::new();
    for (k, v) in log.iter().flat_map(Record::rows) {
        match v {
            Some(v) => drop(all.insert(k.to_vec(), v.to_vec())),
            None => drop(all.remove(k)),
        }
    }
    all
}

fn contents(disk: &Arc<Disk>) -> (Seq, BTreeMap<Vec<u8>, Vec<u8>>) {
    let mut all = BTreeMap::new();
    let at = dump(disk.volume(), |k, v| drop(all.insert(k.to_vec(), v.to_vec()))).expect("opens");
    (at, all)
}

fn start(disk: &Arc<Disk>, config: Config) -> (Applier, Boot, mpsc::Receiver<Event>) {
    let (tx, rx) = mpsc::channel();
    let d = disk.clone();
    let open: OpenVolume = Box::new(move || Ok(d.volume()));
    // The receiver may be gone at the end of a test.
    let (a, boot) = Applier::start(config, open, move |e| drop(tx.send(e))).expect("opens");
    (a, boot, rx)
}

fn wait_applied(rx: &mpsc::Receiver<Event>, seq: Seq) -> u32 {
    let mut failures = 0;
    loop {
        match rx.recv_timeout(Duration::from_secs(60)).expect("the applier goes on") {
            Event::Applied(s) if s >= seq => return failures,
            Event::Failed { .. } => failures += 1,
            _ => {}
        }
    }
}

#[test]
fn applies_in_order_and_serves_snapshots() {
    let disk = Disk::new();
    let log = history(300);
    let last = log.last().expect("not empty").seq();
    assert_eq!(format(disk.volume(), &log[..1]).expect("formats"), 1);
    let config = Config { batch_records: 50, ..Config::default() };
    let (a, boot, rx) = start(&disk, config);
    assert_eq!(boot.applied, 1);
    for r in &log {
        a.submit(r.clone()).expect("room");
    }
    a.flush();
    wait_applied(&rx, last);
    let (dir, ino) = (ROOT_INO, Ino(crate::limits::FIRST_INO));
    let miss = Miss {
        keys: [Key::dentry(dir, b"file0"), Key::dentry(dir, b"none"), Key::inode(ino)].into_iter().collect(),
        ranges: [RangeMiss { range: KeyRange::of(Table::DirCookie, 1), limit: 10 }].into_iter().collect(),
    };
    a.fetch(9, miss).expect("room");
    let rows = loop {
        if let Event::Fetched { id: 9, rows } = rx.recv_timeout(Duration::from_secs(60)).expect("an answer") {
            break rows;
        }
    };
    assert_eq!(rows.applied, last);
    let find = |k: &Key| rows.rows.iter().find(|(key, _)| key == k).map(|(_, v)| v.is_some());
    assert_eq!(find(&Key::dentry(dir, b"file0")), Some(true));
    assert_eq!(find(&Key::dentry(dir, b"none")), Some(false));
    assert_eq!(find(&Key::inode(Ino(ino.0 + 7))), Some(true), "read ahead");
    assert_eq!(rows.ranges[0].rows.len(), 10);
    assert_eq!(rows.ranges[0].range.end, rows.ranges[0].rows[9].0.successor(), "covers no more than it has");
    drop(a);
    assert_eq!(contents(&disk), (last, expected(&log)));
    let (_, boot, _rx) = start(&disk, Config::default());
    assert!(boot.rows.iter().any(|(k, _)| *k == Key::counter(Counter::Ino)));
}

/// Kill and power cut between any two writes of a commit: what is there is the state after some record, and the log goes on
/// from it to the same end.
#[test]
fn a_cut_at_any_write_leaves_a_prefix() {
    let log = history(120);
    let last = log.last().expect("not empty").seq();
    for writes in (0..400).step_by(3) {
        let disk = Disk::new();
        format(disk.volume(), &log[..1]).expect("formats");
        let (base, at) = Base::open(disk.volume(), 1 << 20, Arc::default()).expect("opens");
        let half = base.apply(at, &log[..60]).expect("applies");
        disk.budget.store(writes, Ordering::SeqCst);
        let _ = base.apply(half, &log[60..]);
        drop(base);
        disk.power_cut();
        let (at, rows) = contents(&disk);
        assert!(at == half || at == last, "{at} after {writes} writes");
        assert_eq!(rows, expected(&log[..at as usize]));
        let (base, at) = Base::open(disk.volume(), 1 << 20, Arc::default()).expect("opens");
        assert_eq!(base.apply(at, &log).expect("goes on"), last);
        drop(base);
        assert_eq!(contents(&disk), (last, expected(&log)));
    }
}

/// redb refuses everything after one error of its volume: the applier opens it again and loses no record.
#[test]
fn errors_of_the_volume_pass() {
    let disk = Disk::new();
    let log = history(400);
    let last = log.last().expect("not empty").seq();
    format(disk.volume(), &log[..1]).expect("formats");
    let (a, _, rx) = start(&disk, Config { batch_records: 20, ..Config::default() });
    disk.budget.store(7, Ordering::SeqCst);
    for r in &log[1..] {
        a.submit(r.clone()).expect("room");
    }
    a.flush();
    loop {
        if let Event::Failed { error, .. } = rx.recv_timeout(Duration::from_secs(60)).expect("it tells") {
            assert!(!error.is_empty());
            break;
        }
    }
    disk.budget.store(u32::MAX, Ordering::SeqCst);
    wait_applied(&rx, last);
    // A read that fails is answered after the database was opened again.
    disk.bad_reads.store(1, Ordering::SeqCst);
    drop(a);
    disk.bad_reads.store(0, Ordering::SeqCst);
    assert_eq!(contents(&disk), (last, expected(&log)));
}

#[test]
fn queues_are_bounded_and_gaps_refused() {
    let disk = Disk::new();
    let log = history(10);
    format(disk.volume(), &log[..1]).expect("formats");
    let config = Config {
        queue_records: 3,
        batch_records: 100,
        batch_delay: Duration::from_secs(3600),
        ..Config::default()
    };
    let (a, _, rx) = start(&disk, config);
    for r in &log[1..4] {
        a.submit(r.clone()).expect("room");
    }
    assert!(a.submit(log[4].clone()).is_err(), "full");
    a.flush();
    wait_applied(&rx, log[3].seq());
    a.submit(log[4].clone()).expect("room again");
    drop(a);
    assert_eq!(contents(&disk).0, log[4].seq(), "what was submitted is committed at the end");
    let (base, at) = Base::open(disk.volume(), 1 << 20, Arc::default()).expect("opens");
    assert!(matches!(base.apply(at, &log[7..]), Err(Error::Gap { .. })));
}

#[test]
fn a_damaged_volume_is_an_error_and_no_panic() {
    let log = history(200);
    let disk = Disk::new();
    format(disk.volume(), &log).expect("formats");
    let good = get(&disk.now).clone();
    for at in (0..good.len()).step_by(good.len() / 60) {
        let damaged = Disk::new();
        let mut bytes = good.clone();
        for b in bytes.iter_mut().skip(at).take(64) {
            *b ^= 0x5A;
        }
        *get(&damaged.now) = bytes;
        // Unused pages may be damaged without anybody noticing.
        let _ = dump(damaged.volume(), |_, _| {});
    }
    let short = Disk::new();
    *get(&short.now) = good[..good.len() / 2].to_vec();
    assert!(dump(short.volume(), |_, _| {}).is_err());
}

#[test]
fn a_look_sees_the_database_and_the_records_behind_it() {
    let disk = Disk::new();
    let (a, b, c) = (Key::orphan(Ino(1)), Key::orphan(Ino(2)), Key::orphan(Ino(3)));
    let record = |seq, rows: &[(&Key, Option<&[u8]>)]| Record::encode(seq, rows.iter().copied());
    let all = [
        record(1, &[(&a, Some(b"1")), (&b, Some(b"1"))]),
        record(2, &[(&a, None), (&b, Some(b"2")), (&c, Some(b"2"))]),
    ];
    assert_eq!(amend(disk.volume(), &all[..1]).expect("applied"), 1);
    let seen = look(disk.volume(), &all, |rows, last| {
        assert_eq!((last, rows.get(&a)?, rows.get(&b)?.as_deref()), (2, None, Some(&b"2"[..])));
        let (mut seen, mut first) = (Vec::new(), Vec::new());
        rows.all(|k, v| {
            seen.push((Key::raw(k), v.to_vec()));
            true
        })?;
        rows.all(|k, _| {
            first.push(Key::raw(k));
            false
        })?;
        assert_eq!(first, std::slice::from_ref(&b));
        Ok(seen)
    });
    assert_eq!(seen.expect("looked"), [(b.clone(), b"2".to_vec()), (c, b"2".to_vec())]);
    let gap = look(disk.volume(), &[record(3, &[(&a, None)])], |_, _| Ok(()));
    assert!(matches!(gap, Err(Error::Gap { expected: 2, found: 3 })), "{gap:?}");
    // The same from beside a running applier.
    let (told, seen) = mpsc::channel();
    let volume = disk.clone();
    let (applier, _) =
        Applier::start(Config::default(), Box::new(move || Ok(volume.volume())), |_| {}).expect("started");
    let looked = applier.look(move |rows| {
        let value = rows.and_then(|rows| rows.get(&b)).map_err(|e| e.to_string());
        drop(told.send(value));
    });
    assert!(looked);
    assert_eq!(seen.recv().expect("it looks").expect("read").as_deref(), Some(&b"1"[..]));
}

/// The volume never shrank: what a million files had needed was never given back.
#[test]
fn a_database_that_was_emptied_gives_its_space_back() {
    let disk = Disk::new();
    let (mut ns, mut log) = started(0);
    let config = Config {
        tidy_after: Duration::from_millis(1),
        tidy_above: 512 << 10,
        batch_records: 100,
        ..Config::default()
    };
    let (a, _, rx) = start(&disk, config);
    let mut sizes = Vec::new();
    for round in 0..3 {
        let name = |i: usize| format!("round{round}-file-with-a-name-of-some-length-{i}");
        log.extend((0..3000).map(|i| create(&mut ns, &name(i))));
        let full = log.last().map_or(0, Record::seq);
        for i in 0..3000 {
            log.push(run(&mut ns, &Op::Unlink { dir: ROOT_INO, name: name(i).as_bytes() }));
        }
        let (mut most, empty) = (0, log.last().map_or(0, Record::seq));
        for record in log.drain(..) {
            let seq = record.seq();
            a.submit(record).expect("room");
            if seq == full {
                wait_applied(&rx, full);
                most = a.size().volume();
            }
        }
        wait_applied(&rx, empty);
        while a.size().volume() > 512 << 10 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(most > 1 << 20, "there was something to give back: {most}");
        sizes.push(a.size().rows());
    }
    assert!(sizes.iter().all(|s| s.is_some() && *s == sizes[0]), "{sizes:?}");
    drop(a);
    disk.power_cut();
    let (seq, _) = contents(&disk);
    assert_eq!(seq, ns.last_seq(), "what was tidied is durable");
}

/// A commit that needed more room than a full device had was tried again as it was, for ever, and nothing could be deleted.
#[test]
fn on_a_full_volume_commits_become_smaller() {
    let disk = Disk::new();
    let (mut ns, mut log) = started(3000);
    let config =
        Config { tidy_after: Duration::from_secs(3600), batch_records: 1 << 16, ..Config::default() };
    let (a, _, rx) = start(&disk, config);
    let last = ns.last_seq();
    log.drain(..).for_each(|r| a.submit(r).expect("room"));
    a.flush();
    wait_applied(&rx, last);
    disk.most_pages.store(100, Ordering::SeqCst);
    // Every other one: all pages stay and change.
    for i in (0..3000).step_by(2) {
        let name = format!("file{i}");
        a.submit(run(&mut ns, &Op::Unlink { dir: ROOT_INO, name: name.as_bytes() })).expect("room");
    }
    a.flush();
    let failures = wait_applied(&rx, ns.last_seq());
    assert!(failures > 0, "the commit of all of it fitted: nothing was shown");
}
