//! File data: lets an operation in through the machine, runs it on the shards, tells the namespace, answers when durable.
//!
//! Owns the order of these steps and that each happens exactly once. Must not know leases (the machine does) nor where a
//! shard is (the store does).
//!
//! A chunk write is stored with its request in the shard's log record, so a repeat has no second effect. An append
//! decides its offset here; a repeat finds it again from what the shards have stored: the piece in the last chunk is
//! written first, so its stored length tells where the append began.

mod seek;

use crate::admission::Inside;
use crate::meta::{Meta, lazy_status, split, wall};
use crate::naming::Naming;
use crate::room::with_room;
use crate::store::StoreError;
use chunkstore::{BlockDevice, Class, Stamp, WriteOutcome};
use hugepages::{Buf, Bytes};
use namespace::Replayed;
use namespace::dirty::{LazyError, Wrote};
use namespace::leases::Access;
use namespace::machine::{Admitted, DataOp, OpId, Part};
use reactor::sync::Notify;
use rustc_hash::FxHashMap;
use smallvec::{SmallVec, smallvec};
use std::cell::RefCell;
use std::rc::Rc;
use wire::message as m;
use wire::{
    Attr, Body, BodyBuf, CHUNK_SIZE, ChunkKey, ClientId, Errno, Flags, Grant, Header, Ino, ObjectId,
    RequestId, Slot, Status, shard_of,
};

/// Bytes that one CopyRange moves at most; the client asks again for the rest, so that its deadline is met.
const COPY_MAX: u64 = 16 << 20;
/// Largest file, as the namespace has it.
const FILE_MAX: u64 = namespace::limits::FILE_MAX;
/// fallocate(2): the size stays.
const KEEP_SIZE: u32 = 1;
/// fallocate(2): make a hole; comes with [`KEEP_SIZE`].
const PUNCH_HOLE: u32 = 2;
/// fallocate(2): zeros with blocks behind them.
const ZERO_RANGE: u32 = 16;
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

/// The last data request of a slot, as long as this daemon lives.
#[derive(Clone, Copy, Debug)]
struct Last {
    sequence: u64,
    /// Its effect is complete and counted.
    done: bool,
    /// Where an append began; how much was copied.
    offset: u64,
}

struct Inner<D: BlockDevice> {
    meta: Meta<D>,
    last: RefCell<FxHashMap<(ClientId, Slot), Last>>,
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
    pub(crate) fn new(meta: Meta<D>) -> Self {
        let mut zeros = Buf::heap(CHUNK_SIZE as usize);
        zeros.fill(0);
        let naming = Naming::new(meta.applying.clone());
        let zeros = zeros.freeze();
        Self(Rc::new(Inner { meta, last: RefCell::default(), ended: Notify::new(), zeros, naming }))
    }

    fn meta(&self) -> &Meta<D> {
        &self.0.meta
    }

    /// Forgets the slots of a client that is gone.
    pub(crate) fn forget(&self, client: ClientId) {
        self.0.last.borrow_mut().retain(|(c, _), _| *c != client);
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
        let exists = self.meta().ns(|ns, _| ns.has_chunk(ino, key.index)).await;
        if exists.map_err(|e| lazy_status(&e))? {
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

    /// Takes the slot for a request: waits for an earlier run of the same one, tells whether it was completed.
    async fn begin(&self, header: &Header) -> Result<(Option<Last>, Ending<D>), Status> {
        let at = (header.client, header.slot);
        if header.slot == Slot::IDEMPOTENT {
            return Err(Status::Malformed);
        }
        loop {
            let ended = self.0.ended.notified();
            let found = self.0.last.borrow().get(&at).copied();
            match found {
                Some(l) if l.sequence > header.sequence => return Err(Status::BadSequence),
                Some(l) if !l.done => ended.await,
                Some(l) if l.sequence == header.sequence => {
                    return Ok((Some(l), Ending { data: self.clone(), at }));
                }
                _ => break,
            }
        }
        let request = header.id();
        let stray = self.meta().machine_mut(|m| {
            let stray = m.namespace().replayed(request) == Replayed::Bad;
            if !stray {
                m.namespace().slot_used(request);
            }
            stray
        });
        if stray {
            return Err(Status::BadSequence);
        }
        let last = Last { sequence: header.sequence, done: false, offset: u64::MAX };
        self.0.last.borrow_mut().insert(at, last);
        Ok((None, Ending { data: self.clone(), at }))
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
        let (before, ending) = self.begin(header).await?;
        if before.is_some() {
            let (attr, grant) = self.repeated(header, r.ino).await?;
            return Ok(DataReply::new(&m::Written { attr, grant }));
        }
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
        let end = u64::from(r.key.index) * CHUNK_SIZE + u64::from(r.offset) + len;
        let piece = Piece { ino: r.ino, object: r.key.object, index: r.key.index, end, kill };
        let stamp = stamp(Some(header));
        let (attr, seq) = self.write_piece(&piece, r.offset, data, stamp).await?;
        self.settle(r.ino, seq, r.flags.has(m::WriteFlags::SYNC)).await?;
        ending.done(0);
        Ok(DataReply::new(&m::Written { attr, grant }))
    }

    /// A request that was completed is asked again because its answer was lost: what the file is now, nothing done. Others
    /// may have changed the file since.
    async fn repeated(&self, header: &Header, ino: Ino) -> Result<(Attr, Grant), Status> {
        let part = Part { ino, access: Access::Read, object: None, alone: false, cache: false };
        let (admitted, _inside) = self.admit(header, smallvec![part]).await?;
        self.durable(admitted.depends_on).await?;
        one(&admitted)
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
        let mark = self.mark(piece.ino, piece.object).await?;
        // A start finds what a shard has of a file only where the file is marked.
        self.durable(mark).await?;
        let store = &self.meta().store;
        let write = async || store.write(key, offset, data.clone(), stamp).await;
        let outcome = with_room(self.meta(), write).await;
        let outcome = outcome.map_err(|e| self.bad(piece.ino, key, &e))?;
        let (attr, seq) = self.wrote(piece, &outcome).await?;
        Ok((attr, seq.max(mark)))
    }

    async fn mark(&self, ino: Ino, object: ObjectId) -> Result<u64, Status> {
        let prepared = self.meta().ns(|ns, log| {
            let updated = ns.prepare_write(ino, object)?;
            log.extend(updated.record);
            Ok(updated.depends_on)
        });
        prepared.await.map_err(|e| lazy_status(&e))
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
            if let Err(e) = self.meta().store.delete(key, stamp(None)).await {
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

    /// Writes at the end of the file.
    pub(crate) async fn append(
        &self,
        header: &Header,
        r: &m::Append,
        data: Bytes,
    ) -> Result<DataReply, Status> {
        if data.is_empty() {
            return Err(Status::Malformed);
        }
        let (before, ending) = self.begin(header).await?;
        if let Some(Last { offset, .. }) = before {
            let (attr, grant) = self.repeated(header, r.ino).await?;
            return Ok(DataReply::new(&m::Appended { offset, attr, grant }));
        }
        let part = Part { ino: r.ino, access: Access::Modify, object: None, alone: true, cache: false };
        let (admitted, _inside) = self.admit(header, smallvec![part]).await?;
        let (attr, grant) = one(&admitted)?;
        let offset = self.append_offset(header, &attr, data.len() as u64).await?;
        let end = offset.checked_add(data.len() as u64).filter(|e| *e <= FILE_MAX);
        let end = end.ok_or(Status::Errno(Errno::EFBIG))?;
        let kill = r.flags.has(m::WriteFlags::KILL_SUIDGID);
        let (object, stamp) = (attr.object(), stamp(Some(header)));
        let (index, at) = split(offset);
        let first = data.len().min((CHUNK_SIZE - u64::from(at)) as usize);
        let mut last = (attr, 0);
        if first < data.len() {
            let piece = Piece { ino: r.ino, object, index: index + 1, end, kill };
            last = self.write_piece(&piece, 0, data.slice(first..), stamp).await?;
        }
        let piece = Piece { ino: r.ino, object, index, end: end.min(offset + first as u64), kill };
        let (attr, seq) = self.write_piece(&piece, at, data.slice(..first), stamp).await?;
        self.settle(r.ino, seq.max(last.1), r.flags.has(m::WriteFlags::SYNC)).await?;
        ending.done(offset);
        Ok(DataReply::new(&m::Appended { offset, attr, grant }))
    }

    /// Where an append begins: at the end, or where a run of it before a restart began.
    async fn append_offset(&self, header: &Header, attr: &Attr, len: u64) -> Result<u64, Status> {
        let size = attr.size.get();
        let RequestId { client, slot, sequence } = header.id();
        let store = &self.meta().store;
        let mut found: Option<(u64, u64)> = None;
        for shard in 0..store.shards() {
            let last = store.last_request(shard, client.0, slot.0).await;
            let last = last.map_err(|e| Status::Errno(e.errno))?;
            let Some((_, outcome)) = last.filter(|(seq, _)| *seq == sequence) else { continue };
            let Some(outcome) = WriteOutcome::decode(&outcome) else { continue };
            let length = u64::from(outcome.length);
            let newest = size.saturating_sub(1) / CHUNK_SIZE;
            let index =
                (0..u64::from(store.shards())).filter_map(|back| newest.checked_sub(back)).find(|i| {
                    shard_of(ChunkKey { object: attr.object(), index: *i as u32 }, store.shards()).0 == shard
                });
            let Some(index) = index else { continue };
            // The later chunk tells: of a split append its length is what went there.
            if found.is_none_or(|(i, _)| index > i) {
                found = Some((index, index * CHUNK_SIZE + length));
            }
        }
        Ok(found.and_then(|(_, end)| end.checked_sub(len)).unwrap_or(size))
    }

    /// fallocate(2).
    pub(crate) async fn fallocate(&self, header: &Header, r: &m::Fallocate) -> Result<DataReply, Status> {
        let end =
            r.offset.checked_add(r.len).filter(|e| *e <= FILE_MAX).ok_or(Status::Errno(Errno::EFBIG))?;
        let punch = match r.mode {
            0 | KEEP_SIZE => false,
            m if m == PUNCH_HOLE | KEEP_SIZE => true,
            m if m & !KEEP_SIZE == ZERO_RANGE => false,
            _ => return Err(Status::Errno(Errno::EOPNOTSUPP)),
        };
        if r.len == 0 {
            return Err(Status::Errno(Errno::EINVAL));
        }
        let (before, ending) = self.begin(header).await?;
        if before.is_some() {
            let (attr, grant) = self.repeated(header, r.ino).await?;
            return Ok(DataReply::new(&m::AttrReply { attr, grant }));
        }
        let part = Part { ino: r.ino, access: Access::Modify, object: None, alone: true, cache: false };
        let (admitted, _inside) = self.admit(header, smallvec![part]).await?;
        let (mut attr, grant) = one(&admitted)?;
        let object = attr.object();
        let mut seq = self.mark(r.ino, object).await?;
        let mut at = r.offset;
        while at < end {
            if punch {
                let next = self.next_chunk(r.ino, split(at).0).await?;
                let Some(next) = next.filter(|n| u64::from(*n) * CHUNK_SIZE < end) else { break };
                at = at.max(u64::from(next) * CHUNK_SIZE);
            }
            let (index, offset) = split(at);
            let len = (CHUNK_SIZE - u64::from(offset)).min(end - at);
            let key = ChunkKey { object, index };
            at += len;
            // Others have their turn: a call may mean millions of chunks.
            reactor::yield_now().await;
            let grown = if r.mode & KEEP_SIZE == 0 { at } else { 0 };
            let min_length = if grown > 0 { offset + len as u32 } else { 0 };
            let stamp = Stamp { min_length, ..stamp(None) };
            let store = &self.meta().store;
            let change = async || match r.mode & !KEEP_SIZE {
                PUNCH_HOLE => store.punch(key, offset, len as u32, stamp).await,
                ZERO_RANGE => store.zero(key, offset, len as u32, stamp).await,
                _ => store.preallocate(key, offset, len as u32, stamp).await,
            };
            let outcome = with_room(self.meta(), change).await;
            let outcome = outcome.map_err(|e| self.bad(r.ino, key, &e))?;
            let piece = Piece { ino: r.ino, object, index, end: grown, kill: false };
            let (new, dep) = self.wrote(&piece, &outcome).await?;
            (attr, seq) = (new, seq.max(dep));
        }
        self.durable(seq).await?;
        ending.done(0);
        Ok(DataReply::new(&m::AttrReply { attr, grant }))
    }

    async fn next_chunk(&self, ino: Ino, from: u32) -> Result<Option<u32>, Status> {
        self.meta().ns(|ns, _| ns.next_chunk(ino, from)).await.map_err(|e| lazy_status(&e))
    }

    async fn has_chunk(&self, ino: Ino, index: u32) -> Result<bool, Status> {
        self.meta().ns(|ns, _| ns.has_chunk(ino, index)).await.map_err(|e| lazy_status(&e))
    }

    /// copy_file_range(2), within the server.
    pub(crate) async fn copy(&self, header: &Header, r: &m::CopyRange) -> Result<DataReply, Status> {
        let (before, ending) = self.begin(header).await?;
        if let Some(Last { offset: len, .. }) = before {
            let (attr, grant) = self.repeated(header, r.dst).await?;
            return Ok(DataReply::new(&m::Copied { len, attr, grant }));
        }
        let part = |ino, access, alone| Part { ino, access, object: None, alone, cache: false };
        let parts = if r.src == r.dst {
            smallvec![part(r.dst, Access::Modify, true)]
        } else {
            smallvec![part(r.dst, Access::Modify, true), part(r.src, Access::Read, false)]
        };
        let (admitted, _inside) = self.admit(header, parts).await?;
        let (mut attr, grant) = one(&admitted)?;
        let src = *admitted.attrs.last().ok_or(Status::Errno(Errno::EIO))?;
        let len = r.len.min(src.size.get().saturating_sub(r.src_offset)).min(COPY_MAX);
        let end = r.dst_offset.checked_add(len).filter(|e| *e <= FILE_MAX);
        end.ok_or(Status::Errno(Errno::EFBIG))?;
        let overlap = r.src_offset < r.dst_offset + len && r.dst_offset < r.src_offset + len;
        if r.src == r.dst && overlap && len > 0 {
            return Err(Status::Errno(Errno::EINVAL));
        }
        let (mut done, mut seq) = (0, admitted.depends_on);
        while done < len {
            let (src_index, src_at) = split(r.src_offset + done);
            let (index, at) = split(r.dst_offset + done);
            let room = CHUNK_SIZE - u64::from(src_at.max(at));
            let n = room.min(len - done);
            let from = ChunkKey { object: src.object(), index: src_index };
            let pieces = self.read_range(r.src, from, src_at, n as u32).await?;
            let object = attr.object();
            let piece = Piece { ino: r.dst, object, index, end: r.dst_offset + done + n, kill: false };
            let (new, dep) = self.write_piece(&piece, at, joined(pieces), stamp(None)).await?;
            (attr, seq, done) = (new, seq.max(dep), done + n);
        }
        self.durable(seq).await?;
        ending.done(len);
        Ok(DataReply::new(&m::Copied { len, attr, grant }))
    }
}

/// Marks the slot's request as completed, or forgets it where it failed.
struct Ending<D: BlockDevice> {
    data: Data<D>,
    at: (ClientId, Slot),
}

impl<D: BlockDevice> Ending<D> {
    fn done(self, offset: u64) {
        if let Some(l) = self.data.0.last.borrow_mut().get_mut(&self.at) {
            l.done = true;
            l.offset = offset.min(l.offset);
        }
    }
}

impl<D: BlockDevice> Drop for Ending<D> {
    fn drop(&mut self) {
        let mut last = self.data.0.last.borrow_mut();
        if last.get(&self.at).is_some_and(|l| !l.done) {
            last.remove(&self.at);
        }
        drop(last);
        self.data.0.ended.notify_all();
    }
}

fn one(admitted: &Admitted) -> Result<(Attr, Grant), Status> {
    match (admitted.attrs.first(), admitted.grants.first()) {
        (Some(attr), Some(grant)) => Ok((*attr, *grant)),
        _ => Err(Status::Errno(Errno::EIO)),
    }
}

fn stamp(header: Option<&Header>) -> Stamp {
    let request =
        header.map(|h| chunkstore::RequestId { client: h.client.0, channel: h.slot.0, sequence: h.sequence });
    let time = u64::try_from(wall().nanos()).unwrap_or_default();
    Stamp { time, request, class: Class::User, min_length: 0 }
}

/// Pieces as one buffer: as it is where there is only one.
fn joined(mut pieces: SmallVec<[Bytes; 2]>) -> Bytes {
    if pieces.len() == 1
        && let Some(only) = pieces.pop()
    {
        return only;
    }
    let mut whole = Buf::heap(pieces.iter().map(Bytes::len).sum());
    let mut at = 0;
    for p in &pieces {
        whole[at..at + p.len()].copy_from_slice(p);
        at += p.len();
    }
    whole.freeze()
}
