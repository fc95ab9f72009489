//! An executor with a virtual clock, and an [`Rpc`] in front of the model server whose connection tests can cut.

use super::model::Model;
use crate::rpc::{CallId, Events, LocalFuture, Outgoing, Pending, Reply, Rpc, Scope, Terms, Verdict};
use crate::{Client, Options};
use hugepages::Bytes;
use reactor::sync::oneshot;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use wire::types::Status;
use wire::{BodyBuf, Class, Opcode, Request};

/// Virtual time after which a test counts as hung.
const HANG: Duration = Duration::from_secs(3600);

struct Bell {
    id: usize,
    rung: Arc<Mutex<VecDeque<usize>>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rung.lock().expect("no test panics while it rings").push_back(self.id);
    }
}

/// A request as the server sees it.
pub(super) struct Call {
    pub(super) id: u64,
    pub(super) opcode: Opcode,
    pub(super) body: Vec<u8>,
    pub(super) payload: Bytes,
    pub(super) need_lease: bool,
    scope: Scope,
    attempts: u32,
    answer: oneshot::Sender<Reply>,
}

impl Call {
    /// One that came over a socket.
    pub(super) fn received(id: u64, opcode: Opcode, body: &[u8], payload: Bytes, need_lease: bool) -> Self {
        let (answer, _) = oneshot::channel();
        let scope = Scope::Session;
        Self { id, opcode, body: body.to_vec(), payload, need_lease, scope, attempts: 1, answer }
    }
}

#[derive(Default)]
pub(super) struct Fake {
    me: RefCell<Weak<Fake>>,
    tasks: RefCell<Vec<Option<LocalFuture<()>>>>,
    rung: Arc<Mutex<VecDeque<usize>>>,
    clock: Cell<Duration>,
    timers: RefCell<Vec<(Duration, Waker)>>,
    heard: Cell<Duration>,
    events: RefCell<Option<Rc<dyn Events>>>,
    calls: RefCell<Vec<Call>>,
    last: Cell<u64>,
    /// Grows with each connection.
    connection: Cell<u64>,
    ready: Cell<bool>,
    /// The next session has another identity.
    pub(super) fresh: Cell<bool>,
    /// The server can be reached.
    pub(super) up: Cell<bool>,
    pub(super) model: RefCell<Model>,
}

impl Fake {
    pub(super) fn new() -> Rc<Self> {
        let fake = Rc::new(Self::default());
        *fake.me.borrow_mut() = Rc::downgrade(&fake);
        fake.up.set(true);
        fake
    }
    pub(super) fn client(self: &Rc<Self>) -> Client {
        Client::new(Rc::clone(self) as Rc<dyn Rpc>, Options::default())
    }
    fn this(&self) -> Rc<Self> {
        self.me.borrow().upgrade().expect("it is running")
    }

    /// Runs everything until `f` ends; time jumps to the next timer when nothing else is to be done.
    pub(super) fn run<T>(&self, f: impl Future<Output = T>) -> T {
        let mut f = pin!(f);
        let start = self.clock.get();
        loop {
            if let Poll::Ready(v) = self.turn(f.as_mut()) {
                return v;
            }
            if !self.rung.lock().expect("no panic").is_empty() {
                continue;
            }
            let next = self.timers.borrow().iter().map(|t| t.0).min();
            let next = next.expect("something must be going on");
            assert!(next - start < HANG, "hung: {:?}", self.waiting());
            self.clock.set(next.max(self.clock.get()));
            if self.up.get() {
                self.heard.set(self.clock.get());
            }
            let mut timers = self.timers.borrow_mut();
            let due = timers.extract_if(.., |t| t.0 <= next).collect::<Vec<_>>();
            drop(timers);
            due.into_iter().for_each(|t| t.1.wake());
        }
    }
    /// Runs what can run now, without letting time pass.
    pub(super) fn settle(&self) {
        let mut polls = 0;
        self.run(poll_fn(|cx| {
            polls += 1;
            cx.waker().wake_by_ref();
            if polls > 200 { Poll::Ready(()) } else { Poll::Pending }
        }));
    }
    fn turn<F: Future>(&self, f: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        let waker = |id| Waker::from(Arc::new(Bell { id, rung: Arc::clone(&self.rung) }));
        let rung: Vec<usize> = self.rung.lock().expect("no panic").drain(..).collect();
        for id in rung {
            let Some(mut task) = self.tasks.borrow_mut().get_mut(id).and_then(Option::take) else { continue };
            if task.as_mut().poll(&mut Context::from_waker(&waker(id))).is_pending() {
                self.tasks.borrow_mut()[id] = Some(task);
            }
        }
        f.poll(&mut Context::from_waker(&waker(usize::MAX)))
    }

    /// Opcodes of requests that are not answered.
    pub(super) fn waiting(&self) -> Vec<Opcode> {
        self.calls.borrow().iter().map(|c| c.opcode).collect()
    }
    /// Lets the server look at what it has not answered.
    pub(super) fn serve(&self) {
        if !self.up.get() || self.connection.get() == 0 {
            return;
        }
        let mut left = Vec::new();
        let calls = self.calls.take();
        for mut call in calls {
            if call.scope == Scope::Session && !self.ready.get() {
                left.push(call);
                continue;
            }
            call.attempts = call.attempts.max(1);
            let answer = self.model.borrow_mut().answer(&call);
            match answer {
                Some((status, body, payload)) => {
                    // A lost reader is no matter of the server's.
                    let _ = call.answer.send(Reply {
                        status,
                        body: Bytes::from(body),
                        payload,
                        attempts: call.attempts,
                    });
                }
                None => left.push(call),
            }
        }
        self.calls.borrow_mut().extend(left);
    }
    /// Sends a notification.
    pub(super) fn notify<'a>(&self, message: impl Into<Request<'a>>) {
        let events = self.events.borrow().clone().expect("a client is there");
        events.notified(&message.into());
    }
    /// The connection breaks. Answers to what was executed are lost with `lose`.
    pub(super) fn cut(&self) {
        self.ready.set(false);
        self.connection.set(self.connection.get() + 1);
        let mut calls = self.calls.borrow_mut();
        let gone: Vec<Call> = calls.extract_if(.., |c| c.scope == Scope::Connection).collect();
        drop(calls);
        for call in gone {
            let _ = call.answer.send(status(Status::Cancelled, 1));
        }
        let this = self.this();
        self.spawn(Box::pin(async move { this.connect().await }));
    }
    async fn connect(&self) {
        let mine = self.connection.get();
        loop {
            while !self.up.get() {
                self.sleep(Duration::from_millis(10)).await;
            }
            if self.connection.get() != mine {
                return;
            }
            let events = self.events.borrow().clone().expect("a client is there");
            match events.connected().await {
                _ if self.connection.get() != mine => return,
                Verdict::Retry => continue,
                Verdict::Resume => break,
                Verdict::Renew => self.fresh.set(true),
                Verdict::Fresh => {
                    if !self.fresh.replace(false) {
                        break;
                    }
                    let mut calls = self.calls.borrow_mut();
                    let unsure = |c: &mut Call| c.opcode.class() == Class::Once && c.attempts > 0;
                    let gone: Vec<Call> = calls.extract_if(.., unsure).collect();
                    drop(calls);
                    for call in gone {
                        let _ = call.answer.send(status(Status::Fenced, call.attempts + 1));
                    }
                    break;
                }
            }
        }
        self.ready.set(true);
        for call in self.calls.borrow_mut().iter_mut() {
            call.attempts += 1;
        }
        self.serve();
    }
}

fn status(status: Status, attempts: u32) -> Reply {
    Reply { status, body: Bytes::new(), payload: Bytes::new(), attempts }
}

impl Rpc for Fake {
    fn start(&self, events: Rc<dyn Events>) {
        *self.events.borrow_mut() = Some(events);
        self.connection.set(1);
        let this = self.this();
        self.spawn(Box::pin(async move { this.connect().await }));
    }
    fn call(&self, out: &Outgoing<'_>) -> Pending {
        let (answer, mut reply) = oneshot::channel();
        self.last.set(self.last.get() + 1);
        let id = self.last.get();
        let mut body = BodyBuf::new();
        out.request.encode(&mut body);
        let call = Call {
            id,
            opcode: out.request.opcode(),
            body: body.body().to_vec(),
            payload: out.payload.clone().unwrap_or_default(),
            need_lease: out.need_lease,
            scope: out.scope,
            attempts: 0,
            answer,
        };
        if out.scope == Scope::Connection && !self.up.get() {
            let _ = call.answer.send(status(Status::Cancelled, 0));
        } else {
            self.calls.borrow_mut().push(call);
            self.serve();
        }
        let reply = Box::pin(async move {
            poll_fn(|cx| std::pin::Pin::new(&mut reply).poll(cx))
                .await
                .unwrap_or_else(|_| status(Status::Cancelled, 1))
        });
        Pending { id: CallId(id), reply }
    }
    fn cancel(&self, id: CallId) {
        if self.model.borrow().grant_wins {
            self.model.borrow_mut().held_back.clear();
            return self.serve();
        }
        let mut calls = self.calls.borrow_mut();
        let Some(at) = calls.iter().position(|c| c.id == id.0) else { return };
        if self.up.get() {
            let call = calls.remove(at);
            drop(calls);
            let _ = call.answer.send(status(Status::Cancelled, 1));
        }
    }
    fn renew(&self) {
        self.fresh.set(true);
        self.cut();
    }
    fn close(&self) -> LocalFuture<()> {
        self.up.set(false);
        Box::pin(async {})
    }
    fn terms(&self) -> Option<Terms> {
        Some(Terms { shards: 16, slots: 4, lease: Duration::from_secs(10) })
    }
    fn silence(&self) -> Duration {
        self.clock.get() - self.heard.get()
    }
    fn spawn(&self, task: LocalFuture<()>) {
        let mut tasks = self.tasks.borrow_mut();
        tasks.push(Some(task));
        self.rung.lock().expect("no panic").push_back(tasks.len() - 1);
    }
    fn sleep(&self, time: Duration) -> LocalFuture<()> {
        let (this, until) = (self.this(), self.clock.get() + time);
        Box::pin(poll_fn(move |cx| {
            if this.clock.get() >= until {
                return Poll::Ready(());
            }
            this.timers.borrow_mut().push((until, cx.waker().clone()));
            Poll::Pending
        }))
    }
    fn now(&self) -> Duration {
        self.clock.get()
    }
}
