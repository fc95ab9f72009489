//! Changing: writes, truncation, holes, deletion. Data always goes to blocks that hold nothing acknowledged.

mod place;

use super::{Shard, add, offset, record_weight};
use crate::crc::crc32c;
use crate::device::BlockDevice;
use crate::error::Error;
use crate::gate::Pass;
use crate::index::Key;
use crate::layout::BLOCK;
use crate::leaf::UNWRITTEN;
use crate::locks::{Guard, WHOLE};
use crate::log::{Data, Urgency};
use crate::pool::Class;
use crate::record::{Length, MapRun, Outcome, Record, Update};
use crate::requests::{OUTCOME, RequestId};
use crate::signal::Promise;
use crate::zones::{Run, Runs};
use hugepages::Bytes;
use place::Layout;
use smallvec::SmallVec;
use std::ops::Range;

const BLOCK32: u32 = BLOCK as u32;

/// What comes with a change.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// Time of the change in nanoseconds; the store has no clock.
    pub time: u64,
    /// The request, where a repeat must get the first answer and have no second effect.
    pub request: Option<RequestId>,
    /// Which space new data may use.
    pub class: Class,
    /// The chunk's length is raised to this at least.
    pub min_length: u32,
}

impl Stamp {
    /// An idempotent change of user data at a time.
    #[must_use]
    pub fn at(time: u64) -> Stamp {
        Stamp { time, request: None, class: Class::User, min_length: 0 }
    }
}

/// What a change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct WriteOutcome {
    /// The chunk was not there before.
    pub created: bool,
    /// It was there before and is not now.
    pub deleted: bool,
    /// Blocks allocated less blocks freed.
    pub blocks_delta: i32,
    /// Length of the chunk.
    pub length: u32,
    /// What a write covered; zeros for any other change.
    pub extent: Written,
    /// This is the stored outcome of an earlier run: nothing was done now. Not stored.
    pub repeated: bool,
}

/// Where the bytes of a write went: a repeat may have to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Written {
    /// The chunk.
    pub key: Key,
    /// First byte within it.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
}

impl WriteOutcome {
    /// As stored for a repeat of the request; `docs/chunkstore.md` has the layout.
    #[must_use]
    pub fn encode(&self) -> [u8; OUTCOME] {
        let mut out = [0; OUTCOME];
        out[0] = u8::from(self.created) | u8::from(self.deleted) << 1;
        out[4..8].copy_from_slice(&self.blocks_delta.to_le_bytes());
        out[8..12].copy_from_slice(&self.length.to_le_bytes());
        out[12..16].copy_from_slice(&self.extent.key.index.to_le_bytes());
        out[16..24].copy_from_slice(&self.extent.key.object.to_le_bytes());
        out[24..28].copy_from_slice(&self.extent.offset.to_le_bytes());
        out[28..].copy_from_slice(&self.extent.len.to_le_bytes());
        out
    }

    /// Reads a stored outcome.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<WriteOutcome> {
        let bytes: &[u8; OUTCOME] = bytes.try_into().ok()?;
        let int = |at: usize| bytes[at..].first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
        let object = bytes[16..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
        Some(WriteOutcome {
            created: bytes[0] & 1 != 0,
            deleted: bytes[0] & 2 != 0,
            blocks_delta: int(4).cast_signed(),
            length: int(8),
            extent: Written { key: Key { object, index: int(12) }, offset: int(24), len: int(28) },
            repeated: false,
        })
    }
}

/// What blocks become.
#[derive(Clone, Debug)]
enum Fill {
    Hole,
    Unwritten,
    /// Whole blocks, aligned in memory.
    Data(Bytes),
}

/// What truncates or punches may use the reserve once there is no other space: it must work on a full device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reserve {
    No,
    Yes,
}

/// Locks of a change, and its share of the records under way; they go with its record.
struct Held {
    chunk: Guard,
    _channel: Option<Guard>,
    _pass: Option<Pass>,
    /// What a write covers.
    extent: Written,
}

/// Consecutive blocks of a change.
struct Segment {
    first: u32,
    count: u32,
    fill: Fill,
}

type Segments = SmallVec<[Segment; 3]>;

impl<D: BlockDevice> Shard<D> {
    /// Writes `data` at `offset` within a chunk, creating it if need be. Ends when data and record are on the device.
    /// A future dropped before its end leaves either nothing or the whole write.
    pub async fn write(
        &self,
        key: Key,
        offset: u32,
        data: Bytes,
        stamp: &Stamp,
    ) -> Result<WriteOutcome, Error> {
        let len = u32::try_from(data.len()).map_err(|_| Error::Invalid("too much data"))?;
        let end = self.range(offset, len)?;
        let (mut guard, repeated) = self.begin(key, blocks_over(offset, end), stamp).await?;
        if let Some(outcome) = repeated {
            return Ok(outcome);
        }
        guard.extent = Written { key, offset, len };
        let mut segments = Segments::new();
        if len > 0 {
            let blocks = blocks_over(offset, end);
            let bytes = self.whole_blocks(key, offset, data).await?;
            segments.push(Segment {
                first: blocks.start,
                count: blocks.len() as u32,
                fill: Fill::Data(bytes),
            });
        }
        self.commit(key, guard, segments, Length::Raise(end.max(stamp.min_length)), Reserve::No, stamp).await
    }

    /// Sets a chunk's length; what lies beyond becomes a hole. Nothing happens to a chunk that is not there.
    pub async fn truncate(&self, key: Key, length: u32, stamp: &Stamp) -> Result<WriteOutcome, Error> {
        self.range(length, 0)?;
        let (guard, repeated) = self.begin(key, WHOLE, stamp).await?;
        if let Some(outcome) = repeated {
            return Ok(outcome);
        }
        if self.stat(key).is_none() {
            return self.nothing(key, guard, stamp).await;
        }
        let blocks = self.0.layout.chunk_size / BLOCK32;
        let keep = length.div_ceil(BLOCK32);
        let mut segments = Segments::new();
        if !length.is_multiple_of(BLOCK32) {
            segments.extend(self.blank(key, length..keep * BLOCK32).await?);
        }
        segments.push(Segment { first: keep, count: blocks - keep, fill: Fill::Hole });
        self.commit(key, guard, segments, Length::Set(length), Reserve::Yes, stamp).await
    }

    /// Frees the whole blocks of a range and zeroes the rest of it; the length stays.
    pub async fn punch(&self, key: Key, offset: u32, len: u32, stamp: &Stamp) -> Result<WriteOutcome, Error> {
        self.clear(key, offset, len, Fill::Hole, stamp).await
    }

    /// Makes a range read as zeros. `keep_allocated`: with blocks behind it, so that writing there later can't run
    /// out of space; otherwise as [`Shard::punch`]. The length is raised by the stamp alone.
    pub async fn zero(
        &self,
        key: Key,
        offset: u32,
        len: u32,
        keep_allocated: bool,
        stamp: &Stamp,
    ) -> Result<WriteOutcome, Error> {
        let fill = if keep_allocated { Fill::Unwritten } else { Fill::Hole };
        self.clear(key, offset, len, fill, stamp).await
    }

    async fn clear(
        &self,
        key: Key,
        offset: u32,
        len: u32,
        fill: Fill,
        stamp: &Stamp,
    ) -> Result<WriteOutcome, Error> {
        let end = self.range(offset, len)?;
        let (guard, repeated) = self.begin(key, blocks_over(offset, end), stamp).await?;
        if let Some(outcome) = repeated {
            return Ok(outcome);
        }
        let keep = matches!(fill, Fill::Unwritten);
        if self.stat(key).is_none() && !keep && stamp.min_length == 0 {
            return self.nothing(key, guard, stamp).await;
        }
        let over = blocks_over(offset, end);
        let inner = offset.div_ceil(BLOCK32)..end / BLOCK32;
        let mut segments = Segments::new();
        if inner.start > inner.end {
            segments.extend(self.edge(key, over.start, offset..end, keep).await?);
        } else {
            if over.start < inner.start {
                segments.extend(self.edge(key, over.start, offset..inner.start * BLOCK32, keep).await?);
            }
            if !inner.is_empty() {
                segments.push(Segment { first: inner.start, count: inner.len() as u32, fill });
            }
            if inner.end < over.end {
                segments.extend(self.edge(key, inner.end, inner.end * BLOCK32..end, keep).await?);
            }
        }
        let reserve = if keep { Reserve::No } else { Reserve::Yes };
        self.commit(key, guard, segments, Length::Raise(stamp.min_length), reserve, stamp).await
    }

    /// Part of a block: zeroed if it has data; given a block if it has none and `keep` asks for it.
    async fn edge(
        &self,
        key: Key,
        block: u32,
        range: Range<u32>,
        keep: bool,
    ) -> Result<Option<Segment>, Error> {
        let hole = self.0.core.borrow_mut().index.slot(key, block).is_hole();
        if hole && keep {
            return Ok(Some(Segment { first: block, count: 1, fill: Fill::Unwritten }));
        }
        self.blank(key, range).await
    }

    /// Gives blocks to the holes of a range, unwritten; data stays.
    pub async fn preallocate(
        &self,
        key: Key,
        offset: u32,
        len: u32,
        stamp: &Stamp,
    ) -> Result<WriteOutcome, Error> {
        let end = self.range(offset, len)?;
        let over = blocks_over(offset, end);
        let (guard, repeated) = self.begin(key, over.clone(), stamp).await?;
        if let Some(outcome) = repeated {
            return Ok(outcome);
        }
        let mut segments = Segments::new();
        for block in over {
            if !self.0.core.borrow_mut().index.slot(key, block).is_hole() {
                continue;
            }
            match segments.last_mut() {
                Some(last) if last.first + last.count == block => last.count += 1,
                _ => segments.push(Segment { first: block, count: 1, fill: Fill::Unwritten }),
            }
        }
        self.commit(key, guard, segments, Length::Raise(stamp.min_length), Reserve::No, stamp).await
    }

    /// Removes a chunk and frees its blocks.
    pub async fn delete(&self, key: Key, stamp: &Stamp) -> Result<WriteOutcome, Error> {
        let (guard, repeated) = self.begin(key, WHOLE, stamp).await?;
        if let Some(outcome) = repeated {
            return Ok(outcome);
        }
        if self.stat(key).is_none() {
            return self.nothing(key, guard, stamp).await;
        }
        let mut frees = Runs::new();
        let mut freed = 0;
        {
            let mut core = self.0.core.borrow_mut();
            for (_, slot) in core.index.mapped(key) {
                core.zones.push(&mut frees, slot.block());
                freed += 1;
            }
        }
        let outcome = WriteOutcome { deleted: true, blocks_delta: -freed, ..WriteOutcome::default() };
        self.remove(key, frees, guard, outcome, stamp).await
    }

    async fn remove(
        &self,
        key: Key,
        frees: Runs,
        guard: Held,
        outcome: WriteOutcome,
        stamp: &Stamp,
    ) -> Result<WriteOutcome, Error> {
        guard.chunk.set(0);
        let update = Update {
            key,
            delete: true,
            length: Length::Set(0),
            time: stamp.time,
            runs: SmallVec::new(),
            crcs: SmallVec::new(),
            frees,
            request: stored(stamp, &outcome),
        };
        self.send(update, Data::new(), guard, outcome).await
    }

    /// A change that has no effect because the chunk, locked as a whole, is not there. Its request is logged all the same:
    /// a repeat must not have an effect on what came in between.
    async fn nothing(&self, key: Key, guard: Held, stamp: &Stamp) -> Result<WriteOutcome, Error> {
        let outcome = WriteOutcome::default();
        if stamp.request.is_none() {
            return Ok(outcome);
        }
        self.remove(key, Runs::new(), guard, outcome, stamp).await
    }

    /// Waits for the chunk's turn and loads its map. `Some` outcome: the request was carried out before.
    async fn begin(
        &self,
        key: Key,
        range: Range<u32>,
        stamp: &Stamp,
    ) -> Result<(Held, Option<WriteOutcome>), Error> {
        if stamp.min_length > self.0.layout.chunk_size {
            return Err(Error::Invalid("the length is beyond the chunk"));
        }
        let channel = match stamp.request {
            Some(id) => {
                let slot = Key { object: id.client, index: u32::from(id.channel) };
                Some(self.0.channels.lock(slot, WHOLE).await)
            }
            None => None,
        };
        let repeated = self.repeated(stamp)?;
        loop {
            // Creating takes the whole chunk: only one of two writes may say that it created it.
            let alone = self.stat(key).is_none() || range.is_empty();
            let chunk = self.0.locks.lock(key, if alone { WHOLE } else { range.clone() }).await;
            if !alone && self.stat(key).is_none() {
                continue;
            }
            let mut held = Held { chunk, _channel: channel, _pass: None, extent: Written::default() };
            if repeated.is_none() {
                // With the lock: a crowd that waits for one chunk is let in one by one. What is waited for here needs none.
                let blocks = (self.0.layout.chunk_size / BLOCK32).min(range.len() as u32);
                held._pass = Some(self.0.gate.enter(record_weight(blocks as usize)).await);
                self.admit().await?;
                self.writable()?;
                self.load_leaf(key).await?;
            }
            return Ok((held, repeated));
        }
    }

    fn repeated(&self, stamp: &Stamp) -> Result<Option<WriteOutcome>, Error> {
        let Some(id) = stamp.request else { return Ok(None) };
        let core = self.0.core.borrow();
        let Some((last, outcome)) = core.requests.last(id.client, id.channel) else { return Ok(None) };
        match id.sequence.cmp(&last) {
            std::cmp::Ordering::Greater => Ok(None),
            std::cmp::Ordering::Equal => WriteOutcome::decode(outcome)
                .map(|o| Some(WriteOutcome { repeated: true, ..o }))
                .ok_or_else(|| Error::damaged("a stored answer", "it has an unknown form")),
            std::cmp::Ordering::Less => Err(Error::StaleRequest {
                client: id.client,
                channel: id.channel,
                sequence: id.sequence,
                last,
            }),
        }
    }

    /// The whole blocks that a write covers: the caller's bytes as they are if they are aligned in the chunk and in
    /// memory; otherwise one copy into an aligned buffer, filled up with what the first and last block hold.
    async fn whole_blocks(&self, key: Key, offset: u32, data: Bytes) -> Result<Bytes, Error> {
        let end = offset + data.len() as u32;
        let over = blocks_over(offset, end);
        let (head, tail) = (offset % BLOCK32, end % BLOCK32);
        add(&self.0.counters.write_bytes, data.len() as u64);
        if head == 0 && tail == 0 && (data.as_ptr() as usize).is_multiple_of(BLOCK) {
            return Ok(data);
        }
        let length = self.stat(key).map_or(0, |s| s.length);
        let first = if head > 0 { self.read_block(key, over.start).await? } else { None };
        // Beyond the length all is zeros: an appending write needs nothing of its last block, unless it is the first.
        let shared = over.len() == 1 && head > 0;
        let last = if tail > 0 && !shared && end < length {
            self.read_block(key, over.end - 1).await?
        } else if shared {
            first.clone()
        } else {
            None
        };
        let mut buf = self.buffer(over.len() * BLOCK);
        let (head, len) = (head as usize, buf.len());
        let fill = |out: &mut [u8], from: Option<&Bytes>, range: Range<usize>| match from {
            Some(old) => out.copy_from_slice(&old[range]),
            None => out.fill(0),
        };
        fill(&mut buf[..head], first.as_ref(), 0..head);
        buf[head..head + data.len()].copy_from_slice(&data);
        if tail > 0 {
            fill(&mut buf[len - BLOCK + tail as usize..], last.as_ref(), tail as usize..BLOCK);
        }
        add(&self.0.counters.copied_bytes, data.len() as u64);
        Ok(buf.freeze())
    }

    /// Zeroes a range within one block, if the block has data.
    async fn blank(&self, key: Key, range: Range<u32>) -> Result<Option<Segment>, Error> {
        let block = range.start / BLOCK32;
        let Some(old) = self.read_block(key, block).await? else { return Ok(None) };
        let mut buf = self.buffer(BLOCK);
        buf.copy_from_slice(&old);
        let base = block * BLOCK32;
        buf[(range.start - base) as usize..(range.end - base) as usize].fill(0);
        Ok(Some(Segment { first: block, count: 1, fill: Fill::Data(buf.freeze()) }))
    }

    /// Allocates, logs and waits. The range is locked, so the map of these blocks can't change before it is applied.
    async fn commit(
        &self,
        key: Key,
        guard: Held,
        segments: Segments,
        length: Length,
        reserve: Reserve,
        stamp: &Stamp,
    ) -> Result<WriteOutcome, Error> {
        let mut crcs: SmallVec<[u32; 4]> = SmallVec::new();
        for segment in &segments {
            if let Fill::Data(bytes) = &segment.fill {
                crcs.extend(bytes.chunks_exact(BLOCK).map(crc32c));
            }
        }
        let want = self.new_blocks(key, &segments);
        let space = match self.allocate(stamp.class, want).await {
            Err(Error::NoSpace) if reserve == Reserve::Yes && stamp.class == Class::User => {
                self.allocate(Class::System, want).await?
            }
            space => space?,
        };
        // From here to the submission nothing waits: what was allocated is never lost.
        let mut layout = Layout::new(&space);
        let entry = self.stat(key);
        {
            let mut core = self.0.core.borrow_mut();
            for segment in &segments {
                for i in 0..segment.count {
                    let slot = core.index.slot(key, segment.first + i);
                    layout.place(segment, i, slot, |runs, block| core.zones.push(runs, block));
                }
            }
        }
        let current = entry.map_or(0, |e| e.length);
        let length_now = match length {
            Length::Raise(to) => guard.chunk.raise(current.max(to)),
            Length::Set(to) => guard.chunk.set(to),
        };
        let outcome = WriteOutcome {
            created: entry.is_none(),
            deleted: false,
            blocks_delta: layout.delta,
            length: length_now,
            extent: guard.extent,
            repeated: false,
        };
        let update = Update {
            key,
            delete: false,
            length,
            time: stamp.time,
            runs: layout.runs,
            crcs,
            frees: layout.frees,
            request: stored(stamp, &outcome),
        };
        self.send(update, layout.data, guard, outcome).await
    }

    /// Blocks that a change needs: unwritten ones are written in place, everything else moves.
    fn new_blocks(&self, key: Key, segments: &Segments) -> u32 {
        let mut core = self.0.core.borrow_mut();
        let mut want = 0;
        for segment in segments {
            if matches!(segment.fill, Fill::Hole) {
                continue;
            }
            let blocks = segment.first..segment.first + segment.count;
            want += blocks.filter(|b| !core.index.slot(key, *b).is_unwritten()).count() as u32;
        }
        want
    }

    async fn send(
        &self,
        update: Update,
        data: Data,
        guard: Held,
        outcome: WriteOutcome,
    ) -> Result<WriteOutcome, Error> {
        add(&self.0.counters.writes, 1);
        let promise = Promise::new();
        let give = promise.clone();
        let (this, frees) = (self.clone(), update.frees.len());
        self.0.freeing.set(self.0.freeing.get() + frees);
        // The lock goes with the record, not with the caller, who may give up.
        self.submit(Record::Update(Box::new(update)), data, Urgency::Normal, move |result| {
            this.0.freeing.set(this.0.freeing.get() - frees);
            drop(guard);
            give.give(result.map(|_| outcome));
        });
        promise.get().await
    }
}

fn blocks_over(offset: u32, end: u32) -> Range<u32> {
    if offset == end { offset / BLOCK32..offset / BLOCK32 } else { offset / BLOCK32..end.div_ceil(BLOCK32) }
}

fn stored(stamp: &Stamp, outcome: &WriteOutcome) -> Option<(RequestId, Outcome)> {
    stamp.request.map(|id| (id, Outcome::from_slice(&outcome.encode())))
}

type BlocksOf<'a> = std::iter::FlatMap<std::slice::Iter<'a, Run>, Range<u64>, fn(&Run) -> Range<u64>>;
