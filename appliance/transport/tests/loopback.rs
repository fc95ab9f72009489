//! The whole transport over real TCP on loopback: server, connection and session in one reactor.
#![expect(clippy::expect_used, reason = "a test ends at the first surprise")]

use hugepages::{Arena, ArenaConfig, Bytes, PageChoice};
use reactor::sync::Event;
use reactor::{TcpListener, TcpStream};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use transport::{
    CallOptions, CloseReason, ConnectOptions, Connection, Error, Handler, Incoming, Key, KeyRing, Outgoing,
    Parts, Peer, Server, ServerConfig, Session,
};
use wire::message::{
    Append, Appended, ChunkRead, Done, Hello, LeaseReturn, ReadFlags, ReadReply, Recall, Refusal,
    RefusalReason, Role, SetLock, Welcome, WriteFlags,
};
use wire::{
    Attr, Body, BodyBuf, ChunkKey, ClientId, Grant, HEADER_LEN, Header, Ino, LeaseMode, LockKind, LockOwner,
    LockRange, LockSpace, LockType, Opcode, Request, RequestId, Slot, Status,
};

const ADDRESS: &str = "127.0.0.1:0";

fn arena() -> Arena {
    Arena::new(ArenaConfig { bytes: 32 << 20, pages: PageChoice::Small }).expect("memory")
}

/// Last sequence and reply of a slot.
type Kept = (u64, Vec<u8>);

/// Answers reads with a pattern, keeps the replies of appends per slot as a real server does, and waits in SetLock.
#[derive(Default)]
struct Echo {
    kept: RefCell<HashMap<(ClientId, Slot), Kept>>,
    ran: RefCell<HashMap<RequestId, u32>>,
    sum: Cell<u64>,
    waiting: Event,
    cancelled: Event,
    peers: RefCell<Vec<Peer>>,
    ended: RefCell<Vec<CloseReason>>,
    ended_one: Event,
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

fn file_attr() -> Attr {
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
        let reply = Outgoing::ok(&Appended { offset, attr: file_attr(), grant: Grant::none() });
        self.kept.borrow_mut().insert(place, (header.sequence, reply.body().to_vec()));
        reply
    }
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

fn key() -> Key {
    Key::from_bytes([7; 32])
}

fn terms(keepalive_ms: u32) -> Welcome {
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

fn serve(keepalive_ms: u32, max_connections: usize) -> (Server<Echo>, SocketAddr) {
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

fn options(address: SocketAddr) -> ConnectOptions {
    ConnectOptions {
        address,
        key: key(),
        role: Role::Client,
        client: ClientId(77),
        arena: Some(arena()),
        payload_crc: true,
    }
}

async fn session(address: SocketAddr) -> Session {
    let quiet = Box::new(|_| Box::pin(async {}) as _);
    Session::connect(options(address), Box::new(|_| Box::pin(async { Ok(()) })), quiet)
        .await
        .expect("a session")
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let limited = async { reactor::timeout(Duration::from_secs(60), test).await.expect("the test hangs") };
    reactor::run(reactor::Config::default(), limited).expect("a reactor")
}

fn read(len: u32) -> Request<'static> {
    ChunkRead { ino: Ino(2), key: ChunkKey::default(), offset: 0, len, flags: ReadFlags::none() }.into()
}

fn append() -> Request<'static> {
    Append { ino: Ino(2), flags: WriteFlags::none() }.into()
}

fn parts(bytes: Vec<u8>) -> Parts {
    let mut parts = Parts::new();
    parts.push(Bytes::from(bytes));
    parts
}

const SIZES: [usize; 12] = [0, 1, 63, 511, 3900, 4096, 4097, 8192, 65536, 300_001, (1 << 20) - 1, 1 << 20];

#[test]
fn payloads_of_all_sizes_both_ways() {
    run(async {
        let (server, address) = serve(1000, 8);
        let session = session(address).await;
        let mut sum = 0;
        for len in SIZES {
            let reply =
                session.call(&read(len as u32), Parts::new(), CallOptions::default()).await.expect("read");
            assert_eq!(reply.status(), Status::Ok);
            assert_eq!(reply.decode::<ReadReply>().expect("a reply").size, 1 << 20);
            assert_eq!((&*reply.payload, reply.header.incarnation), (&*pattern(len), 5));
            let reply =
                session.call(&append(), parts(pattern(len)), CallOptions::default()).await.expect("append");
            assert_eq!(reply.decode::<Appended>().expect("a reply").offset, sum);
            sum += len as u64;
        }
        assert_eq!(server.handler().sum.get(), sum);
        let too_long = session.call(&read(1), parts(vec![1]), CallOptions::default()).await;
        assert!(matches!(too_long, Err(Error::TooLong(_))));
        session.stop();
        server.stop();
    });
}

#[test]
fn many_at_once_within_slots_and_credits() {
    run(async {
        let (server, address) = serve(1000, 8);
        let session = session(address).await;
        let calls: Vec<_> = (0..64)
            .map(|i| {
                let session = session.clone();
                reactor::spawn(async move {
                    let len = SIZES[i % 10];
                    let request = if i % 2 == 0 { append() } else { read(len as u32) };
                    let payload = if i % 2 == 0 { parts(pattern(len)) } else { Parts::new() };
                    session.call(&request, payload, CallOptions::default()).await.expect("answered").status()
                })
            })
            .collect();
        for call in calls {
            assert_eq!(call.await.expect("not aborted"), Status::Ok);
        }
        assert!(server.handler().ran.borrow().values().all(|&times| times == 1));
        assert_eq!(server.handler().ran.borrow().len(), 32);
        session.stop();
        server.stop();
    });
}

/// Bytes that the next connections may pass, up and down, last first.
type Budgets = Rc<RefCell<Vec<(usize, usize)>>>;

/// SplitMix64: the seed names a whole run.
fn random(state: &Cell<u64>) -> u64 {
    state.set(state.get().wrapping_add(0x9E37_79B9_7F4A_7C15));
    let mut x = state.get();
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Passes bytes on until a connection's budget is spent, then cuts it; `None` passes all.
async fn proxy(listener: TcpListener, to: SocketAddr, budgets: Budgets, piece: usize) {
    loop {
        let Ok((near, _)) = listener.accept().await else { return };
        let (up, down) = budgets.borrow_mut().pop().unwrap_or((usize::MAX, usize::MAX));
        let far = TcpStream::connect(to).await.expect("the server");
        for (a, b, budget) in [(near.clone(), far.clone(), up), (far, near, down)] {
            drop(reactor::spawn(async move {
                let mut left = budget;
                while left > 0 {
                    let (got, buf) = a.read(hugepages::Buf::heap(piece)).await;
                    let Ok(got @ 1..) = got else { break };
                    let pass = got.min(left);
                    left -= pass;
                    let mut out = Parts::new();
                    out.push(buf.freeze().slice(..pass));
                    if b.send_all(out).await.is_err() {
                        break;
                    }
                }
                let _ = (a.shutdown(std::net::Shutdown::Both), b.shutdown(std::net::Shutdown::Both));
            }));
        }
    }
}

#[test]
fn a_connection_cut_anywhere_loses_and_repeats_nothing() {
    run(async {
        let (server, address) = serve(1000, 64);
        let listener = TcpListener::bind(ADDRESS.parse().expect("an address")).expect("bound");
        let through = listener.local_addr();
        let budgets = Rc::new(RefCell::new(Vec::new()));
        drop(reactor::spawn(proxy(listener, address, Rc::clone(&budgets), 4096)));
        let session = session(through).await;
        let (mut expected, mut repeats) = (0, 0);
        // Sent by the client: Hello 115, Prove 96, Append 76 and its payload; by the server: 153, 116, 232.
        for cut in (0..520usize).step_by(9) {
            let after = if cut % 2 == 0 { (cut, usize::MAX) } else { (usize::MAX, cut) };
            budgets.borrow_mut().push(after);
            if let Some(connection) = session.current() {
                connection.close();
            }
            let reply =
                session.call(&append(), parts(pattern(200)), CallOptions::default()).await.expect("answered");
            assert_eq!(reply.status(), Status::Ok, "cut after {cut} bytes");
            assert_eq!(
                reply.decode::<Appended>().expect("a reply").offset,
                expected,
                "cut after {cut} bytes"
            );
            expected += 200;
            repeats = session.counters().1;
        }
        assert_eq!(server.handler().sum.get(), expected);
        assert!(server.handler().ran.borrow().values().all(|&times| times == 1));
        assert!(repeats > 0, "some cuts fall after the request was sent");
        session.stop();
        server.stop();
    });
}

#[test]
fn a_network_that_splits_and_cuts_at_random_changes_nothing() {
    let first = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    for seed in first..first + 6u64 {
        println!("SEED={seed}");
        run(async {
            let (server, address) = serve(1000, 64);
            let listener = TcpListener::bind(ADDRESS.parse().expect("an address")).expect("bound");
            let (through, state) = (listener.local_addr(), Rc::new(Cell::new(seed)));
            let budget = || 300 + (random(&state) % 20_000) as usize;
            let budgets = Rc::new(RefCell::new((0..25).map(|_| (budget(), budget())).collect()));
            let piece = [1, 7, 64, 150, 1000, 5000][(seed % 6) as usize];
            drop(reactor::spawn(proxy(listener, address, budgets, piece)));
            let session = session(through).await;
            let tasks: Vec<_> = (0..8)
                .map(|_| {
                    let (session, state) = (session.clone(), Rc::clone(&state));
                    reactor::spawn(async move {
                        let mut sent = 0;
                        for _ in 0..3 {
                            let len = (random(&state) % 3000) as usize;
                            let options = CallOptions::default();
                            let reply = session
                                .call(&append(), parts(pattern(len)), options)
                                .await
                                .expect("answered");
                            assert_eq!(reply.status(), Status::Ok);
                            sent += len as u64;
                            let reply = session
                                .call(&read(len as u32), Parts::new(), options)
                                .await
                                .expect("answered");
                            assert_eq!(&*reply.payload, pattern(len));
                        }
                        sent
                    })
                })
                .collect();
            let mut sent = 0;
            for task in tasks {
                sent += task.await.expect("not aborted");
            }
            assert_eq!(server.handler().sum.get(), sent);
            assert!(server.handler().ran.borrow().values().all(|&times| times == 1));
            assert!(session.counters().0 > 0, "the network was cut at least once");
            session.stop();
            server.stop();
        });
    }
}

/// The next frame's header and body.
async fn receive(stream: &TcpStream) -> (Header, Vec<u8>) {
    let (got, head) = stream.read_exact(hugepages::Buf::heap(HEADER_LEN), 0..HEADER_LEN).await;
    got.expect("a header");
    let header = Header::decode(head.first_chunk().expect("64 bytes")).expect("valid");
    let len = usize::from(header.body_len);
    let (got, body) = stream.read_exact(hugepages::Buf::heap(len), 0..len).await;
    got.expect("a body");
    (header, body.to_vec())
}

#[test]
fn replayed_frames_are_refused() {
    use transport::handshake::{ClientHandshake, ClientStep};
    run(async {
        let (server, address) = serve(1000, 8);
        let (mut machine, hello) = ClientHandshake::new(&key(), Role::Client, ClientId(9), [3; 32]);
        let stream = TcpStream::connect(address).await.expect("connected");
        stream.send_all(parts(hello.clone())).await.expect("sent");
        let (header, body) = receive(&stream).await;
        let Ok(ClientStep::Send(prove)) = machine.on_frame(&header, &body) else { panic!("no challenge") };
        stream.send_all(parts(prove.clone())).await.expect("sent");
        let (header, body) = receive(&stream).await;
        assert!(matches!(machine.on_frame(&header, &body), Ok(ClientStep::Done(_))));
        // The same dialogue again, by one who has listened.
        let again = stranger(address, [hello, prove].concat()).await;
        let refusal = Refusal { min_version: 1, max_version: 1, reason: RefusalReason::Key };
        assert!(again.ends_with(&{
            let mut body = BodyBuf::new();
            refusal.encode(&mut body);
            body.body().to_vec()
        }));
        // A request twice, while the first runs.
        let mut body = BodyBuf::new();
        let lock = SetLock {
            ino: Ino(2),
            space: LockSpace::Flock,
            owner: LockOwner(1),
            lock: LockType::Lock(LockKind::Read),
            range: LockRange::ALL,
            pid: 1,
            wait: true,
        };
        lock.encode(&mut body);
        let header =
            Header { client: ClientId(9), slot: Slot(0), sequence: 1, ..Header::request(Opcode::SetLock) };
        let frame = body.into_frame(&header).expect("small");
        stream.send_all(parts([frame.clone(), frame].concat())).await.expect("sent");
        server.handler().ended_one.wait().await;
        assert!(matches!(server.handler().ended.borrow()[..], [CloseReason::Pending(_)]));
        server.stop();
    });
}

/// Sends `bytes` as a stranger and returns what comes back before the server closes.
async fn stranger(address: SocketAddr, bytes: Vec<u8>) -> Vec<u8> {
    let stream = TcpStream::connect(address).await.expect("connected");
    stream.send_all(parts(bytes)).await.expect("sent");
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut all = Vec::new();
    loop {
        let (got, buf) = stream.read(hugepages::Buf::heap(4096)).await;
        match got {
            Ok(len @ 1..) => all.extend_from_slice(&buf[..len]),
            _ => return all,
        }
    }
}

fn hello(versions: (u8, u8)) -> Vec<u8> {
    let (min_version, max_version) = versions;
    let hello = Hello {
        min_version,
        max_version,
        role: Role::Client,
        key_id: key().id(),
        client: ClientId(9),
        nonce: [1; 32],
    };
    let mut body = BodyBuf::new();
    hello.encode(&mut body);
    body.into_frame(&Header { version: 0, ..Header::request(Opcode::Hello) }).expect("small")
}

#[test]
fn strangers_are_turned_away_and_others_go_on() {
    run(async {
        let (server, address) = serve(1000, 8);
        let session = session(address).await;
        let http = b"GET / HTTP/1.1\r\nHost: here\r\nAccept: everything-there-is-to-be-had\r\n\r\n".to_vec();
        assert_eq!(stranger(address, http).await, b"");
        assert_eq!(stranger(address, hello((1, 1))[..70].to_vec()).await, b"");
        assert_eq!(stranger(address, Vec::new()).await, b"");
        let mut oversized = hello((1, 1));
        oversized[38..40].copy_from_slice(&[0xFF, 0xFF]);
        assert_eq!(stranger(address, oversized).await, b"");
        let mut damaged = hello((1, 1));
        damaged[80] ^= 1;
        assert_eq!(stranger(address, damaged).await, b"");
        let mut early = BodyBuf::new();
        append().encode(&mut early);
        let early = early.into_frame(&Header::request(Opcode::Append)).expect("small");
        assert_eq!(stranger(address, early).await, b"");
        let refused = stranger(address, hello((5, 9))).await;
        let refusal = Refusal { min_version: 1, max_version: 1, reason: RefusalReason::Version };
        assert_eq!(Refusal::decode(&refused[HEADER_LEN..]), Ok(refusal));
        let reply = session.call(&read(10), Parts::new(), CallOptions::default()).await.expect("answered");
        assert_eq!(reply.status(), Status::Ok);
        session.stop();
        server.stop();
    });
}

#[test]
fn a_wrong_key_and_a_full_server_say_so() {
    run(async {
        let (server, address) = serve(1000, 1);
        let wrong = ConnectOptions { key: Key::from_bytes([8; 32]), ..options(address) };
        let error = Connection::connect(&wrong).await.map(drop).expect_err("refused");
        assert!(error.is_permanent() && error.to_string().contains("copy the key file"), "{error}");
        let quiet = Box::new(|_| Box::pin(async {}) as _);
        let hook = Box::new(|_| Box::pin(async { Ok(()) }) as _);
        assert!(Session::connect(wrong, hook, quiet).await.is_err(), "not tried for ever");
        let session = session(address).await;
        let error = Connection::connect(&options(address)).await.map(drop).expect_err("full");
        assert!(!error.is_permanent() && error.to_string().contains("no connections now"), "{error}");
        session.stop();
        server.stop();
    });
}

/// Says nothing at all after the handshake.
async fn fall_silent(listener: TcpListener, to: SocketAddr, bytes: usize) {
    let (near, _) = listener.accept().await.expect("a connection");
    let far = TcpStream::connect(to).await.expect("the server");
    let (n, f) = (near.clone(), far.clone());
    drop(reactor::spawn(async move {
        // Hello and Prove.
        let (_, buf) = n.read_exact(hugepages::Buf::heap(211), 0..115).await;
        let bytes = buf.freeze();
        f.send_all(vec_parts(&bytes[..115])).await.expect("Hello");
        let (_, buf) = n.read_exact(hugepages::Buf::heap(96), 0..96).await;
        f.send_all(vec_parts(&buf)).await.expect("Prove");
        std::future::pending::<()>().await;
    }));
    let (_, buf) = far.read_exact(hugepages::Buf::heap(bytes), 0..bytes).await;
    near.send_all(vec_parts(&buf)).await.expect("Challenge");
    let (_, buf) = far.read_exact(hugepages::Buf::heap(116), 0..116).await;
    near.send_all(vec_parts(&buf)).await.expect("Welcome");
    std::future::pending::<()>().await;
}

fn vec_parts(bytes: &[u8]) -> Parts {
    parts(bytes.to_vec())
}

#[test]
fn silence_ends_a_connection_on_both_sides() {
    run(async {
        let (server, address) = serve(20, 8);
        let listener = TcpListener::bind(ADDRESS.parse().expect("an address")).expect("bound");
        let through = listener.local_addr();
        drop(reactor::spawn(fall_silent(listener, address, 153)));
        let (connection, _notifications) = Connection::connect(&options(through)).await.expect("connected");
        let call = connection.call(&read(1), CallOptions::default()).await;
        assert!(matches!(call, Err(Error::Closed(CloseReason::Silent))), "{call:?}");
        assert!(matches!(connection.closed().await, CloseReason::Silent));
        server.handler().ended_one.wait().await;
        assert!(matches!(server.handler().ended.borrow()[..], [CloseReason::Silent]));
        // A quiet client that keeps alive stays.
        let (connection, _notifications) = Connection::connect(&options(address)).await.expect("connected");
        reactor::sleep(Duration::from_millis(200)).await;
        assert!(connection.close_reason().is_none());
        server.stop();
    });
}

#[test]
fn a_dropped_call_is_cancelled_and_its_slot_comes_back() {
    run(async {
        let (server, address) = serve(1000, 8);
        let session = session(address).await;
        let lock: Request<'_> = SetLock {
            ino: Ino(2),
            space: LockSpace::Posix,
            owner: LockOwner(1),
            lock: LockType::Lock(LockKind::Write),
            range: LockRange::ALL,
            pid: 1,
            wait: true,
        }
        .into();
        for _ in 0..20 {
            server.handler().waiting.reset();
            server.handler().cancelled.reset();
            let waiter = session.clone();
            let call =
                reactor::spawn(async move { waiter.call(&lock, Parts::new(), CallOptions::default()).await });
            server.handler().waiting.wait().await;
            call.abort();
            server.handler().cancelled.wait().await;
        }
        let late = CallOptions { deadline: Some(Duration::from_millis(20)), ..CallOptions::default() };
        assert!(matches!(session.call(&lock, Parts::new(), late).await, Err(Error::Deadline)));
        let reply =
            session.call(&append(), parts(pattern(5)), CallOptions::default()).await.expect("answered");
        assert_eq!(reply.status(), Status::Ok);
        session.stop();
        server.stop();
    });
}

#[test]
fn notifications_arrive_in_order_and_may_be_answered() {
    run(async {
        let (server, address) = serve(1000, 8);
        let seen = Rc::new(RefCell::new(Vec::new()));
        let (log, done) = (Rc::clone(&seen), Rc::new(Event::new()));
        let ring = Rc::clone(&done);
        let on_notification = Box::new(move |n: transport::Notification| {
            let (log, ring) = (Rc::clone(&log), Rc::clone(&ring));
            Box::pin(async move {
                let Ok(Request::Recall(recall)) = n.request() else { panic!("not a recall: {n:?}") };
                log.borrow_mut().push(recall.serial);
                if recall.serial == 99 {
                    ring.set();
                }
            }) as _
        });
        let hooked = Rc::new(Cell::new(0));
        let count = Rc::clone(&hooked);
        let hook = Box::new(move |connection: Connection| {
            count.set(count.get() + 1);
            Box::pin(async move {
                let back = wire::message::Returned { ino: Ino(1), serial: 1, keep: LeaseMode::None };
                let leases = [back, back];
                let request = LeaseReturn { leases: leases.as_slice().into() }.into();
                let reply = connection.call(&request, CallOptions::default()).await?;
                assert_eq!((reply.status(), reply.decode::<Done>()), (Status::Ok, Ok(Done {})));
                Ok(())
            }) as _
        });
        let session = Session::connect(options(address), hook, on_notification).await.expect("a session");
        let peer = server.peers().pop().expect("one peer");
        for serial in 0..100 {
            peer.notify(Recall { ino: Ino(5), serial, keep: LeaseMode::Shared }).expect("open");
        }
        done.wait().await;
        assert!(seen.borrow().iter().copied().eq(0..100));
        peer.close();
        assert!(peer.notify(Recall { ino: Ino(5), serial: 1, keep: LeaseMode::None }).is_err());
        let reply = session.call(&read(1), Parts::new(), CallOptions::default()).await.expect("answered");
        assert_eq!((reply.status(), hooked.get()), (Status::Ok, 2));
        session.stop();
        server.stop();
    });
}
