//! Loads files into a namespace over redb in a directory, then measures a restart. `measure DIR [FILES]`.
//!
//! Prints what it saw; asserts nothing about time.

use namespace::applier::{Applier, Config, Event, OpenVolume, format};
use namespace::{CacheConfig, Create, Fetched, LastStop, Miss, Namespace, Op, OpCtx, Record, Reply, mkfs};
use redb::backends::FileBackend;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use wire::{ClientId, Ino, ROOT_INO, RequestId, Slot, Timestamp};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

struct Shell {
    ns: Namespace,
    applier: Applier,
    events: mpsc::Receiver<Event>,
    log: VecDeque<Record>,
    fetches: u64,
    sequence: u64,
}

impl Shell {
    fn open(path: &Path, log: VecDeque<Record>, config: Config) -> Fallible<Self> {
        let (tx, events) = mpsc::channel();
        let path = path.to_path_buf();
        let open: OpenVolume = Box::new(move || {
            let file = std::fs::OpenOptions::new().read(true).write(true).open(&path)?;
            let backend = FileBackend::new(file).map_err(std::io::Error::other)?;
            Ok(Box::new(backend))
        });
        let config = Config { queue_records: 1 << 22, queue_bytes: 1 << 32, ..config };
        // The receiver goes before the applier at the end.
        let (applier, boot) = Applier::start(config, open, move |e| drop(tx.send(e)))?;
        let mut ns = Namespace::open(boot, CacheConfig::default())?;
        for r in &log {
            ns.replay(r)?;
        }
        let mut me = Self { ns, applier, events, log, fetches: 0, sequence: 0 };
        let pending: Vec<Record> = me.log.iter().cloned().collect();
        for r in pending {
            me.applier.submit(r).map_err(|_| "queue is full")?;
        }
        let start = me.ns.start(LastStop::Clean)?;
        me.log(start)?;
        Ok(me)
    }
    fn log(&mut self, r: Record) -> Fallible<()> {
        self.applier.submit(r.clone()).map_err(|_| "queue is full")?;
        self.log.push_back(r);
        Ok(())
    }
    fn event(&mut self, e: Event) -> Option<Fetched> {
        match e {
            Event::Applied(seq) => {
                self.ns.applied(seq);
                while self.log.front().is_some_and(|r| r.seq() <= seq) {
                    self.log.pop_front();
                }
                None
            }
            Event::Fetched { rows, .. } => Some(rows),
            other => {
                println!("{other:?}");
                None
            }
        }
    }
    fn fetch(&mut self, miss: Miss) -> Fallible<()> {
        self.fetches += 1;
        self.applier.fetch(0, miss).map_err(|_| "queue is full")?;
        loop {
            let e = self.events.recv()?;
            if let Some(rows) = self.event(e) {
                // Too old: the operation misses again and asks again.
                self.ns.fetched(rows);
                return Ok(());
            }
        }
    }
    fn run(&mut self, op: &Op<'_>) -> Fallible<Reply> {
        while let Ok(e) = self.events.try_recv() {
            self.event(e);
        }
        self.sequence += 1;
        let request = RequestId {
            client: ClientId(1),
            slot: Slot((self.sequence % 64) as u16),
            sequence: self.sequence,
        };
        let ctx = OpCtx { request, ..OpCtx::plain(ClientId(1), Timestamp::new(self.sequence as i64, 0)) };
        loop {
            match self.ns.execute(&ctx, op) {
                Ok(done) => {
                    if let Some(r) = done.record {
                        self.log(r)?;
                    }
                    return Ok(done.outcome?);
                }
                Err(miss) => self.fetch(miss)?,
            }
        }
    }
    fn make(&mut self, dir: Ino, name: &str, mode: u32) -> Fallible<Ino> {
        let name = name.as_bytes();
        let c = Create {
            dir,
            name,
            mode,
            umask: 0o022,
            rdev: 0,
            target: b"",
            excl: true,
            tmpfile: false,
            open: None,
        };
        match self.run(&Op::Create(c))? {
            Reply::Created { attr, .. } => Ok(attr.ino()),
            other => Err(format!("{other:?}").into()),
        }
    }
    fn drain(&mut self) -> Fallible<()> {
        while !self.log.is_empty() {
            self.applier.flush();
            let e = self.events.recv()?;
            self.event(e);
        }
        Ok(())
    }
}

fn rss_mib() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap_or("VmRSS: ? kB");
    line.split_whitespace()
        .nth(1)
        .map_or("?".into(), |kb| (kb.parse::<u64>().unwrap_or(0) / 1024).to_string())
}

fn main() -> Fallible<()> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("usage: measure DIR [FILES]")?);
    let files: u64 = args.next().map_or(Ok(1_000_000), |n| n.parse())?;
    let path = dir.join("namespace.redb");
    let _ = std::fs::remove_file(&path);
    let file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    format(Box::new(FileBackend::new(file)?), &mkfs([1; 16], Timestamp::new(1, 0)))?;

    let begin = Instant::now();
    let mut s = Shell::open(&path, VecDeque::new(), Config::default())?;
    let mut dir_ino = ROOT_INO;
    for i in 0..files {
        if i % 1000 == 0 {
            dir_ino = s.make(ROOT_INO, &format!("dir{}", i / 1000), 0o040_755)?;
        }
        s.make(dir_ino, &format!("file{i}"), 0o100_644)?;
    }
    let made = begin.elapsed();
    let bytes = s.log.back().map_or(0, |r| r.bytes().len());
    println!(
        "create: {files} files in {made:.2?}, {:.0}/s, {} fetches, last record {bytes} bytes",
        files as f64 / made.as_secs_f64(),
        s.fetches
    );
    println!("behind: {} records, RSS {} MiB", s.ns.pressure().records, rss_mib());
    let begin = Instant::now();
    s.drain()?;
    println!(
        "applied the rest in {:.2?}, database {} MiB, RSS {} MiB",
        begin.elapsed(),
        std::fs::metadata(&path)?.len() >> 20,
        rss_mib()
    );

    drop(s);

    // A log as a crash leaves it: records that no commit holds, because none has begun when the file is copied.
    let idle =
        Config { batch_records: usize::MAX, batch_delay: Duration::from_secs(3600), ..Config::default() };
    let mut s = Shell::open(&path, VecDeque::new(), idle)?;
    let Reply::Entry(last) = s.run(&Op::Lookup { dir: ROOT_INO, name: b"dir0" })? else {
        return Err("no dir0".into());
    };
    let dir_ino = last.ino();
    for i in 0..20_000 {
        s.make(dir_ino, &format!("late{i}"), 0o100_644)?;
    }
    let log = s.log.clone();
    println!("killed with {} records in the log", log.len());
    let copy = dir.join("killed.redb");
    std::fs::copy(&path, &copy)?;
    drop(s);

    let begin = Instant::now();
    let mut s = Shell::open(&copy, log, Config::default())?;
    let opened = begin.elapsed();
    s.run(&Op::Lookup { dir: ROOT_INO, name: b"dir0" })?;
    println!(
        "restart: open and replay {opened:.2?}, first answer after {:.2?}, RSS {} MiB",
        begin.elapsed(),
        rss_mib()
    );
    let begin = Instant::now();
    let before = s.fetches;
    let n = files.min(100_000);
    for i in 0..n {
        let d = match s.run(&Op::Lookup { dir: ROOT_INO, name: format!("dir{}", i / 1000).as_bytes() })? {
            Reply::Entry(a) => a.ino(),
            other => return Err(format!("{other:?}").into()),
        };
        s.run(&Op::Lookup { dir: d, name: format!("file{i}").as_bytes() })?;
    }
    let t = begin.elapsed();
    println!(
        "cold lookups: {n} in {t:.2?}, {:.0}/s, {} fetches",
        n as f64 / t.as_secs_f64(),
        s.fetches - before
    );
    drop(s);
    std::fs::remove_file(&path)?;
    std::fs::remove_file(&copy)?;
    Ok(())
}
