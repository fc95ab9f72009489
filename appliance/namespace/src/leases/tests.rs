//! Admission, recall, fairness, grants and bounds, each as a short story; then random histories against the invariants.

use super::*;
use proptest::prelude::*;
use wire::Grant;

const A: ClientId = ClientId(1);
const B: ClientId = ClientId(2);
const C: ClientId = ClientId(3);
const F: Ino = Ino(10);
const G: Ino = Ino(11);

fn table() -> LeaseTable {
    LeaseTable::new(LeaseLimits::default(), 0)
}

fn ask(t: &mut LeaseTable, now: Millis, c: ClientId, n: u64, needs: &[Need]) -> (Admission, Changes) {
    let mut ch = Changes::default();
    let got = t.admit(now, c, Ticket(n), needs, false, &mut ch);
    (got, ch)
}

fn grant(t: &mut LeaseTable, now: Millis, c: ClientId, ino: Ino, want: Want) -> Grant {
    t.grant(now, c, ino, want, &mut Recalls::new())
}

#[test]
fn an_exclusive_lease_is_recalled_for_a_reader_and_kept_shared() {
    let mut t = table();
    let g = grant(&mut t, 0, A, F, Want::Exclusive);
    assert_eq!(g.mode(), Some(LeaseMode::Exclusive));
    assert_eq!(ask(&mut t, 0, A, 1, &[Need::modify(F)]).0, Admission::Go);
    let (got, ch) = ask(&mut t, 0, B, 2, &[Need::read(F)]);
    assert_eq!(got, Admission::Go, "a reader waits for nobody");
    assert_eq!(grant(&mut t, 0, B, F, Want::Shared), Grant::none(), "but caches nothing");
    let order = RecallOrder { client: A, ino: F, keep: LeaseMode::Shared, serial: g.serial.get() };
    assert_eq!(&ch.recalls[..], [order]);
    assert_eq!(t.recalls_of(A), [order]);
    // The holder goes on, and asks for nothing new.
    assert_eq!(ask(&mut t, 1, A, 3, &[Need::modify(F)]).0, Admission::Go);
    assert_eq!(grant(&mut t, 1, A, F, Want::Forced), g);
    let mut ready = Vec::new();
    let caching = Need { cache: true, ..Need::read(F) };
    assert_eq!(ask(&mut t, 1, B, 4, &[caching]).0, Admission::Wait, "a cache waits");
    t.returned(2, A, F, LeaseMode::Shared, order.serial, &mut ready);
    assert_eq!(ready, [Ticket(4)]);
    assert_eq!(ask(&mut t, 2, B, 4, &[caching]).0, Admission::Go);
    assert_eq!(t.mode_of(A, F), LeaseMode::Shared);
    assert_eq!(grant(&mut t, 2, B, F, Want::Shared), Grant::none(), "cool-down");
    assert_eq!(grant(&mut t, 2, B, F, Want::Forced).mode(), Some(LeaseMode::Shared), "certain all the same");
    t.tick(1002);
    assert_eq!(grant(&mut t, 1002, C, F, Want::Exclusive).mode(), Some(LeaseMode::Shared));
}

#[test]
fn a_recall_is_deepened_and_a_late_return_of_an_old_serial_is_ignored() {
    let mut t = table();
    let g = grant(&mut t, 0, A, F, Want::Exclusive);
    ask(&mut t, 0, B, 1, &[Need::read(F)]);
    let (_, ch) = ask(&mut t, 0, C, 2, &[Need::modify(F)]);
    assert_eq!(ch.recalls[0].keep, LeaseMode::None);
    let mut ready = Vec::new();
    t.returned(1, A, F, LeaseMode::None, g.serial.get() - 1, &mut ready);
    assert!(ready.is_empty());
    t.returned(1, A, F, LeaseMode::Shared, g.serial.get(), &mut ready);
    assert_eq!(ready, [Ticket(2)]);
    assert_eq!(ask(&mut t, 1, C, 2, &[Need::modify(F)]).0, Admission::Wait);
    t.returned(1, A, F, LeaseMode::None, g.serial.get(), &mut ready);
    assert_eq!(ask(&mut t, 1, C, 2, &[Need::modify(F)]).0, Admission::Go);
    assert_eq!((t.held(), t.recalling(), t.waiting()), (0, 0, 0));
}

/// Two mounts that renamed in opposite directions between two directories stood still until one was fenced: the one that held
/// a lease waited behind the other, which waited for that lease, whose names its kernel could give up only after its rename.
#[test]
fn nobody_waits_behind_an_operation_that_waits_unless_it_caches() {
    let mut t = table();
    let f = grant(&mut t, 0, A, F, Want::Exclusive);
    assert_eq!(ask(&mut t, 0, B, 1, &[Need::modify(F), Need::modify(G)]).0, Admission::Wait);
    assert_eq!(ask(&mut t, 0, A, 2, &[Need::modify(G), Need::modify(F)]).0, Admission::Go);
    assert_eq!(ask(&mut t, 0, C, 3, &[Need::modify(G)]).0, Admission::Go);
    assert_eq!(ask(&mut t, 0, C, 4, &[Need::read(G)]).0, Admission::Go);
    let caching = Need { cache: true, ..Need::read(G) };
    assert_eq!(ask(&mut t, 0, C, 5, &[caching]).0, Admission::Wait, "else readers in a loop could starve it");
    let mut ready = Vec::new();
    t.returned(0, A, F, LeaseMode::None, f.serial.get(), &mut ready);
    assert_eq!(ready, [Ticket(1)]);
    let (got, ch) = ask(&mut t, 0, B, 1, &[Need::modify(F), Need::modify(G)]);
    assert_eq!(got, Admission::Go);
    assert_eq!(ch.ready, [Ticket(5)], "whoever waited behind it is asked again");
    assert_eq!(ask(&mut t, 0, C, 5, &[caching]).0, Admission::Go);
}

#[test]
fn what_several_clients_use_goes_on_without_leases() {
    let mut t = table();
    let f = grant(&mut t, 0, A, F, Want::Exclusive);
    assert_eq!(ask(&mut t, 0, B, 1, &[Need::modify(F)]).0, Admission::Wait);
    t.returned(0, A, F, LeaseMode::None, f.serial.get(), &mut Vec::new());
    for (n, client) in [B, A, B, A, B, A].into_iter().enumerate() {
        let now = n as Millis * 400;
        t.tick(now);
        assert_eq!(ask(&mut t, now, client, n as u64 + 1, &[Need::modify(F)]).0, Admission::Go);
        assert_eq!(grant(&mut t, now, client, F, Want::Exclusive), Grant::none(), "{now}");
    }
    t.tick(3000);
    ask(&mut t, 3000, A, 9, &[Need::modify(F)]);
    assert_eq!(grant(&mut t, 3000, A, F, Want::Exclusive).mode(), Some(LeaseMode::Exclusive), "alone again");
}

#[test]
fn nobody_caches_what_another_client_is_changing() {
    let mut t = table();
    let mut ch = Changes::default();
    assert_eq!(t.admit(0, A, Ticket(1), &[Need::modify(F)], true, &mut ch), Admission::Go);
    assert_eq!(ask(&mut t, 0, B, 2, &[Need::read(F)]).0, Admission::Go);
    assert_eq!(grant(&mut t, 0, B, F, Want::Exclusive), Grant::none());
    let caching = Need { cache: true, ..Need::read(F) };
    assert_eq!(ask(&mut t, 0, B, 3, &[caching]).0, Admission::Wait);
    assert_eq!(ask(&mut t, 0, A, 4, &[caching]).0, Admission::Go, "its own changes are its own business");
    let mut ready = Vec::new();
    t.leave(0, Ticket(1), &mut ready);
    assert_eq!(ready, [Ticket(3)]);
    assert_eq!(ask(&mut t, 0, B, 3, &[caching]).0, Admission::Go);
    assert!(t.inodes.is_empty());
}

#[test]
fn bounds_recall_the_oldest_and_late_clients_are_named() {
    let mut t = LeaseTable::new(LeaseLimits { per_client: 2, ..LeaseLimits::default() }, 100);
    grant(&mut t, 0, A, Ino(1), Want::Shared);
    grant(&mut t, 0, A, Ino(2), Want::Shared);
    let mut recalls = Recalls::new();
    assert_eq!(t.grant(5, A, Ino(3), Want::Shared, &mut recalls), Grant::none());
    assert_eq!((recalls[0].ino, recalls[0].serial), (Ino(1), 101));
    let forced = t.grant(6, A, Ino(4), Want::Forced, &mut recalls);
    assert_eq!(forced.mode(), Some(LeaseMode::Shared));
    assert_eq!((recalls.len(), recalls[1].ino), (2, Ino(2)));
    assert!(t.overdue(10_004).is_empty());
    assert_eq!(t.overdue(10_005), [A]);
    t.extend_recalls(20_000);
    assert!(t.overdue(29_999).is_empty());
    t.drop_client(30_000, A, &mut Vec::new());
    assert_eq!((t.held(), t.recalling(), t.inodes.len()), (0, 0, 0));
}

#[test]
fn leases_are_reclaimed_unless_another_client_was_first() {
    let mut t = table();
    assert_eq!(t.reclaim(A, F, LeaseMode::Exclusive).mode(), Some(LeaseMode::Exclusive));
    assert_eq!(t.reclaim(B, F, LeaseMode::Shared), Grant::none());
    assert_eq!(t.reclaim(B, G, LeaseMode::Shared).mode(), Some(LeaseMode::Shared));
    assert_eq!(t.reclaim(A, G, LeaseMode::Shared).mode(), Some(LeaseMode::Shared));
}

proptest! {
    /// Whatever happens, an Exclusive holder is alone, counters agree with the tables, and once every recall is answered
    /// nobody waits.
    #[test]
    fn random_histories_keep_the_invariants(ops in prop::collection::vec((0u8..6, 1u64..4, 0u64..3, any::<bool>()), 1..150)) {
        let mut t = LeaseTable::new(LeaseLimits { per_client: 2, ..LeaseLimits::default() }, 0);
        let mut parked: BTreeMap<Ticket, (ClientId, Vec<Need>)> = BTreeMap::new();
        let mut ch = Changes::default();
        for (n, (what, c, i, flag)) in ops.into_iter().enumerate() {
            let (now, client, ino) = (n as u64 * 100, ClientId(c), Ino(i));
            let need = if flag { Need::modify(ino) } else { Need::read(ino) };
            match what {
                0..=2 => {
                    let needs = vec![need, Need::read(Ino((i + 1) % 3))];
                    let ticket = Ticket(n as u64);
                    if t.admit(now, client, ticket, &needs, false, &mut ch) == Admission::Wait {
                        parked.insert(ticket, (client, needs));
                    } else {
                        t.grant(now, client, ino, if flag { Want::Exclusive } else { Want::Shared }, &mut ch.recalls);
                    }
                }
                3 => { t.grant(now, client, ino, Want::Shared, &mut ch.recalls); }
                4 => {
                    let order = if ch.recalls.is_empty() { None } else { Some(ch.recalls.remove(0)) };
                    if let Some(r) = order {
                        t.returned(now, r.client, r.ino, r.keep, r.serial, &mut ch.ready);
                    }
                }
                _ => {
                    parked.retain(|_, (c, _)| *c != client);
                    t.drop_client(now, client, &mut ch.ready);
                }
            }
            settle(&mut t, now, &mut parked, &mut ch);
            check(&t)?;
        }
        let now = 1_000_000;
        while let Some(r) = ch.recalls.pop() {
            t.returned(now, r.client, r.ino, r.keep, r.serial, &mut ch.ready);
            settle(&mut t, now, &mut parked, &mut ch);
        }
        prop_assert!(parked.is_empty(), "{parked:?} still wait in {t:?}");
        prop_assert_eq!((t.waiting(), t.recalling()), (0, 0));
    }
}

fn settle(
    t: &mut LeaseTable,
    now: Millis,
    parked: &mut BTreeMap<Ticket, (ClientId, Vec<Need>)>,
    ch: &mut Changes,
) {
    while !ch.ready.is_empty() {
        let ticket = ch.ready.remove(0);
        let Some((client, needs)) = parked.remove(&ticket) else { continue };
        if t.admit(now, client, ticket, &needs, false, ch) == Admission::Wait {
            parked.insert(ticket, (client, needs));
        }
    }
}

fn check(t: &LeaseTable) -> Result<(), TestCaseError> {
    let mut held = 0;
    for e in t.inodes.values() {
        held += e.holders.len();
        let exclusive = e.holders.iter().any(|h| h.mode == LeaseMode::Exclusive);
        prop_assert!(!exclusive || e.holders.len() == 1);
        prop_assert!(!e.is_unused());
    }
    prop_assert_eq!(held, t.held());
    prop_assert_eq!(held, t.clients.values().map(|c| c.held).sum::<usize>());
    let recalls = t.inodes.values().flat_map(|e| &e.holders).filter(|h| h.recall.is_some()).count();
    prop_assert_eq!(recalls, t.recalling());
    Ok(())
}
