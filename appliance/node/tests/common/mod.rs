//! A node on a temporary file, in this process or as a child, and a client of it that speaks wire requests.
#![expect(clippy::expect_used, reason = "a test ends at the first surprise")]
#![allow(dead_code, reason = "each test file uses its part of this")]

pub(crate) mod load;

use node::config::Config;
use node::{Control, Ended, NodeError};
use reactor::mail;
use std::cell::OnceCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use transport::{CallOptions, ConnectOptions, Key, Reply, Session};
use wire::message as m;
use wire::{CHUNK_SIZE, ChunkKey, ClientId, Errno, Ino, ObjectId, ROOT_INO, Request, Status};

pub(crate) const CRED: m::Cred = m::Cred { uid: 1000, gid: 1000 };

/// A formatted device with its key and configuration.
pub(crate) struct Rig {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: Config,
}

impl Rig {
    pub(crate) fn new(bytes: u64, cores: u16) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let device = dir.path().join("device");
        std::fs::File::create(&device).and_then(|f| f.set_len(bytes)).expect("a device");
        node::format(&device, node::FormatOptions::default(), |_, _| {})
            .expect("a fresh device is formatted");
        let key_file = dir.path().join("key");
        Key::generate().expect("random bytes").save(&key_file).expect("a key file");
        let mut config = Config { devices: vec![device], key_file, ..Config::default() };
        config.listen = vec![own_address()];
        config.cores.count = cores;
        config.memory.arena = node::units::ByteSize::mib(32);
        config.memory.pages = node::config::Pages::Small;
        config.lease.time_ms = node::units::Millis(3000);
        config.lease.grace_ms = node::units::Millis(3000);
        Self { dir, config }
    }

    /// Sessions outlive whatever keeps the machine busy. Only for tests whose clients all come back: a start waits for those
    /// that do not.
    pub(crate) fn patient(mut self) -> Self {
        self.config.lease.time_ms = node::units::Millis(30_000);
        self.config.lease.grace_ms = node::units::Millis(30_000);
        self
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.config.listen[0]
    }

    pub(crate) fn key(&self) -> Key {
        Key::load(&self.config.key_file).expect("the key")
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        let path = self.dir.path().join("claudefsd.toml");
        std::fs::write(&path, self.config.to_toml()).expect("a configuration file");
        path
    }

    /// The device carries the mark of a clean stop. Nobody may have it open.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        let handle = node::fsck::open(&self.config.devices[0], true).expect("nobody has it");
        // A reactor of its own: the caller may be in one.
        let looked = std::thread::spawn(|| {
            reactor::run(reactor::Config::default(), async move {
                let device = handle.attach().expect("attached");
                chunkstore::inspect(&device).await.expect("a store").clean
            })
        });
        assert!(looked.join().expect("no panic").expect("a reactor"), "the clean mark is set");
    }

    /// Starts a node in this process and waits until it serves.
    pub(crate) fn start(&self) -> Running {
        let (control, told) = mail::channel(1);
        let (ready, is_ready) = mpsc::channel();
        let config = self.config.clone();
        let failed = ready.clone();
        let thread = std::thread::spawn(move || {
            let result = node::run(&config, told, move |_| drop(ready.send(None)));
            if let Err(e) = &result {
                drop(failed.send(Some(e.to_string())));
            }
            result
        });
        match is_ready.recv_timeout(Duration::from_secs(60)) {
            Ok(None) => Running { control, thread },
            Ok(Some(e)) => panic!("the node did not start: {e}"),
            Err(e) => panic!("the node did not become ready: {e}"),
        }
    }

    /// Starts the real daemon.
    pub(crate) fn spawn(&self) -> Child {
        Command::new(env!("CARGO_BIN_EXE_claudefsd"))
            .arg("--config")
            .arg(self.config_file())
            .stderr(if std::env::var_os("NODE_LOG").is_some() { Stdio::inherit() } else { Stdio::null() })
            .spawn()
            .expect("the daemon starts")
    }

    /// Starts the real daemon and has its log in a file.
    pub(crate) fn spawn_with_log(&self) -> (PathBuf, Child) {
        let log = self.dir.path().join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_claudefsd"))
            .arg("--config")
            .arg(self.config_file())
            .env("NO_COLOR", "1")
            .stderr(std::fs::File::create(&log).expect("a log"))
            .spawn();
        (log, child.expect("the daemon starts"))
    }

    /// Has the node scrub all of its shards, in a reactor of the caller's, and gives the report.
    pub(crate) async fn scrub(&self) -> serde_json::Value {
        let options = ConnectOptions {
            address: self.address(),
            key: self.key(),
            role: m::Role::Admin,
            client: ClientId(77),
            arena: None,
            payload_crc: false,
        };
        let (connection, _unasked) = transport::Connection::connect(&options).await.expect("a connection");
        let mut action = m::ScrubAction::Start;
        loop {
            let request = m::Scrub { action, repair: false };
            let reply = connection.call(&request.into(), CallOptions::default()).await.expect("an answer");
            assert_eq!(reply.status(), Status::Ok);
            let report: serde_json::Value = serde_json::from_slice(&reply.payload).expect("JSON");
            if report["running"] == false {
                return report;
            }
            action = m::ScrubAction::Status;
            reactor::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Runs `f` with a session of a client in a reactor of this thread.
    pub(crate) fn with_client<T>(&self, id: u64, f: impl AsyncFnOnce(Client) -> T) -> T {
        let config = reactor::Config { name: format!("client-{id}"), ..reactor::Config::default() };
        let (address, key) = (self.address(), self.key());
        reactor::run(config, async move {
            let client = Client::connect(address, key, id).await;
            f(client).await
        })
        .expect("a reactor")
    }
}

/// An address that nobody else takes, also while no node listens on it: each process of a machine has loopback addresses of
/// its own, and each rig of a process its own port.
fn own_address() -> SocketAddr {
    static RIGS: AtomicU16 = AtomicU16::new(0);
    let [_, a, b, c] = std::process::id().to_be_bytes();
    // Not 127.0.x.y, where everybody else is.
    SocketAddr::from(([127, a | 0x80, b, c], 7620 + RIGS.fetch_add(1, Ordering::Relaxed)))
}

/// A node in this process.
pub(crate) struct Running {
    control: mail::Sender<Control>,
    thread: JoinHandle<Result<Ended, NodeError>>,
}

impl Running {
    pub(crate) fn end(self, how: Control) -> Result<Ended, NodeError> {
        self.control.send_blocking(how).expect("the node listens");
        self.thread.join().expect("the node does not panic")
    }
    pub(crate) fn stop(self) {
        assert_eq!(self.end(Control::Stop).expect("a clean stop"), Ended::Clean);
    }
    pub(crate) fn drop_dead(self) {
        assert_eq!(self.end(Control::Drop).expect("it just ends"), Ended::Dropped);
    }
}

/// A daemon that does not outlive its test.
pub(crate) struct Daemon(pub(crate) Child);

impl Daemon {
    /// SIGKILL, and gone when this returns.
    pub(crate) fn kill(&mut self) {
        self.0.kill().expect("it runs");
        self.0.wait().expect("it is reaped");
    }
}

impl Daemon {
    /// SIGTERM; the exit code once it has ended.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        let kill = Command::new("kill").arg(self.0.id().to_string()).stdout(Stdio::null()).status();
        assert!(kill.expect("kill(1) runs").success());
        self.0.wait().expect("it is reaped").code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It is dead already where the test came to its end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A client without any cache. Its session survives restarts of the node.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) session: Session,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, key: Key, id: u64) -> Self {
        let options = ConnectOptions {
            address,
            key,
            role: m::Role::Client,
            client: ClientId(id),
            arena: None,
            payload_crc: false,
        };
        let hook = Box::new(|connection: transport::Connection| {
            let open = async move {
                let open = m::OpenSession { flags: m::SessionFlags::default() };
                let reply = connection.call(&open.into(), CallOptions::default()).await?;
                let state = reply.decode::<m::SessionState>().map(|s| s.state);
                assert_eq!(reply.status(), Status::Ok, "the session is opened");
                if state == Ok(m::SessionPhase::Reclaim) {
                    connection.call(&m::ReclaimDone {}.into(), CallOptions::default()).await?;
                }
                Ok(())
            };
            Box::pin(open) as std::pin::Pin<Box<dyn Future<Output = _>>>
        });
        let known: Rc<OnceCell<Session>> = Rc::default();
        let session = Rc::clone(&known);
        let answer = Box::new(move |told: transport::Notification| {
            let session = session.get().cloned();
            Box::pin(async move {
                if let (Ok(Request::Recall(recall)), Some(session)) = (told.request(), session) {
                    give_back(&session, &recall).await;
                }
            }) as std::pin::Pin<Box<dyn Future<Output = ()>>>
        });
        let session = Session::connect(options, hook, answer).await.expect("a session");
        drop(known.set(session.clone()));
        Self { session }
    }

    pub(crate) async fn call<'a>(
        &self,
        request: impl Into<Request<'a>>,
        payload: &[u8],
    ) -> Result<Reply, Status> {
        let request = request.into();
        let parts = match payload {
            [] => transport::Parts::new(),
            bytes => transport::Parts::from_iter([hugepages::Bytes::copy_of(bytes)]),
        };
        let reply = self.session.call(&request, parts, CallOptions::default()).await.expect("an answer");
        match reply.status() {
            Status::Ok => Ok(reply),
            status => Err(status),
        }
    }

    pub(crate) async fn mkdir(&self, dir: Ino, name: &str) -> Result<Ino, Status> {
        self.make(dir, name, 0o040_755).await.map(|(ino, _)| ino)
    }

    pub(crate) async fn create(&self, dir: Ino, name: &str) -> Result<(Ino, ObjectId), Status> {
        self.make(dir, name, 0o100_644).await
    }

    async fn make(&self, dir: Ino, name: &str, mode: u32) -> Result<(Ino, ObjectId), Status> {
        let request = m::Create {
            dir,
            mode,
            umask: 0o022,
            rdev: 0,
            cred: CRED,
            flags: m::CreateFlags::EXCL,
            open_flags: m::OpenFlags::default(),
            name: name.as_bytes(),
            target: b"",
        };
        let reply = self.call(request, &[]).await?;
        let created = reply.decode::<m::Created>().expect("Created");
        Ok((created.attr.ino(), created.attr.object()))
    }

    pub(crate) async fn lookup(&self, dir: Ino, name: &str) -> Result<wire::Attr, Status> {
        let reply = self.call(m::Lookup { dir, name: name.as_bytes() }, &[]).await?;
        Ok(reply.decode::<m::Entry>().expect("Entry").attr)
    }

    pub(crate) async fn write(
        &self,
        ino: Ino,
        object: ObjectId,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Status> {
        let mut at = 0;
        while at < data.len() {
            let from = offset + at as u64;
            let n = (data.len() - at).min((CHUNK_SIZE - from % CHUNK_SIZE) as usize);
            let request = m::ChunkWrite {
                ino,
                key: ChunkKey { object, index: (from / CHUNK_SIZE) as u32 },
                offset: (from % CHUNK_SIZE) as u32,
                flags: m::WriteFlags::default(),
            };
            self.call(request, &data[at..at + n]).await?;
            at += n;
        }
        Ok(())
    }

    pub(crate) async fn append(&self, ino: Ino, data: &[u8]) -> Result<u64, Status> {
        let reply = self.call(m::Append { ino, flags: m::WriteFlags::default() }, data).await?;
        Ok(reply.decode::<m::Appended>().expect("Appended").offset)
    }

    /// The whole file.
    pub(crate) async fn read(&self, ino: Ino) -> Result<Vec<u8>, Status> {
        let attr = self.getattr(ino).await?;
        let mut out = Vec::new();
        while (out.len() as u64) < attr.size.get() {
            let at = out.len() as u64;
            let request = m::ChunkRead {
                ino,
                key: ChunkKey { object: attr.object(), index: (at / CHUNK_SIZE) as u32 },
                offset: (at % CHUNK_SIZE) as u32,
                len: (CHUNK_SIZE - at % CHUNK_SIZE) as u32,
                flags: m::ReadFlags::default(),
            };
            let reply = self.call(request, &[]).await?;
            assert!(!reply.payload.is_empty(), "a read within the file gives bytes");
            out.extend_from_slice(&reply.payload);
        }
        Ok(out)
    }

    pub(crate) async fn getattr(&self, ino: Ino) -> Result<wire::Attr, Status> {
        let reply = self.call(m::GetAttr { ino }, &[]).await?;
        Ok(reply.decode::<m::AttrReply>().expect("AttrReply").attr)
    }

    pub(crate) async fn truncate(&self, ino: Ino, size: u64) -> Result<wire::Attr, Status> {
        let set = wire::SetAttr { size: Some(size), ..wire::SetAttr::default() };
        let reply = self.call(m::SetAttr { ino, set, cred: CRED }, &[]).await?;
        Ok(reply.decode::<m::AttrReply>().expect("AttrReply").attr)
    }

    pub(crate) async fn rename(
        &self,
        dir: Ino,
        name: &str,
        new_dir: Ino,
        new_name: &str,
    ) -> Result<(), Status> {
        let (name, new_name) = (name.as_bytes(), new_name.as_bytes());
        let flags = m::RenameFlags::default();
        self.call(m::Rename { dir, new_dir, flags, name, new_name }, &[]).await.map(drop)
    }

    pub(crate) async fn unlink(&self, dir: Ino, name: &str) -> Result<(), Status> {
        self.call(m::Unlink { dir, name: name.as_bytes() }, &[]).await.map(drop)
    }

    pub(crate) async fn names(&self, dir: Ino) -> Vec<String> {
        let (mut names, mut cookie) = (Vec::new(), 0);
        loop {
            let reply =
                self.call(m::ReadDir { dir, cookie, max: 64 << 10, plus: false, noatime: false }, &[]).await;
            let reply = reply.expect("a page");
            for entry in m::DirEntries::new(&reply.payload) {
                let entry = entry.expect("a sound entry");
                cookie = entry.cookie;
                if entry.name != b"." && entry.name != b".." {
                    names.push(String::from_utf8_lossy(entry.name).into_owned());
                }
            }
            if reply.decode::<m::DirPage>().expect("DirPage").eof {
                return names;
            }
        }
    }
}

/// Answers a recall: nothing is cached here.
async fn give_back(session: &Session, recall: &m::Recall) {
    let list = [m::Returned { ino: recall.ino, serial: recall.serial, keep: recall.keep }];
    let returned = m::LeaseReturn { leases: list.as_slice().into() };
    // A connection that is lost meanwhile has given everything back.
    drop(session.call(&returned.into(), transport::Parts::new(), CallOptions::default()).await);
}

/// Waits until a log holds all of these words.
pub(crate) async fn said(log: &std::path::Path, words: &[&str]) {
    let all_said = async {
        loop {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            if words.iter().all(|w| text.contains(w)) {
                return;
            }
            reactor::sleep(Duration::from_millis(20)).await;
        }
    };
    let ended = reactor::timeout(Duration::from_secs(60), all_said).await;
    assert!(ended.is_ok(), "{words:?} in {}", std::fs::read_to_string(log).unwrap_or_default());
}

pub(crate) const ROOT: Ino = ROOT_INO;

pub(crate) fn errno(e: Errno) -> Status {
    Status::Errno(e)
}

/// Bytes that differ from file to file and from place to place.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let step = |_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 24) as u8
    };
    (0..len).map(step).collect()
}
