//! What changes ranges of many chunks: fallocate(2) and copy_file_range(2) within the server.
//!
//! Each runs alone in the file that it changes. It is noted in the log before its first chunk is touched, and its answer in one
//! record with the attributes that it leaves, before others are let in. A start carries out what is noted, so a repeat never
//! runs over what others did.

use super::once::{Begun, Kept, stamp};
use super::*;
use namespace::intents::{Change, Intent};
use namespace::{Outcome, Reply};

/// Bytes that one CopyRange moves at most; the client asks again for the rest, so that its deadline is met.
const COPY_MAX: u64 = 16 << 20;
/// fallocate(2): the size stays.
const KEEP_SIZE: u32 = 1;
/// fallocate(2): make a hole; comes with [`KEEP_SIZE`].
const PUNCH_HOLE: u32 = 2;
/// fallocate(2): zeros with blocks behind them.
const ZERO_RANGE: u32 = 16;

impl<D: BlockDevice> Data<D> {
    /// fallocate(2).
    pub(crate) async fn fallocate(&self, header: &Header, r: &m::Fallocate) -> Result<DataReply, Status> {
        let end = r.offset.checked_add(r.len).filter(|e| *e <= FILE_MAX);
        let end = end.ok_or(Status::Errno(Errno::EFBIG))?;
        match r.mode {
            0 | KEEP_SIZE => {}
            m if m == PUNCH_HOLE | KEEP_SIZE || m & !KEEP_SIZE == ZERO_RANGE => {}
            _ => return Err(Status::Errno(Errno::EOPNOTSUPP)),
        }
        if r.len == 0 {
            return Err(Status::Errno(Errno::EINVAL));
        }
        let (attr, grant) = match self.begin(header).await? {
            Begun::Repeat(kept) => kept.map(|_| self.as_it_is(header, r.ino))?.await?,
            Begun::Run { ending, .. } => {
                let result = self.fallocate_now(header, r, end).await;
                ending.end(result.map(|_| Kept::default()));
                result?
            }
        };
        Ok(DataReply::new(&m::AttrReply { attr, grant }))
    }

    async fn fallocate_now(
        &self,
        header: &Header,
        r: &m::Fallocate,
        end: u64,
    ) -> Result<(Attr, Grant), Status> {
        let part = Part { ino: r.ino, access: Access::Modify, object: None, alone: true, cache: false };
        let (admitted, _inside) = self.admit(header, smallvec![part]).await?;
        let (attr, grant) = one(&admitted)?;
        if r.mode & PUNCH_HOLE == 0 {
            self.has_room(&attr, end - r.offset).await?;
        }
        let (ino, object, change) = (r.ino, attr.object(), Change::Allocate(r.mode));
        let intent =
            Intent { request: header.id(), ino, object, offset: r.offset, len: end - r.offset, change };
        let done = self.carry_out(&intent, attr, true).await?;
        Ok((done.attr, grant))
    }

    /// Carries a change of a range to its end: notes it if it is `new`, touches the chunks, logs the answer with what it made of
    /// the file. Nobody else may be in the file.
    async fn carry_out(&self, intent: &Intent, attr: Attr, new: bool) -> Result<Done, Status> {
        // Held to the end: the mark must not go while chunks change.
        let marked = self.mark(intent.ino, intent.object).await?;
        let mut seq = marked.seq;
        if new {
            let noted = self.meta().ns(|ns, log| {
                let record = ns.intend(*intent);
                let seq = record.seq();
                log.push(record);
                Ok(seq)
            });
            seq = noted.await.map_err(|e| lazy_status(&e))?;
        }
        let done = match self.durable(seq).await {
            Ok(()) => self.change(intent, attr).await,
            Err(status) => Err(status),
        };
        let outcome = match &done {
            Ok(done) => Ok(done.reply.clone()),
            Err(Status::Errno(e)) => Err(*e),
            Err(Status::StaleObject) => Err(Errno::ESTALE),
            Err(_) => Err(Errno::EIO),
        };
        self.answered(intent.ino, &outcome).await?;
        done
    }

    async fn change(&self, intent: &Intent, attr: Attr) -> Result<Done, Status> {
        match intent.change {
            Change::Allocate(mode) => self.allocate(intent, mode, attr).await,
            Change::Copy { .. } => self.copy_all(intent, attr).await,
        }
    }

    /// Carries out what an earlier life of the daemon has begun. Before anybody is served.
    pub(crate) async fn resume(&self) {
        for intent in self.meta().machine_mut(|m| m.namespace().intents()) {
            let (ino, offset, len) = (intent.ino.0, intent.offset, intent.len);
            match self.resume_one(&intent).await {
                Ok(()) => tracing::info!(ino, offset, len, "a change of a range is carried to its end"),
                // It stays noted where not even that could be logged; then nobody can change the file either.
                Err(status) => {
                    tracing::error!(ino, offset, len, ?status, "a change of a range can't be carried out");
                }
            }
        }
    }

    async fn resume_one(&self, intent: &Intent) -> Result<(), Status> {
        let found = self.meta().ns(|ns, _| ns.attr_of(intent.ino, intent.object)).await;
        match found {
            Ok(attr) => self.carry_out(intent, attr, false).await.map(drop),
            // Cut to nothing or removed, as if right after the change.
            Err(LazyError::StaleObject) => {
                let reply = match intent.change {
                    Change::Allocate(_) => Reply::Done,
                    Change::Copy { .. } => Reply::Count(intent.len),
                };
                self.answered(intent.ino, &Ok(reply)).await
            }
            Err(e) => Err(lazy_status(&e)),
        }
    }

    async fn allocate(&self, intent: &Intent, mode: u32, mut attr: Attr) -> Result<Done, Status> {
        let (ino, object, end) = (intent.ino, intent.object, intent.offset + intent.len);
        let mut at = intent.offset;
        while at < end {
            if mode & PUNCH_HOLE != 0 {
                let next = self.next_chunk(ino, split(at).0).await?;
                let Some(next) = next.filter(|n| u64::from(*n) * CHUNK_SIZE < end) else { break };
                at = at.max(u64::from(next) * CHUNK_SIZE);
            }
            let (index, offset) = split(at);
            let len = (CHUNK_SIZE - u64::from(offset)).min(end - at);
            let key = ChunkKey { object, index };
            at += len;
            // Others have their turn: a call may mean millions of chunks.
            reactor::yield_now().await;
            let grown = if mode & KEEP_SIZE == 0 { at } else { 0 };
            let min_length = if grown > 0 { offset + len as u32 } else { 0 };
            let stamp = Stamp { min_length, ..stamp() };
            let store = &self.meta().store;
            let change = async || match mode & !KEEP_SIZE {
                PUNCH_HOLE => store.punch(key, offset, len as u32, stamp).await,
                ZERO_RANGE => store.zero(key, offset, len as u32, stamp).await,
                _ => store.preallocate(key, offset, len as u32, stamp).await,
            };
            let outcome = with_room(self.meta(), change).await;
            let outcome = outcome.map_err(|e| self.bad(ino, key, &e))?;
            let piece = Piece { ino, object, index, end: grown, kill: false };
            attr = self.wrote(&piece, &outcome).await?.0;
        }
        Ok(Done { attr, reply: Reply::Done })
    }

    /// Refuses what certainly does not fit before anything is done: blocks that the file has may be enough for a part of the
    /// range only.
    async fn has_room(&self, attr: &Attr, len: u64) -> Result<(), Status> {
        let block = chunkstore::BLOCK_BYTES;
        let needed = (len / block).saturating_sub(attr.blocks.get() / UNITS.unsigned_abs());
        let coming = self.meta().free_work.get() || self.meta().freeing.get();
        if coming || needed <= self.0.device.stats().user_free_bytes / block {
            return Ok(());
        }
        let shards = self.meta().store.stats().await;
        let own: u64 = shards.iter().map(|s| s.free_blocks[0]).sum();
        let free = self.0.device.stats().user_free_bytes / block + own;
        if needed > free { Err(Status::Errno(Errno::ENOSPC)) } else { Ok(()) }
    }

    /// Logs the answer with what the operation made of the file, durably.
    async fn answered(&self, ino: Ino, outcome: &Outcome) -> Result<(), Status> {
        let seq = self.meta().ns(|ns, log| {
            let record = ns.answered(ino, outcome);
            let seq = record.seq();
            log.push(record);
            Ok(seq)
        });
        let seq = seq.await.map_err(|e| lazy_status(&e))?;
        self.durable(seq).await
    }

    /// copy_file_range(2), within the server.
    pub(crate) async fn copy(&self, header: &Header, r: &m::CopyRange) -> Result<DataReply, Status> {
        let (len, (attr, grant)) = match self.begin(header).await? {
            Begun::Repeat(kept) => (kept?.len, self.as_it_is(header, r.dst).await?),
            Begun::Run { ending, .. } => {
                let result = self.copy_now(header, r).await;
                ending.end(result.map(|(len, _)| Kept { offset: 0, len }));
                result?
            }
        };
        Ok(DataReply::new(&m::Copied { len, attr, grant }))
    }

    async fn copy_now(&self, header: &Header, r: &m::CopyRange) -> Result<(u64, (Attr, Grant)), Status> {
        let part = |ino, access, alone| Part { ino, access, object: None, alone, cache: false };
        let parts = if r.src == r.dst {
            smallvec![part(r.dst, Access::Modify, true)]
        } else {
            smallvec![part(r.dst, Access::Modify, true), part(r.src, Access::Read, false)]
        };
        let (admitted, _inside) = self.admit(header, parts).await?;
        let (attr, grant) = one(&admitted)?;
        let src = *admitted.attrs.last().ok_or(Status::Errno(Errno::EIO))?;
        let len = r.len.min(src.size.get().saturating_sub(r.src_offset)).min(COPY_MAX);
        let end = r.dst_offset.checked_add(len).filter(|e| *e <= FILE_MAX);
        end.ok_or(Status::Errno(Errno::EFBIG))?;
        let overlap = r.src_offset < r.dst_offset + len && r.dst_offset < r.src_offset + len;
        if r.src == r.dst && overlap && len > 0 {
            return Err(Status::Errno(Errno::EINVAL));
        }
        self.durable(admitted.depends_on).await?;
        if len == 0 {
            return Ok((0, (attr, grant)));
        }
        let change = Change::Copy { src: r.src, object: src.object(), offset: r.src_offset };
        let (ino, object, offset) = (r.dst, attr.object(), r.dst_offset);
        let intent = Intent { request: header.id(), ino, object, offset, len, change };
        let done = self.carry_out(&intent, attr, true).await?;
        let len = if let Reply::Count(n) = done.reply { n } else { 0 };
        Ok((len, (done.attr, grant)))
    }

    async fn copy_all(&self, intent: &Intent, mut attr: Attr) -> Result<Done, Status> {
        let mut done = 0;
        while done < intent.len {
            match self.copy_piece(intent, done).await {
                Ok((new, n)) => (attr, done) = (new, done + n),
                // What was copied before the failure counts.
                Err(_) if done > 0 => break,
                Err(status) => return Err(status),
            }
        }
        Ok(Done { attr, reply: Reply::Count(done) })
    }

    /// Copies up to the next end of a chunk; gives how much.
    async fn copy_piece(&self, intent: &Intent, done: u64) -> Result<(Attr, u64), Status> {
        let Change::Copy { src, object: from, offset } = intent.change else {
            return Err(Status::Malformed);
        };
        let (src_index, src_at) = split(offset + done);
        let (index, at) = split(intent.offset + done);
        let n = (intent.len - done).min(CHUNK_SIZE - u64::from(src_at.max(at)));
        let from = ChunkKey { object: from, index: src_index };
        let pieces = self.read_range(src, from, src_at, n as u32).await?;
        let (ino, object) = (intent.ino, intent.object);
        let piece = Piece { ino, object, index, end: intent.offset + done + n, kill: false };
        let (attr, _) = self.write_piece(&piece, at, joined(pieces), stamp()).await?;
        Ok((attr, n))
    }
}

/// What a change of a range came to.
struct Done {
    attr: Attr,
    reply: Reply,
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
