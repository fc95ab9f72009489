//! The device's common pool of zones: an atomic bitmap that all cores share.
//!
//! It knows which zones are taken, never by whom or what for; owners log what they take and return, and the
//! pool is rebuilt from them at open. It is closed until every shard has said what it owns.

use crate::signal::Bell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A device may grow to this many times its size while it is open: the bitmap is allocated for it at open.
pub const GROW_LIMIT: u64 = 64;

/// Who asks for space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// File data: gets nothing out of the reserve.
    User,
    /// Checkpoints, the namespace volume, and what deletions need.
    System,
}

/// Who takes a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taker {
    /// File data.
    User,
    /// The namespace volume, and what truncation and holes need on a full device: not the part of the reserve that
    /// checkpoints alone may use.
    System,
    /// Without it a full log stays full.
    Checkpoint,
}

impl Taker {
    pub(crate) fn class(self) -> Class {
        match self {
            Taker::User => Class::User,
            Taker::System | Taker::Checkpoint => Class::System,
        }
    }
}

/// Why no zone was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Not every shard has been opened.
    Closed,
    /// Nothing is left for this class.
    Empty,
}

/// Zones of a device, shared between cores.
#[derive(Debug)]
pub(crate) struct Pool {
    taken: Box<[AtomicU64]>,
    zones: AtomicU32,
    free: AtomicU32,
    system: AtomicU32,
    reserve: AtomicU32,
    /// Shards that have not said yet what they own.
    waiting: AtomicU32,
    open: Bell,
    hint: AtomicU32,
}

impl Pool {
    pub(crate) fn new(zones: u32, reserve: u32, shards: u16) -> Pool {
        let most = u64::from(zones).saturating_mul(GROW_LIMIT).min(u64::from(u32::MAX));
        Pool {
            taken: (0..most.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            zones: zones.into(),
            free: zones.into(),
            system: 0.into(),
            reserve: reserve.into(),
            waiting: u32::from(shards).into(),
            open: Bell::default(),
            hint: 0.into(),
        }
    }

    /// Marks a zone that a shard owns according to its log; false if it is out of range or another's.
    pub(crate) fn claim(&self, zone: u32, class: Class) -> bool {
        if zone >= self.zones.load(Ordering::Acquire) || !self.set(zone) {
            return false;
        }
        self.free.fetch_sub(1, Ordering::AcqRel);
        if class == Class::System {
            self.system.fetch_add(1, Ordering::AcqRel);
        }
        true
    }

    /// A shard has claimed all that it owns.
    pub(crate) fn opened(&self) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        self.open.ring();
    }

    /// Every shard has said what it owns.
    pub(crate) fn is_open(&self) -> bool {
        self.waiting.load(Ordering::Acquire) == 0
    }

    pub(crate) async fn until_open(&self) {
        self.open.until(|| self.is_open()).await;
    }

    /// Zones that must stay free when `taker` takes one.
    fn kept(&self, taker: Taker) -> u32 {
        match taker {
            // However much the system has already: to delete it must be able to move on.
            Taker::User => {
                self.reserve().saturating_sub(self.system.load(Ordering::Acquire)).max(self.eighths(7))
            }
            Taker::System => self.eighths(3),
            Taker::Checkpoint => 0,
        }
    }

    fn set(&self, zone: u32) -> bool {
        let bit = 1 << (zone % 64);
        self.taken[zone as usize / 64].fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    /// Zones that user data may still take.
    pub(crate) fn user_free(&self) -> u32 {
        self.free.load(Ordering::Acquire).saturating_sub(self.kept(Taker::User))
    }

    /// Zones by which the namespace may still grow. The rest is the checkpoints', and for moving rows while others are removed:
    /// any shard may need a zone for that.
    pub(crate) fn system_free(&self) -> u32 {
        self.free.load(Ordering::Acquire).saturating_sub(self.eighths(6))
    }

    /// So many eighths of the reserve.
    fn eighths(&self, n: u32) -> u32 {
        (u64::from(self.reserve()) * u64::from(n)).div_ceil(8) as u32
    }

    /// Most zones that it can grow to.
    pub(crate) fn limit(&self) -> u64 {
        self.taken.len() as u64 * 64
    }

    /// Zones kept back from user data.
    pub(crate) fn reserve(&self) -> u32 {
        self.reserve.load(Ordering::Acquire)
    }

    /// Zones of the device.
    pub(crate) fn zones(&self) -> u32 {
        self.zones.load(Ordering::Acquire)
    }

    /// Zones that nobody owns.
    pub(crate) fn free(&self) -> u32 {
        self.free.load(Ordering::Acquire)
    }

    /// Takes a zone.
    pub(crate) fn take(&self, taker: Taker) -> Result<u32, Refused> {
        if !self.is_open() {
            return Err(Refused::Closed);
        }
        // The count is taken down first, so that the reserve holds even if all cores ask at once.
        let got = self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, |free| {
            (free > self.kept(taker)).then(|| free - 1)
        });
        if got.is_err() {
            return Err(Refused::Empty);
        }
        if taker.class() == Class::System {
            self.system.fetch_add(1, Ordering::AcqRel);
        }
        let zones = self.zones.load(Ordering::Acquire);
        let words = zones.div_ceil(64);
        let first = self.hint.load(Ordering::Relaxed) / 64 % words.max(1);
        // The count promised a zone; a return that is under way sets its bit free before it counts it.
        loop {
            for i in 0..words {
                let index = (first + i) % words;
                let word = &self.taken[index as usize];
                let mut seen = word.load(Ordering::Acquire);
                while seen != u64::MAX {
                    let zone = index * 64 + seen.trailing_ones();
                    if zone >= zones {
                        break;
                    }
                    let bit = 1 << (zone % 64);
                    match word.compare_exchange(seen, seen | bit, Ordering::AcqRel, Ordering::Acquire) {
                        Ok(_) => {
                            self.hint.store(zone, Ordering::Relaxed);
                            return Ok(zone);
                        }
                        Err(now) => seen = now,
                    }
                }
            }
            std::hint::spin_loop();
        }
    }

    /// Gives a zone back.
    pub(crate) fn put(&self, zone: u32, class: Class) {
        self.taken[zone as usize / 64].fetch_and(!(1 << (zone % 64)), Ordering::AcqRel);
        if class == Class::System {
            self.system.fetch_sub(1, Ordering::AcqRel);
        }
        self.free.fetch_add(1, Ordering::AcqRel);
    }

    /// Adds the zones of a device that grew; false if it grew beyond [`GROW_LIMIT`].
    pub(crate) fn grow(&self, zones: u32, reserve: u32) -> bool {
        if u64::from(zones) > self.limit() {
            return false;
        }
        let before = self.zones.swap(zones, Ordering::AcqRel);
        self.reserve.store(reserve, Ordering::Release);
        self.free.fetch_add(zones - before, Ordering::AcqRel);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_for_the_system_only() {
        let pool = Pool::new(20, 8, 1);
        assert_eq!(pool.take(Taker::System), Err(Refused::Closed));
        assert!(pool.claim(19, Class::User) && !pool.claim(19, Class::User) && !pool.claim(20, Class::User));
        pool.opened();
        let mut got: Vec<u32> = (0..11).map(|_| pool.take(Taker::User).expect("room")).collect();
        assert_eq!(pool.take(Taker::User), Err(Refused::Empty));
        assert_eq!(pool.system_free(), 2);
        got.extend((0..5).map(|_| pool.take(Taker::System).expect("reserve")));
        assert_eq!(pool.take(Taker::System), Err(Refused::Empty), "the rest is for checkpoints");
        got.extend((0..3).map(|_| pool.take(Taker::Checkpoint).expect("reserve")));
        assert_eq!(pool.take(Taker::Checkpoint), Err(Refused::Empty));
        got.sort_unstable();
        assert_eq!(got, (0..19).collect::<Vec<_>>());
        (0..7).for_each(|zone| pool.put(zone, Class::User));
        assert_eq!(pool.take(Taker::User), Err(Refused::Empty), "checkpoints and deletions keep their parts");
        assert_eq!(pool.system_free(), 1);
        pool.put(7, Class::User);
        assert!(pool.take(Taker::User).is_ok(), "eight are free, and no more than seven are kept");
        assert!(pool.take(Taker::User).is_err(), "however much the system has taken");
        assert!(pool.grow(1280, 8) && !pool.grow(1281, 8));
        assert_eq!(pool.free(), 1267);
    }

    #[test]
    fn cores_never_get_the_same_zone() {
        let pool = Pool::new(1000, 0, 0);
        let all = std::sync::Mutex::new(Vec::new());
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    let mut mine = Vec::new();
                    for turn in 0.. {
                        let Ok(zone) = pool.take(Taker::User) else { break };
                        if turn % 3 == 0 {
                            pool.put(zone, Class::User);
                        } else {
                            mine.push(zone);
                        }
                    }
                    all.lock().expect("no panic").extend(mine);
                });
            }
        });
        let mut all = all.into_inner().expect("no panic");
        all.sort_unstable();
        assert!(all.windows(2).all(|w| w[0] != w[1]));
        assert_eq!(all.len() as u32 + pool.free(), 1000);
    }
}
