//! A server that echoes, and how to reach it.

use hugepages::{Arena, ArenaConfig, Bytes, PageChoice};
use reactor::TcpListener;
use reactor::sync::Event;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;
use transport::{
    CloseReason, ConnectOptions, Handler, Incoming, Key, KeyRing, Outgoing, Parts, Peer, Server,
    ServerConfig, Session,
};
use wire::message::{
    Append, Appended, AttrReply, ChunkRead, Copied, DirEntry, DirPage, DirWriter, ReadFlags, ReadReply, Role,
    SeekReply, Welcome, WriteFlags,
};
use wire::{Attr, ChunkKey, ClientId, FileKind, Grant, Ino, Request, RequestId, Slot, Status};

pub(crate) const ADDRESS: &str = "127.0.0.1:0";

pub(crate) fn arena() -> Arena {
    Arena::new(ArenaConfig { bytes: 32 << 20, pages: PageChoice::Small }).expect("memory")
}

/// Last sequence and reply of a slot.
pub(crate) type Kept = (u64, Vec<u8>);

/// Answers reads with a pattern, keeps the replies of appends per slot as a real server does, and waits in SetLock and StatFs.
#[derive(Default)]
pub(crate) struct Echo {
    pub(crate) kept: RefCell<HashMap<(ClientId, Slot), Kept>>,
    pub(crate) ran: RefCell<HashMap<RequestId, u32>>,
    pub(crate) sum: Cell<u64>,
    pub(crate) waiting: Event,
    pub(crate) cancelled: Event,
    pub(crate) peers: RefCell<Vec<Peer>>,
    pub(crate) ended: RefCell<Vec<CloseReason>>,
    pub(crate) ended_one: Event,
}

pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

pub(crate) fn file_attr() -> Attr {
    Attr { mode: 0o100_644.into(), ..Attr::default() }
}

impl Echo {
    async fn append(&self, request: &Incoming) -> Outgoing {
        let header = &request.header;
        let place = (header.client, header.slot);
        let last = self.kept.borrow().get(&place).cloned().unwrap_or_default();
        if last.0 == header.sequence {
            return Outgoing::encoded(&last.1);
        }
        if last.0 + 1 != header.sequence {
            return Outgoing::error(Status::BadSequence);
        }
        reactor::yield_now().await;
        let bytes = request.payload.as_deref().unwrap_or_default();
        assert_eq!(bytes, pattern(bytes.len()), "payload arrives whole");
        *self.ran.borrow_mut().entry(header.id()).or_default() += 1;
        let offset = self.sum.get();
        self.sum.set(offset + bytes.len() as u64);
        let reply = Outgoing::ok(&Appended { offset, len: 0, attr: file_attr(), grant: Grant::none() });
        self.kept.borrow_mut().insert(place, (header.sequence, reply.body().to_vec()));
        reply
    }
}

/// Name of the `n`th entry of every directory; lengths differ.
pub(crate) fn name(n: u64) -> Vec<u8> {
    vec![b'a' + (n % 26) as u8; 1 + (n * 7 % 255) as usize]
}

pub(crate) fn entry(n: u64, name: &[u8]) -> DirEntry<'_> {
    DirEntry { ino: Ino(n), cookie: n, kind: FileKind::Regular, name, plus: None }
}

impl Handler for Echo {
    async fn handle(&self, _peer: &Peer, request: Incoming) -> Outgoing {
        match request.request() {
            Ok(Request::ChunkRead(read)) => {
                let data = Bytes::from(pattern(read.len as usize));
                let half = data.len() / 2;
                let reply = Outgoing::ok(&ReadReply { size: 1 << 20, grant: Grant::none() });
                reply.payload(data.slice(..half)).payload(data.slice(half..))
            }
            Ok(Request::Append(_)) => self.append(&request).await,
            Ok(Request::SetLock(_)) => {
                self.waiting.set();
                request.cancelled.wait().await;
                self.cancelled.set();
                let header = &request.header;
                self.kept.borrow_mut().insert((header.client, header.slot), (header.sequence, Vec::new()));
                Outgoing::error(Status::Cancelled)
            }
            Ok(Request::LeaseReturn(back)) => {
                Outgoing::error(if back.leases.len() == 2 { Status::Ok } else { Status::Malformed })
            }
            Ok(Request::ReadDir(list)) => {
                let mut page = vec![0; list.max as usize];
                let mut writer = DirWriter::new(&mut page);
                let eof = (list.cookie + 1..).take_while(|n| writer.push(&entry(*n, &name(*n)))).count() == 0;
                let len = writer.finish();
                page.truncate(len);
                Outgoing::ok(&DirPage { eof, dir_grant: Grant::none() }).payload(Bytes::from(page))
            }
            Ok(Request::StatFs(_)) => {
                request.cancelled.wait().await;
                Outgoing::error(Status::Cancelled)
            }
            Ok(Request::Seek(seek)) => Outgoing::ok(&SeekReply { offset: seek.offset + 1 }),
            Ok(Request::CopyRange(copy)) => {
                let len = copy.len.min(copy.dst_offset - copy.src_offset);
                Outgoing::ok(&Copied { len, attr: file_attr(), grant: Grant::none() })
            }
            Ok(Request::Fallocate(f)) => {
                let attr = Attr { size: (f.offset + f.len).into(), ..file_attr() };
                Outgoing::ok(&AttrReply { attr, grant: Grant::none() })
            }
            Ok(_) => Outgoing::error(Status::Unsupported),
            Err(_) => Outgoing::error(Status::Malformed),
        }
    }
    fn connected(&self, peer: &Peer) {
        self.peers.borrow_mut().push(peer.clone());
    }
    fn disconnected(&self, _peer: &Peer, reason: &CloseReason) {
        self.ended.borrow_mut().push(reason.clone());
        self.ended_one.set();
    }
}

pub(crate) fn key() -> Key {
    Key::from_bytes([7; 32])
}

pub(crate) fn terms(keepalive_ms: u32) -> Welcome {
    Welcome {
        credits: 16,
        slots: 8,
        shards: 16,
        zero: 0,
        max_payload: 1 << 20,
        chunk_size: 1 << 20,
        lease_ms: 1000,
        keepalive_ms,
        incarnation: 5,
        boot_epoch: 3,
        fs_uuid: [1; 16],
    }
}

pub(crate) fn serve(keepalive_ms: u32, max_connections: usize) -> (Server<Echo>, SocketAddr) {
    let config = ServerConfig {
        keys: KeyRing::single(key()),
        terms: terms(keepalive_ms),
        server_uuid: [2; 16],
        arena: Some(arena()),
        max_connections,
        payload_crc: true,
    };
    let server = Server::new(config, Echo::default());
    let listener = TcpListener::bind(ADDRESS.parse().expect("an address")).expect("bound");
    let address = listener.local_addr();
    let serving = server.clone();
    drop(reactor::spawn(async move { serving.serve(&listener).await }));
    (server, address)
}

pub(crate) fn options(address: SocketAddr) -> ConnectOptions {
    ConnectOptions {
        address,
        key: key(),
        role: Role::Client,
        client: ClientId(77),
        arena: Some(arena()),
        payload_crc: true,
    }
}

pub(crate) async fn session(address: SocketAddr) -> Session {
    let quiet = Box::new(|_| Box::pin(async {}) as _);
    Session::connect(options(address), Box::new(|_| Box::pin(async { Ok(()) })), quiet)
        .await
        .expect("a session")
}

pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    let limited = async { reactor::timeout(Duration::from_secs(60), test).await.expect("the test hangs") };
    reactor::run(reactor::Config::default(), limited).expect("a reactor")
}

pub(crate) fn read(len: u32) -> Request<'static> {
    ChunkRead { ino: Ino(2), key: ChunkKey::default(), offset: 0, len, flags: ReadFlags::none() }.into()
}

pub(crate) fn append() -> Request<'static> {
    Append { ino: Ino(2), flags: WriteFlags::none() }.into()
}

pub(crate) fn parts(bytes: Vec<u8>) -> Parts {
    let mut parts = Parts::new();
    parts.push(Bytes::from(bytes));
    parts
}

pub(crate) const SIZES: [usize; 12] =
    [0, 1, 63, 511, 3900, 4096, 4097, 8192, 65536, 300_001, (1 << 20) - 1, 1 << 20];
