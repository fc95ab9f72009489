//! What the namespace sees: lazy updates over unapplied records over bounded caches over (what the shell fetches from) redb.
//!
//! Owns rows in memory and how they age. Must not know what rows mean, apart from which tables are listed and that names have
//! filters. Reading never changes anything: an unknown row is a [`Miss`].
//!
//! Invariant: rows, pages and filters describe the state after record `dropped`; the overlay holds every change after it. So
//! fetched rows must come from a snapshot that is not older than `dropped`; a newer one differs only where the overlay wins.

use crate::filter::NameFilter;
use crate::kv::{Key, KeyRange, Table};
use crate::record::{Record, Seq};
use smallvec::SmallVec;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use wire::Ino;

/// Rows that must be fetched before an operation can run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Miss {
    /// Single rows.
    pub keys: Vec<Key>,
    /// Ranges.
    pub ranges: Vec<RangeMiss>,
}

/// A range to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeMiss {
    /// Which keys.
    pub range: KeyRange,
    /// At most so many rows.
    pub limit: usize,
}

impl Miss {
    pub(crate) fn key(key: Key) -> Self {
        Self { keys: vec![key], ranges: Vec::new() }
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.ranges.is_empty()
    }
}

/// Rows of one snapshot of the database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// The last record that the snapshot holds.
    pub applied: Seq,
    /// Single rows, also those read ahead; `None` where there is none.
    pub rows: Vec<(Key, Option<Box<[u8]>>)>,
    /// Ranges.
    pub ranges: Vec<FetchedRange>,
}

/// A range, from its start up to `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedRange {
    /// What it covers without gaps; ends early where the limit was reached.
    pub range: KeyRange,
    /// Its rows in order.
    pub rows: Vec<(Key, Box<[u8]>)>,
}

/// Memory of the caches, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct CacheConfig {
    /// Single rows.
    pub rows: usize,
    /// Pages of listed ranges. At least 4 MiB: one operation lists up to 4,096 rows.
    pub pages: usize,
    /// Filters of names.
    pub filters: usize,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { rows: 128 << 20, pages: 32 << 20, filters: 32 << 20 }
    }
}

/// Book-keeping bytes of a cached row besides key and value: a map that is half empty, its place in the ring, the allocator.
const ROW_OVERHEAD: usize = 224;
/// The same of a row that waits for the applier: in a map, in the ordered index, in its record's list.
const OVER_OVERHEAD: usize = 320;

/// Bytes of memory that a row which waits for the applier takes; its record is kept beside it until the commit.
fn over_bytes(key: &Key, value: Option<&[u8]>) -> usize {
    2 * (key.len() + value.map_or(0, <[u8]>::len)) + OVER_OVERHEAD
}

struct Cached {
    value: Option<Box<[u8]>>,
    used: Cell<bool>,
}

struct RangePage {
    end: Key,
    rows: BTreeMap<Key, Box<[u8]>>,
    bytes: usize,
}

struct Over {
    seq: Seq,
    value: Option<Box<[u8]>>,
}

/// Lazy updates of one inode.
#[derive(Debug)]
pub(crate) struct Lazy {
    /// Record that carries its mark; 0 where there is none (only the access time is newer).
    pub(crate) mark: Seq,
    /// Rows with values that no record holds.
    pub(crate) keys: SmallVec<[Key; 2]>,
    /// Number of the last lazy update.
    pub(crate) stamp: u64,
}

struct Volatile {
    ino: Ino,
    mark: Seq,
    value: Box<[u8]>,
}

/// What a page keeps of a row: listing attributes needs no values, which are up to 64 KiB each.
pub(crate) fn listed_value<'a>(key: &Key, value: &'a [u8]) -> &'a [u8] {
    if key.table() == Some(Table::Xattr) { &[] } else { value }
}

/// A row that was found, and the record that its value waits for.
pub(crate) type Found<'a> = (Option<&'a [u8]>, Seq);

/// See the module.
pub struct View {
    config: CacheConfig,
    rows: HashMap<Key, Cached>,
    ring: VecDeque<Key>,
    row_bytes: usize,
    pages: BTreeMap<Key, RangePage>,
    page_ring: VecDeque<Key>,
    page_bytes: usize,
    filters: HashMap<Ino, NameFilter>,
    filter_ring: VecDeque<Ino>,
    filter_bytes: usize,
    overlay: HashMap<Key, Over>,
    listed: BTreeSet<Key>,
    queue: VecDeque<(Seq, Vec<Key>)>,
    overlay_bytes: usize,
    /// Bytes that ever left the overlay for the database.
    applied_bytes: u64,
    volatile: HashMap<Key, Volatile>,
    pub(crate) lazy: BTreeMap<Ino, Lazy>,
    dropped: Seq,
    last: Seq,
    hasher: RandomState,
}

impl core::fmt::Debug for View {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("View")
            .field("rows", &self.rows.len())
            .field("overlay", &self.overlay.len())
            .field("dropped", &self.dropped)
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

impl View {
    pub(crate) fn new(config: CacheConfig, applied: Seq) -> Self {
        Self {
            config,
            rows: HashMap::new(),
            ring: VecDeque::new(),
            row_bytes: 0,
            pages: BTreeMap::new(),
            page_ring: VecDeque::new(),
            page_bytes: 0,
            filters: HashMap::new(),
            filter_ring: VecDeque::new(),
            filter_bytes: 0,
            overlay: HashMap::new(),
            listed: BTreeSet::new(),
            queue: VecDeque::new(),
            overlay_bytes: 0,
            applied_bytes: 0,
            volatile: HashMap::new(),
            lazy: BTreeMap::new(),
            dropped: applied,
            last: applied,
            hasher: RandomState::new(),
        }
    }

    /// Number of the last record made or replayed.
    pub(crate) fn last(&self) -> Seq {
        self.last
    }
    /// Records that the applier has not reported yet.
    pub(crate) fn unapplied(&self) -> usize {
        self.queue.len()
    }
    /// Bytes of rows that the applier has not reported yet.
    pub(crate) fn overlay_bytes(&self) -> usize {
        self.overlay_bytes
    }
    /// The same of all rows that it ever reported.
    pub(crate) fn applied_bytes(&self) -> u64 {
        self.applied_bytes
    }
    /// Bytes of caches in use.
    pub(crate) fn cache_bytes(&self) -> usize {
        self.row_bytes + self.page_bytes + self.filter_bytes
    }

    fn name_hash(&self, name: &[u8]) -> u64 {
        self.hasher.hash_one(name)
    }

    /// A row as it is now.
    pub(crate) fn get(&self, key: &Key) -> Result<Found<'_>, Miss> {
        if let Some(v) = self.volatile.get(key) {
            // It was made from the row beneath, whose record may not be on the device yet.
            return Ok((Some(&v.value), v.mark.max(self.logged_at(key))));
        }
        self.get_logged(key)
    }

    /// A row as the records left it, without lazy updates.
    pub(crate) fn get_logged(&self, key: &Key) -> Result<Found<'_>, Miss> {
        if let Some(o) = self.overlay.get(key) {
            return Ok((o.value.as_deref(), o.seq));
        }
        if let Some(c) = self.rows.get(key) {
            c.used.set(true);
            return Ok((c.value.as_deref(), 0));
        }
        if key.table() == Some(Table::Dentry)
            && let (Some(dir), Some(name)) = (key.id(), key.rest())
            && let Some(f) = self.filters.get(&Ino(dir))
            && !f.may_hold(self.name_hash(name))
        {
            return Ok((None, 0));
        }
        Err(Miss::key(key.clone()))
    }

    /// The record that last changed a row, 0 once that is applied.
    pub(crate) fn logged_at(&self, key: &Key) -> Seq {
        self.overlay.get(key).map_or(0, |o| o.seq)
    }

    /// Does the view know all names of a directory well enough to say that one is absent?
    pub(crate) fn has_filter(&self, dir: Ino) -> bool {
        self.filters.contains_key(&dir)
    }

    /// Calls `each` for the rows of a listed table in order until it answers false or the range ends.
    /// Gives the highest record among them.
    pub(crate) fn scan(
        &self,
        range: &KeyRange,
        limit: usize,
        mut each: impl FnMut(&Key, &[u8]) -> bool,
    ) -> Result<Seq, Miss> {
        let mut seq = 0;
        let mut at = range.start.clone();
        while at < range.end {
            let miss = || {
                let range = KeyRange { start: at.clone(), end: range.end.clone() };
                Miss { keys: Vec::new(), ranges: vec![RangeMiss { range, limit }] }
            };
            let (_, page) = self.pages.range(..=at.clone()).next_back().ok_or_else(miss)?;
            if page.end <= at {
                return Err(miss());
            }
            let end = page.end.clone().min(range.end.clone());
            let mut base = page.rows.range(at.clone()..end.clone()).peekable();
            let mut over = self.listed.range(at.clone()..end.clone()).peekable();
            loop {
                let take_over = match (base.peek(), over.peek()) {
                    (None, None) => break,
                    (Some(_), None) => false,
                    (None, Some(_)) => true,
                    (Some((b, _)), Some(o)) => {
                        if b == o {
                            base.next();
                            continue;
                        }
                        *o < b
                    }
                };
                let more = if take_over {
                    let Some(key) = over.next() else { break };
                    let Some(o) = self.overlay.get(key) else { continue };
                    seq = seq.max(o.seq);
                    match (self.volatile.get(key), &o.value) {
                        (Some(v), _) => each(key, &v.value),
                        (None, Some(v)) => each(key, v),
                        (None, None) => true,
                    }
                } else {
                    let Some((key, value)) = base.next() else { break };
                    each(key, self.volatile.get(key).map_or(value, |v| &v.value))
                };
                if !more {
                    return Ok(seq);
                }
            }
            at = end;
        }
        Ok(seq)
    }

    /// Takes the rows of the next record. Lazy values of these keys are superseded: the new ones were made from them.
    pub(crate) fn commit(&mut self, seq: Seq, writes: Vec<(Key, Option<Box<[u8]>>)>) {
        debug_assert_eq!(seq, self.last + 1, "records leave no gap");
        self.last = seq;
        let mut keys = Vec::with_capacity(writes.len());
        for (key, value) in writes {
            self.forget_lazy(&key);
            match key.table() {
                Some(Table::Dentry) if value.is_some() => self.learn_name(&key),
                Some(Table::Dirty) => self.mark(&key, seq, value.is_some()),
                _ => {}
            }
            self.overlay_bytes += over_bytes(&key, value.as_deref());
            if key.table().is_some_and(Table::listed) {
                self.listed.insert(key.clone());
            }
            if let Some(old) = self.overlay.insert(key.clone(), Over { seq, value }) {
                self.overlay_bytes -= over_bytes(&key, old.value.as_deref());
            }
            keys.push(key);
        }
        self.queue.push_back((seq, keys));
    }

    fn forget_lazy(&mut self, key: &Key) {
        if let Some(v) = self.volatile.remove(key)
            && let Some(lazy) = self.lazy.get_mut(&v.ino)
        {
            lazy.keys.retain(|k| k != key);
            if lazy.keys.is_empty() && lazy.mark == 0 {
                self.lazy.remove(&v.ino);
            }
        }
    }

    fn mark(&mut self, key: &Key, seq: Seq, on: bool) {
        let Some(ino) = key.id().map(Ino) else { return };
        if on {
            let lazy = self.lazy.entry(ino).or_insert(Lazy { mark: 0, keys: SmallVec::new(), stamp: 0 });
            if lazy.mark == 0 {
                lazy.mark = seq;
                for key in &lazy.keys {
                    if let Some(v) = self.volatile.get_mut(key) {
                        v.mark = seq;
                    }
                }
            }
        } else if let Some(lazy) = self.lazy.remove(&ino) {
            for key in lazy.keys {
                self.volatile.remove(&key);
            }
        }
    }

    /// Sets a row in memory alone. For anything but the access time the inode must be marked.
    pub(crate) fn set_lazy(&mut self, ino: Ino, key: Key, value: Box<[u8]>, stamp: u64) {
        let lazy = self.lazy.entry(ino).or_insert(Lazy { mark: 0, keys: SmallVec::new(), stamp });
        lazy.stamp = stamp;
        if !lazy.keys.contains(&key) {
            lazy.keys.push(key.clone());
        }
        self.volatile.insert(key, Volatile { ino, mark: lazy.mark, value });
    }

    /// Lazy value of a row.
    pub(crate) fn lazy_value(&self, key: &Key) -> Option<&[u8]> {
        self.volatile.get(key).map(|v| &*v.value)
    }

    fn learn_name(&mut self, key: &Key) {
        let (Some(dir), Some(name)) = (key.id(), key.rest()) else { return };
        let hash = self.name_hash(name);
        if let Some(f) = self.filters.get_mut(&Ino(dir)) {
            self.filter_bytes += f.insert(hash);
            self.shrink_filters();
        }
    }

    /// A directory that was just made has no names: its filter starts empty and complete.
    pub(crate) fn new_directory(&mut self, dir: Ino) {
        let f = NameFilter::default();
        self.filter_bytes += f.bytes();
        if self.filters.insert(dir, f).is_none() {
            self.filter_ring.push_back(dir);
        }
        self.shrink_filters();
    }

    fn shrink_filters(&mut self) {
        while self.filter_bytes > self.config.filters
            && let Some(dir) = self.filter_ring.pop_front()
        {
            if let Some(f) = self.filters.remove(&dir) {
                self.filter_bytes = self.filter_bytes.saturating_sub(f.bytes());
            }
        }
    }

    /// The database holds every record up to `seq`: their rows become cached ones.
    pub(crate) fn applied(&mut self, seq: Seq) {
        while self.queue.front().is_some_and(|(s, _)| *s <= seq)
            && let Some((_, keys)) = self.queue.pop_front()
        {
            for key in keys {
                if self.overlay.get(&key).is_none_or(|o| o.seq > seq) {
                    continue;
                }
                let Some(o) = self.overlay.remove(&key) else { continue };
                let bytes = over_bytes(&key, o.value.as_deref());
                self.overlay_bytes -= bytes;
                self.applied_bytes += bytes as u64;
                self.listed.remove(&key);
                self.update_page(&key, o.value.as_deref());
                self.insert_row(key, o.value);
            }
        }
        self.dropped = self.dropped.max(seq);
        self.shrink_rows();
    }

    fn update_page(&mut self, key: &Key, value: Option<&[u8]>) {
        let Some((_, page)) = self
            .pages
            .range_mut::<[u8], _>((std::ops::Bound::Unbounded, std::ops::Bound::Included(key.bytes())))
            .next_back()
        else {
            return;
        };
        if page.end <= *key {
            return;
        }
        let value = value.map(|v| listed_value(key, v));
        let old = match value {
            Some(v) => {
                page.bytes += key.len() + v.len() + ROW_OVERHEAD;
                self.page_bytes += key.len() + v.len() + ROW_OVERHEAD;
                page.rows.insert(key.clone(), v.into())
            }
            None => page.rows.remove(key),
        };
        if let Some(old) = old {
            let len = key.len() + old.len() + ROW_OVERHEAD;
            page.bytes -= len;
            self.page_bytes -= len;
        }
    }

    fn insert_row(&mut self, key: Key, value: Option<Box<[u8]>>) {
        self.row_bytes += value.as_ref().map_or(0, |v| v.len()) + key.len() + ROW_OVERHEAD;
        let len = key.len();
        match self.rows.get_mut(&key) {
            Some(c) => {
                self.row_bytes -= c.value.as_ref().map_or(0, |v| v.len()) + len + ROW_OVERHEAD;
                c.value = value;
                c.used.set(true);
            }
            None => {
                self.ring.push_back(key.clone());
                self.rows.insert(key, Cached { value, used: Cell::new(false) });
            }
        }
    }

    /// Second chance: a row that was read since it was last looked at stays for another round.
    fn shrink_rows(&mut self) {
        while self.row_bytes > self.config.rows
            && let Some(key) = self.ring.pop_front()
        {
            match self.rows.get(&key) {
                Some(c) if c.used.replace(false) => self.ring.push_back(key),
                Some(c) => {
                    self.row_bytes -= c.value.as_ref().map_or(0, |v| v.len()) + key.len() + ROW_OVERHEAD;
                    self.rows.remove(&key);
                }
                None => {}
            }
        }
    }

    fn shrink_pages(&mut self) {
        while self.page_bytes > self.config.pages
            && self.page_ring.len() > 1
            && let Some(key) = self.page_ring.pop_front()
        {
            self.drop_page(&key);
        }
    }

    fn drop_page(&mut self, start: &Key) {
        if let Some(p) = self.pages.remove(start) {
            self.page_bytes -= p.bytes;
        }
    }

    /// Takes fetched rows. False: the snapshot is older than what was already dropped, fetch again. Values are copied: kept as
    /// they are, they would fill the part of the heap of the database's thread, beside what this one has freed for them.
    pub(crate) fn fetched(&mut self, f: Fetched) -> bool {
        if f.applied < self.dropped {
            return false;
        }
        for (key, value) in f.rows {
            if !self.overlay.contains_key(&key) {
                self.insert_row(key, value.as_deref().map(Box::from));
            }
        }
        for r in f.ranges {
            self.take_range(r);
        }
        self.shrink_rows();
        self.shrink_pages();
        true
    }

    fn take_range(&mut self, r: FetchedRange) {
        if r.range.start.table() == Some(Table::Dentry) {
            return self.take_names(r);
        }
        // Pages never overlap: what this one covers replaces what was there.
        let before = self.pages.range(..=r.range.start.clone()).next_back();
        let mut old: Vec<Key> =
            before.filter(|(_, p)| p.end > r.range.start).map(|(k, _)| k.clone()).into_iter().collect();
        old.extend(self.pages.range(r.range.start.clone()..r.range.end.clone()).map(|(k, _)| k.clone()));
        for key in old {
            self.drop_page(&key);
            self.page_ring.retain(|k| *k != key);
        }
        let rows: BTreeMap<Key, Box<[u8]>> = r
            .rows
            .into_iter()
            .map(|(k, v)| {
                let value = Box::from(listed_value(&k, &v));
                (k, value)
            })
            .collect();
        let bytes = rows.iter().map(|(k, v)| k.len() + v.len() + ROW_OVERHEAD).sum::<usize>() + ROW_OVERHEAD;
        self.page_bytes += bytes;
        self.page_ring.push_back(r.range.start.clone());
        self.pages.insert(r.range.start, RangePage { end: r.range.end, rows, bytes });
    }

    /// Names of a directory. All of them at once make its filter.
    fn take_names(&mut self, r: FetchedRange) {
        let Some(dir) = r.range.start.id().map(Ino) else { return };
        let whole = r.range == KeyRange::of(Table::Dentry, dir.0);
        if whole && !self.filters.contains_key(&dir) {
            let mut f = NameFilter::default();
            let logged = self.listed.range(r.range.start.clone()..r.range.end.clone());
            for key in logged.chain(r.rows.iter().map(|(k, _)| k)) {
                f.insert(self.name_hash(key.rest().unwrap_or_default()));
            }
            self.filter_bytes += f.bytes();
            self.filters.insert(dir, f);
            self.filter_ring.push_back(dir);
            self.shrink_filters();
        }
        for (key, value) in r.rows {
            if !self.overlay.contains_key(&key) {
                self.insert_row(key, Some(Box::from(&*value)));
            }
        }
    }

    /// Takes a record of the log at start, before the first operation.
    pub(crate) fn replay(&mut self, r: &Record) -> bool {
        if r.seq() <= self.last {
            return true;
        }
        if r.seq() != self.last + 1 {
            return false;
        }
        let writes = r.rows().map(|(k, v)| (Key::raw(k), v.map(Box::from))).collect();
        self.commit(r.seq(), writes);
        true
    }

    /// Forgets everything that can be fetched again. Tests use it to force misses.
    pub fn drop_caches(&mut self) {
        self.rows.clear();
        self.ring.clear();
        self.pages.clear();
        self.page_ring.clear();
        self.filters.clear();
        self.filter_ring.clear();
        (self.row_bytes, self.page_bytes, self.filter_bytes) = (0, 0, 0);
    }
}
