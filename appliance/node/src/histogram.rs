//! Latency histograms: fixed buckets, no allocation, one per kind of operation and core.
//!
//! Buckets follow the usual log-linear scheme (Tene's HdrHistogram): 16 steps in each power of two, so a quantile is
//! within 6.25 % of the truth. Must not be shared between threads: cores report copies and the reader merges them.

use std::time::Duration;

/// Steps within one power of two, as a power of two.
const STEP_BITS: u32 = 4;
const STEPS: usize = 1 << STEP_BITS;
/// Values at and above 2^40 ns (18 minutes) fall into the last bucket.
const TOP_BITS: u32 = 40;
const BUCKETS: usize = (TOP_BITS - STEP_BITS + 1) as usize * STEPS;

/// Counts of durations.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Box<[u64; BUCKETS]>,
    count: u64,
    max_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: Box::new([0; BUCKETS]), count: 0, max_ns: 0 }
    }
}

impl Histogram {
    /// Counts one.
    pub fn record(&mut self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(ns)] += 1;
        self.count += 1;
        self.max_ns = self.max_ns.max(ns);
    }

    /// Adds another's counts.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets.iter()) {
            *mine += theirs;
        }
        self.count += other.count;
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns)
    }

    /// The duration which the share `q` (0 to 1) of all counted did not exceed; zero where nothing was counted.
    pub fn quantile(&self, q: f64) -> Duration {
        let wanted = ((self.count as f64 * q.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut seen = 0;
        for (i, &n) in self.buckets.iter().enumerate() {
            seen += n;
            if n > 0 && seen >= wanted {
                return Duration::from_nanos(upper(i).min(self.max_ns));
            }
        }
        Duration::ZERO
    }
}

fn bucket(ns: u64) -> usize {
    if ns < STEPS as u64 {
        return ns as usize;
    }
    let bits = ns.ilog2();
    if bits >= TOP_BITS {
        return BUCKETS - 1;
    }
    let step = (ns >> (bits - STEP_BITS)) as usize - STEPS;
    (bits - STEP_BITS + 1) as usize * STEPS + step
}

/// The largest value of a bucket.
fn upper(i: usize) -> u64 {
    if i < STEPS {
        return i as u64;
    }
    let (power, step) = (i / STEPS - 1, i % STEPS);
    (((STEPS + step + 1) as u64) << power) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_falls_into_the_bucket_that_covers_it() {
        let mut last = 0;
        for ns in (0..5000).chain((13..40).map(|b| 1 << b)).chain([u64::MAX]) {
            let i = bucket(ns);
            assert!(i >= last, "buckets grow with the value");
            assert!(ns <= upper(i) || i == BUCKETS - 1, "{ns} in {i}");
            assert!(i == 0 || ns > upper(i - 1), "{ns} in {i}");
            last = i;
        }
    }

    #[test]
    fn quantiles_are_within_a_sixteenth() {
        let mut h = Histogram::default();
        for us in 1..=1000 {
            h.record(Duration::from_micros(us));
        }
        for (q, us) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0)] {
            let got = h.quantile(q).as_nanos() as f64 / 1000.0;
            assert!((got / us - 1.0).abs() < 0.0626, "{q}: {got} against {us}");
        }
        assert_eq!(h.max(), Duration::from_millis(1));
    }

    #[test]
    fn nothing_counted_gives_zero() {
        assert_eq!(Histogram::default().quantile(0.99), Duration::ZERO);
    }
}
