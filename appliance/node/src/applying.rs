//! The way to the applier's threads: durable records go out in order, fetches go out and come back.
//!
//! Owns what waits for them on this core. Must not touch the database itself.

use crate::database::Engine;
use namespace::applier::{AllRows, Error, Event, Full};
use namespace::{Fetched, Miss, Record, Seq};
use reactor::sync::{Notify, oneshot};
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

struct Inner {
    engine: RefCell<Option<Engine>>,
    waiting: RefCell<FxHashMap<u64, oneshot::Sender<Option<Fetched>>>>,
    next: Cell<u64>,
    records: RefCell<VecDeque<Record>>,
    durable: Cell<Seq>,
    room: Notify,
    failing: Cell<u32>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // On an error's way out. Its threads may wait for this reactor, which must not wait for them.
        if let Some(engine) = self.engine.get_mut().take() {
            engine.abandon();
        }
    }
}

/// See the module; clones are cheap.
#[derive(Clone)]
pub(crate) struct Applying(Rc<Inner>);

impl Applying {
    pub(crate) fn new(engine: Engine) -> Self {
        Self(Rc::new(Inner {
            engine: RefCell::new(Some(engine)),
            waiting: RefCell::default(),
            next: Cell::new(0),
            records: RefCell::default(),
            durable: Cell::new(0),
            room: Notify::new(),
            failing: Cell::new(0),
        }))
    }

    /// A record was made; it goes out once it is durable.
    pub(crate) fn queue(&self, record: Record) {
        self.0.records.borrow_mut().push_back(record);
    }

    /// Everything up to `seq` is in the log on the device.
    pub(crate) fn durable(&self, seq: Seq) {
        self.0.durable.set(self.0.durable.get().max(seq));
        self.pump();
    }

    fn pump(&self) {
        let engine = self.0.engine.borrow();
        let Some(engine) = &*engine else { return };
        let mut records = self.0.records.borrow_mut();
        while let Some(record) = records.pop_front_if(|r| r.seq() <= self.0.durable.get()) {
            if let Err(Full(record)) = engine.submit(record) {
                return records.push_front(record);
            }
        }
    }

    /// What the applier's threads tell, once it is on this core. Gives the record up to which the database is complete.
    pub(crate) fn on_event(&self, event: Event) -> Option<Seq> {
        match event {
            Event::Applied(seq) => {
                self.pump();
                return Some(seq);
            }
            Event::Fetched { id, rows } => {
                let waiter = self.0.waiting.borrow_mut().remove(&id);
                if let Some(waiter) = waiter {
                    let _ = waiter.send(Some(rows));
                }
                self.0.room.notify_all();
            }
            Event::FetchFailed { id, error } => {
                tracing::error!(error, "rows of the namespace can't be read");
                let waiter = self.0.waiting.borrow_mut().remove(&id);
                if let Some(waiter) = waiter {
                    let _ = waiter.send(None);
                }
                self.0.room.notify_all();
            }
            Event::Failed { attempts, .. } => self.0.failing.set(attempts),
            Event::Recovered => self.0.failing.set(0),
        }
        None
    }

    /// Failures of the database in a row.
    pub(crate) fn failing(&self) -> u32 {
        self.0.failing.get()
    }

    /// Reads rows; `None` where the database can't, however often it is opened again.
    pub(crate) async fn fetch(&self, mut miss: Miss) -> Option<Fetched> {
        let id = self.0.next.get();
        self.0.next.set(id + 1);
        let (give, take) = oneshot::channel();
        self.0.waiting.borrow_mut().insert(id, give);
        loop {
            let room = self.0.room.notified();
            let sent = match &*self.0.engine.borrow() {
                Some(engine) => engine.fetch(id, miss),
                None => return None,
            };
            match sent {
                Ok(()) => break,
                Err(Full(back)) => miss = back,
            }
            room.await;
        }
        take.await.ok().flatten()
    }

    /// Shows all committed rows on another thread; false where that can't be done now.
    pub(crate) fn look(&self, look: impl FnOnce(Result<&AllRows, Error>) + Send + 'static) -> bool {
        self.0.engine.borrow().as_ref().is_some_and(|engine| engine.look(look))
    }

    /// Bytes of the database's volume, and of the rows in it.
    pub(crate) fn size(&self) -> (u64, Option<u64>) {
        self.0.engine.borrow().as_ref().map_or((0, None), |engine| {
            let size = engine.size();
            (size.volume(), size.rows())
        })
    }

    /// Commits what waits without delay.
    pub(crate) fn hurry(&self) {
        if let Some(engine) = &*self.0.engine.borrow() {
            engine.flush();
        }
    }

    /// The database, to be stopped or abandoned.
    pub(crate) fn take(&self) -> Option<Engine> {
        self.pump();
        self.0.engine.borrow_mut().take()
    }
}
