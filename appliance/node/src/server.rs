//! Requests of connections to where they belong: the namespace machine, file data, or administration.
//!
//! Owns the counters of operations and the way recalls take to a client's connections. Must not hold state of a session.

use crate::admin::Admin;
use crate::data::{Data, DataReply};
use crate::histogram::Histogram;
use crate::meta::{Meta, Push};
use chunkstore::BlockDevice;
use hugepages::{Buf, Bytes};
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use transport::{CloseReason, Handler, Incoming, Outgoing, Peer, Server};
use wire::message::{Fenced, Recall, Role, StatFsReply};
use wire::{Body, Opcode, Request, Status};

/// Counters of one operation.
#[derive(Clone, Debug, Default)]
pub(crate) struct OpStats {
    /// Time from receipt to answer.
    pub(crate) latency: Histogram,
    /// Answers that were not Ok.
    pub(crate) errors: u64,
}

struct Inner<D: BlockDevice> {
    meta: Meta<D>,
    data: Data<D>,
    admin: Admin<D>,
    ops: RefCell<FxHashMap<Opcode, OpStats>>,
    running: Cell<usize>,
}

/// Handles requests; clones are cheap.
pub(crate) struct Dispatch<D: BlockDevice>(Rc<Inner<D>>);

impl<D: BlockDevice> Clone for Dispatch<D> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<D: BlockDevice> Dispatch<D> {
    pub(crate) fn new(meta: Meta<D>, data: Data<D>, admin: Admin<D>) -> Self {
        Self(Rc::new(Inner { meta, data, admin, ops: RefCell::default(), running: Cell::new(0) }))
    }

    /// Ends what only an operator waits for.
    pub(crate) fn stop(&self) {
        self.0.admin.stop();
    }

    /// Requests running.
    pub(crate) fn running(&self) -> usize {
        self.0.running.get()
    }

    /// Counters of all operations so far.
    pub(crate) fn ops(&self) -> Vec<(Opcode, OpStats)> {
        let mut all: Vec<_> = self.0.ops.borrow().iter().map(|(op, s)| (*op, s.clone())).collect();
        all.sort_unstable_by_key(|(op, _)| *op);
        all
    }

    async fn run(&self, peer: &Peer, request: &mut Incoming) -> Outgoing {
        let payload = request.payload.take();
        let header = request.header;
        let is_admin = peer.identity().role == Role::Admin;
        let Ok(decoded) = request.request() else { return Outgoing::error(Status::Malformed) };
        let data = &self.0.data;
        let filled = || payload.clone().unwrap_or_else(|| Bytes::copy_of(&[]));
        let reply = match &decoded {
            Request::ChunkRead(r) => data.read(&header, r).await,
            Request::ChunkWrite(r) => data.write(&header, r, filled()).await,
            Request::Append(r) => data.append(&header, r, filled()).await,
            Request::Fallocate(r) => data.fallocate(&header, r).await,
            Request::Seek(r) => data.seek(&header, r).await,
            Request::CopyRange(r) => data.copy(&header, r).await,
            Request::Commit(r) => data.commit(r.ino).await.map(|()| DataReply::status(Status::Ok)),
            Request::Status(_) => return json(&self.status().await),
            Request::Devices(_) => return json(&self.0.admin.devices().await),
            Request::Scrub(r) if is_admin => return outcome(self.0.admin.scrub(r)),
            Request::Grow(r) if is_admin => return outcome(self.0.admin.grow(r.device).await),
            Request::Preallocate(r) if is_admin => {
                return outcome(self.0.admin.preallocate(r.device, &request.cancelled).await);
            }
            // Clients ask within their session; who looks after the node has none.
            Request::StatFs(_) if is_admin => {
                let mut body = wire::BodyBuf::new();
                StatFsReply { stat: self.0.meta.machine(|m| m.view().stat_fs()) }.encode(&mut body);
                return Outgoing::encoded(body.body());
            }
            Request::Scrub(_) | Request::Grow(_) | Request::Preallocate(_) => {
                return Outgoing::error(Status::Denied);
            }
            _ => return self.names(request, payload).await,
        };
        match reply {
            Ok(reply) => {
                let mut out = match reply.status {
                    Status::Ok => Outgoing::encoded(reply.body.body()),
                    status => Outgoing::error(status),
                };
                for piece in reply.payload {
                    out = out.payload(piece);
                }
                out
            }
            Err(status) => Outgoing::error(status),
        }
    }

    /// A request of the namespace, which may wait long.
    async fn names(&self, request: &Incoming, payload: Option<Bytes>) -> Outgoing {
        let meta = &self.0.meta;
        let payload = payload.map(|p| p.to_vec()).unwrap_or_default();
        let reply = meta.request(request.header, request.body.to_vec(), payload, &request.cancelled).await;
        let out = match reply.status {
            Status::Ok => Outgoing::encoded(reply.body.body()),
            status => Outgoing::error(status),
        };
        if reply.payload.is_empty() { out } else { out.payload(Buf::copy_of(&reply.payload).freeze()) }
    }

    async fn status(&self) -> serde_json::Value {
        self.0.admin.status(self.ops(), self.running()).await
    }
}

impl<D: BlockDevice> Handler for Dispatch<D> {
    async fn handle(&self, peer: &Peer, mut request: Incoming) -> Outgoing {
        let begun = reactor::now();
        let opcode = request.opcode;
        self.0.running.set(self.0.running.get() + 1);
        let reply = self.run(peer, &mut request).await;
        self.0.running.set(self.0.running.get() - 1);
        let mut ops = self.0.ops.borrow_mut();
        let stats = ops.entry(opcode).or_default();
        stats.latency.record(reactor::now().duration_since(begun));
        stats.errors += u64::from(reply.status() != Status::Ok);
        reply
    }

    fn connected(&self, peer: &Peer) {
        self.0.admin.connected(peer);
    }

    fn disconnected(&self, peer: &Peer, _reason: &CloseReason) {
        self.0.admin.disconnected(peer);
    }
}

/// Sends recalls and fences over every connection of their client; a session that is over is forgotten.
pub(crate) fn push<D: BlockDevice>(server: &Server<Dispatch<D>>, push: Push) {
    let client = match push {
        Push::Recall(order) => order.client,
        Push::Fenced(client, _) | Push::Ended(client) => client,
    };
    for peer in server.peers() {
        if peer.identity().client != client {
            continue;
        }
        // A closed connection takes nothing: the client is told when it comes back, or is fenced.
        match push {
            Push::Recall(o) => drop(peer.notify(Recall { ino: o.ino, serial: o.serial, keep: o.keep })),
            Push::Fenced(_, reason) => drop(peer.notify(Fenced { reason })),
            Push::Ended(_) => {}
        }
    }
    if let Push::Fenced(client, _) | Push::Ended(client) = push {
        server.handler().0.data.forget(client);
    }
}

fn json(value: &serde_json::Value) -> Outgoing {
    let text = value.to_string();
    Outgoing::encoded(&[]).payload(Buf::copy_of(text.as_bytes()).freeze())
}

fn outcome(result: Result<serde_json::Value, Status>) -> Outgoing {
    match result {
        Ok(value) => json(&value),
        Err(status) => Outgoing::error(status),
    }
}
