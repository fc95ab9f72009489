//! Sessions: who is connected, when it was last heard, what it has open, and the grace window after a restart.
//!
//! Owns liveness and open files in memory. What must outlive a restart (which sessions exist, opens of unlinked inodes,
//! the last reply of each slot) is logged by the namespace. Must not hold locks or leases, read a clock or do I/O.
//!
//! **Writers and kernel page locks.** The second client that opens a file for writing is told to use direct I/O. A
//! cached writer's kernel keeps page locks while its write is on the way to the server. With two of them each write
//! would recall the other's lease, and each invalidation would wait for page locks that the other's write holds: neither
//! would end. A direct writer holds no page locks, so at most one client writes a file through its page cache.

#[cfg(test)]
mod tests;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::time::Duration;
use wire::{ClientId, Ino, Status};

/// Milliseconds of a clock that only grows, as the shell counts them.
pub type Millis = u64;

/// How many fenced sessions are remembered, so that a late one is told that it was fenced and not that it is unknown.
const FENCED_REMEMBERED: usize = 1024;

/// Bounds and times.
#[derive(Clone, Copy, Debug)]
pub struct SessionLimits {
    /// Sessions at once; beyond it a new one is told Busy. One costs about 100 KiB with its slots and replies.
    pub sessions: usize,
    /// Open files of one session; beyond it ENFILE. One costs about 100 bytes.
    pub opens: usize,
    /// A session not heard for this long is fenced.
    pub lease: Duration,
    /// How long clients have to come back after a restart.
    pub grace: Duration,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            sessions: 1024,
            opens: 1 << 20,
            lease: Duration::from_secs(10),
            grace: Duration::from_secs(10),
        }
    }
}

/// What a client that opens a session meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// No such session before.
    New,
    /// It was there and lost nothing.
    Resumed,
    /// The server restarted: reclaim, then say so.
    Reclaim,
}

/// How the kernel of a client should do its I/O on an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoMode {
    /// Through its page cache.
    Cached,
    /// Past it.
    Direct,
}

/// An open file.
#[derive(Clone, Copy, Debug)]
pub struct OpenFile {
    /// The inode.
    pub ino: Ino,
    /// Opened for writing.
    pub write: bool,
    /// What the client was told.
    pub io: IoMode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Active,
    Reclaiming,
    /// Logged by an earlier life, not back yet.
    Awaited,
}

#[derive(Debug)]
struct Session {
    state: State,
    heard: Millis,
    opens: FxHashMap<u64, OpenFile>,
}

/// Client, handle and mode of each open for writing.
type Writers = SmallVec<[(ClientId, u64, IoMode); 2]>;

/// All sessions.
#[derive(Debug)]
pub struct Sessions {
    limits: SessionLimits,
    table: FxHashMap<ClientId, Session>,
    fenced: VecDeque<ClientId>,
    writers: FxHashMap<Ino, Writers>,
    grace_until: Option<Millis>,
}

impl Sessions {
    /// The sessions that the log names, all awaited. Without any there is no grace window.
    #[must_use]
    pub fn new(now: Millis, limits: SessionLimits, logged: impl IntoIterator<Item = ClientId>) -> Self {
        let session = || Session { state: State::Awaited, heard: now, opens: FxHashMap::default() };
        let table: FxHashMap<_, _> = logged.into_iter().map(|c| (c, session())).collect();
        let grace_until = (!table.is_empty()).then(|| now + limits.grace.as_millis() as Millis);
        Self { limits, table, fenced: VecDeque::new(), writers: FxHashMap::default(), grace_until }
    }

    /// A client opens or re-presents its session.
    ///
    /// # Errors
    /// [`Status::Busy`] where the table is full, [`Status::Fenced`] for a session that was fenced.
    pub fn open(&mut self, now: Millis, client: ClientId) -> Result<Opening, Status> {
        if client.0 == 0 {
            return Err(Status::Malformed);
        }
        if self.fenced.contains(&client) {
            return Err(Status::Fenced);
        }
        if let Some(s) = self.table.get_mut(&client) {
            s.heard = now;
            return Ok(match s.state {
                State::Active => Opening::Resumed,
                State::Awaited | State::Reclaiming => {
                    s.state = State::Reclaiming;
                    Opening::Reclaim
                }
            });
        }
        if self.table.len() >= self.limits.sessions {
            return Err(Status::Busy);
        }
        let session = Session { state: State::Active, heard: now, opens: FxHashMap::default() };
        self.table.insert(client, session);
        Ok(Opening::New)
    }

    /// A client gave a sign of life.
    ///
    /// # Errors
    /// [`Status::Fenced`] or [`Status::UnknownSession`].
    pub fn heard(&mut self, now: Millis, client: ClientId) -> Result<(), Status> {
        match self.table.get_mut(&client) {
            Some(s) if s.state != State::Awaited => {
                s.heard = now;
                Ok(())
            }
            // A client that does not know of the restart yet must open the session again.
            Some(_) => Err(Status::UnknownSession),
            None if self.fenced.contains(&client) => Err(Status::Fenced),
            None => Err(Status::UnknownSession),
        }
    }

    /// May this client reclaim now?
    #[must_use]
    pub fn reclaiming(&self, client: ClientId) -> bool {
        self.grace_until.is_some() && self.table.get(&client).is_some_and(|s| s.state == State::Reclaiming)
    }

    /// A client has reclaimed all that it wants.
    pub fn reclaimed(&mut self, client: ClientId) {
        if let Some(s) = self.table.get_mut(&client) {
            s.state = State::Active;
        }
    }

    /// Is the grace window open? It ends early when every awaited session is back.
    #[must_use]
    pub fn in_grace(&self) -> bool {
        self.grace_until.is_some()
    }

    /// Milliseconds until the grace window ends at the latest.
    #[must_use]
    pub fn grace_left(&self, now: Millis) -> Millis {
        self.grace_until.map_or(0, |until| until.saturating_sub(now))
    }

    /// Ends the grace window if it is time. True once, when it ends; sessions that did not return are in `late`.
    pub fn end_grace(&mut self, now: Millis, late: &mut Vec<ClientId>) -> bool {
        let Some(until) = self.grace_until else { return false };
        let missing = self.table.iter().filter(|(_, s)| s.state != State::Active);
        let mut missing: Vec<ClientId> = missing.map(|(c, _)| *c).collect();
        if !missing.is_empty() && now < until {
            return false;
        }
        missing.sort_unstable();
        late.append(&mut missing);
        self.grace_until = None;
        true
    }

    /// Sessions that were not heard for the lease time. Empty during the grace window.
    #[must_use]
    pub fn expired(&self, now: Millis) -> Vec<ClientId> {
        if self.in_grace() {
            return Vec::new();
        }
        let lease = self.limits.lease.as_millis() as Millis;
        let late = self.table.iter().filter(|(_, s)| s.heard.saturating_add(lease) <= now);
        let mut late: Vec<ClientId> = late.map(|(c, _)| *c).collect();
        late.sort_unstable();
        late
    }

    /// Everyone was heard just now: after the server itself was suspended, silence proves nothing.
    pub fn forgive(&mut self, now: Millis) {
        for s in self.table.values_mut() {
            s.heard = s.heard.max(now);
        }
        if let Some(until) = &mut self.grace_until {
            *until = (*until).max(now + self.limits.grace.as_millis() as Millis);
        }
    }

    /// Ends a session and returns what it had open; `fence` remembers it as thrown out.
    pub fn end(&mut self, client: ClientId, fence: bool) -> Option<Vec<(u64, OpenFile)>> {
        let session = self.table.remove(&client)?;
        if fence {
            if self.fenced.len() == FENCED_REMEMBERED {
                self.fenced.pop_front();
            }
            self.fenced.push_back(client);
        }
        let mut opens: Vec<_> = session.opens.into_iter().collect();
        opens.sort_unstable_by_key(|(handle, _)| *handle);
        for (handle, file) in &opens {
            self.forget_writer(client, *handle, file);
        }
        Some(opens)
    }

    /// May the client open one more file?
    #[must_use]
    pub fn may_open(&self, client: ClientId) -> bool {
        self.table.get(&client).is_some_and(|s| s.opens.len() < self.limits.opens)
    }

    /// A file was opened (or an open reclaimed). The answer is how the client should do its I/O.
    pub fn opened(&mut self, client: ClientId, handle: u64, ino: Ino, write: bool) -> IoMode {
        let Some(session) = self.table.get_mut(&client) else { return IoMode::Direct };
        if let Some(known) = session.opens.get(&handle) {
            return known.io;
        }
        let io = if write {
            let writers = self.writers.entry(ino).or_default();
            let other = writers.iter().any(|(c, _, io)| *c != client && *io == IoMode::Cached);
            let io = if other { IoMode::Direct } else { IoMode::Cached };
            writers.push((client, handle, io));
            io
        } else {
            IoMode::Cached
        };
        session.opens.insert(handle, OpenFile { ino, write, io });
        io
    }

    /// A file was closed; `None` where the handle was not open.
    pub fn closed(&mut self, client: ClientId, handle: u64) -> Option<OpenFile> {
        let file = self.table.get_mut(&client)?.opens.remove(&handle)?;
        self.forget_writer(client, handle, &file);
        Some(file)
    }

    /// Has anyone the inode open for writing?
    #[must_use]
    pub fn has_writer(&self, ino: Ino) -> bool {
        self.writers.contains_key(&ino)
    }

    /// Sessions that are connected or may come back.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Is there no session?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Open files of all sessions.
    #[must_use]
    pub fn opens(&self) -> usize {
        self.table.values().map(|s| s.opens.len()).sum()
    }

    /// Each session with the milliseconds since it was heard and its open files, for reports.
    pub fn report(&self, now: Millis) -> impl Iterator<Item = (ClientId, Millis, usize)> + '_ {
        self.table.iter().map(move |(c, s)| (*c, now.saturating_sub(s.heard), s.opens.len()))
    }

    fn forget_writer(&mut self, client: ClientId, handle: u64, file: &OpenFile) {
        if !file.write {
            return;
        }
        if let Some(w) = self.writers.get_mut(&file.ino) {
            w.retain(|(c, h, _)| (*c, *h) != (client, handle));
            if w.is_empty() {
                self.writers.remove(&file.ino);
            }
        }
    }
}
