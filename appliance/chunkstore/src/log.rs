//! A log on the device: groups of records in two copies, written in order, several at once.
//!
//! Owns the ring, group commit and acknowledgement in order. It does not know what records mean. A record may
//! come with data writes: its group counts as complete only when they are done, too, and the group's log write
//! is issued beside them.

use crate::device::BlockDevice;
use crate::error::Error;
use crate::flush::{Flusher, Member, Shared};
use crate::group::{self, FRAME, HEADER, Header, Owner};
use crate::layout::{BLOCK, BLOCK_BYTES, Region};
use crate::ring::{Anchor, Ring};
use crate::root::Root;
use crate::signal::{Spawner, Waiters, join};
use hugepages::{Arena, Buf, Bytes};
use smallvec::SmallVec;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Groups in flight at once. More hide the device's latency from writers that come one by one; each costs two
/// small writes.
const DEPTH: usize = 4;
/// Records that must have gathered, for each group in flight, before a further one starts beside them: the first write
/// never waits, a crowd shares.
const GATHER: usize = 1;
/// Free blocks that each kind of record must leave: a checkpoint can always take the zones that it needs, a store with a
/// full ring can always be opened.
fn spare(urgency: Urgency) -> u64 {
    match urgency {
        Urgency::Normal => 24,
        Urgency::Zones => 8,
        Urgency::Open => 0,
    }
}

/// How far into the last free blocks of the ring a record may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    Normal,
    /// Takes zones for the system: goes before all that is queued.
    Zones,
    /// The first record of an incarnation.
    Open,
}

/// Data of a record: device offset and aligned contents.
pub(crate) type Data = SmallVec<[(u64, Bytes); 2]>;
/// Called once with the record's sequence, in order, or with the error that ended the log.
pub(crate) type Done = Box<dyn FnOnce(Result<u64, Error>)>;

/// What a log is, apart from its state.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) owner: Owner,
    pub(crate) rings: [Region; 2],
    /// Most blocks of a group.
    pub(crate) max_group: u64,
    /// Where its marks are.
    pub(crate) mark: usize,
    pub(crate) incarnation: u64,
}

impl Config {
    /// Longest record.
    pub(crate) fn max_record(&self) -> usize {
        self.max_group as usize * BLOCK - HEADER - FRAME
    }
}

/// What opening found.
pub(crate) struct Past<'r> {
    pub(crate) ring: Ring,
    pub(crate) root: &'r Root,
    /// The last record that is not the log's own.
    pub(crate) real: u64,
}

#[derive(Default)]
struct Op {
    left: Cell<usize>,
    failed: RefCell<Option<Error>>,
}

struct Item {
    record: Vec<u8>,
    op: Rc<Op>,
    done: Done,
}

struct InFlight {
    items: Vec<(Rc<Op>, Done)>,
    header: Header,
    after: Anchor,
    log: Rc<Op>,
}

struct State {
    ring: Ring,
    queue: VecDeque<Item>,
    urgent: VecDeque<Item>,
    in_flight: VecDeque<InFlight>,
    /// The least that an urgent record in the queue must leave free.
    urgent_spare: u64,
    /// After the last complete group.
    applied: Anchor,
    /// Last record that is not the log's own.
    real: u64,
    /// The highest flushed mark in a group.
    recorded: u64,
    root: u64,
    failed: Option<Error>,
}

struct Inner<D> {
    device: D,
    flusher: Flusher<D>,
    shared: Arc<Shared>,
    spawner: Spawner,
    arena: Option<Arena>,
    config: Config,
    state: RefCell<State>,
    pumping: Cell<bool>,
    /// Woken at each completion, trim and failure.
    progress: Waiters,
    stuck: Cell<bool>,
    bytes: Cell<u64>,
    groups: Cell<u64>,
}

/// Writes one log.
pub(crate) struct LogWriter<D>(Rc<Inner<D>>);

impl<D> Clone for LogWriter<D> {
    fn clone(&self) -> Self {
        LogWriter(Rc::clone(&self.0))
    }
}

/// A zeroed buffer, of the arena if it has room.
pub(crate) fn zeroed(arena: Option<&Arena>, len: usize) -> Buf {
    match arena.and_then(|a| a.alloc(len)) {
        Some(mut buf) => {
            buf.fill(0);
            buf
        }
        None => Buf::heap(len),
    }
}

impl<D: BlockDevice> LogWriter<D> {
    pub(crate) fn new(
        device: D,
        flusher: Flusher<D>,
        spawner: Spawner,
        arena: Option<Arena>,
        config: Config,
        found: Past<'_>,
    ) -> LogWriter<D> {
        let Past { ring, root, real } = found;
        let shared = Arc::clone(flusher.shared());
        let (applied, recorded) = (ring.head(), ring.recorded().max(root.flushed));
        let mark = &shared.marks[config.mark];
        mark.completed.store(applied.next - 1, Ordering::Release);
        let state = State {
            ring,
            queue: VecDeque::new(),
            urgent: VecDeque::new(),
            in_flight: VecDeque::new(),
            urgent_spare: 0,
            applied,
            real,
            recorded,
            root: root.generation,
            failed: None,
        };
        LogWriter(Rc::new(Inner {
            device,
            flusher,
            shared,
            spawner,
            arena,
            config,
            state: RefCell::new(state),
            pumping: Cell::new(false),
            progress: Waiters::default(),
            stuck: Cell::new(false),
            bytes: Cell::new(0),
            groups: Cell::new(0),
        }))
    }

    /// Last record known to be flushed.
    pub(crate) fn flushed(&self) -> u64 {
        self.0.shared.marks[self.0.config.mark].flushed.load(Ordering::Acquire)
    }

    /// The sequence of the last record that was submitted, once all have theirs.
    pub(crate) fn submitted(&self) -> u64 {
        let s = self.0.state.borrow();
        s.ring.head().next - 1 + (s.queue.len() + s.urgent.len()) as u64
    }

    /// Where the log stands after the last complete record.
    pub(crate) fn applied(&self) -> Anchor {
        self.0.state.borrow().applied
    }

    pub(crate) fn anchor_after(&self, last: u64) -> Anchor {
        self.0.state.borrow().ring.anchor_after(last)
    }

    pub(crate) fn incarnation_at(&self, last: u64) -> Option<u64> {
        self.0.state.borrow().ring.incarnation_at(last)
    }

    /// `(used, all)` blocks of the ring.
    pub(crate) fn space(&self) -> (u64, u64) {
        (self.0.state.borrow().ring.used(), self.0.config.rings[0].blocks)
    }

    /// Records wait for space in the ring: only a trim helps.
    pub(crate) fn stuck(&self) -> bool {
        self.0.stuck.get()
    }

    /// `(groups, bytes)` written since opening, one copy counted.
    pub(crate) fn written(&self) -> (u64, u64) {
        (self.0.groups.get(), self.0.bytes.get())
    }

    pub(crate) fn progress(&self) -> &Waiters {
        &self.0.progress
    }

    pub(crate) fn failed(&self) -> Option<Error> {
        self.0.state.borrow().failed.clone()
    }

    /// Nothing is queued or in flight.
    pub(crate) fn idle(&self) -> bool {
        let s = self.0.state.borrow();
        s.queue.is_empty() && s.urgent.is_empty() && s.in_flight.is_empty()
    }

    /// A root is durable: groups say so from here on.
    pub(crate) fn set_root(&self, root: &Root) {
        let mut state = self.0.state.borrow_mut();
        state.root = root.generation;
        state.recorded = state.recorded.max(root.flushed);
    }

    /// Frees the space of records up to `last`.
    pub(crate) fn trim(&self, last: u64) {
        self.0.state.borrow_mut().ring.trim(last);
        self.0.progress.wake_all();
        self.schedule();
    }

    /// Ends the log: everything queued or in flight gets the error, and all later records.
    pub(crate) fn fail(&self, error: &Error) {
        let mut state = self.0.state.borrow_mut();
        if state.failed.is_some() {
            return;
        }
        state.failed = Some(error.clone());
        let mut done: Vec<Done> = Vec::new();
        for group in state.in_flight.drain(..) {
            done.extend(group.items.into_iter().map(|(_, d)| d));
        }
        done.extend(std::mem::take(&mut state.urgent).into_iter().map(|i| i.done));
        done.extend(std::mem::take(&mut state.queue).into_iter().map(|i| i.done));
        drop(state);
        done.into_iter().for_each(|d| d(Err(error.clone())));
        self.0.progress.wake_all();
    }

    /// Starts the data writes of a record and queues it.
    pub(crate) fn submit(&self, record: Vec<u8>, data: Data, urgency: Urgency, done: Done) {
        if record.len() > self.0.config.max_record() {
            return done(Err(Error::Invalid("a record is larger than a group")));
        }
        if let Some(error) = self.failed().or_else(|| self.0.shared.sound().err()) {
            return done(Err(error));
        }
        let op = Rc::new(Op::default());
        op.left.set(data.len());
        for (offset, bytes) in data {
            self.0.shared.unflushed.fetch_add(bytes.len() as u64, Ordering::AcqRel);
            let (log, op) = (self.clone(), Rc::clone(&op));
            (self.0.spawner)(Box::pin(async move {
                let result = log.0.device.write(offset, bytes).await;
                log.finished(&op, result.map_err(Error::io("writing data")));
            }));
        }
        let item = Item { record, op, done };
        let mut state = self.0.state.borrow_mut();
        if urgency == Urgency::Normal {
            state.queue.push_back(item);
        } else {
            state.urgent_spare = spare(urgency);
            state.urgent.push_back(item);
        }
        drop(state);
        self.schedule();
    }

    fn finished(&self, op: &Op, result: Result<(), Error>) {
        if let Err(e) = result {
            *op.failed.borrow_mut() = Some(e);
        }
        op.left.set(op.left.get() - 1);
        if op.left.get() == 0 {
            self.complete();
        }
    }

    /// Forms groups once the tasks that are ready now have had their turn: what they submit shares a group.
    fn schedule(&self) {
        if !self.0.pumping.replace(true) {
            let log = self.clone();
            (self.0.spawner)(Box::pin(async move {
                log.0.pumping.set(false);
                while log.start_group() {}
            }));
        }
    }

    fn start_group(&self) -> bool {
        let mut state = self.0.state.borrow_mut();
        let state = &mut *state;
        let waiting = state.queue.len() + state.urgent.len();
        let busy = state.in_flight.len();
        if state.failed.is_some() || waiting == 0 || busy >= DEPTH {
            return false;
        }
        if state.urgent.is_empty() && waiting < GATHER * busy {
            return false;
        }
        let limit = self.0.config.max_group as usize * BLOCK - HEADER;
        let fit = |queue: &VecDeque<Item>, used: usize| {
            let mut used = used;
            let n = queue.iter().take_while(|i| {
                used += FRAME + i.record.len();
                used <= limit
            });
            let n = n.count();
            (n, queue.iter().take(n).map(|i| FRAME + i.record.len()).sum::<usize>())
        };
        let (urgent, mut bytes) = fit(&state.urgent, 0);
        let (mut normal, more) = if urgent == state.urgent.len() { fit(&state.queue, bytes) } else { (0, 0) };
        let (mut start, mut full) = (None, false);
        if normal > 0 {
            start = state.ring.place(group::blocks_for(bytes + more), spare(Urgency::Normal));
            full = start.is_none();
        }
        if start.is_some() {
            bytes += more;
        } else if urgent > 0 {
            normal = 0;
            start = state.ring.place(group::blocks_for(bytes), state.urgent_spare);
        }
        let Some(start) = start else {
            self.0.stuck.set(true);
            self.0.progress.wake_all();
            return false;
        };
        self.0.stuck.set(full);
        let mut items = Vec::with_capacity(urgent + normal);
        items.extend(state.urgent.drain(..urgent));
        items.extend(state.queue.drain(..normal));
        let head = state.ring.head();
        let header = Header {
            first: head.next,
            count: items.len() as u32,
            prev: head.prev,
            incarnation: self.0.config.incarnation,
            flushed: self.flushed(),
            root: state.root,
        };
        state.recorded = state.recorded.max(header.flushed);
        if items.iter().any(|i| !i.record.is_empty()) {
            state.real = header.last();
        }
        let blocks = group::blocks_for(bytes);
        let mut buf = zeroed(self.0.arena.as_ref(), blocks as usize * BLOCK);
        let crc =
            group::encode(self.0.config.owner, &header, items.iter().map(|i| i.record.as_slice()), &mut buf);
        state.ring.push(start, blocks, &header, crc);
        let log = Rc::new(Op::default());
        log.left.set(1);
        let items = items.into_iter().map(|i| (i.op, i.done)).collect();
        state.in_flight.push_back(InFlight { items, header, after: state.ring.head(), log: Rc::clone(&log) });
        self.0.bytes.set(self.0.bytes.get() + blocks * BLOCK_BYTES);
        self.0.groups.set(self.0.groups.get() + 1);
        let (this, bytes) = (self.clone(), buf.freeze());
        (self.0.spawner)(Box::pin(async move {
            let [a, b] = this.0.config.rings.map(|r| (r.start + start) * BLOCK_BYTES);
            let (a, b) = join(this.0.device.write(a, bytes.clone()), this.0.device.write(b, bytes)).await;
            this.finished(&log, a.and(b).map_err(Error::io("writing the log")));
        }));
        true
    }

    /// Acknowledges the groups that are complete, in order.
    fn complete(&self) {
        let mut progress = false;
        loop {
            let mut state = self.0.state.borrow_mut();
            let Some(front) = state.in_flight.front() else { break };
            let mut ops = std::iter::once(&front.log).chain(front.items.iter().map(|(op, _)| op));
            if ops.clone().any(|op| op.left.get() > 0) {
                break;
            }
            if let Some(error) = ops.find_map(|op| op.failed.borrow().clone()) {
                drop(state);
                self.fail(&error);
                return;
            }
            let Some(group) = state.in_flight.pop_front() else { break };
            state.applied = group.after;
            drop(state);
            progress = true;
            for (seq, (_, done)) in (group.header.first..).zip(group.items) {
                done(Ok(seq));
            }
            // After the effects: whoever sees the mark finds them applied.
            self.0.shared.marks[self.0.config.mark].completed.store(group.header.last(), Ordering::Release);
        }
        if progress {
            self.0.progress.wake_all();
            self.schedule();
        }
    }

    /// Starts an incarnation. `ended`: an empty record goes right where the log ended, flushed before anything follows, so
    /// that no group that was cut off can ever be taken for a successor. Not needed where the log ends in a group of
    /// one empty record and nothing was cut: a store that is opened again and again does not fill its ring.
    pub(crate) async fn open(&self, ended: bool) -> Result<(), Error> {
        if ended {
            let promise = crate::signal::Promise::new();
            let give = promise.clone();
            self.submit(Vec::new(), Data::new(), Urgency::Open, Box::new(move |r| give.give(r)));
            promise.get().await?;
        }
        self.0.flusher.join(Rc::downgrade(&self.0) as std::rc::Weak<dyn Member>);
        self.0.flusher.flush().await
    }
}

impl<D: BlockDevice> Member for Inner<D> {
    /// A log that has gone quiet writes down that its last record was flushed: from then on that record is never cut off.
    fn flushing(self: Rc<Self>) {
        if self.unmarked() {
            LogWriter(self).submit(Vec::new(), Data::new(), Urgency::Normal, Box::new(|_| {}));
        }
    }

    fn unmarked(&self) -> bool {
        let s = self.state.borrow();
        let flushed = self.shared.marks[self.config.mark].flushed.load(Ordering::Acquire);
        let idle = s.queue.is_empty() && s.urgent.is_empty() && s.in_flight.is_empty();
        // A full ring has no room for it: whoever trims writes a root, which says it as well.
        let room = s.ring.place(1, spare(Urgency::Normal)).is_some();
        idle && room && s.failed.is_none() && flushed >= s.real && s.recorded < s.real
    }
}
