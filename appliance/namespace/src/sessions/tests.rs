//! Liveness, grace, fencing and the rule for writers.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;

const A: ClientId = ClientId(1);
const B: ClientId = ClientId(2);

#[test]
fn grace_ends_when_all_are_back_or_time_is_up() {
    let limits = SessionLimits::default();
    let mut s = Sessions::new(0, limits, [A, B]);
    assert!(s.in_grace());
    assert_eq!(s.heard(1, A), Err(Status::UnknownSession), "it must reopen first");
    assert_eq!(s.open(1, A), Ok(Opening::Reclaim));
    assert!(s.reclaiming(A) && !s.reclaiming(B));
    s.reclaimed(A);
    let mut late = Vec::new();
    assert!(!s.end_grace(2, &mut late));
    assert_eq!(s.open(2, B), Ok(Opening::Reclaim));
    assert!(!s.end_grace(3, &mut late), "B is not done");
    s.reclaimed(B);
    assert!(s.end_grace(3, &mut late) && late.is_empty() && !s.in_grace());
    assert_eq!(s.open(4, A), Ok(Opening::Resumed));

    let mut s = Sessions::new(0, limits, [A, B]);
    s.open(1, A).unwrap();
    s.reclaimed(A);
    assert!(s.expired(9_999).is_empty());
    assert!(s.end_grace(10_000, &mut late));
    assert_eq!(late, [B]);
    assert!(!Sessions::new(0, limits, []).in_grace());
}

#[test]
fn silence_fences_and_the_late_one_is_told() {
    let mut s = Sessions::new(0, SessionLimits::default(), []);
    assert_eq!(s.open(0, A), Ok(Opening::New));
    assert_eq!(s.open(0, ClientId(0)), Err(Status::Malformed));
    s.opened(A, 7, Ino(3), true);
    assert!(s.expired(9_999).is_empty());
    assert_eq!(s.expired(10_000), [A]);
    s.forgive(10_000);
    assert!(s.expired(19_999).is_empty(), "the server slept itself");
    let opens = s.end(A, true).unwrap();
    assert_eq!((opens.len(), opens[0].0, opens[0].1.ino), (1, 7, Ino(3)));
    assert!(!s.has_writer(Ino(3)) && s.end(A, true).is_none());
    assert_eq!(s.heard(2, A), Err(Status::Fenced));
    assert_eq!(s.open(2, A), Err(Status::Fenced));
    assert_eq!(s.heard(2, B), Err(Status::UnknownSession));
}

#[test]
fn one_client_writes_through_its_cache() {
    let mut s = Sessions::new(0, SessionLimits { sessions: 2, opens: 2, ..SessionLimits::default() }, []);
    for c in [A, B] {
        s.open(0, c).unwrap();
    }
    assert_eq!(s.open(0, ClientId(3)), Err(Status::Busy));
    assert_eq!(s.opened(A, 1, Ino(3), true), IoMode::Cached);
    assert_eq!(s.opened(A, 2, Ino(3), true), IoMode::Cached, "same client, same page cache");
    assert!(!s.may_open(A) && s.may_open(B));
    assert_eq!(s.opened(B, 3, Ino(3), false), IoMode::Cached);
    assert_eq!(s.opened(B, 4, Ino(3), true), IoMode::Direct);
    assert_eq!(s.opened(B, 4, Ino(3), true), IoMode::Direct, "a repeat changes nothing");
    s.closed(A, 1);
    s.closed(A, 2);
    assert_eq!(s.opened(A, 5, Ino(3), true), IoMode::Cached, "B goes past its cache");
    assert!(s.has_writer(Ino(3)));
    assert_eq!(s.opens(), 3);
}
