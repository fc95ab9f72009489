//! Counters and latencies per operation, for `claudefs status`.
//!
//! Fixed memory, no allocation while counting. Must not be shared between threads: snapshots are.

use std::cell::Cell;
use std::time::Duration;

/// Buckets of a histogram: bucket `n` counts durations from `2^n` to `2^(n+1)` nanoseconds, the last one (from 9
/// minutes) all above.
pub const BUCKETS: usize = 40;

macro_rules! ops {
    ($($name:ident = $text:literal,)*) => {
        /// A method of the service.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Op { $(#[doc = concat!("`", $text, "`.")] $name,)* }
        impl Op {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
            /// Its name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}
ops! {
    Lookup = "lookup", GetAttr = "getattr", SetAttr = "setattr", ReadLink = "readlink", Create = "create", Link = "link",
    Unlink = "unlink", Rmdir = "rmdir", Rename = "rename", Open = "open", Close = "close", Flush = "flush",
    Fsync = "fsync", Read = "read", Write = "write", Append = "append", Fallocate = "fallocate", Seek = "seek",
    CopyRange = "copy_range", ReadDir = "readdir", Xattr = "xattr", StatFs = "statfs", Lock = "lock",
}

const OPS: usize = Op::ALL.len();

#[derive(Debug)]
struct Line {
    errors: Cell<u64>,
    cached: Cell<u64>,
    buckets: [Cell<u64>; BUCKETS],
}

/// Things that happen beside the operations.
#[derive(Debug, Default)]
pub(crate) struct Events {
    pub(crate) recalls: Cell<u64>,
    pub(crate) rounds: Cell<u64>,
    pub(crate) uncovered: Cell<u64>,
    pub(crate) reclaims: Cell<u64>,
    pub(crate) fenced: Cell<u64>,
    pub(crate) lapses: Cell<u64>,
    pub(crate) retries: Cell<u64>,
    pub(crate) gave_way: Cell<u64>,
    pub(crate) read_bytes: Cell<u64>,
    pub(crate) written_bytes: Cell<u64>,
}

/// Adds to a counter.
pub(crate) fn add(counter: &Cell<u64>, n: u64) {
    counter.set(counter.get().wrapping_add(n));
}

/// The live counters of a client.
#[derive(Debug)]
pub(crate) struct Stats {
    lines: [Line; OPS],
    pub(crate) events: Events,
}

impl Default for Stats {
    fn default() -> Self {
        let line = |_| Line {
            errors: Cell::new(0),
            cached: Cell::new(0),
            buckets: std::array::from_fn(|_| Cell::new(0)),
        };
        Self { lines: std::array::from_fn(line), events: Events::default() }
    }
}

impl Stats {
    pub(crate) fn record(&self, op: Op, took: Duration, ok: bool) {
        let line = &self.lines[op as usize];
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        add(&line.buckets[(ns.ilog2() as usize).min(BUCKETS - 1)], 1);
        if !ok {
            add(&line.errors, 1);
        }
    }
    /// Answered without the server.
    pub(crate) fn cached(&self, op: Op) {
        add(&self.lines[op as usize].cached, 1);
    }
    pub(crate) fn ops(&self) -> Vec<OpSnapshot> {
        let one = |&op: &Op| {
            let line = &self.lines[op as usize];
            OpSnapshot {
                op,
                errors: line.errors.get(),
                cached: line.cached.get(),
                buckets: std::array::from_fn(|i| line.buckets[i].get()),
            }
        };
        Op::ALL.iter().map(one).collect()
    }
}

/// Counts of one operation.
#[derive(Clone, Debug)]
pub struct OpSnapshot {
    /// Which.
    pub op: Op,
    /// Calls that ended in an error (ENOENT of a lookup is none).
    pub errors: u64,
    /// Calls answered from this client's caches.
    pub cached: u64,
    /// Calls by duration; see [`BUCKETS`].
    pub buckets: [u64; BUCKETS],
}

impl OpSnapshot {
    /// Calls.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
    /// Upper bound of the duration that a share `q` (0 to 1) of the calls did not exceed, to a factor of two.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Duration {
        let wanted = ((self.count() as f64 * q.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut seen = 0;
        for (i, n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen >= wanted {
                return Duration::from_nanos(2 << i);
            }
        }
        Duration::ZERO
    }
}

/// All counters at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Per operation.
    pub ops: Vec<OpSnapshot>,
    /// Bytes read by applications through this client.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Leases held now.
    pub leases: usize,
    /// Names cached now.
    pub names: usize,
    /// Open handles.
    pub handles: usize,
    /// Owners of locks.
    pub lock_owners: usize,
    /// Recalls answered.
    pub recalls: u64,
    /// Rounds of invalidation beyond the first.
    pub rounds: u64,
    /// Data served to a page cache without a lease, and invalidated after.
    pub uncovered: u64,
    /// Sessions reclaimed from a restarted server.
    pub reclaims: u64,
    /// Sessions lost.
    pub fenced: u64,
    /// Times that caches were dropped because the server was silent for longer than a lease.
    pub lapses: u64,
    /// Requests repeated (grace, busy, stale object).
    pub retries: u64,
    /// Changes of names that gave way to a recall and were tried again by the kernel.
    pub gave_way: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_their_buckets() {
        let stats = Stats::default();
        for ns in [1, 1000, 1500, 1 << 20, u64::MAX] {
            stats.record(Op::Read, Duration::from_nanos(ns), ns != 1);
        }
        let read = stats.ops().into_iter().find(|o| o.op == Op::Read).expect("it is listed");
        assert_eq!((read.count(), read.errors), (5, 1));
        assert_eq!(read.quantile(0.6), Duration::from_nanos(2048));
        assert_eq!(read.buckets[BUCKETS - 1], 1);
        assert_eq!(stats.ops()[0].quantile(0.99), Duration::ZERO);
    }
}
