//! One TCP connection beneath either side: frames in, frames out, silence, closing.
//!
//! Receiving takes whatever has come into a small staging buffer; header and body are read there, and what a payload
//! still lacks is received straight into its own aligned buffer. Sending goes through one task, which puts queued frames
//! into one system call. Must not know what a frame means.

use crate::alive::{Alive, Vital};
use crate::error::CloseReason;
use hugepages::{Arena, Buf, Bytes};
use reactor::sync::{Event, Notify};
use reactor::{Parts, TcpStream};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};
use wire::{HANDSHAKE_VERSION, HEADER_LEN, Header, limits::MAX_BODY};

/// Bytes received at a time without knowing what they are: at most this much of a payload is copied. One page, so that a
/// few small requests come with one system call and a 4 KiB write costs one small copy.
const GREEDY: usize = 4096;

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

/// A frame as it came, checksums verified.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) header: Header,
    pub(crate) body: Bytes,
    pub(crate) payload: Option<Bytes>,
}

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

/// Cuts what comes into frames.
pub(crate) struct Receiver {
    link: Rc<Link>,
    stage: Option<Buf>,
    from: usize,
    to: usize,
    arena: Option<Arena>,
    /// The one that frames must have.
    pub(crate) version: u8,
}

impl Receiver {
    pub(crate) fn new(link: &Rc<Link>, arena: Option<Arena>) -> Self {
        let mut stage = Buf::heap(HEADER_LEN + MAX_BODY);
        stage.set_len(stage.capacity());
        let link = Rc::clone(link);
        Self { link, stage: Some(stage), from: 0, to: 0, arena, version: HANDSHAKE_VERSION }
    }

    /// Goes on over `link`, the same stream, with frames of `version`.
    pub(crate) fn moved(self, link: &Rc<Link>, version: u8) -> Self {
        Self { link: Rc::clone(link), version, ..self }
    }

    fn staged(&self, len: usize) -> &[u8] {
        self.stage.as_ref().and_then(|stage| stage.get(self.from..self.from + len)).unwrap_or_default()
    }

    /// Makes `len` bytes stand in the staging buffer. `Peer` where the stream ends before the first.
    async fn ensure(&mut self, len: usize) -> Result<(), CloseReason> {
        if self.to - self.from >= len {
            return Ok(());
        }
        let Some(mut stage) = self.stage.take() else {
            return Err(CloseReason::Protocol("an earlier receive was given up"));
        };
        stage.set_len(stage.capacity());
        stage.copy_within(self.from..self.to, 0);
        self.to -= self.from;
        self.from = 0;
        if self.to == 0 {
            stage.set_len(GREEDY);
            let (result, back) = self.link.stream.read(stage).await;
            stage = back;
            stage.set_len(stage.capacity());
            self.to = match result {
                Ok(0) => return Err(CloseReason::Peer),
                Ok(count) => count,
                Err(error) => return Err(error.into()),
            };
        }
        if self.to < len {
            let (result, back) = self.link.stream.read_exact(stage, self.to..len).await;
            stage = back;
            result?;
            self.to = len;
        }
        self.stage = Some(stage);
        self.link.heard();
        Ok(())
    }

    /// The next frame. `admit` sees the header before anything beyond it is received or memory taken for it.
    pub(crate) async fn frame(
        &mut self,
        admit: impl Fn(&Header) -> Result<(), CloseReason>,
    ) -> Result<Frame, CloseReason> {
        self.ensure(HEADER_LEN).await?;
        let mut head = [0; HEADER_LEN];
        head.copy_from_slice(self.staged(HEADER_LEN));
        let header = Header::decode(&head)?;
        if header.version != self.version {
            return Err(CloseReason::Protocol("frame is of another version than agreed"));
        }
        admit(&header)?;
        let body_len = usize::from(header.body_len);
        self.ensure(HEADER_LEN + body_len).await?;
        let body = Bytes::copy_of(&self.staged(HEADER_LEN + body_len)[HEADER_LEN..]);
        Header::verify(&head, &body)?;
        self.from += HEADER_LEN + body_len;
        let payload = if header.payload_len == 0 { None } else { Some(self.payload(&header).await?) };
        Ok(Frame { header, body, payload })
    }

    async fn payload(&mut self, header: &Header) -> Result<Bytes, CloseReason> {
        let len = header.payload_len as usize;
        let mut buf = self.memory(len).await?;
        let have = len.min(self.to - self.from);
        buf[..have].copy_from_slice(self.staged(have));
        self.from += have;
        if have < len {
            let (result, back) = self.link.stream.read_exact(buf, have..len).await;
            result?;
            buf = back;
            self.link.heard();
        }
        header.verify_payload(&buf)?;
        Ok(buf.freeze())
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
