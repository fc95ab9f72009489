//! A session outlives its connections: it reconnects, lets the client reclaim, and repeats what was not answered.
//!
//! A request that changes something takes a slot and keeps it until it is answered, however often it must be sent.
//! Must not know what a request means, nor what reclaiming is: that is the hook's.

use crate::alive::{BACKOFF_MAX, backoff};
use crate::connection::{CallOptions, ConnectOptions, Connection, Flight, Notification, Prepared, Reply};
use crate::error::Error;
use crate::slots::Slots;
use reactor::Parts;
use reactor::sync::{Event, Notify, mpsc};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use wire::{Class, Request, Slot, Status};

/// First wait before a request is repeated that the server refused with Busy or Grace; doubles up to [`BACKOFF_MAX`].
const AGAIN: Duration = Duration::from_millis(10);

/// A connection that ends within this time without one answer counts as a failed attempt, so that a server which accepts
/// and closes is not asked without pause.
const STANDING: Duration = Duration::from_secs(1);

/// Run on every new connection before anything is sent or repeated: open the session, reclaim. An error closes the
/// connection and another attempt follows.
pub type Hook = Box<dyn Fn(Connection) -> Pin<Box<dyn Future<Output = Result<(), Error>>>>>;

/// Takes what the server sends unasked, in order; the next waits until the future ends.
pub type OnNotification = Box<dyn Fn(Notification) -> Pin<Box<dyn Future<Output = ()>>>>;

struct Inner {
    options: ConnectOptions,
    hook: Hook,
    on_notification: OnNotification,
    slots: RefCell<Slots>,
    slot_free: Notify,
    /// As `slot_free`, for requests that others wait for.
    slot_free_urgent: Notify,
    /// Set while the hook has run and the connection stands.
    current: RefCell<Option<Connection>>,
    /// Rung at each change of `current` and of `stopped`.
    change: RefCell<Rc<Event>>,
    stopped: Cell<bool>,
    reconnects: Cell<u64>,
    repeats: Cell<u64>,
}

/// Handle to a session; clones name the same one.
#[derive(Clone)]
pub struct Session(Rc<Inner>);

impl Session {
    /// Connects for the first time. Where the server can't be reached, goes on trying: bound it with a timeout.
    ///
    /// # Errors
    /// Only such as trying again can't help, see [`Error::is_permanent`].
    pub async fn connect(
        options: ConnectOptions,
        hook: Hook,
        on_notification: OnNotification,
    ) -> Result<Self, Error> {
        let mut attempt = 0;
        let (connection, notifications) = loop {
            match Self::attempt(&options, &hook).await {
                Ok(made) => break made,
                Err(error) if error.is_permanent() => return Err(error),
                Err(error) => pause(&options, &mut attempt, &error).await,
            }
        };
        let session = Self(Rc::new(Inner {
            slots: RefCell::new(Slots::new(connection.welcome().slots)),
            options,
            hook,
            on_notification,
            slot_free: Notify::new(),
            slot_free_urgent: Notify::new(),
            current: RefCell::new(None),
            change: RefCell::default(),
            stopped: Cell::new(false),
            reconnects: Cell::new(0),
            repeats: Cell::new(0),
        }));
        session.listen(notifications);
        session.set(Some(connection.clone()));
        let keeper = session.clone();
        drop(reactor::spawn(async move { keeper.keep(connection).await }));
        Ok(session)
    }

    /// One attempt, hook included. Notifications that come meanwhile wait in their queue.
    async fn attempt(
        options: &ConnectOptions,
        hook: &Hook,
    ) -> Result<(Connection, mpsc::Receiver<Notification>), Error> {
        let (connection, notifications) = Connection::connect(options).await?;
        hook(connection.clone()).await?;
        Ok((connection, notifications))
    }

    /// Replaces each connection that ends, until the session is stopped.
    async fn keep(self, mut connection: Connection) {
        let mut attempt = 0;
        while !self.0.stopped.get() {
            let (since, answered) = (reactor::now(), connection.answered());
            let reason = connection.closed().await;
            self.set(None);
            if self.0.stopped.get() {
                break;
            }
            tracing::warn!(server = %self.0.options.address, %reason, "connection lost; connecting again");
            if connection.answered() > answered || reactor::now() - since >= STANDING {
                attempt = 0;
            } else {
                pause(&self.0.options, &mut attempt, &Error::Closed(reason)).await;
            }
            connection = loop {
                if self.0.stopped.get() {
                    return;
                }
                match Self::attempt(&self.0.options, &self.0.hook).await {
                    Ok((made, notifications)) => {
                        self.listen(notifications);
                        break made;
                    }
                    Err(error) => pause(&self.0.options, &mut attempt, &error).await,
                }
            };
            self.0.reconnects.set(self.0.reconnects.get() + 1);
            self.set(Some(connection.clone()));
        }
        connection.close();
    }

    fn listen(&self, mut notifications: mpsc::Receiver<Notification>) {
        let session = self.clone();
        drop(reactor::spawn(async move {
            while let Some(notification) = notifications.recv().await {
                (session.0.on_notification)(notification).await;
            }
        }));
    }

    fn set(&self, connection: Option<Connection>) {
        self.0.current.replace(connection);
        self.0.change.replace(Rc::default()).set();
    }

    /// Ends the session on this side. Calls that wait get [`Error::Stopped`].
    pub fn stop(&self) {
        self.0.stopped.set(true);
        let current = self.0.current.borrow_mut().take();
        self.set(None);
        if let Some(connection) = current {
            connection.close();
        }
        self.0.slot_free.notify_all();
        self.0.slot_free_urgent.notify_all();
    }

    /// The connection that stands now, if one does: for what must not be repeated over another.
    #[must_use]
    pub fn current(&self) -> Option<Connection> {
        self.0.current.borrow().clone()
    }

    /// Waits for a connection on which the hook has run.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn ready(&self) -> Result<Connection, Error> {
        loop {
            if self.0.stopped.get() {
                return Err(Error::Stopped);
            }
            if let Some(connection) = self.current()
                && connection.close_reason().is_none()
            {
                return Ok(connection);
            }
            let change = Rc::clone(&self.0.change.borrow());
            change.wait().await;
        }
    }

    /// How often a connection was replaced, and how often a request was sent again.
    #[must_use]
    pub fn counters(&self) -> (u64, u64) {
        (self.0.reconnects.get(), self.0.repeats.get())
    }

    /// Sends a request and waits for its reply over as many connections as it takes. Busy and Grace are waited out.
    /// Dropping the future cancels the request; one that holds a slot goes on in the background until it is answered.
    ///
    /// # Errors
    /// [`Error::TooLong`], [`Error::Deadline`] (only where `options` has one) or [`Error::Stopped`].
    pub async fn call(
        &self,
        request: &Request<'_>,
        payload: Parts,
        options: CallOptions,
    ) -> Result<Reply, Error> {
        self.run(request, payload, options, None).await
    }

    /// As [`Session::call`], but when `cancel` is set the server is asked to give up, and its answer is waited for all the same:
    /// it tells whether the request was executed. A request that was not sent yet is not sent any more.
    ///
    /// # Errors
    /// As [`Session::call`]; [`Error::Cancelled`] where the server never saw the request.
    pub async fn call_until(
        &self,
        request: &Request<'_>,
        payload: Parts,
        options: CallOptions,
        cancel: Rc<Event>,
    ) -> Result<Reply, Error> {
        self.run(request, payload, options, Some(cancel)).await
    }

    async fn run(
        &self,
        request: &Request<'_>,
        payload: Parts,
        options: CallOptions,
        cancel: Option<Rc<Event>>,
    ) -> Result<Reply, Error> {
        let prepared = Prepared::new(request, payload, options)?;
        let once = prepared.opcode.class() == Class::Once;
        let run = async {
            let (slot, sequence) = if once {
                self.slot(options.urgent, cancel.as_deref()).await?
            } else {
                (Slot::IDEMPOTENT, 0)
            };
            let session = self.clone();
            let call = Call { session, request: prepared, slot, sequence, cancel, flight: None, sent: false };
            let mut guard = Guard(Some(call));
            let Some(call) = &mut guard.0 else { return Err(Error::Stopped) };
            let reply = call.drive().await;
            if let Some(call) = guard.0.take() {
                call.release();
            }
            reply
        };
        match options.deadline {
            None => run.await,
            Some(time) => reactor::timeout(time, run).await.unwrap_or(Err(Error::Deadline)),
        }
    }

    async fn slot(&self, urgent: bool, cancel: Option<&Event>) -> Result<(Slot, u64), Error> {
        let slot_free = if urgent { &self.0.slot_free_urgent } else { &self.0.slot_free };
        loop {
            if self.0.stopped.get() {
                return Err(Error::Stopped);
            }
            let taken = self.0.slots.borrow_mut().take(urgent);
            if let Some(taken) = taken {
                return Ok(taken);
            }
            let Some(cancel) = cancel else {
                slot_free.notified().await;
                continue;
            };
            let (mut free, mut cancelled) = (pin!(slot_free.notified()), pin!(cancel.wait()));
            poll_fn(|cx| match cancelled.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Err(Error::Cancelled)),
                Poll::Pending => free.as_mut().poll(cx).map(Ok),
            })
            .await?;
        }
    }
}

async fn pause(options: &ConnectOptions, attempt: &mut u32, error: &Error) {
    if error.is_permanent() {
        tracing::error!(server = %options.address, %error, "the server refuses this client; trying on");
    } else {
        tracing::debug!(server = %options.address, %error, attempt, "no connection yet");
    }
    let random = crate::key::random().map_or(0, u64::from_le_bytes);
    reactor::sleep(if error.is_permanent() { BACKOFF_MAX } else { backoff(*attempt, random) }).await;
    *attempt = attempt.saturating_add(1);
}

/// One call; `drive` may be dropped and begun again without sending twice over one connection.
struct Call {
    session: Session,
    request: Prepared,
    slot: Slot,
    sequence: u64,
    cancel: Option<Rc<Event>>,
    flight: Option<Flight>,
    sent: bool,
}

impl Call {
    async fn drive(&mut self) -> Result<Reply, Error> {
        let mut wait = AGAIN;
        loop {
            let result = match &mut self.flight {
                Some(flight) => answer(flight, self.cancel.as_deref()).await,
                None => {
                    let connection = self.connection().await?;
                    if self.sent {
                        self.session.0.repeats.set(self.session.0.repeats.get() + 1);
                    }
                    match connection.begin(&self.request, self.slot, self.sequence).await {
                        Ok(flight) => {
                            self.sent = true;
                            self.flight = Some(flight);
                            continue;
                        }
                        Err(error) => Err(error),
                    }
                }
            };
            self.flight = None;
            match result {
                Ok(reply) if matches!(reply.status(), Status::Busy | Status::Grace) => {
                    reactor::sleep(wait).await;
                    wait = (wait * 2).min(BACKOFF_MAX);
                }
                Ok(reply) => return Ok(reply),
                Err(Error::Closed(_)) => reactor::yield_now().await,
                Err(error) => return Err(error),
            }
        }
    }

    /// A connection to send over. A cancelled request that may have been executed is sent again, to learn what became of it.
    async fn connection(&self) -> Result<Connection, Error> {
        let Some(cancel) = self.cancel.as_deref().filter(|_| !self.sent) else {
            return self.session.ready().await;
        };
        let (mut ready, mut cancelled) = (pin!(self.session.ready()), pin!(cancel.wait()));
        poll_fn(|cx| match cancelled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(Error::Cancelled)),
            Poll::Pending => ready.as_mut().poll(cx),
        })
        .await
    }

    fn release(self) {
        if self.slot != Slot::IDEMPOTENT {
            let mut slots = self.session.0.slots.borrow_mut();
            if self.sent {
                slots.give(self.slot, self.sequence);
            } else {
                slots.give_unused(self.slot, self.sequence);
            }
            let ordinary = slots.has(false);
            drop(slots);
            self.session.0.slot_free_urgent.notify_one();
            if ordinary {
                self.session.0.slot_free.notify_one();
            }
        }
    }
}

/// Waits for the answer; once `cancel` is set, asks the server to hurry and waits on.
async fn answer(flight: &mut Flight, cancel: Option<&Event>) -> Result<Reply, Error> {
    let Some(cancel) = cancel else { return flight.await };
    let mut cancelled = pin!(cancel.wait());
    let first = poll_fn(|cx| match Pin::new(&mut *flight).poll(cx) {
        Poll::Ready(reply) => Poll::Ready(Some(reply)),
        Poll::Pending => cancelled.as_mut().poll(cx).map(|()| None),
    });
    match first.await {
        Some(reply) => reply,
        None => {
            flight.cancel();
            flight.await
        }
    }
}

/// Goes on with a call whose caller has gone: its slot is free only once the server has answered.
struct Guard(Option<Call>);

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(mut call) = self.0.take() else { return };
        if call.slot != Slot::IDEMPOTENT {
            // Also over later connections: nobody is there any more to take what a wait would get.
            let cancel = Event::new();
            cancel.set();
            call.cancel = Some(Rc::new(cancel));
            drop(reactor::spawn(async move {
                // The reply interests nobody; that there is one frees the slot.
                let _ = call.drive().await;
                call.release();
            }));
        }
    }
}
