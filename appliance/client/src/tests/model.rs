//! A server small enough to be obviously right: names, data, leases of one client, answers given once.

use super::fake::Call;
use hugepages::Bytes;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use wire::message::{self, SessionPhase};
use wire::types::{Attr, CHUNK_SIZE, Errno, FileKind, Grant, Ino, LeaseMode, ObjectId, ROOT_INO, Status};
use wire::{Body, BodyBuf, Opcode, Request};

/// Status, body, payload.
pub(super) type Answer = (Status, Vec<u8>, Bytes);

pub(super) struct File {
    pub(super) attr: Attr,
    pub(super) data: Vec<u8>,
    /// Bytes that the server leaves out of replies, as of a hole.
    pub(super) hole_from: Option<u64>,
}

pub(super) struct Model {
    pub(super) files: BTreeMap<Ino, File>,
    pub(super) names: HashMap<(Ino, Vec<u8>), Ino>,
    /// What it grants whenever it answers.
    pub(super) grants: LeaseMode,
    pub(super) held: HashMap<Ino, (LeaseMode, u64)>,
    serial: u64,
    /// Everything executed, in order.
    pub(super) log: Vec<Opcode>,
    /// Statuses to answer instead of executing.
    pub(super) refuse: HashMap<Opcode, VecDeque<Status>>,
    /// Not answered for the time being.
    pub(super) held_back: HashSet<Opcode>,
    /// Executed, but the answer is lost (once per call).
    pub(super) lose: HashSet<Opcode>,
    done: HashMap<u64, Answer>,
    /// What OpenSession answers.
    pub(super) phases: VecDeque<Result<SessionPhase, Status>>,
    pub(super) reclaimed_locks: Vec<message::HeldLock>,
    pub(super) reclaimed_opens: Vec<message::HeldOpen>,
    pub(super) reclaimed: Vec<Ino>,
    /// Leases that it does not take back.
    pub(super) not_yours: HashSet<Ino>,
    pub(super) returned: Vec<message::Returned>,
    pub(super) chunks: Vec<(Opcode, u32, u32, usize, bool)>,
    pub(super) grant_wins: bool,
    handles: u64,
}

impl Default for Model {
    fn default() -> Self {
        let mut model = Self {
            files: BTreeMap::new(),
            names: HashMap::new(),
            grants: LeaseMode::Exclusive,
            held: HashMap::new(),
            serial: 100,
            log: Vec::new(),
            refuse: HashMap::new(),
            held_back: HashSet::new(),
            lose: HashSet::new(),
            done: HashMap::new(),
            phases: VecDeque::new(),
            reclaimed_locks: Vec::new(),
            reclaimed_opens: Vec::new(),
            reclaimed: Vec::new(),
            not_yours: HashSet::new(),
            returned: Vec::new(),
            chunks: Vec::new(),
            grant_wins: false,
            handles: 0,
        };
        model.add(ROOT_INO, FileKind::Directory, b"");
        model
    }
}

fn ok<'a>(message: &impl Body<'a>) -> Answer {
    let mut body = BodyBuf::new();
    message.encode(&mut body);
    (Status::Ok, body.body().to_vec(), Bytes::new())
}

fn no(e: Errno) -> Answer {
    (Status::Errno(e), Vec::new(), Bytes::new())
}

impl Model {
    pub(super) fn add(&mut self, ino: Ino, kind: FileKind, data: &[u8]) {
        let attr = Attr {
            ino: ino.into(),
            object: (ino.0 * 1000).into(),
            size: (data.len() as u64).into(),
            mode: (kind as u32 | 0o755).into(),
            nlink: 1.into(),
            ..Attr::default()
        };
        self.files.insert(ino, File { attr, data: data.to_vec(), hole_from: None });
    }
    pub(super) fn name(&mut self, dir: Ino, name: &[u8], ino: Ino) {
        self.names.insert((dir, name.to_vec()), ino);
    }
    pub(super) fn count(&self, opcode: Opcode) -> usize {
        self.log.iter().filter(|o| **o == opcode).count()
    }
    pub(super) fn serial_of(&self, ino: Ino) -> u64 {
        self.held.get(&ino).map_or(0, |h| h.1)
    }
    fn grant(&mut self, ino: Ino) -> Grant {
        let grants = self.grants;
        if grants == LeaseMode::None {
            return Grant::none();
        }
        let serial = &mut self.serial;
        let (mode, serial) = *self.held.entry(ino).or_insert_with(|| {
            *serial += 1;
            (grants, *serial)
        });
        Grant::new(ino, mode, serial)
    }
    pub(super) fn flags(&mut self, ino: Ino, flags: u64) {
        if let Some(file) = self.files.get_mut(&ino) {
            file.attr.flags = flags.into();
        }
    }
    fn attr(&self, ino: Ino) -> Attr {
        self.files[&ino].attr
    }
    fn touch(&mut self, ino: Ino) {
        let file = self.files.get_mut(&ino).expect("it exists");
        file.attr.change = (file.attr.change.get() + 1).into();
        file.attr.size = (file.data.len() as u64).into();
    }
    fn put(&mut self, ino: Ino, at: usize, data: &[u8]) {
        let file = self.files.get_mut(&ino).expect("it exists");
        let end = at + data.len();
        if file.data.len() < end {
            file.data.resize(end, 0);
        }
        file.data[at..end].copy_from_slice(data);
        self.touch(ino);
    }
    fn entry(&mut self, dir: Ino, ino: Ino) -> Answer {
        ok(&message::Entry { attr: self.attr(ino), dir_grant: self.grant(dir), grant: self.grant(ino) })
    }

    /// The answer; `None` for not yet.
    pub(super) fn answer(&mut self, call: &Call) -> Option<Answer> {
        let request = Request::decode(call.opcode, &call.body).expect("the client sends sound messages");
        // Giving back a lock never waits.
        let waits = !matches!(request, Request::SetLock(l) if !l.wait);
        if waits && self.held_back.contains(&call.opcode) {
            return None;
        }
        if let Some(done) = self.done.get(&call.id) {
            return Some(done.clone());
        }
        if let Some(status) = self.refuse.get_mut(&call.opcode).and_then(VecDeque::pop_front) {
            return Some((status, Vec::new(), Bytes::new()));
        }
        self.log.push(call.opcode);
        let answer = self.execute(&request, call);
        self.done.insert(call.id, answer.clone());
        (!self.lose.remove(&call.opcode)).then_some(answer)
    }

    fn execute(&mut self, request: &Request<'_>, call: &Call) -> Answer {
        match *request {
            Request::OpenSession(_) => match self.phases.pop_front().unwrap_or(Ok(SessionPhase::New)) {
                Ok(state) => ok(&message::SessionState { state, boot_epoch: 1, grace_ms: 0 }),
                Err(status) => (status, Vec::new(), Bytes::new()),
            },
            Request::ReclaimLocks(r) => {
                self.reclaimed_locks.extend(r.locks.iter());
                ok(&message::Done {})
            }
            Request::ReclaimOpens(r) => {
                self.reclaimed_opens.extend(r.opens.iter());
                ok(&message::Done {})
            }
            Request::ReclaimLeases(r) => {
                let held: Vec<Grant> =
                    r.leases.iter().filter(|g| !self.not_yours.contains(&g.ino())).collect();
                self.reclaimed.extend(held.iter().map(Grant::ino));
                self.held = held.iter().map(|g| (g.ino(), (g.mode().unwrap_or_default(), 7))).collect();
                let again: Vec<Grant> =
                    held.iter().map(|g| Grant::new(g.ino(), g.mode().unwrap_or_default(), 7)).collect();
                ok(&message::Grants { grants: again.as_slice().into() })
            }
            Request::LeaseReturn(l) => {
                for r in l.leases.iter() {
                    self.returned.push(r);
                    match self.held.get_mut(&r.ino) {
                        Some(h) if h.1 <= r.serial && r.keep == LeaseMode::None => {
                            self.held.remove(&r.ino);
                        }
                        Some(h) if h.1 <= r.serial => h.0 = r.keep,
                        _ => {}
                    }
                }
                ok(&message::Done {})
            }
            Request::Lookup(l) => match self.names.get(&(l.dir, l.name.to_vec())).copied() {
                Some(ino) => self.entry(l.dir, ino),
                None => no(Errno::ENOENT),
            },
            Request::GetAttr(g) => match self.files.get(&g.ino).map(|f| f.attr) {
                Some(attr) => ok(&message::AttrReply { attr, grant: self.grant(g.ino) }),
                None => no(Errno::ESTALE),
            },
            Request::Create(c) => {
                let ino = Ino(500 + self.files.len() as u64);
                self.add(ino, FileKind::Regular, b"");
                self.name(c.dir, c.name, ino);
                self.touch(c.dir);
                self.handles += 1;
                ok(&message::Created {
                    attr: self.attr(ino),
                    dir_grant: self.grant(c.dir),
                    grant: self.grant(ino),
                    handle: self.handles,
                    existed: false,
                    io_mode: message::IoMode::Cached,
                })
            }
            Request::Unlink(u) => match self.names.remove(&(u.dir, u.name.to_vec())) {
                Some(ino) => ok(&message::Removed { ino, nlink: 0, dir_grant: self.grant(u.dir) }),
                None => no(Errno::ENOENT),
            },
            Request::Link(l) => {
                if let Some(f) = self.files.get_mut(&l.ino) {
                    f.attr.nlink = (f.attr.nlink.get() + 1).into();
                }
                self.name(l.dir, l.name, l.ino);
                self.touch(l.ino);
                self.entry(l.dir, l.ino)
            }
            Request::AcquireLease(a) => {
                ok(&message::AttrReply { attr: self.attr(a.ino), grant: self.grant(a.ino) })
            }
            Request::Rename(r) => match self.names.remove(&(r.dir, r.name.to_vec())) {
                Some(moved) => {
                    let replaced = self.names.insert((r.new_dir, r.new_name.to_vec()), moved);
                    ok(&message::Renamed {
                        moved,
                        replaced: replaced.unwrap_or(Ino(0)),
                        dir_grant: self.grant(r.dir),
                        new_dir_grant: self.grant(r.new_dir),
                    })
                }
                None => no(Errno::ENOENT),
            },
            Request::Open(o) => match self.files.contains_key(&o.ino) {
                true => {
                    self.handles += 1;
                    ok(&message::Opened {
                        attr: self.attr(o.ino),
                        grant: self.grant(o.ino),
                        handle: self.handles,
                        io_mode: message::IoMode::Cached,
                    })
                }
                false => no(Errno::ESTALE),
            },
            Request::ChunkRead(_) | Request::ChunkWrite(_) | Request::Append(_) => self.data(request, call),
            Request::GetXattr(_) => no(Errno::ENODATA),
            Request::SetXattr(_)
            | Request::ListXattr(_)
            | Request::Close(_)
            | Request::Commit(_)
            | Request::CloseSession(_)
            | Request::ReclaimDone(_)
            | Request::SetLock(_)
            | Request::ReleaseOwner(_) => ok(&message::Done {}),
            ref other => unreachable!("the tests do not use {:?}", other.opcode()),
        }
    }

    fn data(&mut self, request: &Request<'_>, call: &Call) -> Answer {
        let at = |key: wire::ChunkKey, offset: u32| {
            (u64::from(key.index) * CHUNK_SIZE + u64::from(offset)) as usize
        };
        let stale = |m: &Self, ino: Ino, o: ObjectId| m.files[&ino].attr.object() != o;
        let stale_answer = (Status::StaleObject, Vec::new(), Bytes::new());
        match *request {
            Request::ChunkRead(r) => {
                self.chunks.push((call.opcode, r.key.index, r.offset, r.len as usize, call.need_lease));
                if stale(self, r.ino, r.key.object) {
                    return stale_answer;
                }
                let file = &self.files[&r.ino];
                let size = file.data.len();
                let shown = file.hole_from.map_or(size, |h| h as usize);
                let from = at(r.key, r.offset);
                let part = &file.data[from.min(shown)..(from + r.len as usize).min(shown)];
                let payload = Bytes::copy_of(part);
                let mut answer = ok(&message::ReadReply { size: size as u64, grant: self.grant(r.ino) });
                answer.2 = payload;
                answer
            }
            Request::ChunkWrite(w) => {
                self.chunks.push((call.opcode, w.key.index, w.offset, call.payload.len(), call.need_lease));
                if stale(self, w.ino, w.key.object) {
                    return stale_answer;
                }
                self.put(w.ino, at(w.key, w.offset), &call.payload);
                ok(&message::Written { attr: self.attr(w.ino), grant: self.grant(w.ino) })
            }
            Request::Append(a) => {
                let end = self.files[&a.ino].data.len();
                self.put(a.ino, end, &call.payload);
                ok(&message::Appended {
                    offset: end as u64,
                    len: call.payload.len() as u64,
                    attr: self.attr(a.ino),
                    grant: self.grant(a.ino),
                })
            }
            _ => unreachable!("only data comes here"),
        }
    }
}
