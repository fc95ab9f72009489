//! Invalidation: what a recalled lease covered is taken out of the kernel's caches.
//!
//! The client calls `Notifier::invalidate` and gives the lease back once that has ended, so "ended" must mean that no process can see the
//! old state any more. Three things in the kernel can make an invalidation wait, and none may wait for it in turn:
//!
//! 1. *Pages.* `NOTIFY_INVAL_INODE` locks each page, and writes dirty ones (of shared mappings) back through FUSE_WRITE. Pages are locked by
//!    reads and writes under way. So all of these go on being served while an invalidation runs: it runs on a thread of its own, never on the
//!    reactor, and the server executes what is in flight from the holder before the operation that caused the recall.
//! 2. *Directories.* `NOTIFY_INVAL_ENTRY` takes the parent directory's lock, which a create, unlink, rename or lookup in it holds until we have
//!    answered. Two clients that create in one directory would wait for each other if the server queued the holder's create behind the
//!    recall; it does not (DESIGN decision 8), and names get a lifetime only under an exclusive lease to begin with. A rename or rmdir holds the
//!    locks of several directories and can wait for another client's lease on one while its own names of another are recalled; then the client
//!    answers it with ESTALE, and the kernel lets go of the locks and tries once more (`client/src/changes.rs`).
//! 3. *Each other.* With one thread, an invalidation that waits (for directory A) would hold up the next (for directory B) that another client waits
//!    for while it holds what A's create needs: a cycle over two clients. So invalidations run beside each other, on up to
//!    [`THREADS_MAX`] threads. Where even that many are stuck, the server's recall timeout fences the session.
//!
//! Order against replies: a reply with a lifetime is written, by one system call, before the task that produced it yields
//! ([`crate::channel`]); then its hold is dropped, which the client waits for before it calls us. What remains is the kernel's own delay
//! between taking a reply and acting on it. Attributes are safe (the kernel compares versions), new names too (the caller holds the
//! directory's lock, which case 2 waits for). Only a *re*validation of a cached name sets the name's lifetime without any lock, so it may, if preempted
//! at just that moment, set it after we expired the name. Therefore every name is expired once more after [`AGAIN`], and the lifetime of a
//! name is cut to [`crate::convert::ENTRY_TTL_MAX`], which bounds the effect of what is left.
//!
//! Names are *expired*, not dropped, where the kernel can (7.38): dropping a directory's name would detach mounts below it. The same speaks against
//! `NOTIFY_INC_EPOCH` (7.44), which drops every name of the mount without waiting for any lock: the client bounds the names that it lets out, so
//! that a recall can list them.

use crate::abi::flags::{EXPIRE_ONLY, init};
use crate::abi::notify::{INVAL_ENTRY, INVAL_INODE, InvalEntryOut, InvalInodeOut};
use crate::abi::reply::OutHeader;
use crate::init::Agreed;
use crate::nodes::Nodes;
use client::service::{Invalidator, LocalFuture, Recall, Stale};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::cell::{Cell, OnceCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io::IoSlice;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use zerocopy::IntoBytes;

/// Invalidations that run beside each other at most.
pub const THREADS_MAX: usize = 16;
/// When names are expired a second time.
pub const AGAIN: Duration = Duration::from_millis(50);
/// How long an idle thread stays.
const IDLE: Duration = Duration::from_secs(10);

/// One notification.
#[derive(Clone, Debug)]
enum Note {
    /// Attributes only where the range is `None`, else pages too; `len` 0 goes to the end.
    Inode {
        node: u64,
        range: Option<(u64, u64)>,
    },
    Entry {
        dir: u64,
        name: Box<[u8]>,
        flags: u32,
    },
}

impl Note {
    fn send(&self, fd: &OwnedFd) -> Result<(), Errno> {
        match self {
            Note::Inode { node, range } => {
                let (off, len) = range.map_or((-1, 0), |(off, len)| (off as i64, len as i64));
                let arg = InvalInodeOut { ino: *node, off, len };
                send(fd, INVAL_INODE, &[arg.as_bytes()])
            }
            Note::Entry { dir, name, flags } => {
                let arg = InvalEntryOut { parent: *dir, namelen: name.len() as u32, flags: *flags };
                send(fd, INVAL_ENTRY, &[arg.as_bytes(), name, &[0]])
            }
        }
    }
}

fn send(fd: &OwnedFd, code: i32, parts: &[&[u8]]) -> Result<(), Errno> {
    let len = size_of::<OutHeader>() + parts.iter().map(|p| p.len()).sum::<usize>();
    let header = OutHeader { len: len as u32, error: code, unique: 0 };
    let mut slices = vec![IoSlice::new(header.as_bytes())];
    slices.extend(parts.iter().map(|p| IoSlice::new(p)));
    match rustix::io::retry_on_intr(|| rustix::io::writev(fd, &slices)) {
        // ENOENT, ENOTDIR: the kernel knows no such node or name. ENOTEMPTY, EBUSY: it is in use and was expired all the same.
        Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::NOTEMPTY | Errno::BUSY) => Ok(()),
        // The mount has ended: nothing is cached any more.
        Err(Errno::NODEV | Errno::NOTCONN | Errno::PERM | Errno::CONNABORTED) => Ok(()),
        Err(e) => Err(e),
    }
}

#[derive(Default)]
struct DoneState {
    over: bool,
    waker: Option<Waker>,
}

/// Ends when a job has run.
#[derive(Clone, Default)]
struct Done(Arc<Mutex<DoneState>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Done {
    fn set(&self) {
        let waker = {
            let mut state = lock(&self.0);
            state.over = true;
            state.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Future for Done {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = lock(&self.0);
        if state.over {
            return Poll::Ready(());
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

struct Job {
    notes: Vec<Note>,
    done: Done,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

struct Shared {
    fd: OwnedFd,
    queue: Mutex<Queue>,
    ready: Condvar,
}

/// The threads. Dropping it lets them end after what they are doing.
struct Pool(Arc<Shared>);

impl Pool {
    fn new(fd: OwnedFd) -> Self {
        Self(Arc::new(Shared { fd, queue: Mutex::default(), ready: Condvar::new() }))
    }

    fn submit(&self, notes: Vec<Note>) -> Done {
        let done = Done::default();
        let mut queue = lock(&self.0.queue);
        queue.jobs.push_back(Job { notes, done: done.clone() });
        if queue.idle < queue.jobs.len() && queue.threads < THREADS_MAX {
            let shared = Arc::clone(&self.0);
            let name = format!("fuse-inval-{}", queue.threads);
            match std::thread::Builder::new().name(name).stack_size(128 << 10).spawn(move || work(&shared)) {
                Ok(_) => queue.threads += 1,
                Err(error) if queue.threads == 0 => {
                    tracing::error!(%error, "no thread for invalidations; recalls will time out");
                }
                Err(_) => {}
            }
        }
        drop(queue);
        self.0.ready.notify_one();
        done
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.0.queue).closed = true;
        self.0.ready.notify_all();
    }
}

fn work(shared: &Shared) {
    let mut queue = lock(&shared.queue);
    loop {
        if let Some(job) = queue.jobs.pop_front() {
            drop(queue);
            for note in &job.notes {
                if let Err(error) = note.send(&shared.fd) {
                    tracing::error!(?note, %error, "the kernel refused an invalidation");
                }
            }
            job.done.set();
            queue = lock(&shared.queue);
            continue;
        }
        if queue.closed {
            break;
        }
        queue.idle += 1;
        let (guard, waited) = shared.ready.wait_timeout(queue, IDLE).unwrap_or_else(PoisonError::into_inner);
        queue = guard;
        queue.idle -= 1;
        if waited.timed_out() && queue.jobs.is_empty() {
            break;
        }
    }
    queue.threads -= 1;
}

struct Target {
    pool: Pool,
    nodes: Rc<Nodes>,
    agreed: Agreed,
}

/// Tells the kernel what to forget. Before it is attached to a mount there is nothing that could be cached.
#[derive(Default)]
pub struct Notifier {
    target: OnceCell<Target>,
    recalls: Cell<u64>,
}

impl Notifier {
    /// Begins to act on a mount; `device` is another descriptor of it.
    pub(crate) fn attach(&self, device: OwnedFd, nodes: Rc<Nodes>, agreed: Agreed) {
        let _ = self.target.set(Target { pool: Pool::new(device), nodes, agreed });
    }

    /// Recalls served.
    pub fn recalls(&self) -> u64 {
        self.recalls.get()
    }

    /// Drops entries with all below them, where nobody uses them.
    pub(crate) fn drop_entries(&self, entries: Vec<(u64, Box<[u8]>)>) {
        let note = |(dir, name)| Note::Entry { dir, name, flags: 0 };
        if let Some(target) = self.target.get() {
            target.pool.submit(entries.into_iter().map(note).collect());
        }
    }

    /// Drops the pages of a file, for a mount's own reasons.
    pub(crate) fn drop_pages(&self, node: u64) -> impl Future<Output = ()> + use<> {
        let notes = vec![Note::Inode { node, range: Some((0, 0)) }];
        let done = self.target.get().map(|target| target.pool.submit(notes));
        async move {
            if let Some(done) = done {
                done.await;
            }
        }
    }
}

impl Target {
    /// The notes of a recall: names first, they are what others wait for most.
    fn notes(&self, recall: &Recall) -> (Vec<Note>, usize) {
        let nodes = self.nodes.all(recall.ino);
        let flags = if self.agreed.has(init::HAS_EXPIRE_ONLY) { EXPIRE_ONLY } else { 0 };
        let entry = |(dir, name): (u64, &[u8])| Note::Entry { dir, name: name.into(), flags };
        let every = nodes.iter().flat_map(|node| recall.names.iter().map(|name| (*node, &**name)));
        let mut notes: Vec<Note> = every.map(entry).collect();
        let names = notes.len();
        for &node in &nodes {
            let before = notes.len();
            match &recall.data {
                Stale::Nothing => {}
                Stale::All => notes.push(Note::Inode { node, range: Some((0, 0)) }),
                Stale::Ranges(ranges) => {
                    let some = ranges.iter().filter(|r| r.start < r.end);
                    notes.extend(some.map(|r| Note::Inode { node, range: Some((r.start, r.end - r.start)) }));
                }
            }
            // Dropping pages drops the attributes with them.
            if notes.len() == before && recall.attrs {
                notes.push(Note::Inode { node, range: None });
            }
        }
        (notes, names)
    }
}

/// The notifier as the client's [`Invalidator`].
pub struct Recaller(pub Rc<Notifier>);

impl Invalidator for Recaller {
    fn invalidate(&self, recall: Recall) -> LocalFuture<()> {
        let notifier = Rc::clone(&self.0);
        Box::pin(async move {
            let Some(target) = notifier.target.get() else { return };
            notifier.recalls.set(notifier.recalls.get() + 1);
            let (notes, names) = target.notes(&recall);
            let again: Vec<Note> = notes[..names].to_vec();
            if !notes.is_empty() {
                target.pool.submit(notes).await;
            }
            if !again.is_empty() {
                let notifier = Rc::clone(&notifier);
                reactor::spawn(async move {
                    reactor::sleep(AGAIN).await;
                    if let Some(target) = notifier.target.get() {
                        target.pool.submit(again);
                    }
                });
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::service::Ino;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn target(flags: u64, minor: u32) -> (Target, OwnedFd) {
        let (ours, kernel) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .expect("a socket pair");
        let nodes = Rc::new(Nodes::new(Ino(40)));
        (Target { pool: Pool::new(ours), nodes, agreed: Agreed { minor, flags } }, kernel)
    }

    fn read(kernel: &OwnedFd) -> Vec<u8> {
        let mut buf = vec![0; 4096];
        let len = rustix::io::read(kernel, &mut buf[..]).expect("a note");
        buf.truncate(len);
        buf
    }

    #[test]
    fn recalls_become_notes_on_a_thread_of_their_own() {
        let (target, kernel) = target(init::HAS_EXPIRE_ONLY, 45);
        let recall = Recall {
            ino: Ino(40),
            attrs: true,
            data: Stale::Ranges(std::iter::once(4096..8192).collect()),
            names: vec![b"a".as_slice().into()],
        };
        let (notes, names) = target.notes(&recall);
        assert_eq!((notes.len(), names), (2, 1), "{notes:?}");
        let done = target.pool.submit(notes);
        let entry = read(&kernel);
        assert_eq!((entry.len(), entry[4]), (16 + 16 + 2, INVAL_ENTRY as u8));
        assert_eq!(
            (entry[16], entry[28], &entry[32..]),
            (1, EXPIRE_ONLY as u8, &b"a\0"[..]),
            "the root is node 1"
        );
        let inode = read(&kernel);
        assert_eq!((inode[4], &inode[24..40]), (INVAL_INODE as u8, [4096u64, 4096].as_bytes()));
        while !lock(&done.0).over {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_stuck_invalidation_does_not_hold_up_the_others() {
        let (target, kernel) = target(0, 38);
        // The socket takes only so many messages; then writers wait, as in the kernel.
        let note = || vec![Note::Entry { dir: 1, name: vec![b'x'; 200].into(), flags: 0 }; 400];
        for _ in 0..4 {
            target.pool.submit(note());
        }
        let last = target.pool.submit(vec![Note::Inode { node: 2, range: None }]);
        let mut seen = 0;
        while seen < 4 * 400 + 1 {
            read(&kernel);
            seen += 1;
        }
        while !lock(&last.0).over {
            std::thread::yield_now();
        }
        assert!(lock(&target.pool.0.queue).threads > 1);
    }
}
