//! File data: lets an operation in through the machine, runs it on the shards, tells the namespace, answers when durable.
//!
//! Owns the order of these steps and that each happens exactly once. Must not know leases (the machine does) nor where a
//! shard is (the store does).
//!
//! A chunk write is stored with its request in the shard's log record, so a repeat has no second effect; see [`once`].

mod append;
mod once;
mod ranges;
mod seek;

use crate::admission::Inside;
use crate::meta::{Meta, lazy_status, split, wall};
use crate::naming::Naming;
use crate::room::with_room;
use crate::store::StoreError;
use chunkstore::{BlockDevice, Class, Device, Stamp, WriteOutcome};
use hugepages::{Buf, Bytes};
use namespace::Replayed;
use namespace::dirty::{LazyError, Wrote};
use namespace::leases::Access;
use namespace::machine::{Admitted, DataOp, OpId, Part};
use once::{Begun, Kept, stamp_of};
use reactor::sync::Notify;
use rustc_hash::FxHashMap;
use smallvec::{SmallVec, smallvec};
use std::cell::RefCell;
use std::rc::Rc;
use wire::message as m;
use wire::{
    Attr, Body, BodyBuf, CHUNK_SIZE, ChunkKey, ClientId, Errno, Flags, Grant, Header, Ino, ObjectId, Slot,
    Status, shard_of,
};

/// Largest file, as the namespace has it.
const FILE_MAX: u64 = namespace::limits::FILE_MAX;
/// Units of `Attr::blocks` in a block of the store.
const UNITS: i64 = 8;

/// An answer with file data.
pub(crate) struct DataReply {
    pub(crate) status: Status,
    pub(crate) body: BodyBuf,
    pub(crate) payload: SmallVec<[Bytes; 2]>,
}

impl DataReply {
    fn new<'a>(body: &impl Body<'a>) -> Self {
        let mut out = BodyBuf::new();
        body.encode(&mut out);
        Self { status: Status::Ok, body: out, payload: SmallVec::new() }
    }

    pub(crate) fn status(status: Status) -> Self {
        Self { status, body: BodyBuf::new(), payload: SmallVec::new() }
    }
}

struct Inner<D: BlockDevice> {
    meta: Meta<D>,
    device: Rc<Device<D>>,
    last: RefCell<FxHashMap<(ClientId, Slot), once::Last>>,
    ended: Notify,
    zeros: Bytes,
    naming: Naming,
}

/// Runs data operations; clones are cheap.
pub(crate) struct Data<D: BlockDevice>(Rc<Inner<D>>);

impl<D: BlockDevice> Clone for Data<D> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

/// What has to be told of one written piece.
struct Piece {
    ino: Ino,
    object: ObjectId,
    index: u32,
    end: u64,
    kill: bool,
}

impl<D: BlockDevice> Data<D> {
    pub(crate) fn new(meta: Meta<D>, device: Rc<Device<D>>) -> Self {
        let mut zeros = Buf::heap(CHUNK_SIZE as usize);
        zeros.fill(0);
        let naming = Naming::new(meta.applying.clone());
        let (last, ended, zeros) = (RefCell::default(), Notify::new(), zeros.freeze());
        Self(Rc::new(Inner { meta, device, last, ended, zeros, naming }))
    }

    fn meta(&self) -> &Meta<D> {
        &self.0.meta
    }

    async fn admit(
        &self,
        header: &Header,
        parts: SmallVec<[Part; 2]>,
    ) -> Result<(Admitted, Inside<D>), Status> {
        self.meta().admit(DataOp { id: OpId(0), request: header.id(), parts }).await
    }

    /// Reads within a chunk.
    pub(crate) async fn read(&self, header: &Header, r: &m::ChunkRead) -> Result<DataReply, Status> {
        let cache = header.flags.has(Flags::NEED_LEASE);
        let part = Part { ino: r.ino, access: Access::Read, object: Some(r.key.object), alone: false, cache };
        let (admitted, _inside) = self.admit(header, smallvec![part]).await?;
        let (attr, grant) = one(&admitted)?;
        let start = u64::from(r.key.index) * CHUNK_SIZE + u64::from(r.offset);
        let len = u64::from(r.len).min(attr.size.get().saturating_sub(start)) as u32;
        let payload = self.read_range(r.ino, r.key, r.offset, len).await?;
        if !r.flags.has(m::ReadFlags::NOATIME) && len > 0 {
            self.touch(r.ino).await;
        }
        self.durable(admitted.depends_on).await?;
        let mut reply = DataReply::new(&m::ReadReply { size: attr.size.get(), grant });
        reply.payload = payload;
        Ok(reply)
    }

    async fn touch(&self, ino: Ino) {
        let time = wall();
        // Losing an access time is no reason to fail a read.
        let _ = self.meta().ns(|ns, _| ns.accessed(ino, time)).await;
    }

    async fn read_range(
        &self,
        ino: Ino,
        key: ChunkKey,
        offset: u32,
        len: u32,
    ) -> Result<SmallVec<[Bytes; 2]>, Status> {
        if len == 0 {
            return Ok(SmallVec::new());
        }
        let read = self.meta().store.read(key, offset, len).await.map_err(|e| self.bad(ino, key, &e))?;
        if read.exists {
            return Ok(read.pieces);
        }
        // Where the body is no longer the file's, its chunks may just have been deleted: they are no holes.
        let exists = self.meta().ns(|ns, _| {
            ns.attr_of(ino, key.object)?;
            ns.has_chunk(ino, key.index)
        });
        if exists.await.map_err(|e| lazy_status(&e))? {
            let path = self.0.naming.of(ino.0);
            tracing::error!(
                ino = ino.0,
                object = key.object.0,
                chunk = key.index,
                path,
                "a chunk of this file is lost"
            );
            return Err(Status::Errno(Errno::EIO));
        }
        Ok(smallvec![self.0.zeros.slice(..len as usize)])
    }

    /// Logs what a shard says about a file's chunk.
    fn bad(&self, ino: Ino, key: ChunkKey, e: &StoreError) -> Status {
        if e.stale {
            return Status::BadSequence;
        }
        if e.errno != Errno::ENOSPC {
            let path = self.0.naming.of(ino.0);
            let (ino, object, chunk) = (ino.0, key.object.0, key.index);
            tracing::error!(ino, object, chunk, path, error = %e, "file data failed");
        }
        Status::Errno(e.errno)
    }

    /// Writes within a chunk.
    pub(crate) async fn write(
        &self,
        header: &Header,
        r: &m::ChunkWrite,
        data: Bytes,
    ) -> Result<DataReply, Status> {
        let len = data.len() as u64;
        if len == 0 || u64::from(r.offset) + len > CHUNK_SIZE {
            return Err(Status::Malformed);
        }
        let (attr, grant) = match self.begin(header).await? {
            Begun::Repeat(kept) => {
                kept?;
                self.as_it_is(header, r.ino).await?
            }
            Begun::Run { ending, first } => {
                let result = if first && self.was_written(header, r.key).await? {
                    self.repeated_write(header, r.ino, r.flags).await
                } else {
                    self.write_now(header, r, data).await
                };
                ending.end(result.map(|_| Kept::default()));
                result?
            }
        };
        Ok(DataReply::new(&m::Written { attr, grant }))
    }

    async fn write_now(
        &self,
        header: &Header,
        r: &m::ChunkWrite,
        data: Bytes,
    ) -> Result<(Attr, Grant), Status> {
        let part = Part {
            ino: r.ino,
            access: Access::Modify,
            object: Some(r.key.object),
            alone: false,
            cache: false,
        };
        let (admitted, _inside) = self.admit(header, smallvec![part]).await?;
        let (_, grant) = one(&admitted)?;
        let kill = r.flags.has(m::WriteFlags::KILL_SUIDGID);
        let end = u64::from(r.key.index) * CHUNK_SIZE + u64::from(r.offset) + data.len() as u64;
        let piece = Piece { ino: r.ino, object: r.key.object, index: r.key.index, end, kill };
        let (attr, seq) = self.write_piece(&piece, r.offset, data, stamp_of(header)).await?;
        self.settle(r.ino, seq, r.flags.has(m::WriteFlags::SYNC)).await?;
        Ok((attr, grant))
    }

    /// An earlier life of the daemon has written the bytes, and this one has found them at its start. What else was asked for may
    /// be missing yet.
    async fn repeated_write(
        &self,
        header: &Header,
        ino: Ino,
        flags: m::WriteFlags,
    ) -> Result<(Attr, Grant), Status> {
        let mut seq = 0;
        if flags.has(m::WriteFlags::KILL_SUIDGID) {
            let part = Part { ino, access: Access::Modify, object: None, alone: false, cache: false };
            let (_, _inside) = self.admit(header, smallvec![part]).await?;
            let time = wall();
            let dropped = self.meta().ns(|ns, log| {
                log.extend(ns.drop_privileges(ino, time)?);
                Ok(ns.last_seq())
            });
            seq = dropped.await.map_err(|e| lazy_status(&e))?;
        }
        self.settle(ino, seq, flags.has(m::WriteFlags::SYNC)).await?;
        self.as_it_is(header, ino).await
    }

    /// Mark, shard, namespace. Gives the attributes and the record that the answer waits for.
    async fn write_piece(
        &self,
        piece: &Piece,
        offset: u32,
        data: Bytes,
        stamp: Stamp,
    ) -> Result<(Attr, u64), Status> {
        let key = ChunkKey { object: piece.object, index: piece.index };
        let marked = self.mark(piece.ino, piece.object).await?;
        // A start finds what a shard has of a file only where the file is marked.
        self.durable(marked.seq).await?;
        let store = &self.meta().store;
        let write = async || store.write(key, offset, data.clone(), stamp).await;
        let outcome = with_room(self.meta(), write).await;
        let outcome = outcome.map_err(|e| self.bad(piece.ino, key, &e))?;
        if outcome.repeated {
            return Ok((marked.attr, marked.seq));
        }
        let (attr, seq) = self.wrote(piece, &outcome).await?;
        Ok((attr, seq.max(marked.seq)))
    }

    async fn mark(&self, ino: Ino, object: ObjectId) -> Result<Marked<D>, Status> {
        let prepared = self.meta().ns(|ns, log| {
            let updated = ns.prepare_write(ino, object)?;
            log.extend(updated.record);
            Ok((updated.attr, updated.depends_on))
        });
        let (attr, seq) = prepared.await.map_err(|e| lazy_status(&e))?;
        Ok(Marked { meta: self.meta().clone(), ino, attr, seq })
    }

    async fn wrote(&self, piece: &Piece, outcome: &WriteOutcome) -> Result<(Attr, u64), Status> {
        let wrote = Wrote {
            ino: piece.ino,
            object: piece.object,
            index: piece.index,
            end: piece.end,
            blocks_delta: i64::from(outcome.blocks_delta) * UNITS,
            time: wall(),
            kill_suidgid: piece.kill,
        };
        let result = self.meta().ns(|ns, log| {
            let updated = ns.wrote(&wrote)?;
            log.extend(updated.record);
            Ok((updated.attr, updated.depends_on))
        });
        let result = result.await;
        if matches!(result, Err(LazyError::StaleObject)) && outcome.created {
            // The file went away meanwhile: nobody else will ever name this chunk.
            let key = ChunkKey { object: piece.object, index: piece.index };
            if let Err(e) = self.meta().store.delete(key, once::stamp()).await {
                tracing::warn!(error = %e, "a chunk of a deleted file stays behind until the next fsck");
            }
        }
        result.map_err(|e| lazy_status(&e))
    }

    /// Waits until an answer may leave.
    async fn settle(&self, ino: Ino, seq: u64, sync: bool) -> Result<(), Status> {
        if sync {
            return self.commit(ino).await;
        }
        self.durable(seq).await
    }

    async fn durable(&self, seq: u64) -> Result<(), Status> {
        self.meta().durable(seq).await.map_err(Status::Errno)
    }

    /// Makes an inode's data and attributes durable; inode 0 is all of them.
    pub(crate) async fn commit(&self, ino: Ino) -> Result<(), Status> {
        let last = self.meta().ns(|ns, log| {
            if ino.0 == 0 {
                log.extend(ns.commit_all_dirty());
            } else {
                log.extend(ns.commit_dirty(ino));
            }
            Ok(ns.last_seq())
        });
        let last = last.await.map_err(|e| lazy_status(&e))?;
        self.durable(last).await?;
        self.meta().log.flush().await.map_err(|e| {
            tracing::error!(error = %e, "flushing the device failed");
            Status::Errno(Errno::EIO)
        })
    }

    async fn next_chunk(&self, ino: Ino, from: u32) -> Result<Option<u32>, Status> {
        self.meta().ns(|ns, _| ns.next_chunk(ino, from)).await.map_err(|e| lazy_status(&e))
    }

    async fn has_chunk(&self, ino: Ino, index: u32) -> Result<bool, Status> {
        self.meta().ns(|ns, _| ns.has_chunk(ino, index)).await.map_err(|e| lazy_status(&e))
    }
}

/// A file whose data is being written: it stays marked in the log, so that a start looks at what the shards have of it.
struct Marked<D: BlockDevice> {
    meta: Meta<D>,
    ino: Ino,
    attr: Attr,
    /// The record of the mark.
    seq: u64,
}

impl<D: BlockDevice> Drop for Marked<D> {
    fn drop(&mut self) {
        self.meta.machine_mut(|m| m.namespace().write_ended(self.ino));
    }
}

fn one(admitted: &Admitted) -> Result<(Attr, Grant), Status> {
    match (admitted.attrs.first(), admitted.grants.first()) {
        (Some(attr), Some(grant)) => Ok((*attr, *grant)),
        _ => Err(Status::Errno(Errno::EIO)),
    }
}
