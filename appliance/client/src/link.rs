//! [`Rpc`] over `transport`: one transport session at a time, a new one with a new identity when the server gave the old
//! one up.
//!
//! Must not know what requests mean beyond their class: one that changes something is never moved to another identity
//! once it may have been sent.

use crate::race::{Either, race};
use crate::rpc::{CallId, Events, LocalFuture, Outgoing, Pending, Reply, Rpc, Scope, Terms, Verdict};
use hugepages::{Arena, Bytes};
use reactor::sync::{Event, oneshot};
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};
use transport::{CallOptions, CloseReason, ConnectOptions, Connection, Error, Key, Parts, Session};
use wire::message::Role;
use wire::types::{ClientId, Status};
use wire::{BodyBuf, Class, Flags, Opcode, Request};

/// Where the server is and how to speak to it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its address.
    pub address: SocketAddr,
    /// The key to prove.
    pub key: Key,
    /// Where payloads are received; the heap where there is none.
    pub arena: Option<Arena>,
    /// Whether requests carry a checksum of their payload.
    pub payload_crc: bool,
}

/// Pause before a session that the server refuses for good is tried again: an operator may be changing keys.
const REFUSED: Duration = Duration::from_millis(500);

/// One transport session and the identity it has.
struct Life {
    number: u64,
    session: RefCell<Option<Session>>,
    /// Rung when `session` is there.
    there: Event,
    /// Rung when this life is over.
    over: Event,
}

impl Life {
    fn new(number: u64) -> Rc<Self> {
        Rc::new(Self { number, session: RefCell::default(), there: Event::new(), over: Event::new() })
    }
    fn end(&self) {
        if let Some(session) = self.session.borrow_mut().take() {
            session.stop();
        }
        self.over.set();
        self.there.set();
    }
}

pub(crate) struct Link {
    me: Weak<Self>,
    endpoint: Endpoint,
    began: Instant,
    events: RefCell<Option<Rc<dyn Events>>>,
    life: RefCell<Rc<Life>>,
    /// The newest authenticated connection, set-up included.
    latest: RefCell<Option<Connection>>,
    terms: Cell<Option<Terms>>,
    lost: Cell<Option<Instant>>,
    last: Cell<u64>,
    /// Requests that can be cancelled.
    calls: RefCell<FxHashMap<CallId, Rc<Event>>>,
    closed: Cell<bool>,
    first: RefCell<Option<oneshot::Sender<Result<(), Error>>>>,
}

/// A request in owned form.
struct Prepared {
    opcode: Opcode,
    body: BodyBuf,
    payload: Parts,
    options: CallOptions,
    cancel: Option<Rc<Event>>,
}

fn bare(status: Status, attempts: u32) -> Reply {
    Reply { status, body: Bytes::new(), payload: Bytes::new(), attempts }
}

fn received(reply: transport::Reply, attempts: u32) -> Reply {
    Reply { status: reply.status(), body: reply.body, payload: reply.payload, attempts }
}

impl Link {
    /// A link that has not begun to connect, and what tells how its first attempt ended.
    pub(crate) fn new(endpoint: Endpoint) -> (Rc<Self>, oneshot::Receiver<Result<(), Error>>) {
        let (sender, first) = oneshot::channel();
        let link = Rc::new_cyclic(|me| Self {
            me: me.clone(),
            endpoint,
            began: reactor::now(),
            events: RefCell::default(),
            life: RefCell::new(Life::new(0)),
            latest: RefCell::default(),
            terms: Cell::default(),
            lost: Cell::default(),
            last: Cell::default(),
            calls: RefCell::default(),
            closed: Cell::default(),
            first: RefCell::new(Some(sender)),
        });
        (link, first)
    }

    /// Task: connects for one life; transport reconnects within it.
    async fn live(self: Rc<Self>, life: Rc<Life>) {
        while !self.closed.get() && !life.over.is_set() {
            let mut id = [0; 8];
            let client = match reactor::random(&mut id) {
                Ok(()) => ClientId(u64::from_le_bytes(id).max(1)),
                Err(_) => {
                    self.tell_first(Err(Error::Random));
                    reactor::sleep(REFUSED).await;
                    continue;
                }
            };
            let Endpoint { address, ref key, ref arena, payload_crc } = self.endpoint;
            let options = ConnectOptions {
                address,
                key: key.clone(),
                role: Role::Client,
                client,
                arena: arena.clone(),
                payload_crc,
            };
            let connecting = Session::connect(options, self.hook(&life), self.on_notification());
            match race(connecting, life.over.wait()).await {
                Either::Left(Ok(session)) => {
                    self.tell_first(Ok(()));
                    if life.over.is_set() {
                        session.stop();
                    } else {
                        life.session.replace(Some(session));
                        life.there.set();
                    }
                    return;
                }
                Either::Left(Err(error)) => {
                    tracing::error!(server = %address, %error, "the server refuses this client");
                    self.tell_first(Err(error));
                    reactor::sleep(REFUSED).await;
                }
                Either::Right(()) => return,
            }
        }
    }

    fn tell_first(&self, result: Result<(), Error>) {
        if let Some(first) = self.first.borrow_mut().take() {
            // Whoever connected may have given up.
            let _ = first.send(result);
        }
    }

    fn hook(&self, life: &Rc<Life>) -> transport::Hook {
        let (me, life) = (self.me.clone(), Rc::clone(life));
        Box::new(move |connection| {
            let (me, life) = (me.clone(), Rc::clone(&life));
            Box::pin(async move {
                match me.upgrade() {
                    Some(link) => link.enter(connection, &life).await,
                    None => Err(Error::Stopped),
                }
            })
        })
    }

    fn on_notification(&self) -> transport::OnNotification {
        let me = self.me.clone();
        Box::new(move |notification| {
            let events = me.upgrade().and_then(|link| link.events.borrow().clone());
            match (events, notification.request()) {
                (Some(events), Ok(request)) => events.notified(&request),
                (_, Err(error)) => tracing::error!(%error, "the server's notification is malformed"),
                (None, Ok(_)) => {}
            }
            Box::pin(async {})
        })
    }

    /// Sets the session up on a new connection.
    async fn enter(self: Rc<Self>, connection: Connection, life: &Rc<Life>) -> Result<(), Error> {
        let welcome = connection.welcome();
        let lease = Duration::from_millis(u64::from(welcome.lease_ms));
        self.terms.set(Some(Terms {
            shards: welcome.shards,
            slots: welcome.slots.min(welcome.credits),
            lease,
        }));
        self.lost.set(None);
        self.latest.replace(Some(connection.clone()));
        self.watch(connection.clone());
        let events = self.events.borrow().clone();
        let verdict = match events {
            Some(events) if !life.over.is_set() => events.connected().await,
            _ => Verdict::Retry,
        };
        match verdict {
            Verdict::Resume | Verdict::Fresh => Ok(()),
            Verdict::Retry => {
                connection.close();
                Err(CloseReason::Local.into())
            }
            Verdict::Renew => {
                connection.close();
                self.begin_anew(life.number);
                Err(CloseReason::Local.into())
            }
        }
    }

    /// Notes when a connection ends.
    fn watch(&self, connection: Connection) {
        let me = self.me.clone();
        drop(reactor::spawn(async move {
            let dead_after = connection.dead_after();
            let reason = connection.closed().await;
            let Some(link) = me.upgrade() else { return };
            let newest = link.latest.borrow().as_ref().is_some_and(|c| c.close_reason().is_some());
            if newest {
                let silent = if matches!(reason, CloseReason::Silent) { dead_after } else { Duration::ZERO };
                link.lost.set(Some(reactor::now().checked_sub(silent).unwrap_or_else(reactor::now)));
                link.latest.replace(None);
            }
        }));
    }

    /// Ends life `number` and begins the next.
    fn begin_anew(&self, number: u64) {
        let old = Rc::clone(&self.life.borrow());
        if old.number != number || self.closed.get() {
            return;
        }
        let next = Life::new(number + 1);
        self.life.replace(Rc::clone(&next));
        old.end();
        // A set-up that is given up leaves its connection to us.
        if let Some(connection) = self.latest.borrow_mut().take() {
            connection.close();
            self.lost.set(Some(reactor::now()));
        }
        if let Some(link) = self.me.upgrade() {
            drop(reactor::spawn(link.live(next)));
        }
    }

    /// The session of the present life, once its first connection is set up; `None` at the end.
    async fn ready(&self) -> Option<Session> {
        loop {
            if self.closed.get() {
                return None;
            }
            let life = Rc::clone(&self.life.borrow());
            life.there.wait().await;
            let session = life.session.borrow().clone();
            if let Some(session) = session
                && session.ready().await.is_ok()
            {
                return Some(session);
            }
            reactor::yield_now().await;
        }
    }

    async fn pursue(self: Rc<Self>, call: Prepared) -> Reply {
        let Ok(request) = Request::decode(call.opcode, call.body.body()) else {
            return bare(Status::Malformed, 0);
        };
        loop {
            let Some(session) = self.ready().await else { return bare(Status::Cancelled, 0) };
            let (before, _) = session.counters();
            let payload = call.payload.clone();
            let result = match &call.cancel {
                None => session.call(&request, payload, call.options).await,
                Some(cancel) => session.call_until(&request, payload, call.options, Rc::clone(cancel)).await,
            };
            let attempts = 1 + session.counters().0.saturating_sub(before) as u32;
            match result {
                Ok(reply) => return received(reply, attempts),
                Err(Error::TooLong(reason)) => {
                    tracing::error!(op = call.opcode.name(), reason, "request is too long to be sent");
                    return bare(Status::Malformed, 0);
                }
                Err(Error::Cancelled) => return bare(Status::Cancelled, 0),
                Err(Error::Deadline) => return bare(Status::Expired, attempts),
                // The identity is over. What may have been executed under it is not asked under another.
                Err(_) if call.opcode.class() == Class::Once => return bare(Status::Fenced, attempts + 1),
                Err(_) => {}
            }
        }
    }

    async fn once_over(self: Rc<Self>, call: Prepared) -> Reply {
        let connection = self.latest.borrow().clone();
        let Some(connection) = connection else { return bare(Status::Cancelled, 0) };
        let Ok(request) = Request::decode(call.opcode, call.body.body()) else {
            return bare(Status::Malformed, 0);
        };
        match connection.call_with(&request, call.payload, call.options).await {
            Ok(reply) => received(reply, 1),
            Err(_) => bare(Status::Cancelled, 1),
        }
    }
}

impl Rpc for Link {
    fn start(&self, events: Rc<dyn Events>) {
        self.events.replace(Some(events));
        let life = Rc::clone(&self.life.borrow());
        if let Some(link) = self.me.upgrade() {
            drop(reactor::spawn(link.live(life)));
        }
    }

    fn call(&self, out: &Outgoing<'_>) -> Pending {
        self.last.set(self.last.get() + 1);
        let id = CallId(self.last.get());
        let Some(link) = self.me.upgrade() else {
            return Pending { id, reply: Box::pin(async { bare(Status::Cancelled, 0) }) };
        };
        let mut body = BodyBuf::new();
        out.request.encode(&mut body);
        let flags = if out.need_lease { Flags::NEED_LEASE } else { Flags::none() };
        let options = CallOptions { shard: out.shard, flags, deadline: None, urgent: out.urgent };
        let payload = out.payload.iter().cloned().collect();
        let waits = out.gives_way.is_some() || matches!(out.request, Request::SetLock(lock) if lock.wait);
        let cancel = waits.then(|| Rc::new(Event::new()));
        let call = Prepared { opcode: out.request.opcode(), body, payload, options, cancel: cancel.clone() };
        if out.scope == Scope::Connection {
            return Pending { id, reply: Box::pin(link.once_over(call)) };
        }
        let Some(cancel) = cancel else {
            return Pending { id, reply: Box::pin(link.pursue(call)) };
        };
        self.calls.borrow_mut().insert(id, cancel);
        let reply = async move {
            let reply = Rc::clone(&link).pursue(call).await;
            link.calls.borrow_mut().remove(&id);
            reply
        };
        Pending { id, reply: Box::pin(reply) }
    }

    fn cancel(&self, id: CallId) {
        if let Some(event) = self.calls.borrow_mut().remove(&id) {
            event.set();
        }
    }

    fn renew(&self) {
        let number = self.life.borrow().number;
        self.begin_anew(number);
    }

    fn close(&self) -> LocalFuture<()> {
        self.closed.set(true);
        let life = Rc::clone(&self.life.borrow());
        life.end();
        if let Some(connection) = self.latest.borrow_mut().take() {
            connection.close();
        }
        self.events.replace(None);
        Box::pin(reactor::yield_now())
    }

    fn terms(&self) -> Option<Terms> {
        self.terms.get()
    }

    fn silence(&self) -> Duration {
        self.lost.get().map_or(Duration::ZERO, |lost| reactor::now().saturating_duration_since(lost))
    }

    fn spawn(&self, task: LocalFuture<()>) {
        drop(reactor::spawn(task));
    }

    fn sleep(&self, time: Duration) -> LocalFuture<()> {
        Box::pin(reactor::sleep(time))
    }

    fn now(&self) -> Duration {
        reactor::now().saturating_duration_since(self.began)
    }
}
