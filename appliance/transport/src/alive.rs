//! When to ask a silent peer whether it lives, when to give it up, and how long to wait before the next attempt.

use std::time::{Duration, Instant};

/// Periods of silence after which a peer counts as dead.
pub const DEAD_AFTER: u32 = 3;

/// What to do about silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vital {
    /// Look again after this time.
    Wait(Duration),
    /// Send KeepAlive.
    Ask,
    /// Close the connection.
    Dead,
}

/// Silence of one connection, as one side sees it.
#[derive(Clone, Copy, Debug)]
pub struct Alive {
    period: Duration,
    asks: bool,
    heard: Instant,
    spoke: Instant,
}

impl Alive {
    /// `asks` on the client's side, which sends KeepAlive; the server only listens.
    #[must_use]
    pub const fn new(period: Duration, asks: bool, now: Instant) -> Self {
        Self { period, asks, heard: now, spoke: now }
    }
    /// Bytes came.
    pub const fn heard(&mut self, now: Instant) {
        self.heard = now;
    }
    /// A frame was sent.
    pub const fn spoke(&mut self, now: Instant) {
        self.spoke = now;
    }
    /// What to do now.
    #[must_use]
    pub fn check(&self, now: Instant) -> Vital {
        let dead = self.heard + self.period * DEAD_AFTER;
        if now >= dead {
            return Vital::Dead;
        }
        let ask = self.spoke + self.period;
        if self.asks && now >= ask {
            return Vital::Ask;
        }
        let next = if self.asks { dead.min(ask) } else { dead };
        Vital::Wait(next - now)
    }
}

/// Shortest wait before connecting again.
pub const BACKOFF_MIN: Duration = Duration::from_millis(10);
/// Longest wait before connecting again: a restarted server is found within half a second.
pub const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Wait before attempt `n` (0 is the first repeat): doubling, bounded, and with `random` spread over the upper half so that
/// the clients of a restarted server do not come all at once.
#[must_use]
pub fn backoff(n: u32, random: u64) -> Duration {
    let full = BACKOFF_MIN.saturating_mul(1 << n.min(10)).min(BACKOFF_MAX);
    let half = full / 2;
    (half + half.mul_f64((random % 1024) as f64 / 1024.0)).max(BACKOFF_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_asked_about_then_fatal() {
        let (t, s) = (Instant::now(), Duration::from_secs(1));
        let mut a = Alive::new(s, true, t);
        assert_eq!(a.check(t), Vital::Wait(s));
        assert_eq!(a.check(t + s), Vital::Ask);
        a.spoke(t + s);
        assert_eq!(a.check(t + s), Vital::Wait(s));
        a.spoke(t + s * 2);
        assert_eq!(a.check(t + s * 3), Vital::Dead);
        a.heard(t + s * 2);
        assert_eq!(a.check(t + s * 3), Vital::Ask);
        let b = Alive::new(s, false, t);
        assert_eq!(b.check(t + s), Vital::Wait(s * 2));
        assert_eq!(b.check(t + s * 3), Vital::Dead);
    }

    #[test]
    fn backoff_is_bounded() {
        for n in 0..100 {
            for random in [0, 1023, u64::MAX] {
                let wait = backoff(n, random);
                assert!(wait >= BACKOFF_MIN && wait <= BACKOFF_MAX, "{wait:?}");
            }
        }
    }
}
