//! The database without threads: one call at a time, on the caller's thread. What the simulator drives.

use super::base::{Base, Pace, Size, guard};
use super::snapshot::Snapshot;
use super::{Boot, Error, Fetched, Miss, OpenVolume, Record, Seq};
use std::sync::Arc;

/// See the module. After an error the next call opens the database again.
pub struct Direct {
    open: OpenVolume,
    cache_bytes: usize,
    base: Option<Base>,
    size: Arc<Size>,
    applied: Seq,
    pace: Pace,
}

impl Direct {
    /// Opens the database, with a page cache of so many bytes.
    pub fn open(mut open: OpenVolume, cache_bytes: usize) -> Result<(Self, Boot), Error> {
        let size = Arc::<Size>::default();
        let (base, applied) = Base::open(open()?, cache_bytes, size.clone())?;
        let boot = guard(|| base.boot(applied))?;
        Ok((Self { open, cache_bytes, base: Some(base), size, applied, pace: Pace::default() }, boot))
    }

    /// Commits records, after a failure only some of the first; gives the last that the database holds. Those that it holds
    /// are skipped, so the rest is committed by calling this again.
    pub fn apply(&mut self, records: &[Record]) -> Result<Seq, Error> {
        let pace = self.pace;
        let result = self.with(|base, applied| base.apply(applied, pace.part(records, applied)));
        match &result {
            Ok(applied) => {
                self.applied = *applied;
                self.pace.succeeded();
            }
            Err(_) => self.pace.failed(records.len()),
        }
        result
    }

    /// Reads rows, as [`Applier::fetch`](super::Applier::fetch).
    pub fn fetch(&mut self, miss: &Miss) -> Result<Fetched, Error> {
        self.with(|base, _| Snapshot::of(&base.db)?.fetch(miss))
    }

    /// Gives back what the volume has too much of.
    pub fn tidy(&mut self) -> Result<(), Error> {
        if let Some(base) = self.base.take() {
            self.base = Some(base.compact()?);
        }
        Ok(())
    }

    /// The database's sizes, as they are at any time.
    #[must_use]
    pub fn size(&self) -> Arc<Size> {
        self.size.clone()
    }

    fn with<T>(&mut self, act: impl FnOnce(&Base, Seq) -> Result<T, Error>) -> Result<T, Error> {
        let base = match self.base.take() {
            Some(base) => base,
            None => {
                let (base, at) = Base::open((self.open)()?, self.cache_bytes, self.size.clone())?;
                self.applied = at;
                base
            }
        };
        let result = guard(|| act(&base, self.applied));
        if result.is_ok() {
            self.base = Some(base);
        }
        result
    }
}

impl core::fmt::Debug for Direct {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Direct").field("applied", &self.applied).finish_non_exhaustive()
    }
}
