//! One mount's requests: read, started as tasks, answered.
//!
//! Owns the loop over the device and the tables that live as long as the mount. What a request means stands in [`crate::ops`].
//!
//! Requests run beside each other without limit of order; two bounds stop the reading until something has been answered:
//! [`IN_FLIGHT_MAX`] requests and [`PAYLOAD_MAX`] bytes of WRITE payloads. The kernel has bounds of its own below these in all but odd cases (each
//! waiting thread has one request, and there are [`crate::init::MAX_BACKGROUND`] besides).

use crate::abi::{ROOT_NODE, opcode};
use crate::abi::{decode::Op, flags::init};
use crate::channel::{ChannelError, Device, Message, Reader, Received};
use crate::departed::Departed;
use crate::inflight::InFlight;
use crate::init::Agreed;
use crate::nodes::Nodes;
use crate::notify::Notifier;
use crate::ops::locks::{LockTable, Releasing};
use client::{Ctx, FileService};
use reactor::sync::Notify;
use rustc_hash::FxHashSet;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use wire::types::{Errno, Ino};

/// Requests under way at most.
pub const IN_FLIGHT_MAX: usize = 16 << 10;
/// Bytes of WRITE payloads under way at most.
pub const PAYLOAD_MAX: usize = 512 << 20;
/// Requests read before other tasks get a turn.
const BURST: usize = 32;

/// Counters of a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountStats {
    /// Requests read.
    pub requests: u64,
    /// Answered with an error.
    pub errors: u64,
    /// INTERRUPTs.
    pub interrupts: u64,
    /// Bytes of WRITE payloads.
    pub written: u64,
    /// Recalls served.
    pub recalls: u64,
    /// Replies that the kernel refused.
    pub refused: u64,
    /// Requests under way.
    pub in_flight: u64,
}

/// State of one mount.
pub(crate) struct Session<S> {
    pub(crate) service: Rc<S>,
    pub(crate) device: Rc<Device>,
    pub(crate) nodes: Rc<Nodes>,
    pub(crate) departed: Departed,
    pub(crate) agreed: Agreed,
    pub(crate) notifier: Rc<Notifier>,
    pub(crate) locks: LockTable,
    pub(crate) releasing: Releasing,
    /// Handles around the page cache.
    pub(crate) direct: RefCell<FxHashSet<u64>>,
    inflight: Rc<InFlight>,
    payload: Cell<usize>,
    room: Notify,
    stats: Cell<MountStats>,
}

/// A request's circumstances.
#[derive(Debug)]
pub(crate) struct Rq {
    pub(crate) ctx: Ctx,
    pub(crate) node: u64,
    pub(crate) ino: Ino,
}

impl<S: FileService> Session<S> {
    pub(crate) fn new(
        service: Rc<S>,
        device: Rc<Device>,
        nodes: Rc<Nodes>,
        agreed: Agreed,
        notifier: Rc<Notifier>,
    ) -> Self {
        Self {
            service,
            device,
            nodes,
            departed: Departed::default(),
            agreed,
            notifier,
            locks: LockTable::default(),
            releasing: Releasing::default(),
            direct: RefCell::default(),
            inflight: Rc::default(),
            payload: Cell::new(0),
            room: Notify::new(),
            stats: Cell::default(),
        }
    }

    pub(crate) fn stats(&self) -> MountStats {
        MountStats {
            recalls: self.notifier.recalls(),
            refused: self.device.refused(),
            in_flight: self.inflight.len() as u64,
            ..self.stats.get()
        }
    }

    fn count(&self, change: impl FnOnce(&mut MountStats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }

    fn has_room(&self) -> bool {
        self.inflight.len() < IN_FLIGHT_MAX && self.payload.get() < PAYLOAD_MAX
    }

    /// Serves until the mount ends.
    pub(crate) async fn run(self: Rc<Self>, mut reader: Reader) -> ChannelError {
        loop {
            for _ in 0..BURST {
                while !self.has_room() {
                    self.room.notified().await;
                }
                match reader.read(&*self.device) {
                    Ok(Received::Request(message)) => self.take(message),
                    Ok(Received::Bad(unique, error)) => {
                        tracing::warn!(%error, "refused");
                        self.device.error(unique, Errno::EIO);
                    }
                    Ok(Received::Nothing) => {
                        if let Err(error) = self.device.readable().await {
                            return ChannelError::Device(error);
                        }
                    }
                    Err(error) => return error,
                }
            }
            reactor::yield_now().await;
        }
    }

    /// Answers at once what needs no waiting, starts a task for the rest.
    fn take(self: &Rc<Self>, message: Message) {
        self.count(|s| s.requests += 1);
        let header = message.header;
        match header.opcode {
            opcode::FORGET | opcode::BATCH_FORGET => return self.forget(header.nodeid, &message),
            opcode::INTERRUPT => return self.interrupt(&message),
            _ => {}
        }
        if let Some(errno) = unsupported(header.opcode) {
            return self.device.error(header.unique, errno);
        }
        let held = message.payload.len();
        self.payload.set(self.payload.get() + held);
        self.count(|s| s.written += held as u64);
        let cancel = self.inflight.begin(header.unique, header.pid);
        let ctx = Ctx { uid: header.uid, gid: header.gid, pid: header.pid, umask: 0, cancel };
        let rq = Rq { ctx, node: header.nodeid, ino: self.nodes.ino(header.nodeid) };
        let this = Rc::clone(self);
        reactor::spawn(async move {
            this.serve(rq, message).await;
            this.inflight.end(header.unique);
            this.payload.set(this.payload.get() - held);
            this.room.notify_one();
        });
    }

    async fn serve(&self, mut rq: Rq, message: Message) {
        let header = message.header;
        let op = match Op::decode(header.opcode, &message.body, self.agreed.has(init::SETXATTR_EXT)) {
            Ok(op) => op,
            Err(error) => {
                tracing::warn!(%error, "refused");
                return self.device.error(header.unique, Errno::EIO);
            }
        };
        match self.dispatch(&mut rq, op, message.payload).await {
            Ok(answer) => {
                answer.reply.send(&self.device, header.unique);
                drop(answer.hold);
            }
            Err(errno) => {
                self.count(|s| s.errors += 1);
                tracing::trace!(op = opcode::name(header.opcode), node = header.nodeid, ?errno, "failed");
                self.device.error(header.unique, errno);
            }
        }
    }

    fn forget(&self, node: u64, message: &Message) {
        let one = |node: u64, n: u64| {
            let ino = self.nodes.ino(node);
            if node != ROOT_NODE && self.nodes.forget(node, n) {
                self.departed.forget(ino);
                self.service.forget(ino, n);
            }
        };
        match Op::decode(message.header.opcode, &message.body, false) {
            Ok(Op::Forget { nlookup }) => one(node, nlookup),
            Ok(Op::BatchForget { list }) => list.for_each(|f| one(f.nodeid, f.nlookup)),
            _ => tracing::warn!("a FORGET that is none"),
        }
    }

    fn interrupt(&self, message: &Message) {
        self.count(|s| s.interrupts += 1);
        let Ok(Op::Interrupt { unique }) = Op::decode(opcode::INTERRUPT, &message.body, false) else {
            return;
        };
        if !self.inflight.interrupt(unique) {
            // Not known: the kernel looks whether the request still waits, and if so sends this once more.
            self.device.error(message.header.unique, Errno::EAGAIN);
        }
    }
}

/// Requests with one answer for all cases.
fn unsupported(code: u32) -> Option<Errno> {
    /// ENOTTY: what ioctl(2) says of a request that a file does not know.
    const ENOTTY: Errno = Errno(25);
    match code {
        opcode::IOCTL => Some(ENOTTY),
        // Under default_permissions the kernel checks by itself; ENOSYS stops it from asking.
        opcode::ACCESS => Some(Errno::ENOSYS),
        // There is no block device below, readiness is always given, and there is no window to map.
        opcode::BMAP | opcode::POLL | opcode::SETUPMAPPING | opcode::REMOVEMAPPING => Some(Errno::ENOSYS),
        opcode::NOTIFY_REPLY | opcode::CUSE_INIT => Some(Errno::ENOSYS),
        // A second INIT is nonsense.
        opcode::INIT => Some(Errno::EIO),
        code if opcode::name(code) == "?" => Some(Errno::ENOSYS),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
