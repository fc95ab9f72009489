//! A change of a range of several chunks, the disk standing still after each of its writes in turn and the daemon killed:
//! another client sees all of it or nothing, and its repeat does not run over what that one writes then.
#![expect(clippy::expect_used, reason = "a test ends at the first surprise")]

use chunkstore::{FormatOptions, MemDevice, MemOptions};
use node::Control;
use node::config::Config;
use reactor::mail;
use reactor::sim::{self, Process};
use reactor::sync::Event;
use std::cell::OnceCell;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use transport::{CallOptions, ConnectOptions, Connection, Key, Notification, Parts, Reply, Session};
use wire::message as m;
use wire::{CHUNK_SIZE, ChunkKey, ClientId, Ino, ObjectId, ROOT_INO, Request, Status};

const CHUNK: u64 = CHUNK_SIZE;
const CRED: m::Cred = m::Cred { uid: 0, gid: 0 };
/// Chunks that are changed; the first and the last in part.
const CHUNKS: u64 = 3;
/// Bytes at the beginning of a chunk that stand for it.
const MARK: usize = 4096;

fn address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 7420))
}

/// A daemon on the disk, once it serves.
async fn start(disk: &MemDevice) -> Process {
    let process = Process::new();
    let serves = Rc::new(Event::new());
    let (disk, ready) = (disk.clone(), Rc::clone(&serves));
    drop(process.spawn(async move {
        let mut config = Config { listen: vec![address()], ..Config::default() };
        config.cores.count = 1;
        // A stop is not asked for.
        let (_control, told) = mail::channel::<Control>(1);
        node::sim::serve(config, Key::from_bytes([7; 32]), disk, told, move |_| ready.set()).await
    }));
    serves.wait().await;
    process
}

/// A client without a cache. It asks again over a new connection only when it may.
#[derive(Clone)]
struct Client {
    session: Session,
    may: Rc<Event>,
}

impl Client {
    async fn connect(id: u64) -> Self {
        let options = ConnectOptions {
            address: address(),
            key: Key::from_bytes([7; 32]),
            role: m::Role::Client,
            client: ClientId(id),
            arena: None,
            payload_crc: true,
        };
        let may = Rc::new(Event::new());
        let waits = Rc::clone(&may);
        let hook = Box::new(move |connection: Connection| {
            let waits = Rc::clone(&waits);
            Box::pin(async move {
                let open = m::OpenSession { flags: m::SessionFlags::default() };
                let reply = connection.call(&open.into(), CallOptions::default()).await?;
                let state = reply.decode::<m::SessionState>().map(|s| s.state);
                if state == Ok(m::SessionPhase::Reclaim) {
                    connection.call(&m::ReclaimDone {}.into(), CallOptions::default()).await?;
                    waits.wait().await;
                }
                Ok(())
            }) as Pin<Box<dyn Future<Output = _>>>
        });
        let known: Rc<OnceCell<Session>> = Rc::default();
        let session = Rc::clone(&known);
        let answer = Box::new(move |told: Notification| {
            let session = session.get().cloned();
            Box::pin(async move {
                if let (Ok(Request::Recall(r)), Some(session)) = (told.request(), session) {
                    let list = [m::Returned { ino: r.ino, serial: r.serial, keep: r.keep }];
                    let returned = m::LeaseReturn { leases: list.as_slice().into() };
                    // A connection that is lost meanwhile has given everything back.
                    drop(session.call(&returned.into(), Parts::new(), CallOptions::default()).await);
                }
            }) as Pin<Box<dyn Future<Output = ()>>>
        });
        let session = Session::connect(options, hook, answer).await.expect("a session");
        drop(known.set(session.clone()));
        Self { session, may }
    }

    async fn call<'a>(&self, request: impl Into<Request<'a>>, payload: &[u8]) -> Reply {
        let parts = match payload {
            [] => Parts::new(),
            bytes => Parts::from_iter([hugepages::Bytes::copy_of(bytes)]),
        };
        let reply = self.session.call(&request.into(), parts, CallOptions::default()).await;
        let reply = reply.expect("an answer");
        assert_eq!(reply.status(), Status::Ok);
        reply
    }

    async fn create(&self, name: &str) -> File {
        let request = m::Create {
            dir: ROOT_INO,
            mode: 0o100_644,
            umask: 0,
            rdev: 0,
            cred: CRED,
            flags: m::CreateFlags::EXCL,
            open_flags: m::OpenFlags::default(),
            name: name.as_bytes(),
            target: b"",
        };
        let created = self.call(request, &[]).await.decode::<m::Created>().expect("Created");
        File { ino: created.attr.ino(), object: created.attr.object() }
    }

    /// Writes the marks of the first `chunks`, each with a byte of its own from `first` on.
    async fn mark(&self, file: File, chunks: u64, first: u8) {
        for index in 0..chunks {
            let key = ChunkKey { object: file.object, index: index as u32 };
            let request = m::ChunkWrite { ino: file.ino, key, offset: 0, flags: m::WriteFlags::default() };
            self.call(request, &[first + index as u8; MARK]).await;
        }
    }

    /// The whole file.
    async fn read(&self, file: File) -> Vec<u8> {
        let got = self.call(m::GetAttr { ino: file.ino }, &[]).await;
        let size = got.decode::<m::AttrReply>().expect("AttrReply").attr.size.get();
        let mut out = Vec::new();
        while (out.len() as u64) < size {
            let key = ChunkKey { object: file.object, index: (out.len() as u64 / CHUNK) as u32 };
            let flags = m::ReadFlags::default();
            let request = m::ChunkRead { ino: file.ino, key, offset: 0, len: CHUNK as u32, flags };
            out.extend_from_slice(&self.call(request, &[]).await.payload);
        }
        out
    }
}

#[derive(Clone, Copy)]
struct File {
    ino: Ino,
    object: ObjectId,
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Allocate(u32),
    Copy,
}

/// Where it begins, in the target and in the source.
const FROM: u64 = MARK as u64 / 2;
const LEN: u64 = (CHUNKS - 1) * CHUNK + 10_000;
const PUNCH_KEEP: u32 = 3;

impl Change {
    async fn ask(self, a: Client, file: File, src: File) {
        match self {
            Self::Allocate(mode) => {
                let (ino, offset, len) = (file.ino, FROM, LEN);
                a.call(m::Fallocate { ino, mode, offset, len, cred: CRED }, &[]).await;
            }
            Self::Copy => {
                let (src, dst) = (src.ino, file.ino);
                let copy = m::CopyRange { src, src_offset: 0, dst, dst_offset: FROM, len: LEN };
                let copied = a.call(copy, &[]).await.decode::<m::Copied>().expect("Copied");
                assert_eq!(copied.len, LEN);
            }
        }
    }

    /// The file behind it.
    fn after(self, mut file: Vec<u8>, src: &[u8]) -> Vec<u8> {
        let (from, to) = (FROM as usize, (FROM + LEN) as usize);
        if !matches!(self, Self::Allocate(PUNCH_KEEP)) && file.len() < to {
            file.resize(to, 0);
        }
        let end = to.min(file.len());
        match self {
            Self::Allocate(0) => {}
            Self::Allocate(_) => file[from..end].fill(0),
            Self::Copy => file[from..end].copy_from_slice(&src[..end - from]),
        }
        file
    }
}

/// What another client saw after the kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saw {
    Nothing,
    All,
}

/// One kill after `writes` of the disk; `None` where the answer came before it.
async fn kill_after(change: Change, writes: u64) -> Option<Saw> {
    let disk = MemDevice::new(256 << 20, MemOptions::default());
    let options = FormatOptions { shards: 2, ..FormatOptions::default() };
    node::sim::format(disk.clone(), options).await.expect("a store");
    let disk = disk.kill(1, MemOptions::default());
    let daemon = start(&disk).await;
    let (a, b) = (Client::connect(1).await, Client::connect(2).await);
    let (file, src) = (a.create("f").await, a.create("src").await);
    a.mark(file, CHUNKS, 10).await;
    a.mark(src, CHUNKS + 1, 50).await;
    let (before, source) = (b.read(file).await, b.read(src).await);
    let limit = disk.counts().0 + writes;
    disk.set_options(MemOptions { halt_after_writes: limit, ..MemOptions::default() });
    let asking = a.clone();
    let asked = reactor::spawn(async move { change.ask(asking, file, src).await });
    while disk.counts().0 < limit && !asked.is_finished() {
        reactor::sleep(Duration::from_micros(100)).await;
    }
    let answered = asked.is_finished();
    daemon.kill();
    let disk = disk.kill(writes, MemOptions::default());
    let daemon = start(&disk).await;
    b.may.set();
    let seen = b.read(file).await;
    let all = change.after(before.clone(), &source);
    assert!(seen == all || seen == before, "{change:?} is seen in part after {writes} writes");
    assert!(seen == all || !answered, "{change:?} is lost after {writes} writes");
    b.mark(file, CHUNKS, 90).await;
    let known = b.read(file).await;
    a.may.set();
    asked.await.expect("it ends");
    let expect = if seen == all { known } else { change.after(known, &source) };
    assert!(b.read(file).await == expect, "{change:?} ran twice after {writes} writes");
    a.session.stop();
    b.session.stop();
    daemon.kill();
    (!answered).then_some(if seen == all { Saw::All } else { Saw::Nothing })
}

fn each_step(change: Change) {
    let mut saw = Vec::new();
    for writes in 1.. {
        let step = sim::run(writes, async move { kill_after(change, writes).await }).expect("a simulation");
        let Some(step) = step else { break };
        saw.push(step);
    }
    let shown = format!("{change:?}: {saw:?}");
    assert!(saw.contains(&Saw::Nothing) && saw.contains(&Saw::All), "{shown}");
}

#[test]
fn a_punch_that_was_killed_runs_once() {
    each_step(Change::Allocate(PUNCH_KEEP));
}

#[test]
fn zeroing_that_was_killed_runs_once() {
    each_step(Change::Allocate(16));
}

#[test]
fn an_allocation_that_was_killed_runs_once() {
    each_step(Change::Allocate(0));
}

#[test]
fn a_copy_that_was_killed_runs_once() {
    each_step(Change::Copy);
}
