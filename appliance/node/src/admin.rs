//! What an operator asks: status, devices, scrub, growing.
//!
//! Owns the reports. Must not change anything but by the calls that the chunk store offers for it.

use crate::meta::Meta;
use crate::naming::Naming;
use crate::reserve::Reservation;
use crate::scrub::Scrubber;
use crate::server::OpStats;
use crate::volume::Counters;
use chunkstore::{BLOCK_BYTES, BlockDevice, Device, DeviceStats, ShardStats, SpaceStats};
use reactor::sync::Event;
use rustc_hash::FxHashMap;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;
use transport::Peer;
use wire::message::Scrub;
use wire::{Errno, Opcode, Status};

struct Inner<D: BlockDevice> {
    meta: Meta<D>,
    device: Rc<Device<D>>,
    path: String,
    cores: u16,
    volume: Rc<Counters>,
    started: Instant,
    peers: RefCell<FxHashMap<u64, String>>,
    scrub: Scrubber<D>,
    reservation: Reservation,
}

/// See the module; clones are cheap.
pub(crate) struct Admin<D: BlockDevice>(Rc<Inner<D>>);

impl<D: BlockDevice> Clone for Admin<D> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

/// What a node is made of, for its reports.
pub(crate) struct Parts<D: BlockDevice> {
    pub(crate) meta: Meta<D>,
    pub(crate) device: Rc<Device<D>>,
    pub(crate) path: String,
    pub(crate) cores: u16,
    pub(crate) volume: Rc<Counters>,
    pub(crate) started: Instant,
}

/// Where the bytes of a device are; the parts make up its capacity.
fn space(d: &DeviceStats, shards: &[ShardStats]) -> Value {
    let mut all = SpaceStats::default();
    shards.iter().for_each(|s| all.add(&s.space));
    let bytes = |blocks: u64| blocks * BLOCK_BYTES;
    let (own, system) = (bytes(all.free[0]), bytes(all.free[1]));
    json!({ "data": bytes(all.data), "namespace": bytes(all.system), "metadata": bytes(all.metadata),
        "log": d.capacity.saturating_sub(d.zone_bytes), "reclaiming": bytes(all.waiting),
        "free": d.user_free_bytes + own,
        "reserve": d.free_bytes.saturating_sub(d.user_free_bytes) + system })
}

impl<D: BlockDevice> Admin<D> {
    pub(crate) fn new(p: Parts<D>) -> Self {
        let (store, naming) = (p.meta.store.clone(), Naming::new(p.meta.applying.clone()));
        Self(Rc::new(Inner {
            meta: p.meta,
            device: p.device,
            path: p.path,
            cores: p.cores,
            volume: p.volume,
            started: p.started,
            peers: RefCell::default(),
            scrub: Scrubber::new(store, naming),
            reservation: Reservation::default(),
        }))
    }

    pub(crate) fn connected(&self, peer: &Peer) {
        let line = format!("{} ({:?})", peer.address(), peer.identity().role);
        self.0.peers.borrow_mut().insert(peer.id(), line);
    }

    pub(crate) fn disconnected(&self, peer: &Peer) {
        self.0.peers.borrow_mut().remove(&peer.id());
    }

    /// The state of the node in one word, and why.
    fn state(&self) -> (&'static str, Option<String>) {
        if let Some(why) = self.0.meta.failed() {
            return ("read-only", Some(why));
        }
        if self.0.device.stats().failed {
            return ("read-only", Some("flushing the device failed".to_owned()));
        }
        let damage = self.0.meta.machine(|m| m.view().damage().first().map(ToString::to_string));
        if let Some(why) = damage {
            return ("read-only", Some(why));
        }
        if self.0.meta.machine(|m| m.sessions().in_grace()) { ("grace", None) } else { ("active", None) }
    }

    pub(crate) async fn status(&self, ops: Vec<(Opcode, OpStats)>, running: usize) -> Value {
        let (state, why) = self.state();
        let us = |d: std::time::Duration| d.as_nanos() as f64 / 1000.0;
        let ops: serde_json::Map<String, Value> = ops
            .into_iter()
            .map(|(op, s)| {
                let l = &s.latency;
                let value = json!({
                    "count": l.count(), "errors": s.errors, "p50_us": us(l.quantile(0.5)),
                    "p99_us": us(l.quantile(0.99)), "p999_us": us(l.quantile(0.999)), "max_us": us(l.max()),
                });
                (op.name().to_owned(), value)
            })
            .collect();
        let peers: Vec<String> = self.0.peers.borrow().values().cloned().collect();
        let ring = reactor::stats();
        let log = self.0.meta.log.stats();
        let mut out = self.0.meta.machine(|m| {
            let (leases, ns) = (m.leases().stats(), m.view().stats());
            let machine = m.stats();
            json!({
                "state": state, "reason": why, "version": env!("CARGO_PKG_VERSION"),
                "uptime_s": reactor::now().duration_since(self.0.started).as_secs(),
                "boot_epoch": m.boot_epoch(), "requests_running": running,
                "sessions": { "open": m.sessions().len(), "opens": m.sessions().opens(), "fenced": machine.fenced,
                    "in_grace": m.sessions().in_grace() },
                "leases": { "held": m.leases().held(), "recalling": m.leases().recalling(),
                    "waiting": m.leases().waiting(), "granted": leases.granted, "recalled": leases.recalled,
                    "evicted": leases.evicted, "fenced": leases.fenced },
                "locks": { "held": m.locks().held(), "waiting": m.locks().waiting() },
                "namespace": { "inodes": ns.inodes, "dirty": ns.dirty, "cache_bytes": ns.cache_bytes,
                    "unapplied_records": ns.pressure.records, "unapplied_bytes": ns.pressure.bytes,
                    "fetches": machine.fetches, "replayed": machine.replayed, "busy": machine.busy,
                    "damaged_rows": m.view().damage().len() },
            })
        });
        out["connections"] = json!(peers);
        out["cores"] = json!({ "count": self.0.cores, "core0": { "iterations": ring.iterations,
            "submissions": ring.submissions, "sleeps": ring.sleeps, "spins": ring.spins,
            "fixed_buffers": ring.fixed_buffers } });
        out["log"] = json!({ "completed": log.completed, "flushed": log.flushed, "used_blocks": log.used_blocks,
            "ring_blocks": log.ring_blocks, "groups": log.groups });
        let free = self.0.meta.free_stats.get();
        out["free_list"] =
            json!({ "entries": free.entries, "failures": free.failures, "passes": free.passes });
        let (volume, rows) = self.0.meta.applying.size();
        out["database"] = json!({ "volume_bytes": volume, "row_bytes": rows });
        out["applier_failures"] = json!(self.0.meta.applying.failing());
        out["operations"] = Value::Object(ops);
        out["device"] = self.devices().await;
        out
    }

    pub(crate) async fn devices(&self) -> Value {
        let d = self.0.device.stats();
        let stats = self.0.meta.store.stats().await;
        let space = space(&d, &stats);
        let shards = stats.into_iter().map(|s| {
            json!({ "shard": s.shard, "chunks": s.chunks, "used_blocks": s.used_blocks,
                "free_blocks": s.free_blocks[0], "reads": s.reads[0], "writes": s.writes[0],
                "checkpoints": s.checkpoints[0], "leaf_hits": s.leaf_hits, "leaf_loads": s.leaf_loads,
                "read_only": s.read_only })
        });
        let volume = &self.0.volume;
        json!([{ "path": self.0.path, "capacity": d.capacity, "free_bytes": d.free_bytes,
            "user_free_bytes": d.user_free_bytes, "space": space, "metadata_repaired": d.repaired + volume.repaired.get(),
            "volume_lost": volume.lost.get(), "volume_resynced": volume.resynced.get(),
            "reserved_bytes": self.0.device.below().reserved().ok().flatten(),
            "preallocation": self.0.reservation.report(),
            "bad_blocks": d.bad_blocks, "unflushed_bytes": d.unflushed_bytes, "failed": d.failed,
            "shards": shards.collect::<Vec<_>>() }])
    }

    fn is_own(&self, device: &[u8], done: &str) -> Result<(), Status> {
        if device == self.0.path.as_bytes() {
            return Ok(());
        }
        let device = device.escape_ascii();
        tracing::warn!(%device, own = self.0.path, "no such device here, so it is not {done}");
        Err(Status::Errno(Errno::ENODEV))
    }

    /// Reserves the whole device below; ends when that is done or nobody waits for it any more. As [`Admin::grow`]
    /// where `device` is another's.
    pub(crate) async fn preallocate(&self, device: &[u8], cancelled: &Event) -> Result<Value, Status> {
        self.is_own(device, "preallocated")?;
        self.0.reservation.run(self.0.device.below(), cancelled).await
    }

    /// Ends what only an operator waits for: the node stops.
    pub(crate) fn stop(&self) {
        self.0.reservation.stop();
    }

    /// ENODEV where `device` is not the path of this node's device.
    pub(crate) async fn grow(&self, device: &[u8]) -> Result<Value, Status> {
        self.is_own(device, "grown")?;
        match self.0.device.grow().await {
            Ok(capacity) => Ok(json!({ "capacity": capacity })),
            Err(e) => {
                tracing::warn!(error = %e, "growing the device was refused");
                Err(Status::Errno(Errno::EINVAL))
            }
        }
    }

    pub(crate) fn scrub(&self, r: &Scrub) -> Result<Value, Status> {
        self.0.scrub.ask(r)
    }
}
