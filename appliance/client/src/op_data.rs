//! Operations on file data: read, write, append, and what changes or finds ranges.
//!
//! Requests are cut at chunk boundaries and the pieces run side by side. Data is passed on as it came, never copied.
//!
//! A direct write goes around the page cache of its own mount, too. The kernel drops the pages in question before it sends
//! the write, but a reader through the cache may fill them again before the server has executed it, under a lease which
//! our own write does not recall. So they are dropped once more when it has been executed, before it is answered.

use crate::core::{Core, Refused, cred};
use crate::gate::{Access, Late, Pass};
use crate::hold::Hold;
use crate::leases::Since;
use crate::opens::Open;
use crate::race::{Either, join_all, race};
use crate::ranges::pages;
use crate::rpc::{Outgoing, Reply};
use crate::service::{
    Attrs, Ctx, Data, Handle, Ino, IoMode, Place, ReadData, Recall, Result, Seek, Stale, WriteFlags, Written,
};
use crate::stats::add;
use crate::stripe::{MAX_FILE, Piece, pieces};
use hugepages::Bytes;
use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use wire::limits::MAX_PAYLOAD;
use wire::message::{self, ReadFlags, Whence};
use wire::types::{CHUNK_SIZE, Errno, LeaseMode, ObjectId, shard_of};

/// Pieces of one request that run side by side: 8 MiB.
const PIECES: usize = 8;

/// A cached read is repeated so often to get data under a lease; a server that grants none is against the protocol,
/// and then the data is invalidated after the reply.
const LEASE_TRIES: u32 = 3;

/// Zeros for what a server leaves out of a hole.
static ZEROS: [u8; 4096] = [0; 4096];

fn wire_write_flags(f: WriteFlags) -> message::WriteFlags {
    let mut flags = message::WriteFlags::none();
    if f.sync {
        flags = flags | message::WriteFlags::SYNC;
    }
    if f.kill_suidgid {
        flags = flags | message::WriteFlags::KILL_SUIDGID;
    }
    flags
}

fn zeros(out: &mut Data, mut len: usize) {
    while len > 0 {
        let n = len.min(ZEROS.len());
        out.push(Bytes::from_static(&ZEROS[..n]));
        len -= n;
    }
}

/// What one round of reading gave.
struct Pulled {
    data: Data,
    covered: bool,
    /// A piece ended early, yet the file reached beyond it a moment later.
    torn: bool,
}

/// A direct write whose answer may never be seen. When it is over, what readers cached beside it goes.
struct Beside {
    late: Rc<Late>,
    ino: Ino,
    range: Range<u64>,
    done: Cell<bool>,
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.done.get() {
            self.late.push(self.ino, self.range.clone());
        }
    }
}

/// What guards the kernel's pages while a write is under way.
struct Guards {
    pass: Option<Rc<Pass>>,
    beside: Option<Rc<Beside>>,
}

impl Guards {
    /// What the request keeps until it is answered, even if nobody waits for it any more.
    fn keep(&self) -> Option<Rc<dyn std::any::Any>> {
        let pass = self.pass.as_ref().map(|p| Rc::clone(p) as Rc<dyn std::any::Any>);
        pass.or_else(|| self.beside.as_ref().map(|b| Rc::clone(b) as Rc<dyn std::any::Any>))
    }
}

impl Core {
    fn beside(&self, open: &Open, flags: WriteFlags, range: Range<u64>) -> Option<Rc<Beside>> {
        // What the kernel writes back is on locked pages, which are what it caches.
        let direct = open.io == IoMode::Direct && !flags.writeback && self.caches();
        let late = self.table.borrow().late();
        direct.then(|| Rc::new(Beside { late, ino: open.ino, range, done: Cell::new(false) }))
    }

    /// A direct write was executed here.
    async fn drop_beside(&self, beside: Option<Rc<Beside>>, range: Range<u64>) {
        let Some(beside) = beside else { return };
        let invalidator = self.invalidator.borrow().clone();
        if let Some(invalidator) = invalidator.filter(|_| self.table.borrow().has_data(beside.ino)) {
            let data = Stale::Ranges([range].into_iter().collect());
            invalidator.invalidate(Recall { ino: beside.ino, data, ..Recall::default() }).await;
        }
        beside.done.set(true);
    }

    /// The open file, if it still works, and proof that it is in use.
    pub(crate) fn handle(&self, ino: Ino, handle: Handle) -> Result<(Rc<Open>, Hold)> {
        let open = self.opens.borrow().get(ino, handle)?;
        match open.dead.get() {
            Some(error) => Err(error),
            None => {
                let busy = Hold::new(Some(Rc::clone(&open.busy)), None);
                Ok((open, busy))
            }
        }
    }

    async fn pass(&self, ctx: &Ctx, open: &Open, range: Range<u64>, access: Access) -> Result<Option<Pass>> {
        if open.io == IoMode::Direct {
            return Ok(None);
        }
        let gate = self.table.borrow_mut().gate(open.ino);
        match race(gate.enter(range, access), ctx.cancel.reached(crate::Interrupt::Kill)).await {
            Either::Left(pass) => Ok(Some(pass)),
            Either::Right(_) => Err(Errno::EINTR),
        }
    }

    /// The file's data object, asked for again where the last one is stale.
    async fn object(&self, ctx: &Ctx, open: &Open, stale: bool) -> Result<ObjectId> {
        if stale {
            self.table.borrow_mut().forget_attr(open.ino);
        }
        let known = open.object.get();
        if !stale && known != ObjectId(0) {
            return Ok(known);
        }
        let (attr, ..) = self.fresh_attr(ctx, open.ino).await?;
        open.object.set(attr.object());
        Ok(attr.object())
    }

    pub(crate) async fn read(
        &self,
        ctx: &Ctx,
        ino: Ino,
        handle: Handle,
        offset: u64,
        len: u32,
    ) -> Result<ReadData> {
        let (open, _busy) = self.handle(ino, handle)?;
        let pass = self.pass(ctx, &open, pages(offset, u64::from(len)), Access::Read).await?;
        let (mut stale, mut tries) = (false, 0);
        let pulled = loop {
            let object = self.object(ctx, &open, stale).await?;
            match self.pull(ctx, &open, object, offset, len).await {
                Ok(p) => {
                    tries += 1;
                    let wanting = p.torn || (pass.is_some() && !p.covered);
                    if !wanting || tries >= LEASE_TRIES {
                        break p;
                    }
                }
                Err(Refused::StaleObject) => stale = true,
                Err(Refused::Errno(e)) => return Err(e),
            }
            add(&self.stats.events.retries, 1);
        };
        if let Some(pass) = pass.as_ref().filter(|_| !pulled.covered) {
            pass.uncovered();
        }
        self.table.borrow_mut().accessed(ino);
        let read = ReadData { data: pulled.data, hold: Hold::data(pass) };
        add(&self.stats.events.read_bytes, read.len() as u64);
        Ok(read)
    }

    async fn pull(
        &self,
        ctx: &Ctx,
        open: &Open,
        object: ObjectId,
        offset: u64,
        len: u32,
    ) -> std::result::Result<Pulled, Refused> {
        let parts = pieces(object, offset, len);
        let since = self.table.borrow().since(open.ino);
        let mut pulled = Pulled { data: Data::new(), covered: true, torn: false };
        for group in parts.chunks(PIECES) {
            let results = join_all(group.iter().map(|p| self.pull_piece(ctx, open, since, *p))).await;
            let mut ended: Option<u64> = None;
            for (piece, result) in group.iter().zip(results) {
                let (payload, size, covered) = result?;
                let start = u64::from(piece.key.index) * CHUNK_SIZE + u64::from(piece.offset);
                pulled.covered &= covered;
                if let Some(end) = ended {
                    pulled.torn |= size > end;
                    continue;
                }
                // A hole may be left out, wholly or at its end.
                let there = size.saturating_sub(start).min(u64::from(piece.len)) as usize;
                let got = payload.len();
                if got > 0 {
                    pulled.data.push(payload);
                }
                zeros(&mut pulled.data, there.saturating_sub(got));
                if there.max(got) < piece.len as usize {
                    ended = Some(start + there.max(got) as u64);
                }
            }
            if ended.is_some() {
                break;
            }
        }
        Ok(pulled)
    }

    async fn pull_piece(
        &self,
        ctx: &Ctx,
        open: &Open,
        since: Since,
        piece: Piece,
    ) -> std::result::Result<(Bytes, u64, bool), Refused> {
        let read = message::ChunkRead {
            ino: open.ino,
            key: piece.key,
            offset: piece.offset,
            len: piece.len,
            flags: if self.options.noatime { ReadFlags::NOATIME } else { ReadFlags::none() },
        };
        let mut out = Outgoing::new(read);
        out.shard = self.shard(piece);
        out.need_lease = open.io == IoMode::Cached;
        let reply = self.ask_data(ctx, &out).await?;
        let got = self.decode::<message::ChunkRead>(&reply).map_err(Refused::Errno)?;
        if reply.payload.len() > piece.len as usize {
            tracing::error!(ino = open.ino.0, "the server sent more data than was asked for");
            return Err(Refused::Errno(Errno::EIO));
        }
        let covered = self.table.borrow_mut().settle_data(open.ino, since, &got.grant);
        Ok((reply.payload, got.size, covered))
    }

    fn shard(&self, piece: Piece) -> wire::types::ShardId {
        shard_of(piece.key, self.rpc.terms().map_or(1, |t| t.shards))
    }

    pub(crate) async fn write(
        &self,
        ctx: &Ctx,
        ino: Ino,
        handle: Handle,
        offset: u64,
        data: Bytes,
        flags: WriteFlags,
    ) -> Result<Written> {
        let (open, _busy) = self.handle(ino, handle)?;
        let end = offset.checked_add(data.len() as u64).filter(|&e| e <= MAX_FILE).ok_or(Errno::EFBIG)?;
        let access = if flags.writeback { Access::Writeback } else { Access::Write };
        let range = pages(offset, end - offset);
        let pass = self.pass(ctx, &open, range.clone(), access).await?.map(Rc::new);
        let beside = self.beside(&open, flags, range.clone());
        let guards = Guards { pass, beside };
        let object = self.object(ctx, &open, false).await?;
        let len = u32::try_from(data.len()).map_err(|_| Errno::EINVAL)?;
        let mut done = 0;
        for group in pieces(object, offset, len).chunks(PIECES) {
            let results =
                join_all(group.iter().map(|p| self.push(ctx, &open, *p, &data, flags, &guards))).await;
            for (piece, result) in group.iter().zip(results) {
                match result {
                    Ok(()) if done == piece.at => done += piece.len as usize,
                    Ok(()) => {}
                    // What was written before the failure counts.
                    Err(_) if done > 0 => {}
                    Err(e) => return Err(e),
                }
            }
            if done < group.iter().map(|p| p.at + p.len as usize).max().unwrap_or(0) {
                break;
            }
        }
        self.drop_beside(guards.beside, range).await;
        add(&self.stats.events.written_bytes, done as u64);
        Ok(Written { len: done as u32, offset, hold: Hold::shared(guards.pass) })
    }

    async fn push(
        &self,
        ctx: &Ctx,
        open: &Open,
        piece: Piece,
        data: &Bytes,
        flags: WriteFlags,
        guards: &Guards,
    ) -> Result<()> {
        let mut key = piece.key;
        let reply = loop {
            let since = self.table.borrow().since(open.ino);
            let write = message::ChunkWrite {
                ino: open.ino,
                key,
                offset: piece.offset,
                flags: wire_write_flags(flags),
            };
            let mut out = Outgoing::new(write);
            out.payload = Some(data.slice(piece.at..piece.at + piece.len as usize));
            out.shard = self.shard(Piece { key, ..piece });
            out.need_lease = guards.pass.is_some();
            // A recall may wait for the page, and requests that wait for recalls may have taken all there is.
            out.urgent = flags.writeback;
            out.keep = guards.keep();
            match self.ask_data(ctx, &out).await {
                Ok(reply) => break (reply, since),
                Err(Refused::StaleObject) => {
                    add(&self.stats.events.retries, 1);
                    key.object = self.object(ctx, open, true).await?;
                }
                Err(Refused::Errno(e)) => {
                    // It may happen yet, or have happened in part.
                    guards.pass.as_ref().inspect(|p| p.uncovered());
                    return Err(e);
                }
            }
        };
        let (reply, since) = reply;
        let written = self.decode::<message::ChunkWrite>(&reply)?;
        self.wrote(open, since, &written.attr, &written.grant, guards.pass.as_ref());
        Ok(())
    }

    fn wrote(
        &self,
        open: &Open,
        since: Since,
        attr: &wire::types::Attr,
        grant: &wire::types::Grant,
        pass: Option<&Rc<Pass>>,
    ) {
        let mut table = self.table.borrow_mut();
        let covered = table.settle_data(open.ino, since, grant);
        let cover = table.cover(open.ino);
        if !table.store(attr, since, if covered { cover } else { LeaseMode::None }) {
            table.forget_attr(open.ino);
        }
        drop(table);
        if !covered {
            pass.inspect(|p| p.uncovered());
        }
    }

    pub(crate) async fn append(
        &self,
        ctx: &Ctx,
        ino: Ino,
        handle: Handle,
        data: Bytes,
        flags: WriteFlags,
    ) -> Result<Written> {
        let (open, _busy) = self.handle(ino, handle)?;
        // Where it goes is not known yet, so all of the file may be concerned, and it can't wait: what it keeps locked
        // could not be left out of an invalidation. Handles opened for appending are direct anyway.
        let pass = self.pass(ctx, &open, 0..u64::MAX, Access::Writeback).await?.map(Rc::new);
        let beside = self.beside(&open, flags, 0..u64::MAX);
        let guards = Guards { pass, beside };
        let mut begin = None;
        let mut done = 0;
        while done < data.len() || begin.is_none() {
            let part = data.slice(done..data.len().min(done + MAX_PAYLOAD));
            let n = part.len();
            match self.append_part(ctx, &open, part, flags, &guards).await {
                // A part that does not follow the last one: somebody else was in between.
                Ok((offset, written)) if begin.is_none_or(|b| b + done as u64 == offset) => {
                    begin = begin.or(Some(offset));
                    done += n.min(written);
                    if written == 0 {
                        break;
                    }
                }
                Ok(_) | Err(_) if done > 0 => break,
                Ok(_) => break,
                Err(e) => return Err(e),
            }
            if n == 0 {
                break;
            }
        }
        // The page that the append began in was cached up to the old end only.
        self.drop_beside(guards.beside, pages(begin.unwrap_or(0), done as u64)).await;
        add(&self.stats.events.written_bytes, done as u64);
        Ok(Written { len: done as u32, offset: begin.unwrap_or(0), hold: Hold::shared(guards.pass) })
    }

    async fn append_part(
        &self,
        ctx: &Ctx,
        open: &Open,
        part: Bytes,
        flags: WriteFlags,
        guards: &Guards,
    ) -> Result<(u64, usize)> {
        let since = self.table.borrow().since(open.ino);
        let mut out = Outgoing::new(message::Append { ino: open.ino, flags: wire_write_flags(flags) });
        out.payload = Some(part);
        out.need_lease = guards.pass.is_some();
        out.keep = guards.keep();
        let reply: Reply = loop {
            match self.ask_data(ctx, &out).await {
                Ok(reply) => break reply,
                Err(Refused::StaleObject) => add(&self.stats.events.retries, 1),
                Err(Refused::Errno(e)) => {
                    guards.pass.as_ref().inspect(|p| p.uncovered());
                    return Err(e);
                }
            }
        };
        let appended = self.decode::<message::Append>(&reply)?;
        open.object.set(appended.attr.object());
        self.wrote(open, since, &appended.attr, &appended.grant, guards.pass.as_ref());
        Ok((appended.offset, appended.len as usize))
    }

    pub(crate) async fn fallocate(
        &self,
        ctx: &Ctx,
        ino: Ino,
        handle: Handle,
        mode: u32,
        offset: u64,
        len: u64,
    ) -> Result<Attrs> {
        let (_open, _busy) = self.handle(ino, handle)?;
        let since = self.table.borrow().since(ino);
        let request = message::Fallocate { ino, mode, offset, len, cred: cred(ctx) };
        let reply = self.ask(ctx, Outgoing::new(request)).await?;
        let got = self.decode::<message::Fallocate>(&reply)?;
        let cover = self.learn_change(&got.attr, since, &got.grant);
        Ok(self.attrs(got.attr, cover))
    }

    pub(crate) async fn seek(
        &self,
        ctx: &Ctx,
        ino: Ino,
        handle: Handle,
        offset: u64,
        whence: Seek,
    ) -> Result<u64> {
        let (_open, _busy) = self.handle(ino, handle)?;
        let whence = match whence {
            Seek::Data => Whence::Data,
            Seek::Hole => Whence::Hole,
        };
        let reply = self.ask(ctx, Outgoing::new(message::Seek { ino, offset, whence })).await?;
        Ok(self.decode::<message::Seek>(&reply)?.offset)
    }

    pub(crate) async fn copy_range(&self, ctx: &Ctx, from: Place, to: Place, len: u64) -> Result<u64> {
        let (_src, _busy) = self.handle(from.ino, from.handle)?;
        let (_dst, _also) = self.handle(to.ino, to.handle)?;
        let since = self.table.borrow().since(to.ino);
        let request = message::CopyRange {
            src: from.ino,
            src_offset: from.offset,
            dst: to.ino,
            dst_offset: to.offset,
            len,
        };
        let reply = self.ask(ctx, Outgoing::new(request)).await?;
        let copied = self.decode::<message::CopyRange>(&reply)?;
        self.learn_change(&copied.attr, since, &copied.grant);
        self.table.borrow_mut().accessed(from.ino);
        Ok(copied.len)
    }
}
