//! The table against a byte-by-byte model, and the cases that fcntl(2) and flock(2) spell out.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use proptest::prelude::*;

const FILE: Ino = Ino(7);

fn owner(client: u64, owner: u64) -> Owner {
    Owner { client: ClientId(client), owner: LockOwner(owner) }
}

fn req(o: Owner, what: LockType, start: u64, end: u64) -> LockRequest {
    LockRequest {
        ino: FILE,
        space: LockSpace::Posix,
        owner: o,
        what,
        range: LockRange { start, end },
        pid: 100,
    }
}

const READ: LockType = LockType::Lock(LockKind::Read);
const WRITE: LockType = LockType::Lock(LockKind::Write);

fn set(t: &mut LockTable, r: &LockRequest) -> Outcome {
    t.set(r, None, &mut Vec::new())
}

#[test]
fn split_merge_upgrade_downgrade() {
    let mut t = LockTable::default();
    let (a, b) = (owner(1, 1), owner(2, 1));
    assert_eq!(set(&mut t, &req(a, WRITE, 0, 99)), Outcome::Granted);
    assert_eq!(set(&mut t, &req(a, LockType::Unlock, 40, 59)), Outcome::Granted);
    assert_eq!(t.held(), 2);
    assert_eq!(set(&mut t, &req(b, WRITE, 40, 59)), Outcome::Granted);
    assert_eq!(set(&mut t, &req(b, WRITE, 39, 59)), Outcome::Refused(Errno::EAGAIN));
    let c = t.get(FILE, LockSpace::Posix, b, LockKind::Read, LockRange { start: 60, end: u64::MAX }).unwrap();
    assert_eq!((c.range, c.pid, c.owner), (LockRange { start: 60, end: 99 }, 100, a));
    assert_eq!(set(&mut t, &req(b, LockType::Unlock, 0, u64::MAX)), Outcome::Granted);
    assert_eq!(set(&mut t, &req(a, WRITE, 40, 59)), Outcome::Granted);
    assert_eq!(t.held(), 1, "neighbours merge");
    assert_eq!(set(&mut t, &req(a, READ, 10, 19)), Outcome::Granted);
    assert_eq!(t.held(), 3, "a downgrade in the middle splits");
    assert_eq!(set(&mut t, &req(b, READ, 10, 19)), Outcome::Granted);
    assert_eq!(
        set(&mut t, &req(a, WRITE, 10, 19)),
        Outcome::Refused(Errno::EAGAIN),
        "upgrade against a reader"
    );
    assert_eq!(set(&mut t, &req(a, READ, 9, 3)), Outcome::Refused(Errno::EINVAL));
}

#[test]
fn spaces_do_not_conflict() {
    let mut t = LockTable::default();
    assert_eq!(set(&mut t, &req(owner(1, 1), WRITE, 0, u64::MAX)), Outcome::Granted);
    let flock = LockRequest { space: LockSpace::Flock, ..req(owner(2, 1), WRITE, 0, u64::MAX) };
    assert_eq!(set(&mut t, &flock), Outcome::Granted);
}

#[test]
fn waiters_go_in_order_of_arrival() {
    let mut t = LockTable::default();
    let mut woken = Vec::new();
    assert_eq!(set(&mut t, &req(owner(1, 1), WRITE, 0, 9)), Outcome::Granted);
    for (i, what) in [(2, WRITE), (3, READ), (4, READ), (5, WRITE)] {
        let got = t.set(&req(owner(i, 1), what, 0, 9), Some(WaiterId(i)), &mut woken);
        assert_eq!(got, Outcome::Waiting);
    }
    assert!(t.cancel(WaiterId(2)));
    assert!(!t.cancel(WaiterId(2)));
    t.set(&req(owner(1, 1), LockType::Unlock, 0, 9), None, &mut woken);
    assert_eq!(woken, [WaiterId(3), WaiterId(4)]);
    woken.clear();
    assert!(t.release_client(ClientId(3), &mut woken).is_empty());
    assert!(woken.is_empty());
    t.release_owner(FILE, LockSpace::Posix, owner(4, 1), &mut woken);
    assert_eq!(woken, [WaiterId(5)]);
    assert_eq!((t.held(), t.waiting()), (1, 0));
    t.release_ino(FILE);
    assert_eq!((t.held(), t.files.len(), t.clients.len()), (0, 0, 0));
}

#[test]
fn deadlocks_are_found_across_owners_and_files() {
    let mut t = LockTable::default();
    let mut woken = Vec::new();
    let on = |ino, o, what| LockRequest { ino: Ino(ino), ..req(o, what, 0, 0) };
    let (a, b, c) = (owner(1, 1), owner(1, 2), owner(2, 1));
    for (i, o) in [(1, a), (2, b), (3, c)] {
        assert_eq!(set(&mut t, &on(i, o, WRITE)), Outcome::Granted);
    }
    assert_eq!(t.set(&on(2, a, WRITE), Some(WaiterId(1)), &mut woken), Outcome::Waiting);
    assert_eq!(t.set(&on(3, b, READ), Some(WaiterId(2)), &mut woken), Outcome::Waiting);
    assert_eq!(t.set(&on(1, c, READ), Some(WaiterId(3)), &mut woken), Outcome::Refused(Errno::EDEADLK));
    assert_eq!(t.release_client(ClientId(2), &mut woken), []);
    assert_eq!(woken, [WaiterId(2)]);
}

#[test]
fn a_flock_conversion_drops_the_old_lock_first() {
    let mut t = LockTable::default();
    let mut woken = Vec::new();
    let f = |c, what| LockRequest { space: LockSpace::Flock, ..req(owner(c, 1), what, 0, 0) };
    assert_eq!(set(&mut t, &f(1, READ)), Outcome::Granted);
    assert_eq!(set(&mut t, &f(2, READ)), Outcome::Granted);
    assert_eq!(t.set(&f(3, WRITE), Some(WaiterId(3)), &mut woken), Outcome::Waiting);
    assert_eq!(set(&mut t, &f(1, WRITE)), Outcome::Refused(Errno::EAGAIN));
    t.set(&f(2, LockType::Unlock), None, &mut woken);
    assert_eq!(woken, [WaiterId(3)], "client 1 lost its lock in the failed conversion");
}

#[test]
fn bounds_answer_enolck() {
    let mut t = LockTable::new(LockLimits { per_client: 4, total: 8, waiters_per_client: 1 });
    let mut woken = Vec::new();
    for i in 0..3 {
        assert_eq!(set(&mut t, &req(owner(1, 1), WRITE, i * 10, i * 10)), Outcome::Granted);
    }
    assert_eq!(set(&mut t, &req(owner(1, 1), WRITE, 70, 70)), Outcome::Refused(Errno::ENOLCK));
    assert_eq!(t.set(&req(owner(2, 1), WRITE, 0, 0), Some(WaiterId(1)), &mut woken), Outcome::Waiting);
    let second = t.set(&req(owner(2, 2), WRITE, 0, 0), Some(WaiterId(2)), &mut woken);
    assert_eq!(second, Outcome::Refused(Errno::ENOLCK));
}

const BYTES: u64 = 24;

/// For each byte and owner, what is held: the definition that the table must agree with.
#[derive(Default)]
struct Model {
    bytes: [[Option<LockKind>; 4]; BYTES as usize],
}

impl Model {
    fn conflict(&self, o: usize, kind: LockKind, start: u64, end: u64) -> bool {
        (start..=end).any(|b| {
            self.bytes[b as usize].iter().enumerate().any(|(other, held)| {
                other != o && held.is_some_and(|h| h == LockKind::Write || kind == LockKind::Write)
            })
        })
    }
}

proptest! {
    #[test]
    fn agrees_with_a_byte_model(ops in prop::collection::vec((0usize..4, 0u8..3, 0u64..BYTES, 0u64..BYTES), 1..200)) {
        let mut t = LockTable::default();
        let mut model = Model::default();
        for (o, what, x, y) in ops {
            let (start, end) = (x.min(y), x.max(y));
            let what = match what { 0 => LockType::Unlock, 1 => READ, _ => WRITE };
            let who = owner(1 + (o as u64) / 2, o as u64);
            let expect = match what {
                LockType::Lock(k) if model.conflict(o, k, start, end) => Outcome::Refused(Errno::EAGAIN),
                LockType::Lock(k) => {
                    (start..=end).for_each(|b| model.bytes[b as usize][o] = Some(k));
                    Outcome::Granted
                }
                LockType::Unlock => {
                    (start..=end).for_each(|b| model.bytes[b as usize][o] = None);
                    Outcome::Granted
                }
            };
            prop_assert_eq!(set(&mut t, &req(who, what, start, end)), expect);
            let mut seen = Model::default();
            for r in t.iter() {
                for b in r.range.start..=r.range.end {
                    let cell = &mut seen.bytes[b as usize][r.owner.owner.0 as usize];
                    prop_assert!(cell.is_none(), "records of one owner overlap");
                    *cell = Some(r.kind);
                }
            }
            prop_assert_eq!(seen.bytes, model.bytes);
            let runs: usize = (0..4).map(|o| runs(&model, o)).sum();
            prop_assert_eq!(t.held(), runs, "neighbours of one kind are one record");
        }
    }
}

fn runs(m: &Model, o: usize) -> usize {
    let mut last = None;
    let mut n = 0;
    for b in &m.bytes {
        if b[o].is_some() && b[o] != last {
            n += 1;
        }
        last = b[o];
    }
    n
}
