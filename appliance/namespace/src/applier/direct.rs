//! The database without threads: one call at a time, on the caller's thread. What the simulator drives.

use super::{
    Boot, Database, Error, Fetched, Miss, OpenVolume, Record, Seq, Snapshot, apply, boot, guard, open_db,
};

/// See the module. After an error the next call opens the database again.
pub struct Direct {
    open: OpenVolume,
    cache_bytes: usize,
    base: Option<Database>,
    applied: Seq,
}

impl Direct {
    /// Opens the database, with a page cache of so many bytes.
    pub fn open(mut open: OpenVolume, cache_bytes: usize) -> Result<(Self, Boot), Error> {
        let (base, applied) = open_db(open()?, cache_bytes)?;
        let boot = guard(|| boot(&base, applied))?;
        Ok((Self { open, cache_bytes, base: Some(base), applied }, boot))
    }

    /// Commits records; gives the last that the database holds.
    pub fn apply(&mut self, records: &[Record]) -> Result<Seq, Error> {
        self.applied = self.with(|base, applied| apply(base, applied, records))?;
        Ok(self.applied)
    }

    /// Reads rows, as [`Applier::fetch`](super::Applier::fetch).
    pub fn fetch(&mut self, miss: &Miss) -> Result<Fetched, Error> {
        self.with(|base, _| Snapshot::of(base)?.fetch(miss))
    }

    fn with<T>(&mut self, act: impl FnOnce(&Database, Seq) -> Result<T, Error>) -> Result<T, Error> {
        let base = match self.base.take() {
            Some(base) => base,
            None => {
                let (base, at) = open_db((self.open)()?, self.cache_bytes)?;
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
