//! The shell around the namespace machine: carries out its actions on core 0 and gives it what happens.
//!
//! Owns the machine, the namespace log and the thread that applies it. Everything that changes the namespace passes here,
//! so records reach the log in the order of their numbers. Must not know what an operation means.

use crate::admission::Door;
use crate::applying::Applying;
use crate::freeing::{DELETES, FreeStats};
use crate::room::Room;
use crate::store::Store;
use chunkstore::{BlockDevice, Log};
use namespace::dirty::LazyError;
use namespace::leases::RecallOrder;
use namespace::machine::{Action, Admitted, Event, Machine, Now, OpId};
use namespace::{Miss, Namespace, Record, Seq};
use reactor::sync::{Notify, Semaphore, oneshot};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Instant, UNIX_EPOCH};
use wire::{BodyBuf, CHUNK_SIZE, ClientId, Errno, FenceReason, Status, Timestamp};

/// How a request ended.
pub(crate) struct Reply {
    pub(crate) status: Status,
    pub(crate) body: BodyBuf,
    pub(crate) payload: Vec<u8>,
}

impl Reply {
    pub(crate) fn status(status: Status) -> Self {
        Self { status, body: BodyBuf::new(), payload: Vec::new() }
    }
}

pub(crate) enum Answer {
    Reply(Reply),
    Data(Result<Box<Admitted>, Status>),
}

/// What goes to a client unasked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Push {
    /// Give a lease back.
    Recall(RecallOrder),
    /// It was thrown out.
    Fenced(ClientId, FenceReason),
    /// Its session is over; nothing is sent.
    Ended(ClientId),
}

/// Sends to a client, on every connection that it has.
pub(crate) type Pusher = Box<dyn Fn(Push)>;

pub(crate) struct Inner<D> {
    machine: RefCell<Machine>,
    pub(crate) log: Log<D>,
    pub(crate) store: Store<D>,
    pub(crate) applying: Applying,
    queue: RefCell<VecDeque<Event>>,
    running: Cell<bool>,
    pub(crate) waiting: RefCell<FxHashMap<OpId, oneshot::Sender<Answer>>>,
    next: Cell<u64>,
    started: Instant,
    pushers: RefCell<Option<Pusher>>,
    /// Record of the namespace and its place in the log, for trimming.
    places: RefCell<VecDeque<(Seq, u64)>>,
    durable: Cell<Seq>,
    durable_changed: Notify,
    log_failed: RefCell<Option<String>>,
    applied: Cell<Seq>,
    pub(crate) free_work: Cell<bool>,
    /// The free list is being worked off.
    pub(crate) freeing: Cell<bool>,
    /// Chunks that were deleted for it.
    pub(crate) freed: Cell<u64>,
    pub(crate) free_stats: Cell<FreeStats>,
    /// Chunks being deleted.
    pub(crate) deletes: Semaphore,
    pub(crate) relief: Notify,
    pub(crate) door: Rc<Door>,
    pub(crate) room: Room,
}

/// See the module; clones are cheap.
pub(crate) struct Meta<D>(Rc<Inner<D>>);

impl<D> Clone for Meta<D> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<D> std::ops::Deref for Meta<D> {
    type Target = Inner<D>;
    fn deref(&self) -> &Inner<D> {
        &self.0
    }
}

/// The time on the wall.
pub(crate) fn wall() -> Timestamp {
    let since = reactor::wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::new(since.as_secs() as i64, since.subsec_nanos())
}

/// What a failed lazy update means to the client.
pub(crate) fn lazy_status(e: &LazyError) -> Status {
    match e {
        LazyError::Miss(_) => Status::Errno(Errno::EIO),
        LazyError::StaleObject => Status::StaleObject,
        LazyError::Errno(e) => Status::Errno(*e),
    }
}

impl<D: BlockDevice> Meta<D> {
    pub(crate) fn new(
        machine: Machine,
        log: Log<D>,
        store: &Store<D>,
        applying: Applying,
        started: Instant,
        places: VecDeque<(Seq, u64)>,
        durable: Seq,
    ) -> Self {
        let door: Rc<Door> = Rc::default();
        Self(Rc::new(Inner {
            machine: RefCell::new(machine),
            log,
            store: store.behind(&door),
            applying,
            queue: RefCell::default(),
            running: Cell::new(false),
            waiting: RefCell::default(),
            next: Cell::new(1),
            started,
            pushers: RefCell::default(),
            places: RefCell::new(places),
            durable: Cell::new(durable),
            durable_changed: Notify::new(),
            log_failed: RefCell::default(),
            applied: Cell::new(0),
            free_work: Cell::new(true),
            freeing: Cell::default(),
            freed: Cell::default(),
            free_stats: Cell::default(),
            deletes: Semaphore::new(DELETES),
            relief: Notify::new(),
            door,
            room: Room::default(),
        }))
    }

    /// The machine's clock starts here.
    pub(crate) fn clock(started: Instant) -> Now {
        let mono = u64::try_from(reactor::now().duration_since(started).as_millis()).unwrap_or(u64::MAX);
        Now { mono, wall: wall() }
    }

    /// Where recalls go from now on.
    pub(crate) fn set_pusher(&self, pusher: Pusher) {
        *self.pushers.borrow_mut() = Some(pusher);
    }

    /// Recalls go nowhere any more.
    pub(crate) fn clear_pusher(&self) {
        *self.pushers.borrow_mut() = None;
    }

    /// Looks at the machine.
    pub(crate) fn machine<T>(&self, look: impl FnOnce(&Machine) -> T) -> T {
        look(&self.machine.borrow())
    }

    /// Changes what needs no record.
    pub(crate) fn machine_mut<T>(&self, change: impl FnOnce(&mut Machine) -> T) -> T {
        change(&mut self.machine.borrow_mut())
    }

    /// Logs a record that the namespace gave.
    pub(crate) fn log_record(&self, record: Record) {
        let mut actions = Vec::new();
        self.machine.borrow_mut().append(record, &mut actions);
        for action in actions {
            self.perform(action);
        }
    }

    /// The last record that a power cut can't take.
    pub(crate) fn flushed_seq(&self) -> Seq {
        let flushed = self.log.flushed_seq();
        let places = self.places.borrow();
        let n = places.partition_point(|(_, place)| *place <= flushed);
        match n.checked_sub(1).and_then(|i| places.get(i)) {
            Some((seq, _)) => *seq,
            // Places before the first are trimmed: the database has them, durably.
            None => self.applied.get(),
        }
    }

    /// The last record that the database holds durably.
    pub(crate) fn applied_seq(&self) -> Seq {
        self.applied.get()
    }

    /// Gives the machine an event and carries out what follows; nothing does once the door is shut.
    pub(crate) fn post(&self, event: Event) {
        if self.door.is_shut() {
            return;
        }
        self.queue.borrow_mut().push_back(event);
        if self.running.replace(true) {
            return;
        }
        let mut actions = Vec::new();
        loop {
            let Some(event) = self.queue.borrow_mut().pop_front() else { break };
            self.machine.borrow_mut().apply(Self::clock(self.started), event, &mut actions);
            for action in actions.drain(..) {
                self.perform(action);
            }
        }
        self.running.set(false);
    }

    fn perform(&self, action: Action) {
        match action {
            Action::Append(record) => self.append(record),
            Action::Reply { id, status, body, payload } => {
                self.answer(id, Answer::Reply(Reply { status, body, payload }));
            }
            Action::Data { id, admitted } => self.answer(id, Answer::Data(admitted)),
            Action::Fetch { ticket, miss } => {
                let meta = self.clone();
                drop(reactor::spawn(async move {
                    let rows = meta.applying.fetch(miss).await;
                    meta.post(match rows {
                        Some(rows) => Event::Fetched { ticket, rows },
                        None => Event::FetchFailed(ticket),
                    });
                }));
            }
            Action::Recall(order) => self.push(Push::Recall(order)),
            Action::Fence { client, reason } => {
                self.push(Push::Fenced(client, reason));
                self.forget(client);
            }
            Action::Ended(client) => {
                self.push(Push::Ended(client));
                self.forget(client);
            }
            Action::FreeWork => self.free_work.set(true),
            Action::Truncate { ticket, entry, object, .. } => {
                let meta = self.clone();
                drop(reactor::spawn(async move {
                    let failed = meta.cut(entry, object).await;
                    meta.post(Event::Truncated { ticket, entry, failed });
                }));
            }
        }
    }

    fn push(&self, push: Push) {
        if let Some(pusher) = &*self.pushers.borrow() {
            pusher(push);
        }
    }

    fn answer(&self, id: OpId, answer: Answer) {
        let waiter = self.waiting.borrow_mut().remove(&id);
        if let Some(waiter) = waiter {
            let _ = waiter.send(answer);
        }
    }

    fn forget(&self, client: ClientId) {
        let meta = self.clone();
        drop(reactor::spawn(async move {
            if let Err(e) = meta.store.forget(client.0).await {
                tracing::warn!(error = %e, "stored requests of an ended session stay until the next start");
            }
            meta.post(Event::Forgotten(client));
        }));
    }

    fn append(&self, record: Record) {
        let seq = record.seq();
        let bytes = record.bytes().to_vec();
        self.applying.queue(record);
        // The log belongs to what this would hold, and with it the device.
        let meta = Rc::downgrade(&self.0);
        self.log.append_with(bytes, move |result| {
            let Some(meta) = meta.upgrade().map(Self) else { return };
            match result {
                Ok(place) => {
                    meta.places.borrow_mut().push_back((seq, place));
                    meta.durable.set(seq);
                    meta.durable_changed.notify_all();
                    meta.applying.durable(seq);
                    meta.post(Event::Durable(seq));
                }
                Err(e) => meta.fail(&e.to_string()),
            }
        });
        self.relieve_log();
    }

    /// The log can't go on: the node answers reads only from here.
    fn fail(&self, why: &str) {
        let first = self.log_failed.borrow().is_none();
        if first {
            tracing::error!(error = why, "the namespace log failed: read-only from now on");
            *self.log_failed.borrow_mut() = Some(why.to_owned());
            self.durable_changed.notify_all();
            self.post(Event::LogFailed);
        }
    }

    /// Has the applier commit at once where the log fills up: a full log holds up every change.
    fn relieve_log(&self) {
        if self.log.wants_trim() {
            self.applying.hurry();
        }
    }

    /// Gives log space back that the database's last commit covers. Runs whenever there is such a commit, also while the
    /// node starts: a log that a crash left full must not stop what mends the rest.
    pub(crate) fn shorten_log(&self) {
        let stats = self.log.stats();
        if stats.used_blocks * 4 < stats.ring_blocks && !self.log.wants_trim() {
            return;
        }
        self.relieve_log();
        let Some(place) = self.place_of(self.applied_seq()) else { return };
        let meta = self.clone();
        drop(reactor::spawn(async move {
            if let Err(e) = meta.log.trim(place).await {
                meta.fail(&e.to_string());
            }
        }));
    }

    /// Why the log can't go on, if so.
    pub(crate) fn failed(&self) -> Option<String> {
        self.log_failed.borrow().clone()
    }

    /// Waits until a record is on the device.
    pub(crate) async fn durable(&self, seq: Seq) -> Result<(), Errno> {
        loop {
            let changed = self.durable_changed.notified();
            if self.durable.get() >= seq {
                return Ok(());
            }
            if self.log_failed.borrow().is_some() {
                return Err(Errno::EIO);
            }
            changed.await;
        }
    }

    /// The place in the log of the last record up to `seq`; places before it are forgotten.
    pub(crate) fn place_of(&self, seq: Seq) -> Option<u64> {
        let mut places = self.places.borrow_mut();
        let mut found = None;
        while places.front().is_some_and(|(s, _)| *s <= seq) {
            found = places.pop_front().map(|(_, place)| place);
        }
        found
    }

    pub(crate) fn new_id(&self) -> OpId {
        let id = self.next.get();
        self.next.set(id + 1);
        OpId(id)
    }

    /// Runs `f` on the namespace, fetching what it misses, and logs the records that it gives. Never ends once the door is
    /// shut.
    pub(crate) async fn ns<T>(
        &self,
        mut f: impl FnMut(&mut Namespace, &mut SmallVec<[Record; 1]>) -> Result<T, LazyError>,
    ) -> Result<T, LazyError> {
        loop {
            drop(self.door.enter().await);
            match self.ns_now(&mut f) {
                Err(LazyError::Miss(miss)) => self.fetch(miss).await?,
                other => return other,
            }
        }
    }

    /// As [`Meta::ns`], but at once, behind a shut door too, and what is missing is an error.
    pub(crate) fn ns_now<T>(
        &self,
        mut f: impl FnMut(&mut Namespace, &mut SmallVec<[Record; 1]>) -> Result<T, LazyError>,
    ) -> Result<T, LazyError> {
        let mut records = SmallVec::new();
        let mut actions = Vec::new();
        let result = {
            let mut machine = self.machine.borrow_mut();
            let result = f(machine.namespace(), &mut records);
            for record in records {
                machine.append(record, &mut actions);
            }
            result
        };
        for action in actions {
            self.perform(action);
        }
        result
    }

    async fn fetch(&self, miss: Miss) -> Result<(), LazyError> {
        let rows = self.applying.fetch(miss).await.ok_or(LazyError::Errno(Errno::EIO))?;
        // An outdated snapshot leaves them missing; the caller asks again.
        let _ = self.machine.borrow_mut().namespace().fetched(rows);
        Ok(())
    }

    /// The database holds every record up to `seq`.
    pub(crate) fn applied(&self, seq: Seq) {
        self.machine.borrow_mut().namespace().applied(seq);
        self.applied.set(seq.max(self.applied.get()));
        self.relief.notify_all();
    }
}

/// Chunk and byte within it of an offset in a file.
pub(crate) fn split(offset: u64) -> (u32, u32) {
    ((offset / CHUNK_SIZE) as u32, (offset % CHUNK_SIZE) as u32)
}
