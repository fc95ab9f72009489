//! TCP between simulated processes: bytes in order, late, in pieces, or not at all.
//!
//! A connection is two pipes. A piece that was sent can be read once its time has come; pieces keep their order. Faults:
//! [`cut`] resets connections, [`stall`] holds everything back, and every delay is drawn anew. What a fault did is counted.

use super::{Process, Sim, here};
use crate::request::Parts;
use crate::sync::Notify;
use crate::timer;
use hugepages::Buf;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

/// Bytes on the way in one direction before a sender waits.
const WINDOW: usize = 256 << 10;

/// How the network behaves.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Shortest way of a piece.
    pub latency: Duration,
    /// Longest way; each is drawn between the two.
    pub latency_max: Duration,
    /// One receive in so many gives less than there is; 0: never.
    pub short_one_in: u64,
}

impl Default for Weather {
    fn default() -> Weather {
        Weather {
            latency: Duration::from_micros(30),
            latency_max: Duration::from_micros(300),
            short_one_in: 4,
        }
    }
}

/// What the network did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections made.
    pub connections: u64,
    /// Connections refused because nobody listened.
    pub refused: u64,
    /// Pieces sent.
    pub pieces: u64,
    /// Receives that gave less than there was.
    pub short: u64,
    /// Connections reset by [`cut`].
    pub cut: u64,
    /// Bytes that were sent and never read, by a reset or the end of a process.
    pub lost: u64,
    /// Receives that found a stalled connection.
    pub stalled: u64,
}

#[derive(Default)]
pub(crate) struct Net {
    listeners: BTreeMap<SocketAddr, Rc<Listening>>,
    connections: Vec<Weak<Connection>>,
    stalled: BTreeSet<(u32, u32)>,
    weather: Weather,
    counters: Counters,
    next_port: u16,
}

impl Net {
    /// Takes a process off the network; gives its ends of connections.
    pub(crate) fn detach(&mut self, process: u32) -> Vec<Detached> {
        self.listeners.retain(|_, l| l.process != process);
        self.connections.retain(|c| c.strong_count() > 0);
        let mut ends = Vec::new();
        for connection in self.connections.iter().filter_map(Weak::upgrade) {
            for side in [0, 1] {
                if connection.processes[side] == process && !connection.detached[side].replace(true) {
                    ends.push(Detached { connection: Rc::clone(&connection), side });
                }
            }
        }
        ends
    }

    fn port(&mut self) -> u16 {
        self.next_port = self.next_port.checked_add(1).unwrap_or(1).max(20_000);
        self.next_port
    }
}

fn pair(a: u32, b: u32) -> (u32, u32) {
    (a.min(b), a.max(b))
}

/// Changes how the network behaves from now on.
pub fn set_weather(weather: Weather) {
    here().net.borrow_mut().weather = weather;
}

/// What happened so far.
pub fn counters() -> Counters {
    here().net.borrow().counters
}

/// Resets every connection between two processes; gives how many.
pub fn cut(a: Process, b: Process) -> usize {
    let sim = here();
    let hit: Vec<Rc<Connection>> = {
        let net = sim.net.borrow();
        let of = |c: &Rc<Connection>| pair(c.processes[0], c.processes[1]) == pair(a.number(), b.number());
        net.connections.iter().filter_map(Weak::upgrade).filter(of).filter(|c| !c.reset.get()).collect()
    };
    for connection in &hit {
        let lost: usize = connection.pipes.iter().map(|p| p.bytes.get()).sum();
        {
            let mut net = sim.net.borrow_mut();
            net.counters.cut += 1;
            net.counters.lost += lost as u64;
        }
        connection.reset();
    }
    hit.len()
}

/// Holds back, or lets go on, everything between two processes, new connections too.
pub fn stall(a: Process, b: Process, on: bool) {
    let sim = here();
    let key = pair(a.number(), b.number());
    let live: Vec<Rc<Connection>> = {
        let mut net = sim.net.borrow_mut();
        if on {
            net.stalled.insert(key)
        } else {
            net.stalled.remove(&key)
        };
        net.connections.iter().filter_map(Weak::upgrade).collect()
    };
    for connection in live {
        connection.rouse();
    }
}

/// One direction.
#[derive(Default)]
struct Pipe {
    pieces: RefCell<VecDeque<(Instant, Vec<u8>)>>,
    /// Bytes of the first piece that were read.
    taken: Cell<usize>,
    bytes: Cell<usize>,
    last: Cell<Option<Instant>>,
    /// The writer has ended it.
    ended: Cell<bool>,
    /// The reader reads no more.
    shut: Cell<bool>,
    changed: Notify,
}

struct Connection {
    /// Pipe 0 leads from side 0 (who connected) to side 1.
    pipes: [Pipe; 2],
    processes: [u32; 2],
    detached: [Cell<bool>; 2],
    reset: Cell<bool>,
}

impl Connection {
    fn reset(&self) {
        self.reset.set(true);
        self.rouse();
    }

    fn rouse(&self) {
        for pipe in &self.pipes {
            pipe.changed.notify_all();
        }
    }

    /// Side `side` sends and reads no more.
    fn close(&self, side: usize) {
        self.pipes[side].ended.set(true);
        self.pipes[1 - side].shut.set(true);
        self.rouse();
    }
}

/// The end of a connection whose process is gone.
pub(crate) struct Detached {
    connection: Rc<Connection>,
    side: usize,
}

impl Detached {
    /// The machine closes it in place of the process.
    pub(crate) fn close(self) {
        self.connection.close(self.side);
    }
}

/// A process's end of a connection.
pub(crate) struct End {
    sim: Rc<Sim>,
    connection: Rc<Connection>,
    side: usize,
    pub(crate) local: SocketAddr,
}

impl Drop for End {
    fn drop(&mut self) {
        if !self.connection.detached[self.side].get() {
            self.connection.close(self.side);
        }
    }
}

impl End {
    fn is_stalled(&self) -> bool {
        let [a, b] = self.connection.processes;
        self.sim.net.borrow().stalled.contains(&pair(a, b))
    }

    fn check(&self) -> io::Result<()> {
        if self.connection.reset.get() {
            return Err(io::Error::from_raw_os_error(libc::ECONNRESET));
        }
        Ok(())
    }

    /// As a receive of the kernel: what there is, at least one byte, or nothing at the end.
    pub(crate) async fn recv(&self, mut buf: Buf, range: Range<usize>) -> (io::Result<usize>, Buf) {
        let pipe = &self.connection.pipes[1 - self.side];
        loop {
            let changed = pipe.changed.notified();
            if let Err(error) = self.check() {
                return (Err(error), buf);
            }
            if pipe.shut.get() || range.is_empty() {
                return (Ok(0), buf);
            }
            let mut due = None;
            if self.is_stalled() {
                self.sim.net.borrow_mut().counters.stalled += 1;
            } else {
                let now = self.sim.now();
                let first = pipe.pieces.borrow().front().map(|(due, _)| *due);
                match first {
                    Some(first) if first <= now => {
                        let count = self.take(pipe, &mut buf[range]);
                        return (Ok(count), buf);
                    }
                    Some(first) => due = Some(first),
                    None if pipe.ended.get() => return (Ok(0), buf),
                    None => {}
                }
            }
            match due {
                // Either ends the wait.
                Some(due) => drop(timer::timeout(due - self.sim.now(), changed).await),
                None => changed.await,
            }
        }
    }

    fn take(&self, pipe: &Pipe, out: &mut [u8]) -> usize {
        let mut pieces = pipe.pieces.borrow_mut();
        let now = self.sim.now();
        let mut limit = out.len();
        {
            let mut net = self.sim.net.borrow_mut();
            let one_in = net.weather.short_one_in;
            if one_in > 0 && limit > 1 && self.sim.below(one_in) == 0 {
                limit = 1 + self.sim.below(limit as u64 - 1) as usize;
                net.counters.short += 1;
            }
        }
        let mut count = 0;
        while count < limit {
            let Some((due, piece)) = pieces.front() else { break };
            if *due > now {
                break;
            }
            let rest = &piece[pipe.taken.get()..];
            let part = rest.len().min(limit - count);
            out[count..count + part].copy_from_slice(&rest[..part]);
            count += part;
            if part == rest.len() {
                pipe.taken.set(0);
                pieces.pop_front();
            } else {
                pipe.taken.set(pipe.taken.get() + part);
            }
        }
        pipe.bytes.set(pipe.bytes.get() - count);
        drop(pieces);
        pipe.changed.notify_all();
        count
    }

    /// As a send of the kernel: takes some bytes of `parts` from `skip` on.
    pub(crate) async fn send(&self, parts: &Parts, mut skip: usize) -> io::Result<usize> {
        let pipe = &self.connection.pipes[self.side];
        loop {
            let changed = pipe.changed.notified();
            self.check()?;
            if pipe.shut.get() || pipe.ended.get() {
                return Err(io::Error::from_raw_os_error(libc::EPIPE));
            }
            if pipe.bytes.get() < WINDOW {
                break;
            }
            changed.await;
        }
        let mut piece = Vec::new();
        for part in parts {
            let from = skip.min(part.len());
            skip -= from;
            let room = WINDOW - piece.len();
            piece.extend_from_slice(&part[from..part.len().min(from.saturating_add(room))]);
            if piece.len() == WINDOW {
                break;
            }
        }
        let count = piece.len();
        if self.connection.detached[self.side].get() {
            return Ok(count);
        }
        let due = {
            let mut net = self.sim.net.borrow_mut();
            net.counters.pieces += 1;
            let Weather { latency, latency_max, .. } = net.weather;
            let spread = latency_max.saturating_sub(latency).as_nanos() as u64;
            let due = self.sim.now() + latency + Duration::from_nanos(self.sim.below(spread + 1));
            pipe.last.get().map_or(due, |last| last.max(due))
        };
        pipe.last.set(Some(due));
        pipe.bytes.set(pipe.bytes.get() + count);
        pipe.pieces.borrow_mut().push_back((due, piece));
        pipe.changed.notify_all();
        Ok(count)
    }

    pub(crate) fn shutdown(&self, read: bool, write: bool) {
        if self.connection.detached[self.side].get() {
            return;
        }
        if write {
            self.connection.pipes[self.side].ended.set(true);
        }
        if read {
            self.connection.pipes[1 - self.side].shut.set(true);
        }
        self.connection.rouse();
    }
}

struct Listening {
    process: u32,
    waiting: RefCell<VecDeque<(End, SocketAddr)>>,
    came: Notify,
}

/// A listener of the simulated network.
pub(crate) struct Listener {
    sim: Rc<Sim>,
    address: SocketAddr,
    state: Rc<Listening>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut net = self.sim.net.borrow_mut();
        if net.listeners.get(&self.address).is_some_and(|l| Rc::ptr_eq(l, &self.state)) {
            net.listeners.remove(&self.address);
        }
    }
}

impl Listener {
    pub(crate) fn bind(sim: &Rc<Sim>, mut address: SocketAddr) -> io::Result<(Listener, SocketAddr)> {
        let mut net = sim.net.borrow_mut();
        if address.port() == 0 {
            address.set_port(net.port());
        }
        if net.listeners.contains_key(&address) {
            return Err(io::Error::from_raw_os_error(libc::EADDRINUSE));
        }
        let state =
            Rc::new(Listening { process: sim.process(), waiting: RefCell::default(), came: Notify::new() });
        net.listeners.insert(address, Rc::clone(&state));
        drop(net);
        Ok((Listener { sim: Rc::clone(sim), address, state }, address))
    }

    pub(crate) async fn accept(&self) -> (End, SocketAddr) {
        loop {
            let came = self.state.came.notified();
            let next = self.state.waiting.borrow_mut().pop_front();
            if let Some(next) = next {
                return next;
            }
            came.await;
        }
    }
}

/// Connects the running process to `address`.
pub(crate) async fn connect(sim: &Rc<Sim>, address: SocketAddr) -> io::Result<End> {
    let latency = sim.net.borrow().weather.latency_max;
    timer::sleep(latency).await;
    let me = sim.process();
    loop {
        let listening = sim.net.borrow().listeners.get(&address).cloned();
        let Some(listening) = listening else {
            sim.net.borrow_mut().counters.refused += 1;
            return Err(io::Error::from_raw_os_error(libc::ECONNREFUSED));
        };
        if sim.net.borrow().stalled.contains(&pair(me, listening.process)) {
            // As a SYN that is sent again.
            timer::sleep(Duration::from_millis(200)).await;
            continue;
        }
        let connection = Rc::new(Connection {
            pipes: [Pipe::default(), Pipe::default()],
            processes: [me, listening.process],
            detached: [Cell::new(false), Cell::new(false)],
            reset: Cell::new(false),
        });
        let local = {
            let mut net = sim.net.borrow_mut();
            net.counters.connections += 1;
            net.connections.retain(|c| c.strong_count() > 0);
            net.connections.push(Rc::downgrade(&connection));
            let [_, _, high, low] = me.to_be_bytes();
            SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, high, low)), net.port())
        };
        let end = |side, local| End { sim: Rc::clone(sim), connection: Rc::clone(&connection), side, local };
        let (near, far) = (end(0, local), end(1, address));
        listening.waiting.borrow_mut().push_back((far, local));
        listening.came.notify_one();
        return Ok(near);
    }
}
