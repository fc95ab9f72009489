//! Requests of clients: from the wire to operations and back, with the grants that travel in the answers.
//!
//! Must not decide what an operation does (that is `exec`) nor when an answer leaves (that is the machine).

use super::{Action, Machine, OpId, Pending, Stage, Work};
use crate::leases::{Admission, Need, Ticket, Want};
use crate::locks::{LockRequest, Outcome as LockOutcome, Owner, WaiterId};
use crate::op::{Access, Create, Op, OpCtx, Reply, open_flags};
use crate::{Executed, Replayed, leases};
use smallvec::SmallVec;
use wire::message as m;
use wire::{
    Attr, Body, BodyBuf, ClientId, Errno, Flags, Grant, Header, Ino, LeaseMode, LockKind, LockRange, Opcode,
    Request, Slot, Status,
};

/// What a request asks of the namespace, and who asks.
struct Asked<'a> {
    op: Op<'a>,
    uid: u32,
    gid: u32,
    /// Mode of an AcquireLease.
    acquire: Option<LeaseMode>,
    /// A listing that leaves the access time alone.
    noatime: bool,
}

impl Machine {
    pub(super) fn request(&mut self, id: OpId, header: Header, body: Vec<u8>, payload: Vec<u8>) {
        self.stats.requests += 1;
        let client = header.client;
        let once = (header.slot != Slot::IDEMPOTENT).then_some((header.slot, header.sequence));
        if let Some((slot, sequence)) = once
            && let Some(&(under_way, ticket)) = self.slots.get(&(client, slot))
        {
            return self.join(id, sequence, under_way, ticket);
        }
        if self.pending.len() >= self.limits.pending {
            self.stats.busy += 1;
            let (body, payload) = (BodyBuf::new(), Vec::new());
            self.out.push(Action::Reply { id, status: Status::Busy, body, payload });
            return;
        }
        let ticket = self.ticket();
        self.by_id.insert(id, ticket);
        if let Some((slot, sequence)) = once {
            self.slots.insert((client, slot), (sequence, ticket));
        }
        let work = Work::Wire { header, body, payload };
        let stage = Stage::Running;
        let pending = Pending { id, client, once, work, stage, gates: SmallVec::new(), reply: None };
        self.pending.insert(ticket, pending);
        self.run(ticket);
    }

    /// A repeat of a request that is still under way takes its place: the answer goes to the new connection.
    fn join(&mut self, id: OpId, sequence: u64, under_way: u64, ticket: Ticket) {
        let Some(p) = self.pending.get_mut(&ticket).filter(|_| sequence == under_way) else {
            let (status, body, payload) = (Status::BadSequence, BodyBuf::new(), Vec::new());
            return self.out.push(Action::Reply { id, status, body, payload });
        };
        self.by_id.remove(&p.id);
        p.id = id;
        if let Some((_, Action::Reply { id: reply, .. })) = &mut p.reply {
            *reply = id;
        }
        self.by_id.insert(id, ticket);
    }

    pub(super) fn run_request(&mut self, ticket: Ticket) {
        let Some(p) = self.pending.get_mut(&ticket) else { return };
        let Work::Wire { header, body, payload } = &mut p.work else { return };
        let (header, body, payload) = (*header, std::mem::take(body), std::mem::take(payload));
        let decoded = header.op().map(|op| Request::decode(op, &body));
        match decoded {
            Some(Ok(request)) => self.dispatch(ticket, &header, &request, &payload),
            Some(Err(_)) => self.answer(ticket, 0, Status::Malformed),
            None => self.answer(ticket, 0, Status::Unsupported),
        }
        if let Some(Pending { work: Work::Wire { body: b, payload: v, .. }, .. }) =
            self.pending.get_mut(&ticket)
        {
            (*b, *v) = (body, payload);
        }
    }

    fn dispatch(&mut self, ticket: Ticket, header: &Header, request: &Request<'_>, payload: &[u8]) {
        let client = header.client;
        match request {
            Request::OpenSession(r) => self.open_session(ticket, client, r),
            Request::CloseSession(_) => self.close_session(ticket, client),
            Request::KeepAlive(_) => self.answer(ticket, 0, Status::Ok),
            Request::ReclaimLocks(r) => self.reclaim_locks(ticket, client, r),
            Request::ReclaimLeases(r) => self.reclaim_leases(ticket, client, r),
            Request::ReclaimOpens(r) => self.reclaim_opens(ticket, client, r),
            Request::ReclaimDone(_) => self.reclaim_done(ticket, client),
            Request::LeaseReturn(r) => {
                for l in r.leases.iter() {
                    let ready = &mut self.changes.ready;
                    self.leases.returned(self.now.mono, client, l.ino, l.keep, l.serial, ready);
                }
                self.answer(ticket, 0, Status::Ok);
            }
            Request::GetLock(r) => self.get_lock(ticket, client, r),
            Request::SetLock(_) | Request::ReleaseOwner(_) if self.answered_before(ticket, header) => {}
            Request::SetLock(r) => self.set_lock(ticket, client, r),
            Request::ReleaseOwner(r) => {
                let owner = Owner { client, owner: r.owner };
                for WaiterId(t) in self.locks.release_owner(r.ino, r.space, owner, &mut self.woken) {
                    self.answer(Ticket(t), 0, Status::Errno(Errno::EINTR));
                }
                self.answer(ticket, 0, Status::Ok);
            }
            other => match asked(other, payload) {
                Some(asked) => self.operate(ticket, header, &asked),
                None => self.answer(ticket, 0, Status::Unsupported),
            },
        }
    }

    fn operate(&mut self, ticket: Ticket, header: &Header, asked: &Asked<'_>) {
        let ctx = OpCtx { now: self.now.wall, request: header.id(), uid: asked.uid, gid: asked.gid };
        match self.ns.replayed(ctx.request) {
            Replayed::New => {}
            Replayed::Repeat { outcome, mut depends_on } => {
                let (mut outcome, effects) = (*outcome, SmallVec::new());
                if let Err(miss) = self.ns.renew(&mut outcome, &mut depends_on) {
                    return self.miss(ticket, miss);
                }
                self.stats.replayed += 1;
                let done = Executed { outcome, record: None, depends_on, effects };
                return self.reply(ticket, header, asked, done, None);
            }
            Replayed::Bad => return self.answer(ticket, 0, Status::BadSequence),
        }
        if let Err(miss) = self.close_stale(&ctx) {
            return self.miss(ticket, miss);
        }
        let touched = match self.ns.touches(&asked.op) {
            Ok(touched) => touched,
            Err(miss) => return self.miss(ticket, miss),
        };
        let primary = primary(&asked.op);
        let cache = header.flags.has(Flags::NEED_LEASE) || asked.acquire == Some(LeaseMode::Shared);
        let mut needs: SmallVec<[Need; 4]> = SmallVec::new();
        for (ino, access) in touched {
            let modify = access == Access::Modify || asked.acquire == Some(LeaseMode::Exclusive);
            let access = if modify { leases::Access::Modify } else { leases::Access::Read };
            needs.push(Need { ino, access, cache: cache && Some(ino) == primary });
        }
        if self.leases.admit(self.now.mono, header.client, ticket, &needs, false, &mut self.changes)
            == Admission::Wait
        {
            self.leave_gates(ticket);
            return self.stage(ticket, Stage::Leases);
        }
        let cuts: SmallVec<[(Ino, bool); 2]> = match cut(&asked.op) {
            true => {
                needs.iter().filter(|n| n.access == leases::Access::Modify).map(|n| (n.ino, true)).collect()
            }
            false => SmallVec::new(),
        };
        if !self.enter(ticket, &cuts) {
            return;
        }
        if let Op::Open { .. } | Op::Create(Create { open: Some(_), .. }) = asked.op
            && !self.sessions.may_open(header.client)
        {
            return self.answer(ticket, 0, Status::Errno(Errno::ENFILE));
        }
        match self.uncovers(&asked.op) {
            Ok(false) => {}
            Ok(true) => return self.answer(ticket, self.appended, Status::Errno(Errno::EIO)),
            Err(miss) => return self.miss(ticket, miss),
        }
        if self.failed && !is_read(&asked.op) {
            return self.answer(ticket, 0, Status::Errno(Errno::EROFS));
        }
        match self.ns.execute(&ctx, &asked.op) {
            Ok(mut done) => {
                if let Some(record) = done.record.take() {
                    self.log(record);
                }
                let cuts = self.effects(ticket, self.appended, &std::mem::take(&mut done.effects));
                self.reply(ticket, header, asked, done, Some(cuts));
            }
            Err(miss) => self.miss(ticket, miss),
        }
    }

    /// Would it make a file longer whose truncation could not be carried out? What was cut off would be seen again.
    fn uncovers(&mut self, op: &Op<'_>) -> Result<bool, crate::Miss> {
        let Op::SetAttr { ino, set } = op else { return Ok(false) };
        let Some(size) = set.size.filter(|_| !self.uncut.is_empty()) else { return Ok(false) };
        let ctx = OpCtx::plain(ClientId(0), self.now.wall);
        let now = self.ns.execute(&ctx, &Op::GetAttr { ino: *ino })?;
        Ok(matches!(now.outcome, Ok(Reply::Attr(a)) if size > a.size.get() && self.is_uncut(a.object())))
    }

    /// Closes what the slot's last request opened, if its client never took the answer.
    fn close_stale(&mut self, ctx: &OpCtx) -> Result<(), crate::Miss> {
        let Some((ino, handle)) = self.ns.stale_open(ctx.request) else { return Ok(()) };
        let plain = OpCtx::plain(ctx.request.client, ctx.now);
        let done = self.ns.execute(&plain, &Op::Close { ino, handle })?;
        if let Some(record) = done.record {
            self.log(record);
        }
        self.effects(super::session::CLEANING, self.appended, &done.effects);
        Ok(())
    }

    /// Puts the answer together and lets it out, after its truncations; `None` for the answer to a repeat, which grants
    /// nothing: what it says is of the time when it was first given.
    fn reply(
        &mut self,
        ticket: Ticket,
        header: &Header,
        asked: &Asked<'_>,
        done: Executed,
        cuts: Option<usize>,
    ) {
        let (client, mut payload, mut body) = (header.client, Vec::new(), BodyBuf::new());
        let status = match done.outcome {
            Ok(reply) => {
                self.granting = cuts.is_some();
                self.encode(client, header, asked, reply, &mut body, &mut payload);
                self.granting = true;
                Status::Ok
            }
            Err(e) => Status::Errno(e),
        };
        let cuts = cuts.unwrap_or(0);
        if cuts == 0 {
            return self.finish(ticket, done.depends_on, status, body, payload);
        }
        if let Some(p) = self.pending.get_mut(&ticket) {
            p.stage = Stage::Cutting(cuts);
            p.reply = Some((done.depends_on, Action::Reply { id: p.id, status, body, payload }));
        }
    }

    fn encode(
        &mut self,
        client: ClientId,
        header: &Header,
        asked: &Asked<'_>,
        reply: Reply,
        body: &mut BodyBuf,
        payload: &mut Vec<u8>,
    ) {
        let want = if header.flags.has(Flags::NEED_LEASE) { Want::Forced } else { Want::Shared };
        match (reply, &asked.op) {
            (Reply::Attr(attr), _) => {
                let grant = match asked.acquire {
                    Some(mode) => self.acquire(client, attr.ino(), mode),
                    None => self.give(client, attr.ino(), want),
                };
                m::AttrReply { attr, grant }.encode(body);
            }
            (Reply::Entry(attr), Op::Lookup { dir, .. } | Op::Link { dir, .. }) => {
                let dir_grant = self.give(client, *dir, Want::Exclusive);
                let grant = self.give_child(client, &dir_grant, attr.ino(), want);
                m::Entry { attr, dir_grant, grant }.encode(body);
            }
            (Reply::Created { attr, handle, existed }, Op::Create(c)) => {
                let dir_grant = self.give(client, c.dir, Want::Exclusive);
                let grant = self.give_child(client, &dir_grant, attr.ino(), want);
                let io_mode = self.opened(client, handle, attr, c.open.unwrap_or_default());
                let handle = handle.unwrap_or_default();
                m::Created { attr, dir_grant, grant, handle, existed, io_mode }.encode(body);
            }
            (Reply::Removed { ino, nlink }, Op::Unlink { dir, .. } | Op::Rmdir { dir, .. }) => {
                let dir_grant = self.give(client, *dir, Want::Exclusive);
                m::Removed { ino, nlink, dir_grant }.encode(body);
            }
            (Reply::Renamed { moved, replaced }, Op::Rename { dir, new_dir, .. }) => {
                let dir_grant = self.give(client, *dir, Want::Exclusive);
                let new_dir_grant = self.give(client, *new_dir, Want::Exclusive);
                let replaced = replaced.unwrap_or_default();
                m::Renamed { moved, replaced, dir_grant, new_dir_grant }.encode(body);
            }
            (Reply::Opened { attr, handle }, Op::Open { flags, .. }) => {
                let grant = self.give(client, attr.ino(), want);
                let io_mode = self.opened(client, Some(handle), attr, *flags);
                m::Opened { attr, grant, handle, io_mode }.encode(body);
            }
            (Reply::DirPage { entries, eof }, Op::ReadDir { dir, .. }) => {
                if !asked.noatime && !self.failed {
                    // Its row was just read; losing an access time is no reason to fail.
                    let _ = self.ns.accessed(*dir, self.now.wall);
                }
                let dir_grant = self.give(client, *dir, want);
                *payload = self.dir_page(client, &entries);
                m::DirPage { eof, dir_grant }.encode(body);
            }
            (Reply::Bytes(bytes), _) => *payload = bytes.into_vec(),
            (Reply::StatFs(stat), _) => m::StatFsReply { stat }.encode(body),
            (Reply::Done, Op::Close { handle, .. }) => {
                self.sessions.closed(client, *handle);
            }
            _ => {}
        }
    }

    fn dir_page(&mut self, client: ClientId, entries: &[crate::DirEntry]) -> Vec<u8> {
        let mut page = vec![0; entries.len() * m::MAX_DIR_ENTRY];
        let mut writer = m::DirWriter::new(&mut page);
        // "." and ".." are the client's to add: it knows both inodes.
        for e in entries.iter().filter(|e| !matches!(&*e.name, b"." | b"..")) {
            let plus = e.attr.map(|attr| m::Plus { attr, grant: self.give(client, e.ino, Want::Shared) });
            let entry = m::DirEntry { ino: e.ino, cookie: e.cookie, kind: e.kind, name: &e.name, plus };
            let fits = writer.push(&entry);
            debug_assert!(fits, "the page was made for them");
        }
        let len = writer.finish();
        page.truncate(len);
        page
    }

    /// Grants what a directory leads to: nothing in one that several clients use, where the next of them would recall it.
    fn give_child(&mut self, client: ClientId, dir: &Grant, ino: Ino, want: Want) -> Grant {
        let contended = dir.mode().unwrap_or_default() == LeaseMode::None;
        if contended && want != Want::Forced { Grant::none() } else { self.give(client, ino, want) }
    }

    fn give(&mut self, client: ClientId, ino: Ino, want: Want) -> Grant {
        if !self.granting {
            return Grant::none();
        }
        self.leases.grant(self.now.mono, client, ino, want, &mut self.changes.recalls)
    }

    fn acquire(&mut self, client: ClientId, ino: Ino, mode: LeaseMode) -> Grant {
        match mode {
            LeaseMode::None => Grant::none(),
            LeaseMode::Shared => self.give(client, ino, Want::Forced),
            LeaseMode::Exclusive => match self.give(client, ino, Want::Exclusive) {
                none if none == Grant::none() => self.give(client, ino, Want::Forced),
                grant => grant,
            },
        }
    }

    fn opened(&mut self, client: ClientId, handle: Option<u64>, attr: Attr, flags: u32) -> m::IoMode {
        let Some(handle) = handle else { return m::IoMode::Cached };
        match self.sessions.opened(client, handle, attr.ino(), flags & open_flags::WRITE != 0) {
            crate::sessions::IoMode::Cached => m::IoMode::Cached,
            crate::sessions::IoMode::Direct => m::IoMode::Direct,
        }
    }

    fn get_lock(&mut self, ticket: Ticket, client: ClientId, r: &m::GetLock) {
        let owner = Owner { client, owner: r.owner };
        let reply = match self.locks.get(r.ino, r.space, owner, r.kind, r.range) {
            // A process of another machine has no number here; fcntl(2) has -1 for a lock without one, and a client
            // knows its own by the owner.
            Some(c) => m::LockConflict { found: true, kind: c.kind, range: c.range, pid: c.pid },
            None => m::LockConflict { found: false, kind: LockKind::Read, range: LockRange::ALL, pid: 0 },
        };
        let mut body = BodyBuf::new();
        reply.encode(&mut body);
        self.finish(ticket, 0, Status::Ok, body, Vec::new());
    }

    fn set_lock(&mut self, ticket: Ticket, client: ClientId, r: &m::SetLock) {
        let owner = Owner { client, owner: r.owner };
        let (ino, space, what, range, pid) = (r.ino, r.space, r.lock, r.range, r.pid);
        let request = LockRequest { ino, space, owner, what, range, pid };
        let wait = r.wait.then_some(WaiterId(ticket.0));
        match self.locks.set(&request, wait, &mut self.woken) {
            LockOutcome::Granted => self.answer(ticket, 0, Status::Ok),
            LockOutcome::Waiting => self.stage(ticket, Stage::Lock),
            LockOutcome::Refused(e) => self.answer(ticket, 0, Status::Errno(e)),
        }
    }

    /// Answers a lock request that was answered before, or that is older than its slot's last: a connection that was given
    /// up may deliver it when its client has long gone on, and then nobody would give back what it takes.
    fn answered_before(&mut self, ticket: Ticket, header: &Header) -> bool {
        match self.ns.replayed(header.id()) {
            Replayed::New => return false,
            Replayed::Bad => self.answer(ticket, 0, Status::BadSequence),
            Replayed::Repeat { outcome, .. } => {
                self.stats.replayed += 1;
                self.answer(ticket, 0, outcome.map_or_else(Status::Errno, |_| Status::Ok));
            }
        }
        true
    }

    /// Keeps how a lock request ended, as long as the locks themselves: in memory.
    pub(super) fn keep_lock_answer(&mut self, ticket: Ticket, status: Status) {
        let Some(Pending { work: Work::Wire { header, .. }, .. }) = self.pending.get(&ticket) else { return };
        if !matches!(header.op(), Some(Opcode::SetLock | Opcode::ReleaseOwner)) {
            return;
        }
        let outcome = match status {
            Status::Ok => Ok(Reply::Done),
            Status::Errno(e) => Err(e),
            Status::Cancelled => Err(Errno::EINTR),
            // Not taken at all: it may come again.
            _ => return,
        };
        let ctx = OpCtx { now: self.now.wall, request: header.id(), uid: 0, gid: 0 };
        self.ns.remember(&ctx, &outcome, 0, false);
    }

    pub(super) fn lock_granted(&mut self, ticket: Ticket) {
        self.answer(ticket, 0, Status::Ok);
    }
}

/// The operation that a request asks for; `None` where it is not one of the namespace.
fn asked<'a>(request: &Request<'a>, payload: &'a [u8]) -> Option<Asked<'a>> {
    let plain = |op| Asked { op, uid: 0, gid: 0, acquire: None, noatime: false };
    let by = |op, cred: m::Cred| Asked { uid: cred.uid, gid: cred.gid, ..plain(op) };
    Some(match *request {
        Request::Lookup(r) => plain(Op::Lookup { dir: r.dir, name: r.name }),
        Request::GetAttr(r) => plain(Op::GetAttr { ino: r.ino }),
        Request::SetAttr(r) => by(Op::SetAttr { ino: r.ino, set: r.set }, r.cred),
        Request::ReadLink(r) => plain(Op::ReadLink { ino: r.ino }),
        Request::Create(r) => by(create(&r), r.cred),
        Request::Link(r) => plain(Op::Link { ino: r.ino, dir: r.dir, name: r.name }),
        Request::Unlink(r) => plain(Op::Unlink { dir: r.dir, name: r.name }),
        Request::Rmdir(r) => plain(Op::Rmdir { dir: r.dir, name: r.name }),
        Request::Rename(r) => plain(Op::Rename {
            dir: r.dir,
            name: r.name,
            new_dir: r.new_dir,
            new_name: r.new_name,
            flags: r.flags.bits(),
        }),
        Request::Open(r) => by(Op::Open { ino: r.ino, flags: open_bits(r.flags) }, r.cred),
        Request::Close(r) => plain(Op::Close { ino: r.ino, handle: r.handle }),
        Request::ReadDir(r) => {
            let op = Op::ReadDir { dir: r.dir, cookie: r.cookie, max: r.max, plus: r.plus };
            Asked { noatime: r.noatime, ..plain(op) }
        }
        Request::GetXattr(r) => plain(Op::GetXattr { ino: r.ino, name: r.name }),
        Request::SetXattr(r) => {
            let flags = r.flags.bits();
            plain(Op::SetXattr { ino: r.ino, name: r.name, value: payload, flags })
        }
        Request::ListXattr(r) => plain(Op::ListXattr { ino: r.ino }),
        Request::RemoveXattr(r) => plain(Op::RemoveXattr { ino: r.ino, name: r.name }),
        Request::StatFs(_) => plain(Op::StatFs),
        Request::AcquireLease(r) => Asked { acquire: Some(r.mode), ..plain(Op::GetAttr { ino: r.ino }) },
        _ => return None,
    })
}

fn create<'a>(r: &m::Create<'a>) -> Op<'a> {
    Op::Create(Create {
        dir: r.dir,
        name: r.name,
        mode: r.mode,
        umask: r.umask,
        rdev: r.rdev,
        target: r.target,
        excl: r.flags.has(m::CreateFlags::EXCL),
        tmpfile: r.flags.has(m::CreateFlags::TMPFILE),
        open: r.flags.has(m::CreateFlags::OPEN).then(|| open_bits(r.open_flags)),
    })
}

/// Deny modes are for NFSv4, whose gateway keeps them; the namespace does not know them.
fn open_bits(flags: m::OpenFlags) -> u32 {
    flags.bits() & open_flags::ALL
}

/// The inode whose contents a kernel will cache.
fn primary(op: &Op<'_>) -> Option<Ino> {
    match *op {
        Op::GetAttr { ino } | Op::SetAttr { ino, .. } | Op::Open { ino, .. } => Some(ino),
        Op::ReadDir { dir, .. } => Some(dir),
        _ => None,
    }
}

/// Does it cut a file? Then no data operation may be under way.
fn cut(op: &Op<'_>) -> bool {
    match op {
        Op::SetAttr { set, .. } => set.size.is_some(),
        Op::Open { flags, .. } => flags & open_flags::TRUNC != 0,
        Op::Create(c) => !c.excl && c.open.is_some_and(|f| f & open_flags::TRUNC != 0),
        _ => false,
    }
}

fn is_read(op: &Op<'_>) -> bool {
    matches!(
        op,
        Op::Lookup { .. }
            | Op::GetAttr { .. }
            | Op::ReadLink { .. }
            | Op::ReadDir { .. }
            | Op::GetXattr { .. }
            | Op::ListXattr { .. }
            | Op::StatFs
            | Op::Close { .. }
    ) || matches!(op, Op::Open { flags, .. } if flags & (open_flags::WRITE | open_flags::TRUNC) == 0)
}
