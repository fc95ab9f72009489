//! The server's side: accepts connections, proves both sides, and hands requests to a [`Handler`].
//!
//! Requests of one connection run concurrently and are answered in any order. Must not know what a request does, nor keep
//! replies: exactly-once is the handler's, which the transport helps by never running one request twice at a time.

use crate::cutter::Frame;
use crate::error::CloseReason;
use crate::handshake::{HandshakeError, Identity, KeyRing, ServerHandshake, ServerStep, admit, refuse};
use crate::link::{Link, Receiver, assemble, deadline};
use crate::lobby::Lobby;
use crate::pending::Pending;
use hugepages::{Arena, Bytes};
use reactor::sync::Event;
use reactor::{Parts, TcpListener, TcpStream};
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};
use wire::message::{Cancel, RefusalReason, Welcome};
use wire::{Body, BodyBuf, Class, DecodeError, Flags, Header, Opcode, Request, RequestId, Slot, Status};

/// A peer that has not proved its key by then is closed.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// Pause after a failed accept: out of descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a server offers.
pub struct ServerConfig {
    /// Keys that it accepts.
    pub keys: KeyRing,
    /// Terms of every connection.
    pub terms: Welcome,
    /// Its lasting identity.
    pub server_uuid: [u8; 16],
    /// Where payloads are received; the heap where there is none.
    pub arena: Option<Arena>,
    /// Connections at most that have proved their key; one costs about 20 KiB and its credits' payloads. Those in the
    /// handshake have a bound of their own, [`crate::HALF_OPEN_MAX`].
    pub max_connections: usize,
    /// Whether replies carry a checksum of their payload.
    pub payload_crc: bool,
}

/// A request as it came.
pub struct Incoming {
    /// Its header.
    pub header: Header,
    /// Its operation.
    pub opcode: Opcode,
    /// Its body, checksum verified, not decoded.
    pub body: Bytes,
    /// Its payload, in the arena's memory where there is one.
    pub payload: Option<Bytes>,
    /// When the client stops waiting.
    pub deadline: Option<Instant>,
    /// Set when the client no longer wants the reply. The end of the connection sets it only where there is no slot: a
    /// request with one goes on, and the client may still cancel it over the next connection.
    pub cancelled: Rc<Event>,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("header", &self.header).finish_non_exhaustive()
    }
}

impl Incoming {
    /// The request itself.
    ///
    /// # Errors
    /// Answer [`Status::Malformed`].
    pub fn request(&self) -> Result<Request<'_>, DecodeError> {
        Request::decode(self.opcode, &self.body)
    }
}

/// A reply.
#[derive(Debug)]
pub struct Outgoing {
    status: Status,
    body: BodyBuf,
    payload: Parts,
}

impl Outgoing {
    /// Success, with a body.
    #[must_use]
    pub fn ok<'a>(body: &impl Body<'a>) -> Self {
        let mut out = BodyBuf::new();
        body.encode(&mut out);
        Self { status: Status::Ok, body: out, payload: Parts::new() }
    }
    /// Success, with a body that is encoded already: a kept reply.
    #[must_use]
    pub fn encoded(body: &[u8]) -> Self {
        let mut out = BodyBuf::new();
        out.put(body);
        Self { status: Status::Ok, body: out, payload: Parts::new() }
    }
    /// Anything else.
    #[must_use]
    pub fn error(status: Status) -> Self {
        Self { status, body: BodyBuf::new(), payload: Parts::new() }
    }
    /// Adds a piece of payload; all together at most 1 MiB.
    #[must_use]
    pub fn payload(mut self, bytes: Bytes) -> Self {
        self.payload.push(bytes);
        self
    }
    /// Its status.
    #[must_use]
    pub const fn status(&self) -> Status {
        self.status
    }
    /// Its body so far.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        self.body.body()
    }
}

/// Runs requests.
pub trait Handler: 'static {
    /// Runs one. The future goes on when the connection is lost: a repeat over the next one gets what it left.
    fn handle(&self, peer: &Peer, request: Incoming) -> impl Future<Output = Outgoing>;
    /// A peer has proved its key.
    fn connected(&self, _peer: &Peer) {}
    /// A peer that was connected is so no more; its session may come back over another connection.
    fn disconnected(&self, _peer: &Peer, _reason: &CloseReason) {}
}

struct PeerInner {
    id: u64,
    identity: Identity,
    address: SocketAddr,
    link: Rc<Link>,
    running: RefCell<Pending<(Slot, Rc<Event>)>>,
}

/// A handle to one connection; clones name the same one.
#[derive(Clone)]
pub struct Peer(Rc<PeerInner>);

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Peer({} at {})", self.0.identity.client, self.0.address)
    }
}

impl Peer {
    /// Number of the connection, never repeated within a server.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.0.id
    }
    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.0.identity
    }
    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }
    /// Sends a notification (Recall, Fenced).
    ///
    /// # Errors
    /// The connection is closed; the peer will come back over another, or not.
    pub fn notify<'a>(&self, message: impl Into<Request<'a>>) -> Result<(), CloseReason> {
        let message = message.into();
        let mut body = BodyBuf::new();
        message.encode(&mut body);
        let header = Header {
            flags: Flags::NOTIFY,
            client: self.0.identity.client,
            version: self.0.identity.version,
            ..Header::request(message.opcode())
        };
        self.0.link.send(assemble(header, body, &[], false).map_err(CloseReason::Protocol)?)
    }
    /// Ends the connection.
    pub fn close(&self) {
        self.0.link.close(CloseReason::Local);
    }
    /// Whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.link.closed.is_set()
    }
    /// Waits for its end.
    pub async fn closed(&self) {
        self.0.link.closed.wait().await;
    }
    /// Requests running.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.0.running.borrow().len()
    }
}

struct Inner<H> {
    config: ServerConfig,
    handler: H,
    peers: RefCell<FxHashMap<u64, Peer>>,
    lobby: Rc<Lobby>,
    next_id: Cell<u64>,
    /// Requests with a slot that are running, over all connections.
    once: RefCell<FxHashMap<RequestId, Run>>,
    stopping: Event,
}

/// A request with a slot that is running.
#[derive(Clone)]
struct Run {
    ended: Rc<Event>,
    /// As [`Incoming::cancelled`].
    cancelled: Rc<Event>,
}

/// Serves one listener on one reactor. Clones name the same server.
pub struct Server<H>(Rc<Inner<H>>);

impl<H> Clone for Server<H> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

/// Names a server without keeping it: for what its handler owns.
pub struct WeakServer<H>(Weak<Inner<H>>);

impl<H> WeakServer<H> {
    /// The server, while it is there.
    #[must_use]
    pub fn upgrade(&self) -> Option<Server<H>> {
        self.0.upgrade().map(Server)
    }
}

impl<H: Handler> Server<H> {
    /// A server that does nothing yet.
    pub fn new(config: ServerConfig, handler: H) -> Self {
        Self(Rc::new(Inner {
            config,
            handler,
            peers: RefCell::default(),
            lobby: Rc::default(),
            next_id: Cell::new(1),
            once: RefCell::default(),
            stopping: Event::new(),
        }))
    }

    /// A name for it that does not keep it.
    #[must_use]
    pub fn downgrade(&self) -> WeakServer<H> {
        WeakServer(Rc::downgrade(&self.0))
    }

    /// The handler.
    #[must_use]
    pub fn handler(&self) -> &H {
        &self.0.handler
    }

    /// Connections that have proved their key.
    #[must_use]
    pub fn peers(&self) -> Vec<Peer> {
        self.0.peers.borrow().values().cloned().collect()
    }

    /// Ends [`Server::serve`] and every connection. Requests that run go on to their end.
    pub fn stop(&self) {
        self.0.stopping.set();
        for peer in self.peers() {
            peer.0.link.close(CloseReason::Stopping);
        }
    }

    /// Accepts connections until [`Server::stop`].
    pub async fn serve(&self, listener: &TcpListener) {
        let accept = async {
            loop {
                match listener.accept().await {
                    Ok((stream, address)) => {
                        let server = self.clone();
                        drop(reactor::spawn(async move { server.connection(stream, address).await }));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection; trying again");
                        reactor::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        let mut accept = std::pin::pin!(accept);
        let mut stop = std::pin::pin!(self.0.stopping.wait());
        std::future::poll_fn(|cx| {
            let _ = accept.as_mut().poll(cx).is_ready();
            stop.as_mut().poll(cx)
        })
        .await;
    }

    async fn connection(&self, stream: TcpStream, address: SocketAddr) {
        let config = &self.0.config;
        let keep_alive = Duration::from_millis(u64::from(config.terms.keepalive_ms));
        // Failing to set it costs latency only.
        let _ = stream.set_nodelay(true);
        let link = Link::new(stream, keep_alive, false);
        let mut receiver = Receiver::new(&link, config.arena.clone());
        let seat = self.0.lobby.enter(&link);
        let greeted = reactor::timeout(HANDSHAKE_TIME, self.handshake(&link, &mut receiver)).await;
        drop(seat);
        match greeted.unwrap_or(Err(CloseReason::HandshakeTime)) {
            Ok(identity) => self.serve_peer(identity, address, link, receiver).await,
            Err(reason) => {
                // Why it was closed here, where it was.
                let reason = link.reason().unwrap_or(reason);
                tracing::warn!(%address, %reason, "connection refused");
                link.close(reason);
            }
        }
    }

    async fn handshake(&self, link: &Link, receiver: &mut Receiver) -> Result<Identity, CloseReason> {
        let config = &self.0.config;
        let nonce =
            crate::key::random().map_err(|_| CloseReason::Protocol("no random bytes from the kernel"))?;
        let mut machine = ServerHandshake::new(config.terms, config.server_uuid, nonce);
        loop {
            let Frame { header, body, .. } = receiver.frame(|header| Ok(admit(header)?)).await?;
            let busy = if self.0.stopping.is_set() {
                Some(RefusalReason::Stopping)
            } else {
                (self.0.peers.borrow().len() >= config.max_connections).then_some(RefusalReason::Full)
            };
            let step = match busy {
                Some(reason) => refuse(&header, reason, HandshakeError::NotNow(reason)),
                None => machine.on_frame(&config.keys, &header, &body),
            };
            let (frame, end) = match step {
                ServerStep::Send(frame) => (frame, None),
                ServerStep::Accept(frame, identity) => (frame, Some(Ok(identity))),
                ServerStep::Refuse(frame, error) => (frame, Some(Err(error))),
            };
            let mut parts = Parts::new();
            parts.push(Bytes::from(frame));
            link.stream.send_all(parts).await?;
            if let Some(end) = end {
                if let Ok(identity) = &end {
                    receiver.agreed(identity.version);
                }
                return Ok(end?);
            }
        }
    }

    async fn serve_peer(
        &self,
        identity: Identity,
        address: SocketAddr,
        link: Rc<Link>,
        mut receiver: Receiver,
    ) {
        let id = self.0.next_id.get();
        self.0.next_id.set(id + 1);
        let running = RefCell::new(Pending::new(self.0.config.terms.credits));
        let peer = Peer(Rc::new(PeerInner { id, identity, address, link: Rc::clone(&link), running }));
        self.0.peers.borrow_mut().insert(id, peer.clone());
        let (writer, watcher) = (Rc::clone(&link), Rc::clone(&link));
        drop(reactor::spawn(async move { writer.write_loop().await }));
        drop(reactor::spawn(async move { watcher.watch(|| {}).await }));
        self.0.handler.connected(&peer);
        let reason = loop {
            let frame = match receiver.frame(|header| self.admit(&peer, header)).await {
                Ok(frame) => frame,
                Err(reason) => break reason,
            };
            if let Err(reason) = self.dispatch(&peer, frame) {
                break reason;
            }
        };
        link.close(reason);
        self.0.peers.borrow_mut().remove(&id);
        for (slot, cancel) in peer.0.running.borrow_mut().clear() {
            if slot == Slot::IDEMPOTENT {
                cancel.set();
            }
        }
        let reason = link.reason().unwrap_or(CloseReason::Local);
        if reason.is_fault() {
            tracing::warn!(?peer, %reason, "connection closed");
        } else {
            tracing::debug!(?peer, %reason, "connection ended");
        }
        self.0.handler.disconnected(&peer, &reason);
    }

    /// What a header must be before memory is spent on its frame.
    fn admit(&self, peer: &Peer, header: &Header) -> Result<(), CloseReason> {
        if header.flags.has(Flags::REPLY) {
            return Err(CloseReason::Protocol("a client sent a reply"));
        }
        if header.client != peer.0.identity.client {
            return Err(CloseReason::Protocol("request of another client than the one that proved its key"));
        }
        if header.slot != Slot::IDEMPOTENT && header.slot.0 >= self.0.config.terms.slots {
            return Err(CloseReason::Protocol("slot is beyond those granted"));
        }
        let longest = header.op().map_or(0, Opcode::max_request_payload);
        if header.payload_len as usize > longest.min(self.0.config.terms.max_payload as usize) {
            return Err(CloseReason::Protocol("payload is longer than the operation allows"));
        }
        Ok(())
    }

    fn dispatch(&self, peer: &Peer, frame: Frame) -> Result<(), CloseReason> {
        let Frame { header, body, payload } = frame;
        let Some(opcode) = header.op() else {
            return self.answer(peer, &header, Outgoing::error(Status::Unsupported));
        };
        match opcode {
            Opcode::KeepAlive => return self.answer(peer, &header, Outgoing::encoded(&[])),
            Opcode::Cancel => {
                let cancel =
                    Cancel::decode(&body).map_err(|_| CloseReason::Protocol("Cancel is malformed"))?;
                if let Some((_, event)) = peer.0.running.borrow().get(cancel.slot, cancel.sequence) {
                    event.set();
                }
                return Ok(());
            }
            _ => {}
        }
        let slotted = header.slot != Slot::IDEMPOTENT;
        let wanted = match opcode.class() {
            Class::Once => slotted,
            Class::Repeatable => !slotted,
            Class::Notify | Class::Handshake => false,
        };
        if !wanted || header.flags.has(Flags::NOTIFY) {
            return self.answer(peer, &header, Outgoing::error(Status::Malformed));
        }
        if header.epoch != 0 && header.epoch != self.0.config.terms.boot_epoch {
            return self.answer(peer, &header, Outgoing::error(Status::StaleEpoch));
        }
        let cancelled = Rc::new(Event::new());
        let entry = (header.slot, Rc::clone(&cancelled));
        peer.0.running.borrow_mut().begin(header.slot, header.sequence, entry)?;
        let deadline = deadline(&header);
        let request = Incoming { header, opcode, body, payload, deadline, cancelled };
        let (server, peer) = (self.clone(), peer.clone());
        drop(reactor::spawn(async move { server.run(peer, request).await }));
        Ok(())
    }

    async fn run(&self, peer: Peer, request: Incoming) {
        let header = request.header;
        let Ok(turn) = self.turn(&peer, &header, &request.cancelled).await else { return };
        let late = request.deadline.is_some_and(|deadline| reactor::now() >= deadline);
        let reply =
            if late { Outgoing::error(Status::Expired) } else { self.0.handler.handle(&peer, request).await };
        drop(turn);
        peer.0.running.borrow_mut().end(header.slot, header.sequence);
        // A closed connection takes no reply; the client asks again over the next.
        let _ = self.answer(&peer, &header, reply);
    }

    /// Waits while the same request, come over an earlier connection, still runs; cancelling this one cancels that.
    ///
    /// # Errors
    /// Its own connection ended meanwhile: it must not run, for the client has asked again, and may have got its answer.
    async fn turn(
        &self,
        peer: &Peer,
        header: &Header,
        cancelled: &Rc<Event>,
    ) -> Result<Option<Turn<H>>, CloseReason> {
        if header.slot == Slot::IDEMPOTENT {
            return Ok(None);
        }
        let id = header.id();
        loop {
            let earlier = self.0.once.borrow().get(&id).cloned();
            let Some(earlier) = earlier else { break };
            let (mut ended, mut cancel) = (pin!(earlier.ended.wait()), pin!(cancelled.wait()));
            std::future::poll_fn(|cx| {
                if !earlier.cancelled.is_set() && cancel.as_mut().poll(cx).is_ready() {
                    earlier.cancelled.set();
                }
                ended.as_mut().poll(cx)
            })
            .await;
            if let Some(reason) = peer.0.link.reason() {
                return Err(reason);
            }
        }
        let run = Run { ended: Rc::new(Event::new()), cancelled: Rc::clone(cancelled) };
        self.0.once.borrow_mut().insert(id, run);
        Ok(Some(Turn { server: self.clone(), id }))
    }

    fn answer(&self, peer: &Peer, request: &Header, reply: Outgoing) -> Result<(), CloseReason> {
        let terms = &self.0.config.terms;
        let fill = |status| Header {
            version: peer.0.identity.version,
            incarnation: terms.incarnation,
            epoch: terms.boot_epoch,
            ..request.reply(status)
        };
        let parts = assemble(fill(reply.status), reply.body, &reply.payload, self.0.config.payload_crc);
        let parts = parts.or_else(|reason| {
            tracing::error!(opcode = request.opcode, reason, "a reply does not fit a frame");
            assemble(fill(Status::Errno(wire::Errno::EIO)), BodyBuf::new(), &[], false)
        });
        peer.0.link.send(parts.map_err(CloseReason::Protocol)?)
    }
}

struct Turn<H> {
    server: Server<H>,
    id: RequestId,
}

impl<H> Drop for Turn<H> {
    fn drop(&mut self) {
        if let Some(run) = self.server.0.once.borrow_mut().remove(&self.id) {
            run.ended.set();
        }
    }
}
