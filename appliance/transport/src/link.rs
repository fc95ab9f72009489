//! One TCP connection beneath either side: frames in, frames out, silence, closing.
//!
//! Receiving fills the buffers that `cutter` asks for. Sending goes through one task, which puts queued frames into one
//! system call. Must not know what a frame means.

use crate::alive::{Alive, Vital};
use crate::cutter::{Cutter, Frame, Step};
use crate::error::CloseReason;
use hugepages::{Arena, Buf, Bytes};
use reactor::sync::{Event, Notify};
use reactor::{Parts, TcpStream};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};
use wire::Header;

/// Parts in one send: a quarter of what the kernel takes (UIO_MAXIOV), so that replies are not held back long.
const BATCH_PARTS: usize = 256;

/// Bytes in one send beyond which no further frame joins it.
const BATCH_BYTES: usize = 1 << 20;

/// Frames waiting to be sent. Replies are bounded by credits (256); the rest is room for notifications. A peer that lets
/// more than this pile up is closed.
const OUTBOX_MAX: usize = 2048;

/// A send that takes longer ends the connection: the peer holds its window shut.
const SEND_TIME: Duration = Duration::from_secs(30);

/// How often an empty arena is asked again. Buffers come back from any thread without a signal; meanwhile nothing is
/// received, so TCP holds the peer back.
const MEMORY_RETRY: Duration = Duration::from_millis(1);

/// What both tasks of a connection and its handles share.
pub(crate) struct Link {
    pub(crate) stream: TcpStream,
    queue: RefCell<VecDeque<Parts>>,
    wake: Notify,
    reason: RefCell<Option<CloseReason>>,
    pub(crate) closed: Event,
    alive: Cell<Alive>,
}

impl Link {
    pub(crate) fn new(stream: TcpStream, period: Duration, asks: bool) -> Rc<Self> {
        Rc::new(Self {
            stream,
            queue: RefCell::default(),
            wake: Notify::new(),
            reason: RefCell::default(),
            closed: Event::new(),
            alive: Cell::new(Alive::new(period, asks, reactor::now())),
        })
    }

    /// Ends the connection; the first reason stands.
    pub(crate) fn close(&self, reason: CloseReason) {
        if self.reason.borrow().is_none() {
            self.reason.replace(Some(reason));
            self.queue.borrow_mut().clear();
            // It may be closed already by the peer.
            let _ = self.stream.shutdown(std::net::Shutdown::Both);
            self.closed.set();
            self.wake.notify_one();
        }
    }

    pub(crate) fn reason(&self) -> Option<CloseReason> {
        self.reason.borrow().clone()
    }

    /// Queues a frame.
    pub(crate) fn send(&self, parts: Parts) -> Result<(), CloseReason> {
        if let Some(reason) = self.reason() {
            return Err(reason);
        }
        if self.queue.borrow().len() >= OUTBOX_MAX {
            self.close(CloseReason::Slow);
            return Err(CloseReason::Slow);
        }
        self.queue.borrow_mut().push_back(parts);
        self.wake.notify_one();
        Ok(())
    }

    fn touch(&self, change: impl FnOnce(&mut Alive)) {
        let mut alive = self.alive.get();
        change(&mut alive);
        self.alive.set(alive);
    }

    pub(crate) fn heard(&self) {
        self.touch(|alive| alive.heard(reactor::now()));
    }

    fn batch(&self) -> Parts {
        let (mut batch, mut bytes) = (Parts::new(), 0);
        let mut queue = self.queue.borrow_mut();
        while batch.len() < BATCH_PARTS && bytes < BATCH_BYTES {
            let Some(parts) = queue.pop_front() else { break };
            bytes += parts.iter().map(Bytes::len).sum::<usize>();
            batch.extend(parts);
        }
        batch
    }

    /// Sends what is queued until the connection is closed.
    pub(crate) async fn write_loop(&self) {
        while self.reason.borrow().is_none() {
            let batch = self.batch();
            if batch.is_empty() {
                self.wake.notified().await;
                continue;
            }
            match reactor::timeout(SEND_TIME, self.stream.send_all(batch)).await {
                Ok(Ok(())) => self.touch(|alive| alive.spoke(reactor::now())),
                Ok(Err(error)) => self.close(error.into()),
                Err(_) => self.close(CloseReason::Slow),
            }
        }
    }

    /// Watches over silence until the connection is closed; `ask` sends KeepAlive.
    pub(crate) async fn watch(&self, ask: impl Fn()) {
        while self.reason.borrow().is_none() {
            match self.alive.get().check(reactor::now()) {
                Vital::Dead => self.close(CloseReason::Silent),
                Vital::Ask => {
                    ask();
                    self.touch(|alive| alive.spoke(reactor::now()));
                }
                Vital::Wait(time) => {
                    // Either ends the wait.
                    let _ = reactor::timeout(time, self.closed.wait()).await;
                }
            }
        }
    }
}

/// Receives frames: bytes from the stream to a [`Cutter`].
pub(crate) struct Receiver {
    link: Rc<Link>,
    cutter: Cutter,
    arena: Option<Arena>,
}

impl Receiver {
    pub(crate) fn new(link: &Rc<Link>, arena: Option<Arena>) -> Self {
        Self { link: Rc::clone(link), cutter: Cutter::new(), arena }
    }

    /// Frames are of `version` from now on.
    pub(crate) fn agreed(&mut self, version: u8) {
        self.cutter.version = version;
    }

    /// Goes on over `link`, the same stream, with frames of `version`.
    pub(crate) fn moved(mut self, link: &Rc<Link>, version: u8) -> Self {
        self.agreed(version);
        Self { link: Rc::clone(link), ..self }
    }

    /// The next frame. `admit` sees the header before anything beyond it is received or memory taken for it.
    pub(crate) async fn frame(
        &mut self,
        admit: impl Fn(&Header) -> Result<(), CloseReason>,
    ) -> Result<Frame, CloseReason> {
        loop {
            match self.cutter.step(&admit)? {
                Step::Frame(frame) => return Ok(frame),
                Step::Memory(len) => {
                    let memory = self.memory(len).await?;
                    self.cutter.memory(memory);
                }
                Step::Read { buf, range, any } => {
                    let all = range.len();
                    let (count, buf) = if any {
                        self.link.stream.read(buf).await
                    } else {
                        let (result, buf) = self.link.stream.read_exact(buf, range).await;
                        (result.map(|()| all), buf)
                    };
                    match count? {
                        0 => return Err(CloseReason::Peer),
                        count => self.cutter.filled(buf, count),
                    }
                    self.link.heard();
                }
            }
        }
    }

    /// Memory for a payload: bounded by the connection's credits on the heap, by the arena otherwise.
    async fn memory(&self, len: usize) -> Result<Buf, CloseReason> {
        let Some(arena) = &self.arena else { return Ok(Buf::heap(len)) };
        loop {
            if let Some(buf) = arena.alloc(len) {
                return Ok(buf);
            }
            if let Some(reason) = self.link.reason() {
                return Err(reason);
            }
            reactor::sleep(MEMORY_RETRY).await;
            self.link.heard();
        }
    }
}

/// A frame ready to send. `header`'s lengths and payload checksum are filled in.
pub(crate) fn assemble(
    mut header: Header,
    body: wire::BodyBuf,
    payload: &[Bytes],
    crc: bool,
) -> Result<Parts, &'static str> {
    let len: usize = payload.iter().map(Bytes::len).sum();
    if len > wire::limits::MAX_PAYLOAD {
        return Err("payload is longer than 1 MiB");
    }
    header.payload_len = len as u32;
    if len > 0 && crc {
        header.flags = header.flags.with(wire::Flags::PAYLOAD_CRC);
        header.payload_crc = wire::crc32c_parts(payload.iter().map(|part| &**part));
    }
    let frame = body.into_frame(&header).map_err(|_| "body is longer than 8 KiB")?;
    let mut parts = Parts::new();
    parts.push(Bytes::from(frame));
    parts.extend(payload.iter().filter(|part| !part.is_empty()).cloned());
    Ok(parts)
}

/// The moment that a header's deadline names.
pub(crate) fn deadline(header: &Header) -> Option<Instant> {
    (header.deadline_ms != 0).then(|| reactor::now() + Duration::from_millis(u64::from(header.deadline_ms)))
}
