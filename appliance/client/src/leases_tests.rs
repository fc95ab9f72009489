//! The table against a model of the server, with messages that overtake each other.

use super::*;
use proptest::prelude::*;

const INO: Ino = Ino(9);

fn table() -> Table {
    Table::new(Limits::default())
}

fn grant(mode: LeaseMode, serial: u64) -> Grant {
    Grant::new(INO, mode, serial)
}

fn attr(change: u64) -> Attr {
    Attr { ino: INO.into(), change: change.into(), ..Attr::default() }
}

/// The server's side of one inode and one client.
#[derive(Debug, Default)]
struct Server {
    held: LeaseMode,
    serial: u64,
    last: u64,
    recall: Option<LeaseMode>,
}

/// In flight to the client.
#[derive(Debug, Clone, Copy)]
enum Message {
    Reply(Since, LeaseMode, u64),
    Recall(LeaseMode, u64),
}

#[derive(Debug, Clone)]
enum Step {
    /// The server answers a request that the client sent now.
    Ask { exclusive: bool },
    /// It wants the lease back.
    Recall { shared: bool },
    /// One of the messages in flight arrives, in any order.
    Deliver(usize),
    /// The client ends the procedure of its recall.
    Finish,
    /// The client gives back by itself.
    GiveBack,
    /// A message of the client arrives.
    Arrive(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => any::<bool>().prop_map(|exclusive| Step::Ask { exclusive }),
        2 => any::<bool>().prop_map(|shared| Step::Recall { shared }),
        4 => (0usize..8).prop_map(Step::Deliver),
        2 => Just(Step::Finish),
        1 => Just(Step::GiveBack),
        3 => (0usize..8).prop_map(Step::Arrive),
    ]
}

impl Server {
    fn ask(&mut self, exclusive: bool) -> (LeaseMode, u64) {
        let want = if exclusive { LeaseMode::Exclusive } else { LeaseMode::Shared };
        // The same serial again while it is held or being recalled, a new one for more.
        if self.held == LeaseMode::None || (self.recall.is_none() && want > self.held) {
            self.last += 1;
            (self.held, self.serial) = (want, self.last);
        }
        (self.held, self.serial)
    }
    fn returned(&mut self, r: Returned) {
        if self.serial <= r.serial {
            self.held = self.held.min(r.keep);
            if self.recall.is_some_and(|keep| self.held <= keep) {
                self.recall = None;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_client_never_believes_in_more_than_the_server(steps in prop::collection::vec(step(), 0..60)) {
        let (mut table, mut server) = (table(), Server::default());
        let (mut down, mut up): (Vec<Message>, Vec<Returned>) = Default::default();
        for s in steps {
            match s {
                Step::Ask { exclusive } => {
                    let since = table.since(INO);
                    let (mode, serial) = server.ask(exclusive);
                    down.push(Message::Reply(since, mode, serial));
                }
                Step::Recall { shared } => {
                    let keep = if shared { LeaseMode::Shared } else { LeaseMode::None };
                    if server.held > keep && server.recall.is_none_or(|k| keep < k) {
                        server.recall = Some(keep);
                        down.push(Message::Recall(keep, server.serial));
                    }
                }
                Step::Deliver(i) if !down.is_empty() => {
                    match down.remove(i % down.len()) {
                        Message::Reply(since, mode, serial) => {
                            let cover = table.settle(INO, since, &grant(mode, serial));
                            prop_assert!(cover <= server.held);
                        }
                        Message::Recall(keep, serial) => {
                            // The kernel holds something, so that there is a procedure.
                            table.attrs_out(INO);
                            if let Begin::Return(r) = table.recall(INO, keep, serial) {
                                up.push(r);
                            }
                        }
                    }
                }
                Step::Finish => {
                    if table.job(INO).is_some() {
                        up.extend(table.finish(INO));
                    }
                }
                Step::GiveBack => {
                    if let Some(Begin::Return(r)) = table.recall_own(INO) {
                        up.push(r);
                    }
                }
                Step::Arrive(i) if !up.is_empty() => {
                    let r = up.remove(i % up.len());
                    server.returned(r);
                }
                Step::Deliver(_) | Step::Arrive(_) => {}
            }
            prop_assert!(table.cover(INO) <= server.held, "{table:?} {server:?}");
        }
        // Everything arrives in the end, and no recall stays open.
        for m in down {
            match m {
                Message::Reply(since, mode, serial) => { table.settle(INO, since, &grant(mode, serial)); }
                Message::Recall(keep, serial) => {
                    if let Begin::Return(r) = table.recall(INO, keep, serial) {
                        up.push(r);
                    }
                }
            }
        }
        while table.job(INO).is_some() {
            up.extend(table.finish(INO));
        }
        up.into_iter().for_each(|r| server.returned(r));
        prop_assert!(server.recall.is_none(), "{server:?}");
        prop_assert!(table.cover(INO) <= server.held);
    }
}

#[test]
fn attributes_are_kept_only_under_a_lease_and_never_replaced_by_older_ones() {
    let mut t = table();
    let since = t.since(INO);
    assert!(!t.store(&attr(1), since, LeaseMode::None));
    let cover = t.settle(INO, since, &grant(LeaseMode::Shared, 5));
    assert!(t.store(&attr(3), since, cover));
    assert!(!t.store(&attr(2), since, cover));
    assert_eq!(t.attr(INO).map(|a| a.change.get()), Some(3));
    // An own change that no reply tells: what was asked before it is not believed.
    t.forget_attr(INO);
    assert!(!t.store(&attr(4), since, cover));
    let since = t.since(INO);
    assert!(t.store(&attr(4), since, cover));
}

#[test]
fn a_name_asked_for_beside_an_own_change_is_disturbed() {
    let mut t = table();
    let since = t.since(INO);
    t.settle(INO, since, &grant(LeaseMode::Exclusive, 5));
    let before = t.since(INO);
    assert!(t.undisturbed(INO, before, 0));
    t.change_begins(INO, b"n");
    assert!(!t.undisturbed(INO, before, 0) && t.undisturbed(INO, before, 1));
    t.change_ends(INO);
    assert!(!t.undisturbed(INO, before, 0));
    let after = t.since(INO);
    assert!(t.undisturbed(INO, after, 0));
}

#[test]
fn the_table_stays_within_its_bounds() {
    let limits = Limits { inodes: 10, names: 64, names_per_dir: 4, ..Limits::default() };
    let mut t = Table::new(limits);
    for i in 1..=20 {
        let since = t.since(Ino(i));
        let cover = t.settle(Ino(i), since, &Grant::new(Ino(i), LeaseMode::Shared, i));
        assert_eq!(cover == LeaseMode::Shared, i <= 11, "one above the bound is taken, no more");
    }
    for i in 0..6_u8 {
        let kept = t.put_name(Ino(1), &[b'a' + i], Name::Absent, LeaseMode::Shared, false);
        assert_eq!(kept, i < 4);
    }
    while t.is_full() {
        let old = t.evict(4);
        assert!(!old.is_empty() || !t.is_full());
        for ino in old {
            assert!(matches!(t.recall_own(ino), Some(Begin::Return(_))));
        }
    }
    assert!(t.records.len() <= 10);
    // What was given back stays given back, though its record is gone.
    let since = t.since(Ino(1));
    let late = Grant::new(Ino(1), LeaseMode::Shared, 1);
    assert_eq!(t.settle(Ino(1), since, &late), LeaseMode::None);
}

#[test]
fn a_restarted_server_counts_anew() {
    let mut t = table();
    let since = t.since(INO);
    t.settle(INO, since, &grant(LeaseMode::Shared, 500));
    let in_flight = t.since(INO);
    assert!(t.reclaimed(&[grant(LeaseMode::Shared, 3)]).is_empty());
    assert_eq!(t.cover(INO), LeaseMode::Shared);
    // A stored answer of the old life grants nothing.
    assert_eq!(t.settle(INO, in_flight, &grant(LeaseMode::Exclusive, 501)), LeaseMode::None);
    assert_eq!(t.cover(INO), LeaseMode::Shared);
    assert_eq!(t.lose_all(), [INO]);
    assert_eq!(t.cover(INO), LeaseMode::None);
}

/// A truncation whose answer came after a restart once left the old size under the lease that was taken back.
#[test]
fn an_answer_that_is_not_sure_still_takes_out_what_is_older() {
    let mut t = table();
    let since = t.since(INO);
    let cover = t.settle(INO, since, &grant(LeaseMode::Shared, 5));
    assert!(t.store(&attr(1), since, cover));
    let changing = t.since(INO);
    assert!(t.reclaimed(&[grant(LeaseMode::Shared, 3)]).is_empty());
    assert!(t.attr(INO).is_none(), "a power loss may have taken it back");
    // Asked in the new life, and executed before the change.
    let since = t.since(INO);
    assert!(t.store(&attr(1), since, t.cover(INO)));
    let cover = t.settle(INO, changing, &grant(LeaseMode::Shared, 6));
    assert!(!t.store(&attr(2), changing, cover));
    assert!(t.attr(INO).is_none());
    assert!(!t.store(&attr(1), since, t.cover(INO)), "it was executed before the change");
}
