//! The database in a simulation: its thread runs only while the reactor waits for it in place, so that what happens follows
//! from the seed.
//!
//! Owns that thread and the queue before it. Requests of the database to its volume are served between its steps.

use crate::base::Copies;
use crate::error::NodeError;
use crate::volume::{Request, Server, Volume};
use chunkstore::BlockDevice;
use namespace::applier::{Config, Direct, Error, Event, Full, Size};
use namespace::{Boot, Fetched, Miss, Record, Seq};
use reactor::mail;
use reactor::sync::Notify;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Before a database that failed is tried again.
const RETRY: Duration = Duration::from_millis(20);
/// Fetches that fail so often are given up.
const ATTEMPTS: u32 = 4;

enum Command {
    Apply(Vec<Record>),
    Fetch(Miss),
    Tidy,
}

enum Step {
    Ask(Request),
    Opened(Result<(Boot, Arc<Size>), Error>),
    Applied(Result<Seq, Error>),
    Fetched(Result<Fetched, Error>),
    Tidied,
}

/// The thread, its volume, and the way to both.
struct Worker<D: BlockDevice> {
    commands: mpsc::Sender<Command>,
    steps: mpsc::Receiver<Step>,
    volume: Server<Copies<D>>,
}

impl<D: BlockDevice> Worker<D> {
    fn start(cache_bytes: usize, volume: Server<Copies<D>>) -> io::Result<Self> {
        let (commands, orders) = mpsc::channel();
        let (tell, steps) = mpsc::channel();
        std::thread::Builder::new()
            .name("ns-step".into())
            .spawn(move || work(cache_bytes, &orders, &tell))?;
        Ok(Self { commands, steps, volume })
    }

    fn order(&self, command: Command) -> Result<(), NodeError> {
        let gone = |_| NodeError::Store("the database's thread is gone".to_owned());
        self.commands.send(command).map_err(gone)
    }

    /// Runs the thread to the end of what it was told, serving its volume meanwhile.
    async fn finish(&self) -> Result<Step, NodeError> {
        loop {
            // It runs now; nothing else of the simulation does.
            match self.steps.recv() {
                Ok(Step::Ask(request)) => self.volume.handle(request).await,
                Ok(step) => return Ok(step),
                Err(_) => return Err(NodeError::Store("the database's thread has ended".to_owned())),
            }
        }
    }
}

fn work(cache_bytes: usize, orders: &mpsc::Receiver<Command>, tell: &mpsc::Sender<Step>) {
    let ask = tell.clone();
    let open = Box::new(move || {
        let ask = ask.clone();
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        let volume: Box<dyn redb::StorageBackend> =
            Box::new(Volume::new(move |request| ask.send(Step::Ask(request)).map_err(gone)));
        Ok(volume)
    });
    let (mut direct, opened) = match Direct::open(open, cache_bytes) {
        Ok((direct, boot)) => {
            let size = direct.size();
            (Some(direct), Ok((boot, size)))
        }
        Err(e) => (None, Err(e)),
    };
    let mut alive = tell.send(Step::Opened(opened)).is_ok();
    while let (true, Some(direct), Ok(command)) = (alive, &mut direct, orders.recv()) {
        let step = match command {
            Command::Apply(records) => Step::Applied(direct.apply(&records)),
            Command::Fetch(miss) => Step::Fetched(direct.fetch(&miss)),
            Command::Tidy => {
                if let Err(error) = direct.tidy() {
                    tracing::warn!(%error, "the namespace database was not compacted");
                }
                Step::Tidied
            }
        };
        alive = tell.send(step).is_ok();
    }
}

#[derive(Default)]
struct Queue {
    records: VecDeque<Record>,
    fetches: VecDeque<(u64, Miss)>,
    oldest: Option<Instant>,
    flush: bool,
    stop: bool,
}

struct Shared {
    config: Config,
    size: Arc<Size>,
    queue: RefCell<Queue>,
    wake: Notify,
    ended: Cell<bool>,
    end: Notify,
}

/// See the module.
pub(crate) struct Stepped(Rc<Shared>);

impl Stepped {
    /// Opens the database and starts the task that drives it.
    pub(crate) async fn open<D: BlockDevice>(
        config: Config,
        volume: Server<Copies<D>>,
        told: mail::Sender<Event>,
    ) -> Result<(Self, Boot), NodeError> {
        let worker = Worker::start(config.cache_bytes, volume);
        let worker = worker.map_err(NodeError::reactor_io("starting a thread"))?;
        let Step::Opened(boot) = worker.finish().await? else {
            return Err(NodeError::Store("the database answered out of turn".to_owned()));
        };
        let (boot, size) = boot?;
        let shared = Rc::new(Shared {
            config,
            size,
            queue: RefCell::default(),
            wake: Notify::new(),
            ended: Cell::new(false),
            end: Notify::new(),
        });
        let driven = Rc::clone(&shared);
        drop(reactor::spawn(async move {
            if let Err(e) = driven.drive(&worker, &told).await {
                tracing::error!(error = %e, "the database of the simulation ended");
            }
            driven.ended.set(true);
            driven.end.notify_all();
        }));
        Ok((Self(shared), boot))
    }

    pub(crate) fn submit(&self, record: Record) -> Result<(), Full<Record>> {
        let mut queue = self.0.queue.borrow_mut();
        if queue.records.len() >= self.0.config.queue_records {
            return Err(Full(record));
        }
        queue.oldest.get_or_insert_with(reactor::now);
        queue.records.push_back(record);
        self.0.wake.notify_one();
        Ok(())
    }

    pub(crate) fn fetch(&self, id: u64, miss: Miss) -> Result<(), Full<Miss>> {
        let mut queue = self.0.queue.borrow_mut();
        if queue.fetches.len() >= self.0.config.queue_fetches {
            return Err(Full(miss));
        }
        queue.fetches.push_back((id, miss));
        self.0.wake.notify_one();
        Ok(())
    }

    pub(crate) fn size(&self) -> Arc<Size> {
        self.0.size.clone()
    }

    pub(crate) fn flush(&self) {
        self.0.queue.borrow_mut().flush = true;
        self.0.wake.notify_one();
    }

    pub(crate) async fn stop(self) -> Result<(), NodeError> {
        self.0.queue.borrow_mut().stop = true;
        self.0.wake.notify_one();
        while !self.0.ended.get() {
            self.0.end.notified().await;
        }
        Ok(())
    }
}

impl Shared {
    async fn drive<D: BlockDevice>(
        &self,
        worker: &Worker<D>,
        told: &mail::Sender<Event>,
    ) -> Result<(), NodeError> {
        let mut failures = 0;
        loop {
            let fetch = self.queue.borrow_mut().fetches.pop_front();
            if let Some((id, miss)) = fetch {
                self.answer(worker, told, id, miss, &mut failures).await?;
                continue;
            }
            let (batch, wait) = self.batch();
            if !batch.is_empty() {
                self.commit(worker, told, batch).await?;
                continue;
            }
            if self.queue.borrow().stop {
                return Ok(());
            }
            match wait {
                // Either ends the wait.
                Some(wait) => drop(reactor::timeout(wait, self.wake.notified()).await),
                None if self.size.wasteful(self.config.tidy_above) => {
                    if reactor::timeout(self.config.tidy_after, self.wake.notified()).await.is_err() {
                        worker.order(Command::Tidy)?;
                        worker.finish().await?;
                    }
                }
                None => self.wake.notified().await,
            }
        }
    }

    /// Records to commit now, or how long to wait for more.
    fn batch(&self) -> (Vec<Record>, Option<Duration>) {
        let mut queue = self.queue.borrow_mut();
        let age = queue.oldest.map(|t| reactor::now().saturating_duration_since(t));
        let due = age.is_some_and(|a| a >= self.config.batch_delay);
        if queue.records.len() >= self.config.batch_records || due || queue.flush || queue.stop {
            (queue.oldest, queue.flush) = (None, false);
            return (queue.records.drain(..).collect(), None);
        }
        (Vec::new(), age.map(|a| self.config.batch_delay - a))
    }

    async fn commit<D: BlockDevice>(
        &self,
        worker: &Worker<D>,
        told: &mail::Sender<Event>,
        batch: Vec<Record>,
    ) -> Result<(), NodeError> {
        let mut attempts = 0;
        loop {
            worker.order(Command::Apply(batch.clone()))?;
            let Step::Applied(result) = worker.finish().await? else { continue };
            match result {
                Ok(seq) => {
                    if attempts > 0 {
                        attempts = 0;
                        tell(told, Event::Recovered).await;
                    }
                    tell(told, Event::Applied(seq)).await;
                    if batch.last().is_none_or(|r| r.seq() <= seq) {
                        return Ok(());
                    }
                }
                Err(error) => {
                    attempts += 1;
                    tell(told, Event::Failed { error: error.to_string(), attempts }).await;
                    if self.queue.borrow().stop && attempts > ATTEMPTS {
                        return Ok(());
                    }
                    reactor::sleep(RETRY).await;
                }
            }
        }
    }

    async fn answer<D: BlockDevice>(
        &self,
        worker: &Worker<D>,
        told: &mail::Sender<Event>,
        id: u64,
        miss: Miss,
        failures: &mut u32,
    ) -> Result<(), NodeError> {
        worker.order(Command::Fetch(miss.clone()))?;
        let Step::Fetched(result) = worker.finish().await? else { return Ok(()) };
        match result {
            Ok(rows) => {
                *failures = 0;
                tell(told, Event::Fetched { id, rows }).await;
            }
            Err(error) if *failures + 1 >= ATTEMPTS => {
                *failures = 0;
                tell(told, Event::FetchFailed { id, error: error.to_string() }).await;
            }
            Err(_) => {
                *failures += 1;
                self.queue.borrow_mut().fetches.push_front((id, miss));
                reactor::sleep(RETRY).await;
            }
        }
        Ok(())
    }
}

/// A shell that is gone needs no telling.
async fn tell(told: &mail::Sender<Event>, event: Event) {
    drop(told.send(event).await);
}
