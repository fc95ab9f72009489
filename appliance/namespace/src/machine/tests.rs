//! The machine without any I/O: a log that becomes durable when told, a database that is empty, clients by script and by
//! seed.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use crate::leases::{Access, RecallOrder};
use crate::{Boot, CacheConfig, FetchedRange, LastStop};
use proptest::prelude::*;
use std::collections::{BTreeSet, HashMap};
use wire::Timestamp;
use wire::message as m;
use wire::{Body, Errno, Flags, LeaseMode, ROOT_INO, Request, RequestId};

const A: ClientId = ClientId(1);
const B: ClientId = ClientId(2);
const C: ClientId = ClientId(3);

struct Sim {
    machine: Machine,
    ms: u64,
    next: u64,
    durable: bool,
    replies: Vec<(OpId, Status, Vec<u8>)>,
    recalls: Vec<RecallOrder>,
    fenced: Vec<ClientId>,
    ended: Vec<ClientId>,
    records: Vec<Record>,
    sequences: HashMap<(ClientId, u16), u64>,
}

fn namespace(records: &[Record]) -> Namespace {
    let mut ns = Namespace::open(Boot::default(), CacheConfig::default()).unwrap();
    for r in records {
        ns.replay(r).unwrap();
    }
    ns
}

impl Sim {
    fn new() -> Self {
        Self::over(crate::mkfs([7; 16], Timestamp::default()))
    }

    /// A machine that was started over what the log holds.
    fn over(mut records: Vec<Record>) -> Self {
        let mut ns = namespace(&records);
        let logged: Vec<ClientId> = ns.sessions().map(|(c, _)| c).collect();
        records.push(ns.start(LastStop::Unclean).unwrap());
        let (epoch, last) = (ns.boot_epoch(), ns.last_seq());
        let machine = Machine::new(ns, MachineLimits::default(), Now::default(), epoch, last, logged);
        Self {
            machine,
            ms: 0,
            next: 0,
            durable: true,
            replies: Vec::new(),
            recalls: Vec::new(),
            fenced: Vec::new(),
            ended: Vec::new(),
            records,
            sequences: HashMap::new(),
        }
    }

    fn apply(&mut self, event: Event) {
        let mut events = vec![event];
        while !events.is_empty() {
            let mut actions = Vec::new();
            let now = Now { mono: self.ms, wall: Timestamp::new(1, 0) };
            self.machine.apply(now, events.remove(0), &mut actions);
            for action in actions {
                match action {
                    Action::Reply { id, status, body, .. } => {
                        self.replies.push((id, status, body.body().to_vec()));
                    }
                    Action::Append(record) => {
                        let seq = record.seq();
                        self.records.push(record);
                        if self.durable {
                            events.push(Event::Durable(seq));
                        }
                    }
                    Action::Fetch { ticket, miss } => {
                        let rows = miss.keys.iter().map(|k| (k.clone(), None)).collect();
                        let range =
                            |r: &crate::RangeMiss| FetchedRange { range: r.range.clone(), rows: Vec::new() };
                        let ranges = miss.ranges.iter().map(range).collect();
                        events.push(Event::Fetched { ticket, rows: Fetched { applied: 0, rows, ranges } });
                    }
                    Action::Recall(order) => self.recalls.push(order),
                    Action::Fence { client, .. } => {
                        self.fenced.push(client);
                        self.ended.push(client);
                    }
                    Action::Ended(client) => self.ended.push(client),
                    Action::Truncate { ticket, entry, .. } => {
                        events.push(Event::Truncated { ticket, entry, failed: false });
                    }
                    Action::FreeWork | Action::Data { .. } => {}
                }
            }
        }
    }

    fn send(&mut self, client: ClientId, slot: u16, sequence: u64, request: Request<'_>) -> OpId {
        self.next += 1;
        let id = OpId(self.next);
        let mut body = BodyBuf::new();
        request.encode(&mut body);
        let header = Header { client, slot: Slot(slot), sequence, ..Header::request(request.opcode()) };
        self.apply(Event::Request { id, header, body: body.body().to_vec(), payload: Vec::new() });
        id
    }

    fn once<'a>(&mut self, client: ClientId, slot: u16, request: impl Into<Request<'a>>) -> OpId {
        let sequence = self.sequences.entry((client, slot)).or_default();
        *sequence += 1;
        let sequence = *sequence;
        self.send(client, slot, sequence, request.into())
    }

    fn ask<'a>(&mut self, client: ClientId, request: impl Into<Request<'a>>) -> OpId {
        self.send(client, Slot::IDEMPOTENT.0, 0, request.into())
    }

    fn open(&mut self, client: ClientId) -> m::SessionState {
        let id = self.ask(client, m::OpenSession { flags: m::SessionFlags::default() });
        let (_, body) = self.reply(id).unwrap();
        m::SessionState::decode(&body).unwrap()
    }

    fn reply(&self, id: OpId) -> Option<(Status, Vec<u8>)> {
        self.replies.iter().find(|r| r.0 == id).map(|(_, s, b)| (*s, b.clone()))
    }

    fn status(&self, id: OpId) -> Option<Status> {
        self.reply(id).map(|r| r.0)
    }

    fn give_back(&mut self, order: RecallOrder) {
        let returned = m::Returned { ino: order.ino, serial: order.serial, keep: order.keep };
        let list = wire::Field::to_raw(&returned);
        let mut body = 1_u16.to_le_bytes().to_vec();
        body.extend_from_slice(zerocopy::IntoBytes::as_bytes(&list));
        self.next += 1;
        let header = Header { client: order.client, ..Header::request(wire::Opcode::LeaseReturn) };
        self.apply(Event::Request { id: OpId(self.next), header, body, payload: Vec::new() });
    }
}

fn create(name: &[u8]) -> m::Create<'_> {
    m::Create {
        dir: ROOT_INO,
        mode: 0o100_644,
        umask: 0,
        rdev: 0,
        cred: m::Cred { uid: 0, gid: 0 },
        flags: m::CreateFlags::EXCL,
        open_flags: m::OpenFlags::default(),
        name,
        target: b"",
    }
}

fn lookup(name: &[u8]) -> m::Lookup<'_> {
    m::Lookup { dir: ROOT_INO, name }
}

fn errno(e: Errno) -> Option<Status> {
    Some(Status::Errno(e))
}

#[test]
fn an_answer_waits_for_its_record_and_for_those_it_read() {
    let mut s = Sim::new();
    s.open(A);
    s.durable = false;
    let made = s.once(A, 0, create(b"f"));
    let seen = s.ask(A, lookup(b"f"));
    let other = s.ask(A, lookup(b"g"));
    assert_eq!([s.status(made), s.status(seen), s.status(other)], [None; 3], "all of them saw the directory");
    let last = s.records.last().unwrap().seq();
    s.apply(Event::Durable(last));
    assert_eq!((s.status(made), s.status(seen)), (Some(Status::Ok), Some(Status::Ok)));
    assert_eq!(s.status(other), errno(Errno::ENOENT));
}

#[test]
fn after_the_log_failed_only_what_is_on_the_device_is_shown() {
    let mut s = Sim::new();
    s.open(A);
    let dir = s.once(A, 0, m::Create { mode: 0o040_755, ..create(b"dir") });
    let dir = m::Created::decode(&s.reply(dir).unwrap().1).unwrap().attr.ino();
    s.once(A, 0, m::Create { dir, ..create(b"f") });
    s.durable = false;
    let lost = s.once(A, 0, create(b"h"));
    let waiting = s.ask(A, lookup(b"h"));
    s.apply(Event::LogFailed);
    assert_eq!([s.status(lost), s.status(waiting)], [errno(Errno::EIO); 2]);
    let refused = s.once(A, 0, create(b"i"));
    assert_eq!(s.status(refused), errno(Errno::EROFS));
    let read = s.ask(A, m::Lookup { dir, name: b"f" });
    assert_eq!(s.status(read), Some(Status::Ok), "reading goes on");
    let read = s.ask(A, lookup(b"h"));
    assert_eq!(s.status(read), errno(Errno::EIO), "nobody sees what the next start does not have");
}

#[test]
fn a_conflicting_lease_is_recalled_first_and_silence_is_fenced() {
    let mut s = Sim::new();
    s.open(A);
    s.open(B);
    let id = s.once(A, 0, create(b"f"));
    let created = m::Created::decode(&s.reply(id).unwrap().1).unwrap();
    assert_eq!(created.dir_grant.mode(), Some(LeaseMode::Exclusive), "alone in the directory");
    let waiting = s.once(B, 0, create(b"g"));
    assert_eq!(s.status(waiting), None);
    let own = s.once(A, 0, create(b"h"));
    assert_eq!(s.status(own), Some(Status::Ok), "the holder goes on");
    let order = s.recalls.remove(0);
    assert_eq!((order.client, order.ino, order.keep), (A, ROOT_INO, LeaseMode::None));
    s.give_back(order);
    assert_eq!(s.status(waiting), Some(Status::Ok));
    // In the cool-down nobody gets the directory, so nobody waits.
    let next = s.once(A, 0, create(b"i"));
    assert_eq!(s.status(next), Some(Status::Ok));
    assert!(s.recalls.is_empty());
    // An unanswered recall ends the session of who holds.
    s.ms = 1900;
    s.apply(Event::Tick);
    s.once(A, 0, create(b"j"));
    let waiting = s.once(B, 0, create(b"k"));
    for _ in 0..6 {
        s.ms += 1900;
        s.apply(Event::Heard(A));
        s.apply(Event::Heard(B));
        s.apply(Event::Tick);
    }
    assert_eq!(s.fenced, [A]);
    assert_eq!(s.status(waiting), Some(Status::Ok));
    let late = s.ask(A, lookup(b"f"));
    assert_eq!(s.status(late), Some(Status::Fenced));
}

#[test]
fn a_repeat_gets_the_first_answer_even_after_a_restart() {
    let mut s = Sim::new();
    assert_eq!(s.open(A).state, m::SessionPhase::New);
    let first = s.send(A, 3, 1, create(b"f").into());
    let again = s.send(A, 3, 1, create(b"f").into());
    let ino = |s: &Sim, id| m::Created::decode(&s.reply(id).unwrap().1).unwrap().attr.ino();
    assert_eq!(ino(&s, first), ino(&s, again));
    // Another client may have changed the file since: what a repeat says must not be cached.
    let made = m::Created::decode(&s.reply(again).unwrap().1).unwrap();
    assert_eq!((made.grant, made.dir_grant), (wire::Grant::none(), wire::Grant::none()));
    let old = s.send(A, 3, 0, create(b"f").into());
    assert_eq!(s.status(old), Some(Status::BadSequence));

    let before = ino(&s, first);
    let mut s = Sim::over(s.records);
    let waiting = s.send(A, 3, 1, create(b"f").into());
    assert_eq!(s.status(waiting), None, "work waits for the end of the grace window");
    assert_eq!(s.open(A).state, m::SessionPhase::Reclaim);
    s.ask(A, m::ReclaimDone {});
    assert_eq!(ino(&s, waiting), before);
    let other = s.send(A, 4, 1, create(b"f").into());
    assert_eq!(s.status(other), errno(Errno::EEXIST));
}

/// The stored answer once came with the attributes of then and a lease of now.
#[test]
fn a_repeat_shows_the_attributes_of_now() {
    let mut s = Sim::new();
    s.open(A);
    s.open(B);
    let id = s.once(A, 0, create(b"f"));
    let ino = m::Created::decode(&s.reply(id).unwrap().1).unwrap().attr.ino();
    let size = |size| m::SetAttr {
        ino,
        set: wire::SetAttr { size: Some(size), ..wire::SetAttr::default() },
        cred: m::Cred { uid: 0, gid: 0 },
    };
    s.send(A, 1, 1, size(100).into());
    s.once(B, 0, size(200));
    while !s.recalls.is_empty() {
        let order = s.recalls.remove(0);
        s.give_back(order);
    }
    let again = s.send(A, 1, 1, size(100).into());
    let reply = m::AttrReply::decode(&s.reply(again).unwrap().1).unwrap();
    assert_eq!(reply.attr.size.get(), 200);
}

/// A session of the same name once began while shards still had the requests of the last one.
#[test]
fn a_session_begins_when_the_last_one_is_forgotten() {
    let mut s = Sim::new();
    s.open(A);
    s.ask(A, m::CloseSession {});
    assert_eq!(s.ended, [A]);
    let early = s.ask(A, m::OpenSession { flags: m::SessionFlags::default() });
    assert_eq!(s.status(early), Some(Status::Busy));
    s.apply(Event::Forgotten(A));
    assert_eq!(s.open(A).state, m::SessionPhase::New);
}

/// What a truncation that failed should have cut off was once seen again in a file that was made longer.
#[test]
fn a_file_that_is_not_cut_does_not_grow() {
    let mut s = Sim::new();
    s.open(A);
    let id = s.once(A, 0, create(b"f"));
    let attr = m::Created::decode(&s.reply(id).unwrap().1).unwrap().attr;
    let cred = m::Cred { uid: 0, gid: 0 };
    let size = |size| m::SetAttr {
        ino: attr.ino(),
        set: wire::SetAttr { size: Some(size), ..wire::SetAttr::default() },
        cred,
    };
    s.once(A, 0, size(1000));
    s.machine.left_uncut(attr.object(), 9);
    let longer = s.once(A, 0, size(1001));
    let shorter = s.once(A, 0, size(900));
    assert_eq!((s.status(longer), s.status(shorter)), (errno(Errno::EIO), Some(Status::Ok)));
}

#[test]
fn a_client_that_does_not_return_is_fenced_after_grace() {
    let mut s = Sim::new();
    s.open(A);
    s.open(B);
    let mut s = Sim::over(s.records);
    s.open(B);
    s.ask(B, m::ReclaimDone {});
    let waiting = s.once(B, 0, create(b"f"));
    assert_eq!(s.status(waiting), None);
    for _ in 0..6 {
        s.ms += 1900;
        s.apply(Event::Heard(B));
        s.apply(Event::Tick);
    }
    assert_eq!((s.fenced.clone(), s.status(waiting)), (vec![A], Some(Status::Ok)));
    let sessions: Vec<ClientId> = s.machine.view().sessions().map(|(c, _)| c).collect();
    assert_eq!(sessions, [B], "its row is gone from the log, too");
}

#[test]
fn a_lock_wait_is_granted_cancelled_and_taken_over_by_a_repeat() {
    let mut s = Sim::new();
    s.open(A);
    s.open(B);
    let lock = |lock, wait| m::SetLock {
        ino: ROOT_INO,
        space: wire::LockSpace::Posix,
        owner: wire::LockOwner(1),
        lock,
        range: wire::LockRange::ALL,
        pid: 1,
        wait,
    };
    let write = wire::LockType::Lock(wire::LockKind::Write);
    s.once(A, 0, lock(write, false));
    let cancelled = s.send(B, 0, 1, lock(write, true).into());
    s.apply(Event::Cancel(cancelled));
    assert_eq!(s.status(cancelled), Some(Status::Cancelled));
    let lost = s.send(B, 0, 2, lock(write, true).into());
    let repeat = s.send(B, 0, 2, lock(write, true).into());
    assert_eq!(s.machine.locks().waiting(), 1, "one wait, not two");
    s.once(A, 0, lock(wire::LockType::Unlock, false));
    assert_eq!((s.status(lost), s.status(repeat)), (None, Some(Status::Ok)));
}

/// A connection that its client gave up may deliver late. A wait that was cancelled meanwhile once began again then, and got a
/// lock that nobody would ever give back.
#[test]
fn a_lock_request_that_comes_late_takes_nothing() {
    let mut s = Sim::new();
    s.open(A);
    s.open(B);
    let lock = |lock| m::SetLock {
        ino: ROOT_INO,
        space: wire::LockSpace::Posix,
        owner: wire::LockOwner(1),
        lock,
        range: wire::LockRange::ALL,
        pid: 1,
        wait: true,
    };
    let (write, unlock) = (wire::LockType::Lock(wire::LockKind::Write), wire::LockType::Unlock);
    s.once(A, 0, lock(write));
    let cancelled = s.send(B, 0, 1, lock(write).into());
    s.apply(Event::Cancel(cancelled));
    s.once(A, 0, lock(unlock));
    let late = s.send(B, 0, 1, lock(write).into());
    assert_eq!(s.status(late), errno(Errno::EINTR), "the answer that it had");
    let (locked, unlocked) = (s.send(B, 0, 2, lock(write).into()), s.send(B, 0, 3, lock(unlock).into()));
    assert_eq!((s.status(locked), s.status(unlocked)), (Some(Status::Ok), Some(Status::Ok)));
    let locked = s.send(B, 0, 4, lock(write).into());
    let late = [2, 3].map(|sequence| s.send(B, 0, sequence, lock(unlock).into()));
    assert_eq!(
        (s.status(locked), late.map(|l| s.status(l))),
        (Some(Status::Ok), [Some(Status::BadSequence); 2])
    );
    let other = s.send(A, 1, 1, lock(write).into());
    assert_eq!(s.status(other), None, "the lock is still held");
}

/// What the names in the root are, in the order in which answers leave.
#[derive(Default)]
struct Model(BTreeSet<u8>);

impl Model {
    fn run(&mut self, what: u8, name: u8, new: u8) -> Option<Errno> {
        let there = self.0.contains(&name);
        match what {
            0 if there => Some(Errno::EEXIST),
            0 => {
                self.0.insert(name);
                None
            }
            1 | 2 if !there => Some(Errno::ENOENT),
            1 => {
                self.0.remove(&name);
                None
            }
            2 => {
                self.0.remove(&name);
                self.0.insert(new);
                None
            }
            _ => (!there).then_some(Errno::ENOENT),
        }
    }
}

proptest! {
    /// Three clients, recalls answered late or never before the end, one restart: each answer is the one that a single
    /// execution in the order of answers would give, and nothing waits for ever.
    #[test]
    fn histories_are_linearizable(ops in prop::collection::vec((0u64..3, 0u8..5, 0u8..4, 0u8..4, any::<bool>()), 1..120), restart in 0usize..120) {
        let mut s = Sim::new();
        let clients = [A, B, C];
        clients.iter().for_each(|c| { let _ = s.open(*c); });
        let mut asked: HashMap<OpId, (u8, u8, u8)> = HashMap::new();
        let mut model = Model::default();
        let mut done = 0;
        for (i, (c, what, name, new, answer)) in ops.into_iter().enumerate() {
            let client = clients[c as usize];
            s.ms += 10;
            let (n, t) = ([b'a' + name], [b'a' + new]);
            let flags = m::RenameFlags::default();
            let slot = i as u16;
            let id = match what {
                0 => s.once(client, slot, create(&n)),
                1 => s.once(client, slot, m::Unlink { dir: ROOT_INO, name: &n }),
                2 => s.once(client, slot, m::Rename { dir: ROOT_INO, new_dir: ROOT_INO, flags, name: &n, new_name: &t }),
                _ => s.ask(client, lookup(&n)),
            };
            asked.insert(id, (what, name, new));
            if answer && !s.recalls.is_empty() {
                let order = s.recalls.remove(0);
                s.give_back(order);
            }
            if i == restart {
                while !s.recalls.is_empty() {
                    let order = s.recalls.remove(0);
                    s.give_back(order);
                }
                check(&s, &asked, &mut model, done)?;
                prop_assert_eq!(s.machine.load(), (0, 0));
                let (ms, next, sequences) = (s.ms, s.next, s.sequences);
                s = Sim { ms, next, sequences, ..Sim::over(s.records) };
                done = 0;
                for c in clients {
                    s.open(c);
                    s.ask(c, m::ReclaimDone {});
                }
            }
            done = check(&s, &asked, &mut model, done)?;
        }
        while !s.recalls.is_empty() {
            let order = s.recalls.remove(0);
            s.give_back(order);
        }
        check(&s, &asked, &mut model, done)?;
        prop_assert_eq!(s.machine.load(), (0, 0), "something waits for ever");
    }
}

fn check(
    s: &Sim,
    asked: &HashMap<OpId, (u8, u8, u8)>,
    model: &mut Model,
    done: usize,
) -> Result<usize, TestCaseError> {
    for (id, status, _) in &s.replies[done..] {
        let Some(&(what, name, new)) = asked.get(id) else { continue };
        let expect = model.run(what, name, new).map_or(Status::Ok, Status::Errno);
        prop_assert_eq!(*status, expect, "operation {} on {}", what, name);
    }
    Ok(s.replies.len())
}

#[test]
fn need_lease_is_certain() {
    let mut s = Sim::new();
    s.open(A);
    s.open(B);
    s.once(A, 0, create(b"f"));
    let id = s.ask(A, lookup(b"f"));
    let ino = m::Entry::decode(&s.reply(id).unwrap().1).unwrap().attr.ino();
    let mut body = BodyBuf::new();
    m::GetAttr { ino }.encode(&mut body);
    let header = Header { client: B, flags: Flags::NEED_LEASE, ..Header::request(wire::Opcode::GetAttr) };
    s.apply(Event::Request { id: OpId(900), header, body: body.body().to_vec(), payload: Vec::new() });
    let reply = m::AttrReply::decode(&s.reply(OpId(900)).unwrap().1).unwrap();
    assert_eq!(reply.grant.mode(), Some(LeaseMode::Shared));
}

/// More than two that waited at one gate once woke each other for ever: each left its place in the line, which let the
/// others try, before it took the same place again.
#[test]
fn those_who_wait_at_a_gate_do_not_wake_each_other() {
    let mut s = Sim::new();
    s.open(A);
    let id = s.once(A, 0, create(b"f"));
    let ino = m::Created::decode(&s.reply(id).unwrap().1).unwrap().attr.ino();
    let append = |n: u64| {
        let part = Part { ino, access: Access::Modify, object: None, alone: true, cache: false };
        let request = RequestId { client: A, slot: Slot::IDEMPOTENT, sequence: n };
        Event::Data(DataOp { id: OpId(1000 + n), request, parts: [part].into_iter().collect() })
    };
    for n in 0..6 {
        s.apply(append(n));
    }
    for n in 0..6 {
        s.apply(Event::DataDone(OpId(1000 + n)));
    }
    assert_eq!(s.machine.load(), (0, 0));
}

/// The answer once left before the removal of the free list's entry was durable: after a kill the next start cut the file
/// again, under writes acknowledged since.
#[test]
fn a_truncation_is_answered_only_when_its_entry_is_gone_for_good() {
    let mut s = Sim::new();
    s.open(A);
    let id = s.once(A, 0, create(b"f"));
    let attr = m::Created::decode(&s.reply(id).unwrap().1).unwrap().attr;
    let (ino, object) = (attr.ino(), attr.object());
    let time = Timestamp::new(1, 0);
    let wrote =
        crate::dirty::Wrote { ino, object, index: 0, end: 4096, blocks_delta: 8, time, kill_suidgid: false };
    let marked = s.machine.namespace().prepare_write(ino, object).unwrap().record.unwrap();
    s.machine.append(marked.clone(), &mut Vec::new());
    s.apply(Event::Durable(marked.seq()));
    s.records.push(marked);
    s.machine.namespace().wrote(&wrote).unwrap();
    s.machine.namespace().write_ended(ino);
    s.durable = false;
    let set = wire::SetAttr { size: Some(10), ..wire::SetAttr::default() };
    let id = s.once(A, 0, m::SetAttr { ino, set, cred: m::Cred { uid: 0, gid: 0 } });
    let n = s.records.len();
    let (cut, gone) = (s.records[n - 2].seq(), s.records[n - 1].seq());
    s.apply(Event::Durable(cut));
    assert_eq!((s.status(id), s.machine.load()), (None, (1, 1)), "and nothing is written meanwhile");
    s.apply(Event::Durable(gone));
    assert_eq!((s.status(id), s.machine.load()), (Some(Status::Ok), (0, 0)));
}
