//! The reactor's end: takes requests in order, runs writes side by side, keeps overlapping ones in order.

use super::WRITES;
use super::copies::{Copies, CopyStore, Counters, RESYNC_STEP};
use hugepages::Bytes;
use reactor::mail::Receiver;
use reactor::sync::Notify;
use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::mpsc::SyncSender;

/// Where an answer goes; the asker blocks on the other end.
type Answer<T> = SyncSender<io::Result<T>>;

/// What the database asks.
#[derive(Debug)]
pub enum Request {
    /// Length of the volume.
    Len(Answer<u64>),
    /// Exactly `len` bytes from `offset`.
    Read {
        /// Byte.
        offset: u64,
        /// Bytes, at most 1 MiB.
        len: usize,
        /// Gets the bytes.
        answer: Answer<Bytes>,
    },
    /// Writes; errors come with the next [`Request::Sync`].
    Write {
        /// Byte.
        offset: u64,
        /// At most 1 MiB.
        data: Bytes,
    },
    /// Grows with zeros or shrinks.
    SetLen {
        /// New length.
        len: u64,
        /// Told when done.
        answer: Answer<()>,
    },
    /// Makes all earlier writes durable, or tells that one failed.
    Sync(Answer<()>),
}

/// State that running writes share.
#[derive(Default)]
struct Running {
    ranges: RefCell<Vec<Range<u64>>>,
    changed: Notify,
    failed: RefCell<Option<io::Error>>,
}

impl Running {
    /// Waits until fewer than [`WRITES`] writes run and none of them touches `range`.
    async fn admit(&self, range: &Range<u64>) {
        loop {
            let changed = self.changed.notified();
            {
                let ranges = self.ranges.borrow();
                let meets = |r: &Range<u64>| r.start < range.end && range.start < r.end;
                if ranges.len() < WRITES && !ranges.iter().any(meets) {
                    return;
                }
            }
            changed.await;
        }
    }

    async fn drain(&self) {
        loop {
            let changed = self.changed.notified();
            if self.ranges.borrow().is_empty() {
                return;
            }
            changed.await;
        }
    }

    fn begin(&self, range: Range<u64>) {
        self.ranges.borrow_mut().push(range);
    }

    fn end(&self, range: &Range<u64>, result: io::Result<()>) {
        let mut ranges = self.ranges.borrow_mut();
        if let Some(at) = ranges.iter().position(|r| r == range) {
            ranges.swap_remove(at);
        }
        if let Err(e) = result {
            self.failed.borrow_mut().get_or_insert(e);
        }
        drop(ranges);
        self.changed.notify_all();
    }
}

/// The volume's reactor end; clones are handles to one.
pub struct Server<S> {
    copies: Rc<Copies<S>>,
    running: Rc<Running>,
    len: Rc<Cell<Option<u64>>>,
}

impl<S> Clone for Server<S> {
    fn clone(&self) -> Self {
        let (copies, running, len) = (&self.copies, &self.running, &self.len);
        Self { copies: Rc::clone(copies), running: Rc::clone(running), len: Rc::clone(len) }
    }
}

impl<S: CopyStore> Server<S> {
    /// A volume on `store`.
    pub fn new(store: S, counters: Rc<Counters>) -> Self {
        let copies = Rc::new(Copies { store, counters });
        Self { copies, running: Rc::default(), len: Rc::default() }
    }

    /// Serves until the database's end is gone; then every write that was queued has ended.
    pub async fn serve(&self, mut mail: Receiver<Request>) {
        while let Some(request) = mail.recv().await {
            self.handle(request).await;
        }
        self.running.drain().await;
    }

    /// Serves one request; a write goes on beside the next.
    pub async fn handle(&self, request: Request) {
        match request {
            Request::Len(answer) => reply(&answer, self.len().await),
            Request::Read { offset, len, answer } => reply(&answer, self.read(offset, len).await),
            Request::Write { offset, data } => self.write(offset, data).await,
            Request::SetLen { len, answer } => reply(&answer, self.set_len(len).await),
            Request::Sync(answer) => reply(&answer, self.sync().await),
        }
    }

    /// Makes the second copy equal to the first after an unclean stop, beside other work: a piece that is
    /// being compared is closed to writes. `pause` is called between pieces.
    ///
    /// # Errors
    /// Where both copies are bad, or the store fails.
    pub async fn resync(&self, pause: impl AsyncFn()) -> io::Result<()> {
        let mut at = 0;
        while at < self.len().await? {
            let range = at..at + RESYNC_STEP;
            self.running.admit(&range).await;
            self.running.begin(range.clone());
            let result = self.copies.resync(at).await;
            self.running.end(&range, Ok(()));
            result?;
            pause().await;
            at = range.end;
        }
        Ok(())
    }

    async fn len(&self) -> io::Result<u64> {
        if let Some(known) = self.len.get() {
            return Ok(known);
        }
        let read = self.copies.len().await?;
        self.len.set(Some(read));
        Ok(read)
    }

    async fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let end = offset.checked_add(len as u64).ok_or_else(beyond)?;
        if end > self.len().await? {
            return Err(beyond());
        }
        self.running.admit(&(offset..end)).await;
        self.copies.read(offset, len).await
    }

    async fn write(&self, offset: u64, data: Bytes) {
        let range = offset..offset.saturating_add(data.len() as u64);
        self.running.admit(&range).await;
        self.running.begin(range.clone());
        let (copies, running) = (Rc::clone(&self.copies), Rc::clone(&self.running));
        reactor::spawn(async move {
            let result = copies.write(offset, data).await;
            running.end(&range, result);
        });
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.running.drain().await;
        self.copies.set_len(self.len().await?, len).await?;
        self.len.set(Some(len));
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        self.running.drain().await;
        let failed = self.running.failed.borrow_mut().take();
        match failed {
            Some(e) => Err(e),
            None => Ok(self.copies.store.flush().await?),
        }
    }
}

fn beyond() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "a read beyond the end of the namespace volume")
}

/// An asker that is gone needs no answer.
fn reply<T>(answer: &Answer<T>, result: io::Result<T>) {
    drop(answer.try_send(result));
}
