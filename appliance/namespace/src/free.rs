//! The free list: chunks that no file names any more, worked off by the shell after the record that dropped them is flushed.
//!
//! Owns which chunks an entry means. Must not delete any. Doing an entry twice changes nothing, so a crash just starts it again.

use crate::kv::{Key, KeyRange, Table};
use crate::layout::{self, FreeRow, PAGE_CHUNKS};
use crate::limits::RECORD_ROWS_MAX;
use crate::ns::Namespace;
use crate::op::{OpCtx, Reply};
use crate::record::{Record, Seq};
use crate::txn::{Res, Txn, bad};
use crate::view::Miss;
use wire::{CHUNK_SIZE, ClientId, Ino, ObjectId, Timestamp};
use zerocopy::IntoBytes;

/// Pages of a chunk map that one record removes.
const PAGES_AT_ONCE: usize = RECORD_ROWS_MAX - 16;

/// A part of what an entry of the free list means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreeChunks {
    /// The inode that had it.
    pub ino: Ino,
    /// The body of data.
    pub object: ObjectId,
    /// Cut this chunk to so many bytes (it may be absent).
    pub cut: Option<(u32, u32)>,
    /// Delete these.
    pub chunks: Vec<u32>,
    /// More from this index on; `None`: that was all.
    pub next: Option<u32>,
}

impl Namespace {
    /// Entries of dead bodies of data whose records are at or below `flushed`: up to `limit` of them above `after`.
    pub fn free_work(&self, flushed: Seq, after: u64, limit: usize) -> Result<Vec<u64>, Miss> {
        self.entries(FreeRow::WHOLE, Some(flushed), after, limit)
    }

    /// After a restart, before data is served: cuts that were logged and perhaps not carried out.
    pub fn pending_cuts(&self, after: u64, limit: usize) -> Result<Vec<u64>, Miss> {
        self.entries(FreeRow::CUT, None, after, limit)
    }

    fn entries(&self, kind: u16, flushed: Option<Seq>, after: u64, limit: usize) -> Result<Vec<u64>, Miss> {
        let mut range = KeyRange::table(Table::Free);
        range.start = KeyRange::of(Table::Free, after).end;
        let mut out = Vec::new();
        if limit > 0 {
            self.view.scan(&range, limit.max(64), |key, value| {
                let fits = layout::free(value).is_ok_and(|r| r.kind.get() == kind);
                if fits && flushed.is_none_or(|f| self.view.logged_at(key) <= f) {
                    out.extend(key.id());
                }
                out.len() < limit
            })?;
        }
        Ok(out)
    }

    /// Chunks of an entry from index `from` on, up to about `limit`. `None`: there is no such entry (any more).
    pub fn free_chunks(&mut self, entry: u64, from: u32, limit: usize) -> Result<Option<FreeChunks>, Miss> {
        let mut out = None;
        self.transact(&OpCtx::plain(ClientId(0), Timestamp::default()), |t| {
            out = list(t, entry, from, limit.max(1))?;
            Ok(Reply::Done)
        })?;
        Ok(out)
    }

    /// The shell has done everything that an entry means. Call again until it gives no record: a map of many terabytes
    /// takes several.
    pub fn freed(&mut self, entry: u64) -> Result<Option<Record>, Miss> {
        let done = self.transact(&OpCtx::plain(ClientId(0), Timestamp::default()), |t| {
            finish(t, entry)?;
            Ok(Reply::Done)
        })?;
        Ok(done.record)
    }
}

fn row(t: &Txn<'_>, entry: u64) -> Res<Option<FreeRow>> {
    let key = Key::free(entry);
    match t.get(&key)? {
        Some(v) => Ok(Some(layout::free(v).map_err(|why| bad(&key, why))?)),
        None => Ok(None),
    }
}

/// First chunk that goes as a whole.
fn first_dead(r: &FreeRow) -> u64 {
    if r.kind.get() == FreeRow::CUT { r.keep.get().div_ceil(CHUNK_SIZE) } else { 0 }
}

fn pages_from(r: &FreeRow, page: u32) -> KeyRange {
    let object = r.object.get();
    let mut range = KeyRange::of(Table::ChunkMap, object);
    range.start = Key::chunk_map(ObjectId(object), page);
    range
}

fn list(t: &Txn<'_>, entry: u64, from: u32, limit: usize) -> Res<Option<FreeChunks>> {
    let Some(r) = row(t, entry)? else { return Ok(None) };
    let dead = first_dead(&r);
    let rest = r.keep.get() % CHUNK_SIZE;
    let cut = (r.kind.get() == FreeRow::CUT && rest != 0 && from == 0)
        .then(|| ((r.keep.get() / CHUNK_SIZE) as u32, rest as u32));
    let mut out =
        FreeChunks { ino: r.ino.into(), object: r.object.into(), cut, chunks: Vec::new(), next: None };
    let Ok(first) = u32::try_from(dead.max(u64::from(from))) else { return Ok(Some(out)) };
    out.chunks.extend(layout::inline_chunks(r.chunks.get()).filter(|i| *i >= first));
    if r.map_pages.get() > first / PAGE_CHUNKS {
        let mut damaged = None;
        t.scan(&pages_from(&r, first / PAGE_CHUNKS), 64, |key, value| {
            let number = key.rest().and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
            let (Some(n), Ok(page)) = (number, layout::page(value)) else {
                damaged = Some(bad(key, "page of a chunk map has a wrong length"));
                return false;
            };
            if out.chunks.len() >= limit {
                out.next = Some(n * PAGE_CHUNKS);
                return false;
            }
            out.chunks.extend(layout::page_chunks(n, &page).filter(|i| *i >= first));
            true
        })?;
        if let Some(stop) = damaged {
            return Err(stop);
        }
    }
    Ok(Some(out))
}

/// Removes what the map says of dead chunks, and with the last of it the entry.
fn finish(t: &mut Txn<'_>, entry: u64) -> Res<()> {
    let Some(mut r) = row(t, entry)? else { return Ok(()) };
    let dead = first_dead(&r);
    let mut pages: Vec<(Key, Option<layout::Page>)> = Vec::new();
    let mut more = false;
    if let Ok(dead) = u32::try_from(dead)
        && r.map_pages.get() > dead / PAGE_CHUNKS
    {
        t.scan(&pages_from(&r, dead / PAGE_CHUNKS), 1024, |key, value| {
            if pages.len() >= PAGES_AT_ONCE {
                more = true;
                return false;
            }
            let n = key.rest().and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes);
            let keep =
                layout::page(value).ok().and_then(|p| keep_below(p, dead.saturating_sub(n * PAGE_CHUNKS)));
            pages.push((key.clone(), keep));
            true
        })?;
    }
    for (key, page) in pages {
        match page {
            Some(p) => t.put(key, &p),
            None => t.delete(key),
        }
    }
    if more {
        // The entry stays and so do the pages that are left; the inline map is done with.
        r.chunks = 0.into();
        t.put(Key::free(entry), r.as_bytes());
    } else {
        t.delete(Key::free(entry));
    }
    Ok(())
}

/// A page with only its first `n` bits; `None` where none is set.
fn keep_below(mut page: layout::Page, n: u32) -> Option<layout::Page> {
    for i in n.min(PAGE_CHUNKS)..PAGE_CHUNKS {
        page[(i / 8) as usize] &= !(1 << (i % 8));
    }
    page.iter().any(|b| *b != 0).then_some(page)
}
