//! The namespace: operations in, replies and records out.
//!
//! Owns the order of records, numbers, opens and stored replies. Must not decide who may touch an inode when: leases and
//! locks come before it. See the crate's page for how a shell drives it.

use crate::exec::{self, Space, Touched};
use crate::intents::Intent;
use crate::kv::{Counter, Key, Table};
use crate::layout::{self, BadRow, LAYOUT};
use crate::limits::{self, FIRST_INO};
use crate::once::{self, SlotState, opened_by};
use crate::op::{Effect, Op, OpCtx, Outcome, Reply};
use crate::opens::Opens;
use crate::record::{Record, Seq};
use crate::reply;
use crate::txn::{Numbers, Res, Span, Stop, Txn, Writes};
use crate::view::{CacheConfig, Fetched, Miss, View};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use wire::{ClientId, Errno, Ino, Slot, Timestamp};
use zerocopy::IntoBytes;

/// What the database held when it was opened: the last record applied and the rows that are always in memory.
#[derive(Clone, Debug, Default)]
pub struct Boot {
    /// Last record applied.
    pub applied: Seq,
    /// All rows of the tables of [`Boot::TABLES`].
    pub rows: Vec<(Key, Box<[u8]>)>,
}

impl Boot {
    /// Tables that are read whole at start.
    pub const TABLES: [Table; 5] =
        [Table::Super, Table::Counter, Table::Session, Table::Replay, Table::Intent];
}

/// Why a namespace can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no superblock row.
    #[error("the namespace holds no file system; run `claudefs format`")]
    Empty,
    /// A row is damaged.
    #[error(transparent)]
    Bad(#[from] BadRow),
    /// Records between checkpoint and log are missing.
    #[error(
        "the namespace log goes on with record {found} where {expected} should follow; run `claudefs fsck`"
    )]
    Gap {
        /// Number that should have come.
        expected: Seq,
        /// Number that came.
        found: Seq,
    },
}

/// Result of an operation.
#[derive(Clone, Debug)]
pub struct Executed {
    /// What the caller gets, once `depends_on` is on the device.
    pub outcome: Outcome,
    /// What goes into the log.
    pub record: Option<Record>,
    /// The last record that the reply stands on, its own included.
    pub depends_on: Seq,
    /// What else is to be done.
    pub effects: SmallVec<[Effect; 2]>,
}

/// How far the applier is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// Records not applied.
    pub records: usize,
    /// Bytes of their rows in memory.
    pub bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Namespace {
    pub(crate) view: View,
    pub(crate) numbers: Numbers,
    pub(crate) opens: Opens,
    pub(crate) slots: BTreeMap<(ClientId, Slot), SlotState>,
    /// Writes of data under way.
    pub(crate) writing: BTreeMap<Ino, u32>,
    /// Changes of ranges under way.
    pub(crate) intents: BTreeMap<Ino, Intent>,
    sessions: BTreeMap<ClientId, Box<[u8]>>,
    uuid: [u8; 16],
    boot: u64,
    space: Space,
    damage: Vec<BadRow>,
    pub(crate) stamp: u64,
}

/// How the file system was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastStop {
    /// Everything is on the device.
    Clean,
    /// A power cut may have taken the last records.
    Unclean,
}

impl Namespace {
    /// From what the database held. Records of the log follow through [`Namespace::replay`], then [`Namespace::start`].
    pub fn open(boot: Boot, cache: CacheConfig) -> Result<Self, OpenError> {
        let mut ns = Self {
            view: View::new(cache, boot.applied),
            numbers: Numbers::default(),
            opens: Opens::default(),
            slots: BTreeMap::new(),
            writing: BTreeMap::new(),
            intents: BTreeMap::new(),
            sessions: BTreeMap::new(),
            uuid: [0; 16],
            boot: 0,
            space: Space::default(),
            damage: Vec::new(),
            stamp: 0,
        };
        for (key, value) in boot.rows {
            ns.learn(&key, Some(&value))?;
        }
        Ok(ns)
    }

    /// Takes a record of the log. Those that the database holds already are skipped.
    pub fn replay(&mut self, record: &Record) -> Result<(), OpenError> {
        if record.seq() <= self.view.last() {
            return Ok(());
        }
        if !self.view.replay(record) {
            return Err(OpenError::Gap { expected: self.view.last() + 1, found: record.seq() });
        }
        for (key, value) in record.rows() {
            self.learn(&Key::raw(key), value)?;
        }
        Ok(())
    }

    /// Everything is read: begins a new boot epoch. Its record must be on the device before the first session is answered.
    pub fn start(&mut self, last: LastStop) -> Result<Record, OpenError> {
        if self.uuid == [0; 16] {
            return Err(OpenError::Empty);
        }
        let mut rows = Vec::new();
        let Numbers { ino, object, free, .. } = &mut self.numbers;
        for (which, s) in [(Counter::Ino, ino), (Counter::Object, object), (Counter::Free, free)] {
            // Numbers below a ceiling may have been given out before the restart.
            s.next = s.ceiling;
            if last == LastStop::Unclean {
                s.next += limits::LOST_NUMBERS;
                s.ceiling = s.next + limits::RESERVE;
                rows.push((Key::counter(which), Some(s.ceiling.to_le_bytes().into())));
            }
        }
        self.boot += 1;
        self.opens.start(self.boot);
        let opened: Vec<_> =
            self.slots.iter().filter_map(|(k, s)| Some((*k, opened_by(s.outcome.as_ref()?)?))).collect();
        for ((client, slot), (handle, ino)) in opened {
            self.opens.add_tentative(client, slot, handle, ino);
        }
        rows.push((Key::counter(Counter::Boot), Some(self.boot.to_le_bytes().into())));
        Ok(self.log(rows))
    }

    /// Rows that are also kept in memory.
    fn learn(&mut self, key: &Key, value: Option<&[u8]>) -> Result<(), BadRow> {
        let bad = |why| BadRow { key: format!("{key:?}"), why };
        match (key.table(), value) {
            (Some(Table::Super), Some(v)) => self.uuid = layout::superblock(v).map_err(bad)?.uuid,
            (Some(Table::Counter), Some(v)) => {
                let n = layout::counter(v).map_err(bad)?;
                let ceiling = |s: &mut Span| s.ceiling = s.ceiling.max(n);
                match key.get(1) {
                    Some(1) => ceiling(&mut self.numbers.ino),
                    Some(2) => ceiling(&mut self.numbers.object),
                    Some(3) => ceiling(&mut self.numbers.free),
                    Some(4) => self.numbers.inodes = n,
                    Some(5) => self.boot = self.boot.max(n),
                    _ => return Err(bad("unknown counter")),
                }
            }
            (Some(Table::Session), v) => {
                let client = ClientId(key.id().ok_or_else(|| bad("key is too short"))?);
                match v {
                    Some(v) => self.sessions.insert(client, v.into()),
                    None => self.sessions.remove(&client),
                };
            }
            (Some(Table::Replay), v) => {
                let client = ClientId(key.id().ok_or_else(|| bad("key is too short"))?);
                let slot =
                    key.rest().and_then(|r| r.try_into().ok()).ok_or_else(|| bad("key is too short"))?;
                let at = (client, Slot(u16::from_be_bytes(slot)));
                let Some(v) = v else {
                    self.slots.remove(&at);
                    return Ok(());
                };
                let (sequence, body) = layout::replay(v).map_err(bad)?;
                let outcome = Some(reply::decode(body).map_err(bad)?);
                self.slots
                    .insert(at, SlotState { sequence, outcome, depends_on: self.view.last(), logged: true });
            }
            (Some(Table::Intent), v) => {
                let ino = Ino(key.id().ok_or_else(|| bad("key is too short"))?);
                match v {
                    Some(v) => self.intents.insert(ino, Intent::decode(ino, v).map_err(bad)?),
                    None => self.intents.remove(&ino),
                };
            }
            _ => {}
        }
        Ok(())
    }

    /// Which inodes an operation reads and changes: their leases are checked before it is executed.
    pub fn touches(&mut self, op: &Op<'_>) -> Result<Touched, Miss> {
        let ctx = OpCtx::plain(ClientId(0), Timestamp::default());
        let t = Txn::new(&self.view, &self.opens, self.numbers, ctx);
        match exec::touches(&t, op) {
            Ok(touched) => Ok(touched),
            Err(Stop::Miss(m)) => Err(m),
            Err(Stop::Errno(_)) => Ok(Touched::new()),
            Err(Stop::Bad(b)) => {
                self.damaged(b);
                Ok(Touched::new())
            }
        }
    }

    /// Runs an operation, all of it or (on a miss) nothing.
    pub fn execute(&mut self, ctx: &OpCtx, op: &Op<'_>) -> Result<Executed, Miss> {
        if !self.damage.is_empty() && exec::mutates(op) {
            return Ok(self.refuse(ctx, Errno::EROFS, 0));
        }
        let space = self.space;
        // What is not applied yet will take its room, too, and what was applied meanwhile has.
        let applied = self.view.applied_bytes().saturating_sub(space.since);
        let full = self.view.overlay_bytes() as u64 + applied >= space.room && exec::grows(op);
        self.transact(ctx, |t| if full { Err(Errno::ENOSPC.into()) } else { exec::run(t, op, &space) })
    }

    /// Runs `f` as one operation.
    pub(crate) fn transact(
        &mut self,
        ctx: &OpCtx,
        f: impl FnOnce(&mut Txn<'_>) -> Res<Reply>,
    ) -> Result<Executed, Miss> {
        let mut t = Txn::new(&self.view, &self.opens, self.numbers, *ctx);
        let result = f(&mut t);
        let depends = t.depends();
        match result {
            Ok(reply) => {
                let Txn { writes, effects, numbers, new_dirs, open, close, .. } = t;
                self.numbers = numbers;
                for dir in new_dirs {
                    self.view.new_directory(dir);
                }
                let record = self.store(ctx, writes, &reply);
                if let Some(o) = open {
                    self.opens.add(ctx.request.client, o.handle, o.ino, o.flags);
                    self.opens.used(o.handle);
                }
                if let Some(handle) = close {
                    self.opens.remove(ctx.request.client, handle);
                }
                let depends_on = record.as_ref().map_or(depends, Record::seq);
                self.remember(ctx, &Ok(reply.clone()), depends_on, record.is_some());
                Ok(Executed { outcome: Ok(reply), record, depends_on, effects })
            }
            Err(Stop::Miss(m)) => Err(m),
            Err(Stop::Errno(e)) => Ok(self.refuse(ctx, e, depends)),
            Err(Stop::Bad(b)) => {
                self.damaged(b);
                Ok(self.refuse(ctx, Errno::EIO, depends))
            }
        }
    }

    fn refuse(&mut self, ctx: &OpCtx, e: Errno, depends_on: Seq) -> Executed {
        self.remember(ctx, &Err(e), depends_on, false);
        Executed { outcome: Err(e), record: None, depends_on, effects: SmallVec::new() }
    }

    /// Makes the record of an operation, with its reply beside its effect.
    fn store(&mut self, ctx: &OpCtx, mut writes: Writes, reply: &Reply) -> Option<Record> {
        if writes.is_empty() {
            return None;
        }
        if ctx.request.slot != Slot::IDEMPOTENT {
            writes.push(once::row(ctx.request, Ok(reply)));
        }
        Some(self.log(writes))
    }

    /// Gives the next number to a list of rows.
    pub(crate) fn log(&mut self, writes: Writes) -> Record {
        let seq = self.view.last() + 1;
        let record = Record::encode(seq, writes.iter().map(|(k, v)| (k, v.as_deref())));
        self.view.commit(seq, writes);
        record
    }

    /// Stores a session, so that a restart knows whom to wait for. The bytes are the caller's.
    pub fn put_session(&mut self, client: ClientId, bytes: &[u8]) -> Record {
        self.sessions.insert(client, bytes.into());
        self.log(vec![(Key::session(client), Some(bytes.into()))])
    }
    /// Sessions stored, in order of their numbers.
    pub fn sessions(&self) -> impl Iterator<Item = (ClientId, &[u8])> {
        self.sessions.iter().map(|(c, b)| (*c, &**b))
    }

    pub(crate) fn has_session(&self, client: ClientId) -> bool {
        self.sessions.contains_key(&client)
    }

    /// Ends a session step by step: closes its opens, then drops its stored replies and its row. Call again until it gives
    /// no record; after a miss fetch and call again.
    pub fn end_session(&mut self, client: ClientId, now: Timestamp) -> Result<Option<Executed>, Miss> {
        let ctx = OpCtx::plain(client, now);
        while let Some(handle) = self.opens.any(client) {
            let Some((ino, _)) = self.opens.get(client, handle) else { break };
            let done = self.execute(&ctx, &Op::Close { ino, handle })?;
            if done.outcome.is_err() {
                self.opens.remove(client, handle);
            }
            if done.record.is_some() {
                return Ok(Some(done));
            }
        }
        let mut slots: Vec<_> = self
            .slots
            .range((client, Slot(0))..=(client, Slot(u16::MAX)))
            .map(|(k, s)| (k.1, s.logged))
            .collect();
        let more = slots.len() > limits::RECORD_ROWS_MAX / 2;
        slots.truncate(limits::RECORD_ROWS_MAX / 2);
        let mut writes = Writes::new();
        for (slot, logged) in slots {
            self.slots.remove(&(client, slot));
            if logged {
                writes.push((Key::replay(client, slot), None));
            }
        }
        if !more && self.sessions.remove(&client).is_some() {
            writes.push((Key::session(client), None));
            writes.extend(self.disown_intents(client));
        }
        if writes.is_empty() {
            return Ok(None);
        }
        let record = self.log(writes);
        Ok(Some(Executed {
            outcome: Ok(Reply::Done),
            depends_on: record.seq(),
            record: Some(record),
            effects: SmallVec::new(),
        }))
    }

    /// A client names an open of before the restart. False: the inode is gone.
    pub fn reclaim_open(
        &mut self,
        client: ClientId,
        ino: Ino,
        handle: u64,
        flags: u32,
    ) -> Result<bool, Miss> {
        let (row, _) = self.view.get(&Key::inode(ino))?;
        if row.is_none() || self.opens.is_full(client) {
            return Ok(false);
        }
        self.opens.add(client, handle, ino, flags);
        Ok(true)
    }

    /// After the grace window: frees an orphan that nobody has open. Call with each of [`Namespace::orphans`].
    pub fn reap_orphan(&mut self, ino: Ino, now: Timestamp) -> Result<Option<Executed>, Miss> {
        if self.opens.is_open(ino) {
            return Ok(None);
        }
        let done = self.transact(&OpCtx::plain(ClientId(0), now), |t| {
            exec::reap(t, ino)?;
            Ok(Reply::Done)
        })?;
        Ok(done.record.is_some().then_some(done))
    }

    /// Inodes without links that are kept for opens: up to `limit` of them above `after`.
    pub fn orphans(&self, after: Ino, limit: usize) -> Result<Vec<Ino>, Miss> {
        self.list_inos(Table::Orphan, after, limit)
    }

    pub(crate) fn list_inos(&self, table: Table, after: Ino, limit: usize) -> Result<Vec<Ino>, Miss> {
        let mut range = crate::kv::KeyRange::table(table);
        range.start = crate::kv::KeyRange::of(table, after.0).end;
        let mut out = Vec::new();
        if limit > 0 {
            self.view.scan(&range, limit, |key, _| {
                out.extend(key.id().map(Ino));
                out.len() < limit
            })?;
        }
        Ok(out)
    }

    /// Inode and open flags of a handle.
    #[must_use]
    pub fn handle(&self, client: ClientId, handle: u64) -> Option<(Ino, u32)> {
        self.opens.get(client, handle)
    }
    /// Handles of a client: handle, inode, flags.
    pub fn handles(&self, client: ClientId) -> impl Iterator<Item = (u64, Ino, u32)> {
        self.opens.of(client)
    }
    /// Is it open anywhere?
    #[must_use]
    pub fn is_open(&self, ino: Ino) -> bool {
        self.opens.is_open(ino)
    }

    /// Takes fetched rows. False: the snapshot is too old by now, fetch again.
    pub fn fetched(&mut self, rows: Fetched) -> bool {
        self.view.fetched(rows)
    }
    /// The applier reports that the database holds every record up to `seq`, and that this is durable.
    pub fn applied(&mut self, seq: Seq) {
        self.view.applied(seq);
    }
    /// How far the applier is behind: stop taking changes above a bound of your choice.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        Pressure { records: self.view.unapplied(), bytes: self.view.overlay_bytes() }
    }
    /// Bytes of rows that were reported as applied, in all, counted as [`Pressure::bytes`].
    #[must_use]
    pub fn applied_bytes(&self) -> u64 {
        self.view.applied_bytes()
    }
    /// Number of the last record.
    #[must_use]
    pub fn last_seq(&self) -> Seq {
        self.view.last()
    }
    /// The shell's totals for statfs and for ENOSPC; update them each second.
    pub fn set_space(&mut self, space: Space) {
        self.space = space;
    }
    /// Totals as statfs(2) has them, for who asks without a session.
    #[must_use]
    pub fn stat_fs(&self) -> wire::StatFs {
        exec::stat_fs(&self.space, self.numbers.inodes)
    }
    /// Number of this start, from 1; wire's boot epoch.
    #[must_use]
    pub fn boot_epoch(&self) -> u64 {
        self.boot
    }
    /// Identity of the file system.
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        self.uuid
    }
    /// Rows found damaged. Not empty: nothing is changed any more.
    #[must_use]
    pub fn damage(&self) -> &[BadRow] {
        &self.damage
    }
    /// Counts for status: inodes, opens, bytes of caches.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            inodes: self.numbers.inodes,
            opens: self.opens.len(),
            dirty: self.view.lazy.len(),
            cache_bytes: self.view.cache_bytes(),
            pressure: self.pressure(),
        }
    }
    /// Forgets everything that can be fetched again, for tests that force misses.
    pub fn drop_caches(&mut self) {
        self.view.drop_caches();
    }

    pub(crate) fn damaged(&mut self, b: BadRow) {
        if self.damage.len() < 64 && !self.damage.contains(&b) {
            tracing::error!(error = %b, "namespace row is damaged: the file system is read-only now");
            self.damage.push(b);
        }
    }
}

/// For `claudefs status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Inodes in use.
    pub inodes: u64,
    /// Open handles.
    pub opens: usize,
    /// Inodes with lazy updates or a mark.
    pub dirty: usize,
    /// Bytes of caches.
    pub cache_bytes: usize,
    /// How far the applier is behind.
    pub pressure: Pressure,
}

/// The records that make an empty file system: a superblock, counters and the root directory.
#[must_use]
pub fn mkfs(uuid: [u8; 16], now: Timestamp) -> Vec<Record> {
    let superblock = layout::SuperRow { layout: LAYOUT.into(), zero: [0; 6], uuid, created: now };
    let mut root = layout::InodeRow::new(0o040_755, 0, 0, now);
    root.nlink = 2.into();
    root.parent = wire::ROOT_INO.into();
    root.next_cookie = limits::FIRST_COOKIE.into();
    let number = |c, n: u64| (Key::counter(c), n.to_le_bytes().to_vec());
    let rows = [
        (Key::superblock(), superblock.as_bytes().to_vec()),
        number(Counter::Ino, FIRST_INO),
        number(Counter::Object, 1),
        number(Counter::Free, 1),
        number(Counter::Inodes, 1),
        number(Counter::Boot, 0),
        (Key::inode(wire::ROOT_INO), root.as_bytes().to_vec()),
    ];
    vec![Record::encode(1, rows.iter().map(|(k, v)| (k, Some(&v[..]))))]
}
