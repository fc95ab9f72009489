//! The client's side of one connection: requests out, replies matched, notifications handed on.
//!
//! Lives as long as its TCP connection; `session.rs` lives longer. Must not repeat anything.

use crate::alive::DEAD_AFTER;
use crate::cutter::Frame;
use crate::error::{CloseReason, Error};
use crate::handshake::{Agreed, ClientHandshake, ClientStep, HandshakeError, admit};
use crate::key::{Key, random};
use crate::link::{Link, Receiver, assemble};
use crate::pending::Pending;
use hugepages::{Arena, Bytes};
use reactor::sync::{Permit, Semaphore, mpsc, oneshot};
use reactor::{Parts, TcpStream};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use wire::message::{Cancel, KeepAlive, Role, Welcome};
use wire::{Body, BodyBuf, ClientId, DecodeError, Flags, Header, Opcode, Request, ShardId, Slot, Status};

/// Time for the TCP connection and the handshake together.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// Notifications waiting for the client, several times what a server lets pile up. Receiving can't wait for room, since
/// handling one may need a reply; a client that is so far behind gets a new connection.
const NOTIFICATIONS: usize = 16384;

/// How to connect.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// The server.
    pub address: SocketAddr,
    /// The key to prove.
    pub key: Key,
    /// What to be.
    pub role: Role,
    /// The session's identity, not zero.
    pub client: ClientId,
    /// Where payloads are received; the heap where there is none.
    pub arena: Option<Arena>,
    /// Whether requests carry a checksum of their payload.
    pub payload_crc: bool,
}

/// What a request needs beside its body.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallOptions {
    /// The shard addressed.
    pub shard: ShardId,
    /// [`Flags::NEED_LEASE`] or none.
    pub flags: Flags,
    /// When to give up; the request is then cancelled.
    pub deadline: Option<Duration>,
    /// Others wait for it, at the server perhaps with all slots and credits but those kept back: it may have these.
    pub urgent: bool,
}

/// A request in a form that can be sent more than once.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) opcode: Opcode,
    pub(crate) body: Bytes,
    pub(crate) payload: Parts,
    pub(crate) options: CallOptions,
}

impl Prepared {
    pub(crate) fn new(request: &Request<'_>, payload: Parts, options: CallOptions) -> Result<Self, Error> {
        let mut body = BodyBuf::new();
        request.encode(&mut body);
        let opcode = request.opcode();
        let len: usize = payload.iter().map(Bytes::len).sum();
        if len > opcode.max_request_payload() {
            return Err(Error::TooLong("payload is longer than the operation allows"));
        }
        // Assembled once here, so that a list that is too long fails now and not after a reconnect.
        let bytes = Bytes::copy_of(body.body());
        body.into_frame(&Header::request(opcode)).map_err(|_| Error::TooLong("body is longer than 8 KiB"))?;
        Ok(Self { opcode, body: bytes, payload, options })
    }
}

/// A reply.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its header.
    pub header: Header,
    /// Its body.
    pub body: Bytes,
    /// Its payload, empty where there is none.
    pub payload: Bytes,
}

impl Reply {
    /// How the request went.
    #[must_use]
    pub const fn status(&self) -> Status {
        self.header.status
    }
    /// The body as an `R`; only sensible where the status is Ok.
    ///
    /// # Errors
    /// The server broke the protocol.
    pub fn decode<'a, R: Body<'a>>(&'a self) -> Result<R, DecodeError> {
        R::decode(&self.body)
    }
}

/// A message that the server sent unasked.
#[derive(Clone, Debug)]
pub struct Notification {
    /// Its header.
    pub header: Header,
    /// Its operation.
    pub opcode: Opcode,
    /// Its body.
    pub body: Bytes,
}

impl Notification {
    /// The message itself.
    ///
    /// # Errors
    /// The server broke the protocol.
    pub fn request(&self) -> Result<Request<'_>, DecodeError> {
        Request::decode(self.opcode, &self.body)
    }
}

struct Waiting {
    opcode: Opcode,
    reply: oneshot::Sender<Reply>,
    /// Held until the reply has come, even where nobody waits for it any more.
    _credit: Option<Permit>,
}

struct Inner {
    options: ConnectOptions,
    agreed: Agreed,
    link: Rc<Link>,
    pending: RefCell<Pending<Waiting>>,
    credits: Semaphore,
    /// Credits of requests that others wait for: see [`is_urgent`].
    urgent: Semaphore,
    /// Credits of requests that their caller calls urgent, beside the common ones.
    called_urgent: Semaphore,
    sequence: Cell<u64>,
    answered: Cell<u64>,
}

/// A connection whose two sides have proved the key. Clones name the same one; it closes with the last.
#[derive(Clone)]
pub struct Connection {
    inner: Rc<Inner>,
    _closer: Rc<Closer>,
}

struct Closer(Rc<Link>);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.close(CloseReason::Local);
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection(to {})", self.inner.options.address)
    }
}

/// Credits kept back for requests that others wait for.
const URGENT: u16 = 8;

/// Credits kept back of so many: for set-up and leases, and for what its caller calls urgent.
fn kept_back(credits: u16) -> (u16, u16) {
    let kept = URGENT.min(credits.saturating_sub(1));
    (kept, URGENT.min((credits - kept) / 8))
}

/// Set-up of a session, and the return of leases: requests that hold all other credits may wait for these at the server.
fn is_urgent(opcode: Opcode) -> bool {
    (Opcode::OpenSession as u16..=Opcode::LeaseReturn as u16).contains(&(opcode as u16))
}

/// Credits kept back for KeepAlive, which the server answers without counting.
const SPARE: u16 = 2;

impl Connection {
    /// Connects and proves both sides. Notifications come through the second value.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::is_permanent`] tells whether to try again.
    pub async fn connect(options: &ConnectOptions) -> Result<(Self, mpsc::Receiver<Notification>), Error> {
        let connect = Self::connect_untimed(options);
        reactor::timeout(CONNECT_TIME, connect)
            .await
            .unwrap_or_else(|_| Err(CloseReason::HandshakeTime.into()))
    }

    async fn connect_untimed(
        options: &ConnectOptions,
    ) -> Result<(Self, mpsc::Receiver<Notification>), Error> {
        let stream =
            TcpStream::connect(options.address).await.map_err(|error| Error::Connect(Rc::new(error)))?;
        // Failing to set it costs latency only.
        let _ = stream.set_nodelay(true);
        let handshaking = Link::new(stream.clone(), CONNECT_TIME, true);
        let mut receiver = Receiver::new(&handshaking, options.arena.clone());
        let agreed = handshake(options, &stream, &mut receiver).await?;
        let period = Duration::from_millis(u64::from(agreed.welcome.keepalive_ms));
        let link = Link::new(stream, period, true);
        let receiver = receiver.moved(&link, agreed.version);
        let credits = agreed.welcome.credits;
        let (kept, called) = kept_back(credits);
        let inner = Rc::new(Inner {
            options: options.clone(),
            agreed,
            link: Rc::clone(&link),
            pending: RefCell::new(Pending::new(credits.saturating_add(SPARE))),
            credits: Semaphore::new(usize::from(credits.saturating_sub(kept + called).max(1))),
            urgent: Semaphore::new(usize::from(kept.max(1))),
            called_urgent: Semaphore::new(usize::from(called)),
            sequence: Cell::new(0),
            answered: Cell::new(0),
        });
        let (sender, notifications) = mpsc::channel(NOTIFICATIONS);
        let (reading, writing, watching) = (Rc::clone(&inner), Rc::clone(&link), Rc::clone(&inner));
        drop(reactor::spawn(async move { reading.read_loop(receiver, sender).await }));
        drop(reactor::spawn(async move { writing.write_loop().await }));
        drop(reactor::spawn(async move { watching.link.watch(|| watching.keep_alive()).await }));
        Ok((Self { inner, _closer: Rc::new(Closer(link)) }, notifications))
    }

    /// The terms of this connection.
    #[must_use]
    pub fn welcome(&self) -> &Welcome {
        &self.inner.agreed.welcome
    }
    /// The server's lasting identity.
    #[must_use]
    pub fn server_uuid(&self) -> [u8; 16] {
        self.inner.agreed.server_uuid
    }
    /// Silence after which this connection gives its server up.
    #[must_use]
    pub fn dead_after(&self) -> Duration {
        Duration::from_millis(u64::from(self.welcome().keepalive_ms)) * DEAD_AFTER
    }

    /// Sends a repeatable request and waits for its reply. Dropping the future cancels it.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Deadline`] or [`Error::TooLong`]; a status of the server is no error here.
    pub async fn call(&self, request: &Request<'_>, options: CallOptions) -> Result<Reply, Error> {
        self.call_with(request, Parts::new(), options).await
    }

    /// As [`Connection::call`], with a payload.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub async fn call_with(
        &self,
        request: &Request<'_>,
        payload: Parts,
        options: CallOptions,
    ) -> Result<Reply, Error> {
        let prepared = Prepared::new(request, payload, options)?;
        let flight = async { self.begin(&prepared, Slot::IDEMPOTENT, 0).await?.await };
        match options.deadline {
            None => flight.await,
            Some(time) => reactor::timeout(time, flight).await.unwrap_or(Err(Error::Deadline)),
        }
    }

    /// Sends once a credit is free. `sequence` is chosen here for [`Slot::IDEMPOTENT`].
    pub(crate) async fn begin(&self, request: &Prepared, slot: Slot, sequence: u64) -> Result<Flight, Error> {
        let inner = &self.inner;
        let credits = if is_urgent(request.opcode) { &inner.urgent } else { &inner.credits };
        let common = credits.try_acquire();
        let credit = match common {
            Some(credit) => Ok(credit),
            None if request.options.urgent && kept_back(inner.agreed.welcome.credits).1 > 0 => {
                inner.called_urgent.acquire().await
            }
            None => credits.acquire().await,
        };
        let Ok(credit) = credit else { return Err(inner.lost()) };
        inner.send(request, slot, sequence, Some(credit))
    }

    /// Waits for the end of the connection.
    pub async fn closed(&self) -> CloseReason {
        self.inner.link.closed.wait().await;
        self.inner.link.reason().unwrap_or(CloseReason::Local)
    }
    /// Why it has ended, `None` while it stands.
    #[must_use]
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.inner.link.reason()
    }
    /// Ends it now.
    pub fn close(&self) {
        self.inner.link.close(CloseReason::Local);
    }
    /// Replies that have come, those to KeepAlive included.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.inner.answered.get()
    }
    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.inner.pending.borrow().len()
    }
}

async fn handshake(
    options: &ConnectOptions,
    stream: &TcpStream,
    receiver: &mut Receiver,
) -> Result<Agreed, Error> {
    let nonce = random().map_err(|_| Error::Random)?;
    let (mut machine, mut frame) = ClientHandshake::new(&options.key, options.role, options.client, nonce);
    loop {
        let mut parts = Parts::new();
        parts.push(Bytes::from(frame));
        stream.send_all(parts).await.map_err(CloseReason::from)?;
        let Frame { header, body, .. } = receiver.frame(|header| Ok(admit(header)?)).await?;
        match machine.on_frame(&header, &body).map_err(CloseReason::from)? {
            ClientStep::Send(next) => frame = next,
            ClientStep::Done(agreed) if u64::from(agreed.welcome.chunk_size) != wire::CHUNK_SIZE => {
                let error = HandshakeError::Protocol("the server's chunk size is not 1 MiB");
                return Err(CloseReason::from(error).into());
            }
            ClientStep::Done(agreed) => return Ok(agreed),
        }
    }
}

impl Inner {
    fn lost(&self) -> Error {
        self.link.reason().unwrap_or(CloseReason::Local).into()
    }

    fn send(
        self: &Rc<Self>,
        request: &Prepared,
        slot: Slot,
        sequence: u64,
        credit: Option<Permit>,
    ) -> Result<Flight, Error> {
        if let Some(reason) = self.link.reason() {
            return Err(reason.into());
        }
        let sequence = if slot == Slot::IDEMPOTENT { self.next_sequence() } else { sequence };
        let options = request.options;
        let deadline =
            options.deadline.map_or(0, |time| time.as_millis().clamp(1, u128::from(u32::MAX)) as u32);
        let header = Header {
            flags: options.flags,
            slot,
            sequence,
            shard: options.shard,
            deadline_ms: deadline,
            epoch: self.agreed.welcome.boot_epoch,
            ..self.header(request.opcode)
        };
        let mut body = BodyBuf::new();
        body.put(&request.body);
        let parts =
            assemble(header, body, &request.payload, self.options.payload_crc).map_err(Error::TooLong)?;
        let (sender, receiver) = oneshot::channel();
        let waiting = Waiting { opcode: request.opcode, reply: sender, _credit: credit };
        self.pending.borrow_mut().begin(slot, sequence, waiting).map_err(CloseReason::from)?;
        if let Err(reason) = self.link.send(parts) {
            self.pending.borrow_mut().end(slot, sequence);
            return Err(reason.into());
        }
        Ok(Flight { inner: Rc::clone(self), slot, sequence, reply: receiver, over: false })
    }

    fn header(&self, opcode: Opcode) -> Header {
        Header { client: self.options.client, version: self.agreed.version, ..Header::request(opcode) }
    }

    fn next_sequence(&self) -> u64 {
        self.sequence.set(self.sequence.get() + 1);
        self.sequence.get()
    }

    fn keep_alive(self: &Rc<Self>) {
        let request = Prepared {
            opcode: <KeepAlive as wire::Call<'_>>::OPCODE,
            body: Bytes::new(),
            payload: Parts::new(),
            options: CallOptions::default(),
        };
        // Nobody waits: that the reply is heard is all. Where the spares are used up, answers are due already.
        if let Ok(mut flight) = self.send(&request, Slot::IDEMPOTENT, 0, None) {
            flight.over = true;
        }
    }

    fn cancel(&self, slot: Slot, sequence: u64) {
        let (mut body, message) = (BodyBuf::new(), Cancel { slot, sequence });
        message.encode(&mut body);
        let header = Header { flags: Flags::NOTIFY, ..self.header(Opcode::Cancel) };
        if let Ok(parts) = assemble(header, body, &[], false) {
            // On a closed connection there is nothing to cancel.
            let _ = self.link.send(parts);
        }
    }

    async fn read_loop(self: Rc<Self>, mut receiver: Receiver, sender: mpsc::Sender<Notification>) {
        let reason = loop {
            let frame = match receiver.frame(|header| self.admit(header)).await {
                Ok(frame) => frame,
                Err(reason) => break reason,
            };
            if frame.header.flags.has(Flags::REPLY) {
                self.deliver(frame);
            } else if let Some(opcode) = frame.header.op() {
                let notification = Notification { header: frame.header, opcode, body: frame.body };
                if let Err(mpsc::TrySendError::Full(_)) = sender.try_send(notification) {
                    break CloseReason::Protocol("too many notifications wait to be handled");
                }
            }
        };
        self.link.close(reason);
        self.credits.close();
        self.called_urgent.close();
        self.urgent.close();
        // Dropping the senders tells those who wait.
        drop(self.pending.borrow_mut().clear());
    }

    fn admit(&self, header: &Header) -> Result<(), CloseReason> {
        if !header.flags.has(Flags::REPLY) {
            let known = matches!(header.op(), Some(Opcode::Recall | Opcode::Fenced));
            let sound = known && header.flags.has(Flags::NOTIFY) && header.payload_len == 0;
            return if sound { Ok(()) } else { Err(CloseReason::Protocol("the server sent a request")) };
        }
        let pending = self.pending.borrow();
        let Some(waiting) = pending.get(header.slot, header.sequence) else {
            return Err(CloseReason::Protocol("reply to nothing that was asked"));
        };
        if header.opcode != waiting.opcode as u16 {
            return Err(CloseReason::Protocol("reply of another operation than asked"));
        }
        if header.payload_len as usize > waiting.opcode.max_reply_payload() {
            return Err(CloseReason::Protocol("payload is longer than the operation allows"));
        }
        Ok(())
    }

    fn deliver(&self, frame: Frame) {
        let Frame { header, body, payload } = frame;
        let waiting = self.pending.borrow_mut().end(header.slot, header.sequence);
        self.answered.set(self.answered.get() + 1);
        if let Some(waiting) = waiting {
            // Who waited may have gone.
            let _ = waiting.reply.send(Reply { header, body, payload: payload.unwrap_or_default() });
        }
    }
}

/// A request in flight. Dropping it cancels the request; its reply, if one still comes, is thrown away.
pub(crate) struct Flight {
    inner: Rc<Inner>,
    slot: Slot,
    sequence: u64,
    reply: oneshot::Receiver<Reply>,
    over: bool,
}

impl Flight {
    /// Asks the server to give up; the reply is still to be waited for.
    pub(crate) fn cancel(&self) {
        self.inner.cancel(self.slot, self.sequence);
    }
}

impl Future for Flight {
    type Output = Result<Reply, Error>;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        let polled = std::pin::Pin::new(&mut self.reply).poll(cx);
        polled.map(|reply| {
            self.over = true;
            reply.map_err(|_| self.inner.lost())
        })
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.over {
            self.cancel();
        }
    }
}
