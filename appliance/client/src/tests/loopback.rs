//! The client over real TCP: transport's server in front of the model.

use super::fake::Call;
use super::locking::{WRITE, lock};
use super::model::Model;
use crate::service::*;
use crate::{CancelToken, Client, Endpoint, Interrupt, Options};
use hugepages::Bytes;
use reactor::TcpListener;
use reactor::sync::Event;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::time::Duration;
use transport::{Handler, Incoming, Key, KeyRing, Outgoing, Peer, Server, ServerConfig};
use wire::message::{self, SessionPhase, Welcome};
use wire::types::{CHUNK_SIZE, ClientId, LeaseMode, Status};
use wire::{Opcode, Slot};

/// Kept replies, sessions and lock waits around the model.
#[derive(Default)]
struct Node {
    model: RefCell<Model>,
    sessions: RefCell<HashSet<ClientId>>,
    calls: Cell<u64>,
    waiting: Event,
    returned: Event,
}

impl Node {
    /// A repeat has the number of the first.
    fn number(&self, request: &Incoming) -> u64 {
        self.calls.set(self.calls.get() + 1);
        if request.header.slot == Slot::IDEMPOTENT {
            return self.calls.get();
        }
        let mut hasher = DefaultHasher::new();
        request.header.id().hash(&mut hasher);
        hasher.finish() | 1 << 63
    }
}

impl Handler for Node {
    async fn handle(&self, _: &Peer, request: Incoming) -> Outgoing {
        let client = request.header.client;
        if request.opcode == Opcode::OpenSession {
            let known = !self.sessions.borrow_mut().insert(client);
            let phase = if known { SessionPhase::Resumed } else { SessionPhase::New };
            self.model.borrow_mut().phases.push_back(Ok(phase));
        } else if !self.sessions.borrow().contains(&client) {
            return Outgoing::error(Status::UnknownSession);
        }
        let need_lease = request.header.flags.has(wire::Flags::NEED_LEASE);
        let payload = request.payload.clone().unwrap_or_default();
        let call = Call::received(self.number(&request), request.opcode, &request.body, payload, need_lease);
        let answer = self.model.borrow_mut().answer(&call);
        if request.opcode == Opcode::LeaseReturn {
            self.returned.set();
        }
        let Some((status, body, payload)) = answer else {
            self.waiting.set();
            request.cancelled.wait().await;
            return Outgoing::error(Status::Cancelled);
        };
        match status {
            Status::Ok => Outgoing::encoded(&body).payload(payload),
            other => Outgoing::error(other),
        }
    }
}

fn terms() -> Welcome {
    Welcome {
        credits: 16,
        slots: 8,
        shards: 16,
        zero: 0,
        max_payload: 1 << 20,
        chunk_size: CHUNK_SIZE as u32,
        lease_ms: 10_000,
        keepalive_ms: 3_000,
        incarnation: 1,
        boot_epoch: 1,
        fs_uuid: [3; 16],
    }
}

/// Runs a server, and `test` with a client of it.
fn with_server<F: Future<Output = ()>>(test: impl FnOnce(Client, Server<Node>) -> F) {
    let whole = async {
        let key = Key::from_bytes([5; 32]);
        let config = ServerConfig {
            keys: KeyRing::single(key.clone()),
            terms: terms(),
            server_uuid: [1; 16],
            arena: None,
            max_connections: 8,
            payload_crc: true,
        };
        let node = Node::default();
        node.model.borrow_mut().add(Ino(5), FileKind::Regular, b"hello");
        node.model.borrow_mut().name(ROOT_INO, b"f", Ino(5));
        let server = Server::new(config, node);
        let listener = TcpListener::bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let address = listener.local_addr();
        let serving = server.clone();
        drop(reactor::spawn(async move { serving.serve(&listener).await }));
        let endpoint = Endpoint { address, key, arena: None, payload_crc: true };
        let client = Client::connect(endpoint.clone(), Options::default()).await.expect("connected");
        client.set_invalidator(Rc::new(super::caching::Quiet));
        test(client, server.clone()).await;
        let stranger = Endpoint { key: Key::from_bytes([6; 32]), ..endpoint };
        assert!(Client::connect(stranger, Options::default()).await.is_err(), "a wrong key is refused");
        server.stop();
    };
    let limited = async { reactor::timeout(Duration::from_secs(60), whole).await.expect("the test hangs") };
    reactor::run(reactor::Config::default(), limited).expect("the reactor runs");
}

async fn open(client: &Client) -> Handle {
    let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
    client.open(&Ctx::default(), Ino(5), flags).await.expect("opened").handle
}

#[test]
fn data_goes_both_ways_and_leases_come_back() {
    with_server(|client, server| async move {
        let ctx = Ctx::default();
        let h = open(&client).await;
        let data: Vec<u8> = (0..CHUNK_SIZE as usize + 77_777).map(|i| (i % 253) as u8).collect();
        let bytes = Bytes::from(data.clone());
        let done = client.write(&ctx, Ino(5), h, 1000, bytes, WriteFlags::default()).await.expect("written");
        assert_eq!(done.len as usize, data.len());
        drop(done);
        let read = client.read(&ctx, Ino(5), h, 1000, data.len() as u32 + 5).await.expect("read");
        assert_eq!(read.to_vec(), data);
        drop(read);
        let serial = server.handler().model.borrow().serial_of(Ino(5));
        let recall = message::Recall { ino: Ino(5), serial, keep: LeaseMode::None };
        server.peers()[0].notify(recall).expect("sent");
        server.handler().returned.wait().await;
        assert_eq!(server.handler().model.borrow().serial_of(Ino(5)), 0);
        client.close(&ctx, Ino(5), h, None).await.expect("closed");
        client.shutdown().await;
        assert_eq!(server.handler().model.borrow().log.last(), Some(&Opcode::CloseSession));
    });
}

#[test]
fn a_broken_connection_is_not_seen_and_nothing_happens_twice() {
    with_server(|client, server| async move {
        let ctx = Ctx::default();
        let h = open(&client).await;
        for i in 0..20_u8 {
            if i % 5 == 2 {
                server.peers().iter().for_each(Peer::close);
            }
            let data = Bytes::from(vec![i; 3]);
            let done = client.append(&ctx, Ino(5), h, data, WriteFlags::default()).await.expect("appended");
            assert_eq!(done.offset, 5 + 3 * u64::from(i));
        }
        assert_eq!(server.handler().model.borrow().count(Opcode::Append), 20);
        client.shutdown().await;
    });
}

#[test]
fn a_session_that_the_server_forgot_is_replaced() {
    with_server(|client, server| async move {
        let ctx = Ctx::default();
        let h = open(&client).await;
        server.handler().sessions.borrow_mut().clear();
        let read = client.read(&ctx, Ino(5), h, 0, 100).await.expect("read");
        assert_eq!(read.to_vec(), b"hello");
        drop(read);
        client.unlink(&ctx, ROOT_INO, b"f").await.expect("slots begin anew");
        assert_eq!(client.stats().fenced, 1);
        client.shutdown().await;
    });
}

#[test]
fn a_wait_for_a_lock_is_interrupted() {
    with_server(|client, server| async move {
        let h = open(&client).await;
        server.handler().model.borrow_mut().held_back.insert(Opcode::SetLock);
        let token = CancelToken::new();
        let (ctx, waiter) = (Ctx { cancel: token.clone(), ..Ctx::default() }, client.clone());
        let wait = reactor::spawn(async move { waiter.setlk(&ctx, Ino(5), h, lock(WRITE), true).await });
        server.handler().waiting.wait().await;
        token.fire(Interrupt::Signal);
        assert_eq!(wait.await.expect("it ends"), Err(Errno::EINTR));
        client.shutdown().await;
    });
}
