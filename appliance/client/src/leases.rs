//! What this client holds and caches: leases, attributes and names of inodes, bounded, sans-I/O.
//!
//! Owns the bookkeeping of grants and recalls that may overtake each other. Must not wait, send or call anybody:
//! `recall.rs` drives it. The rules:
//! - a grant up to a serial that was given back is void; serials come from one counter of the server, so what is known
//!   of forgotten inodes fits into one number (`floor`);
//! - what a reply says may be cached only where a lease covered it from before the server looked until now: the reply
//!   carries the grant itself, or the lease was held without a break since the request began;
//! - from the moment a recall arrives nothing new is cached, though requests go on being served.

use crate::gate::{Gate, Late};
use crate::hold::Counter;
use crate::names::{Name, Names};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::rc::Rc;
use wire::message::Returned;
use wire::types::{Attr, Grant, Ino, LeaseMode};

/// Bounds of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Inodes with a lease or cached state, and an eighth more while leases go back. One costs about 600 bytes, so the default
    /// is 40 MB; the server's own bound (262,144 per client) is above it.
    pub inodes: usize,
    /// Names in all directories, about 100 bytes each: 26 MB.
    pub names: usize,
    /// Names of one directory that a recall has to invalidate one by one: 16,384 take well under a second of the
    /// server's ten. Beyond it names get no lifetime in the kernel.
    pub names_per_dir: usize,
    /// Sweeps (of 30 s) after which an unused lease goes back.
    pub idle_sweeps: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { inodes: 1 << 16, names: 1 << 18, names_per_dir: 1 << 14, idle_sweeps: 20 }
    }
}

/// The table may be above its bound by this part of it while leases go back; beyond, none is taken for another inode.
const SLACK: usize = 8;

/// What covers the contents of a reply.
pub(crate) type Cover = LeaseMode;

/// The state of an inode's lease when a request began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Since {
    /// Unique number of the unbroken holding of a lease; 0 for none.
    tenure: u64,
    /// Life of the session.
    life: u64,
    /// Own changes that had ended.
    stamp: u64,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    keep: LeaseMode,
    serial: u64,
    /// Grew stricter since the job was taken.
    again: bool,
    /// The job takes data out of the kernel.
    data: bool,
}

impl Pending {
    fn new(keep: LeaseMode, serial: u64) -> Self {
        Self { keep, serial, again: false, data: false }
    }
}

/// One inode.
#[derive(Debug, Default)]
struct Record {
    held: LeaseMode,
    serial: u64,
    tenure: u64,
    /// Grants up to this one were given back,
    void: u64,
    /// except for this.
    kept: LeaseMode,
    recall: Option<Pending>,
    /// Replies with a lifetime on their way to the kernel.
    replies: Rc<Counter>,
    gate: Option<Rc<Gate>>,
    kernel_attrs: bool,
    kernel_data: bool,
    attr: Option<Attr>,
    /// Stamp of the last own change of the attributes that no reply told.
    dropped: u64,
    names: Names,
    opens: u32,
    writers: u32,
    used: u32,
}

impl Record {
    fn cover(&self) -> Cover {
        if self.recall.is_some() { LeaseMode::None } else { self.held }
    }
    fn is_busy(&self) -> bool {
        self.recall.is_some()
            || self.opens > 0
            || self.replies.held() > 0
            || self.names.changing > 0
            || self.gate.as_ref().is_some_and(|g| !g.is_idle())
    }
}

/// Work that a recall means.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) keep: LeaseMode,
    /// Attributes were given a lifetime.
    pub(crate) attrs: bool,
    /// Data may be in the kernel, and has to go (or, with `keep` Shared, to be written back).
    pub(crate) data: bool,
    pub(crate) replies: Rc<Counter>,
    pub(crate) gate: Option<Rc<Gate>>,
}

/// What to do with a recall that has arrived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// Nothing is cached: answer at once.
    Return(Returned),
    /// Start the procedure.
    Start,
    /// One is running and takes this in.
    Merged,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Table {
    records: FxHashMap<Ino, Box<Record>>,
    /// Inodes in order of their arrival, for second-chance eviction; holds each once.
    clock: VecDeque<Ino>,
    limits: Limits,
    /// Names with a lifetime or cached, in all.
    pub(crate) names: usize,
    tenures: u64,
    /// Grows when the server may have forgotten what this client held.
    life: u64,
    /// Own changes that have ended.
    stamp: u64,
    floor: u64,
    now: u32,
    late: Rc<Late>,
}

impl Table {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            records: FxHashMap::default(),
            clock: VecDeque::new(),
            limits,
            names: 0,
            tenures: 0,
            life: 1,
            stamp: 0,
            floor: 0,
            now: 0,
            late: Rc::default(),
        }
    }
    pub(crate) fn late(&self) -> Rc<Late> {
        Rc::clone(&self.late)
    }
    /// Leases held.
    pub(crate) fn held(&self) -> usize {
        self.records.values().filter(|r| r.held != LeaseMode::None).count()
    }
    fn record(&mut self, ino: Ino) -> &mut Record {
        let (clock, floor, now) = (&mut self.clock, self.floor, self.now);
        let record = self.records.entry(ino).or_insert_with(|| {
            clock.push_back(ino);
            Box::new(Record { void: floor, ..Record::default() })
        });
        record.used = now;
        record
    }

    /// A request about `ino` begins.
    pub(crate) fn since(&self, ino: Ino) -> Since {
        let r = self.records.get(&ino);
        let tenure = r.filter(|r| r.cover() != LeaseMode::None).map_or(0, |r| r.tenure);
        Since { tenure, ..self.blank() }
    }
    /// A request begins whose inode only the reply will name.
    pub(crate) fn blank(&self) -> Since {
        Since { tenure: 0, life: self.life, stamp: self.stamp }
    }
    /// Which life of the session this is.
    pub(crate) fn life(&self) -> u64 {
        self.life
    }
    /// The reply is here: takes its grant and tells what covers the reply.
    pub(crate) fn settle(&mut self, ino: Ino, since: Since, grant: &Grant) -> Cover {
        if since.life != self.life {
            return LeaseMode::None;
        }
        let mode = grant.mode().unwrap_or_default();
        // What is not taken is not cached: the server's recall of it is answered at once, as of all that is not known here.
        let room = self.records.len() < self.limits.inodes + self.limits.inodes / SLACK;
        if grant.ino() == ino && mode != LeaseMode::None && (room || self.records.contains_key(&ino)) {
            self.tenures += 1;
            let tenure = self.tenures;
            let serial = grant.serial.get();
            let r = self.record(ino);
            let mode = if serial <= r.void { mode.min(r.kept) } else { mode };
            if mode != LeaseMode::None && serial >= r.serial {
                if r.held == LeaseMode::None {
                    r.tenure = tenure;
                }
                r.serial = serial;
                r.held = r.held.max(mode);
                return r.cover().min(mode);
            }
        }
        // Nothing granted, or given back since, or older than what is held now.
        let r = self.records.get(&ino).filter(|r| since.tenure != 0 && since.tenure == r.tenure);
        r.map_or(LeaseMode::None, |r| r.cover())
    }

    /// As [`Table::settle`], for data that went through the gate: a recall under way takes care of it, too.
    pub(crate) fn settle_data(&mut self, ino: Ino, since: Since, grant: &Grant) -> bool {
        let cover = self.settle(ino, since, grant);
        cover != LeaseMode::None || self.records.get(&ino).is_some_and(|r| r.recall.is_some())
    }

    /// What covers `ino` now.
    pub(crate) fn cover(&self, ino: Ino) -> Cover {
        self.records.get(&ino).map_or(LeaseMode::None, |r| r.cover())
    }
    /// A reply that gives a lifetime to attributes is on its way.
    pub(crate) fn attrs_out(&mut self, ino: Ino) -> Rc<Counter> {
        let r = self.record(ino);
        r.kernel_attrs = true;
        Rc::clone(&r.replies)
    }
    /// A reply that gives a lifetime to names of `dir` is on its way.
    pub(crate) fn names_out(&mut self, dir: Ino) -> Rc<Counter> {
        Rc::clone(&self.record(dir).replies)
    }

    /// Attributes, if they are sure.
    pub(crate) fn attr(&mut self, ino: Ino) -> Option<Attr> {
        let now = self.now;
        let r = self.records.get_mut(&ino).filter(|r| r.cover() != LeaseMode::None)?;
        r.used = now;
        r.attr
    }
    /// Attributes from a reply, to be kept if they are sure; tells whether they are. An older reply never replaces a
    /// newer one; a newer one that is not sure itself still tells that what is kept is outdated.
    pub(crate) fn store(&mut self, attr: &Attr, since: Since, cover: Cover) -> bool {
        let Some(r) = self.records.get_mut(&attr.ino()) else { return false };
        if cover == LeaseMode::None || r.cover() == LeaseMode::None || r.dropped > since.stamp {
            if r.attr.is_some_and(|old| old.change.get() < attr.change.get()) {
                self.forget_attr(attr.ino());
            }
            return false;
        }
        if r.attr.is_some_and(|old| old.change.get() > attr.change.get()) {
            return false;
        }
        r.attr = Some(*attr);
        true
    }
    /// An own change of attributes has ended that no reply tells.
    pub(crate) fn forget_attr(&mut self, ino: Ino) {
        self.stamp += 1;
        if let Some(r) = self.records.get_mut(&ino) {
            r.attr = None;
            r.dropped = self.stamp;
        }
    }
    /// The server may have moved the access time (relatime: when it is not after the last change).
    pub(crate) fn accessed(&mut self, ino: Ino) {
        let moves = |a: &Attr| a.atime <= a.mtime || a.atime <= a.ctime;
        if self.records.get(&ino).is_some_and(|r| r.attr.as_ref().is_none_or(moves)) {
            self.forget_attr(ino);
        }
    }

    /// What is known of a name, and the cover of its directory.
    pub(crate) fn name(&mut self, dir: Ino, name: &[u8]) -> (Name, Cover) {
        let now = self.now;
        let Some(r) = self.records.get_mut(&dir).filter(|r| r.cover() != LeaseMode::None) else {
            return (Name::Unknown, LeaseMode::None);
        };
        r.used = now;
        (r.names.get(name), r.cover())
    }
    /// Remembers a name under `cover` of its directory, and that a kernel may hold it. Tells whether it did.
    pub(crate) fn put_name(&mut self, dir: Ino, name: &[u8], what: Name, cover: Cover, kernel: bool) -> bool {
        let limits = self.limits;
        let Some(r) = self.records.get_mut(&dir) else { return false };
        if cover == LeaseMode::None || r.cover() == LeaseMode::None {
            return false;
        }
        if !r.names.has(name) {
            if r.names.len() >= limits.names_per_dir || self.names >= limits.names {
                return false;
            }
            self.names += 1;
        }
        r.names.put(name, what, kernel);
        true
    }
    /// May a kernel hold this name with a lifetime, or be about to be told not to?
    pub(crate) fn in_kernel(&self, dir: Ino, name: &[u8]) -> bool {
        self.records.get(&dir).is_some_and(|r| r.recall.is_some() || r.names.in_kernel(name))
    }
    /// A kernel has moved a name with a lifetime here: the next recall of `dir`, or the one under way, has to take it out.
    /// `false` where no recall will come.
    pub(crate) fn moved_in(&mut self, dir: Ino, name: &[u8]) -> bool {
        let Some(r) = self.records.get_mut(&dir).filter(|r| r.held != LeaseMode::None || r.recall.is_some())
        else {
            return false;
        };
        self.names += usize::from(!r.names.has(name));
        let what = r.names.get(name);
        r.names.put(name, what, true);
        true
    }
    /// An own change of names of `dir` begins; nothing is known of them until it ends.
    pub(crate) fn change_begins(&mut self, dir: Ino, name: &[u8]) {
        self.record(dir).names.begin(name);
    }
    /// It ended.
    pub(crate) fn change_ends(&mut self, dir: Ino) {
        self.stamp += 1;
        let stamp = self.stamp;
        self.record(dir).names.end(stamp);
        self.forget_attr(dir);
    }
    /// Apart from `mine`, no own change of names of `dir` ran or ended since the request began?
    pub(crate) fn undisturbed(&self, dir: Ino, since: Since, mine: u32) -> bool {
        self.records.get(&dir).is_none_or(|r| r.names.changing <= mine && r.names.changed <= since.stamp)
    }

    /// The gate of a file that a kernel caches; remembers that it does.
    pub(crate) fn gate(&mut self, ino: Ino) -> Rc<Gate> {
        let late = Rc::clone(&self.late);
        let r = self.record(ino);
        r.kernel_data = true;
        Rc::clone(r.gate.get_or_insert_with(|| Rc::new(Gate::new(ino, late))))
    }
    /// May a kernel hold data of this file?
    pub(crate) fn has_data(&self, ino: Ino) -> bool {
        self.records.get(&ino).is_some_and(|r| r.kernel_data)
    }
    /// A handle was opened or closed.
    pub(crate) fn opened(&mut self, ino: Ino, by: i32, writes: bool) {
        let r = self.record(ino);
        r.opens = r.opens.saturating_add_signed(by);
        if writes {
            r.writers = r.writers.saturating_add_signed(by);
        }
    }

    /// A recall arrived, or this client wants to give back.
    pub(crate) fn recall(&mut self, ino: Ino, keep: LeaseMode, serial: u64) -> Begin {
        let floor = self.floor;
        if serial <= floor && !self.records.contains_key(&ino) {
            return Begin::Return(Returned { ino, serial, keep: LeaseMode::None });
        }
        let r = self.record(ino);
        if let Some(p) = &mut r.recall {
            p.again |= keep < p.keep;
            p.keep = p.keep.min(keep);
            p.serial = p.serial.max(serial);
            return Begin::Merged;
        }
        r.recall = Some(Pending::new(keep, serial));
        let idle_data = r.gate.as_ref().is_none_or(|g| g.is_idle()) && !r.kernel_data;
        let nothing = !r.kernel_attrs && idle_data && !r.names.any_in_kernel() && r.replies.held() == 0;
        if nothing && let Some(returned) = self.finish(ino) {
            return Begin::Return(returned);
        }
        Begin::Start
    }
    /// Serial of the lease that is held, if one is.
    pub(crate) fn serial(&self, ino: Ino) -> Option<u64> {
        self.records.get(&ino).filter(|r| r.held != LeaseMode::None).map(|r| r.serial)
    }
    /// Gives back all of `ino` unasked, if it is held and not in use.
    pub(crate) fn recall_own(&mut self, ino: Ino) -> Option<Begin> {
        let r = self.records.get(&ino)?;
        if r.is_busy() || r.held == LeaseMode::None {
            return None;
        }
        let serial = r.serial;
        Some(self.recall(ino, LeaseMode::None, serial))
    }
    /// What the running recall has to do.
    pub(crate) fn job(&mut self, ino: Ino) -> Option<Job> {
        let r = self.records.get_mut(&ino)?;
        let p = r.recall.as_mut()?;
        p.again = false;
        let keep = p.keep;
        r.attr = None;
        let data = r.kernel_data && (keep == LeaseMode::None || r.writers > 0);
        p.data = data;
        Some(Job {
            keep,
            attrs: r.kernel_attrs && keep == LeaseMode::None,
            data,
            replies: Rc::clone(&r.replies),
            gate: r.gate.clone(),
        })
    }
    /// Names of `dir` that the kernel may hold. All that this client knows of the directory's names goes, too.
    pub(crate) fn take_names(&mut self, dir: Ino) -> Vec<Box<[u8]>> {
        let Some(r) = self.records.get_mut(&dir) else { return Vec::new() };
        self.names -= r.names.len();
        r.names.take_kernel_names()
    }
    /// The invalidation is done: what to tell the server. `None` where it has to be done again: a stricter recall
    /// arrived meanwhile, or the first data was read.
    pub(crate) fn finish(&mut self, ino: Ino) -> Option<Returned> {
        let r = self.records.get_mut(&ino)?;
        let p = r.recall?;
        if p.again || (r.kernel_data && p.keep == LeaseMode::None && !p.data) {
            return None;
        }
        self.names -= r.names.drop_client_names();
        r.recall = None;
        r.attr = None;
        if r.serial <= p.serial {
            r.held = r.held.min(p.keep);
        }
        if p.serial >= r.void {
            r.void = p.serial;
            r.kept = r.held.min(p.keep);
        }
        if r.held == LeaseMode::None {
            r.tenure = 0;
            r.kernel_attrs = false;
            // Requests that wait for the end of this recall fill the page cache next.
            r.kernel_data = r.gate.as_ref().is_some_and(|g| !g.is_idle());
        }
        Some(Returned { ino, serial: p.serial, keep: r.held.min(p.keep) })
    }

    /// Everything held, to reclaim; in no order.
    pub(crate) fn grants(&self) -> Vec<Grant> {
        let held = self.records.iter().filter(|(_, r)| r.cover() != LeaseMode::None);
        held.map(|(&ino, r)| Grant::new(ino, r.held, r.serial)).collect()
    }
    /// The server was restarted and holds what is in `accepted` for this client. Returns inodes that are lost: their
    /// caches have to go. Recalls under way are moot, but go on to their end.
    pub(crate) fn reclaimed(&mut self, accepted: &[Grant]) -> Vec<Ino> {
        self.life += 1;
        self.floor = 0;
        let accepted: FxHashMap<Ino, &Grant> = accepted.iter().map(|g| (g.ino(), g)).collect();
        let mut lost = Vec::new();
        for (&ino, r) in &mut self.records {
            let cached = r.held != LeaseMode::None || r.kernel_attrs || r.kernel_data;
            let grant = accepted.get(&ino);
            (r.void, r.kept) = (0, LeaseMode::None);
            // A power loss may have taken changes that were told but not flushed: the server counts them anew.
            r.attr = None;
            r.serial = grant.map_or(0, |g| g.serial.get());
            if let Some(p) = &mut r.recall {
                p.serial = r.serial;
            } else if cached && grant.and_then(|g| g.mode()).is_none_or(|m| m < r.held) {
                r.recall = Some(Pending::new(LeaseMode::None, r.serial));
                lost.push(ino);
            }
        }
        lost
    }
    /// Everything is lost (fenced, or silent for longer than a lease). Returns the inodes whose caches have to go.
    pub(crate) fn lose_all(&mut self) -> Vec<Ino> {
        self.reclaimed(&[])
    }

    /// Time passes. Returns inodes unused for long, at most `max`.
    pub(crate) fn sweep(&mut self, max: usize) -> Vec<Ino> {
        self.now += 1;
        let old = self.now.saturating_sub(self.limits.idle_sweeps);
        self.shrink(max, |r| r.used < old)
    }
    /// Is the table above its bounds?
    pub(crate) fn is_full(&self) -> bool {
        self.records.len() > self.limits.inodes || self.names > self.limits.names / 8 * 7
    }
    /// Inodes to give back so that the table stays within its bounds.
    pub(crate) fn evict(&mut self, max: usize) -> Vec<Ino> {
        let now = self.now;
        // A sweep is 30 s: nothing used within it goes unless there is no other.
        let old = self.shrink(max, |r| r.used < now);
        if old.is_empty() && self.is_full() { self.shrink(max, |_| true) } else { old }
    }
    fn shrink(&mut self, max: usize, stale: impl Fn(&Record) -> bool) -> Vec<Ino> {
        let mut give_back = Vec::new();
        for _ in 0..self.clock.len().min(max * 4) {
            if give_back.len() >= max {
                break;
            }
            let Some(ino) = self.clock.pop_front() else { break };
            let Some(r) = self.records.get(&ino) else { continue };
            if r.is_busy() || !stale(r) {
                self.clock.push_back(ino);
            } else if r.held == LeaseMode::None && !r.kernel_data && !r.kernel_attrs {
                self.floor = self.floor.max(r.void);
                self.names -= r.names.len();
                self.records.remove(&ino);
            } else {
                self.clock.push_back(ino);
                give_back.push(ino);
            }
        }
        give_back
    }
}

#[cfg(test)]
#[path = "leases_tests.rs"]
mod tests;
