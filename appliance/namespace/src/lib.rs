//! Inodes, directories, extended attributes, opens, locks and leases of one file system, without I/O.
//!
//! Owns what names mean. Must not see a socket, a clock, a thread or a device: a shell feeds it operations and fetched
//! rows, and writes the records it returns. The one exception is `applier`, the thread that moves records into redb.
//!
//! # How a shell drives it
//! ```text
//! loop {
//!     let touched = ns.touches(&op)?;                      // inodes read and changed: check leases first
//!     match ns.execute(&ctx, &op) {
//!         Err(miss) => ns.fetched(rows of the miss),       // nothing has changed; run it again, also if it answers false
//!         Ok(done) => {
//!             log.append(done.record);                     // in the order of `Record::seq`, without gaps
//!             // the reply leaves when every record up to `done.depends_on` (its own included) is on the device;
//!             // after `done.effects` of kind Truncate were carried out
//!         }
//!     }
//! }
//! ```
//! * `Namespace::open(boot, cache)` after [`applier`] opened the database, then `replay(record)` for each record of the log
//!   after `boot.applied`, then `start()`, whose record begins the new boot epoch.
//! * `applied(seq)` when the applier reports it. `pressure()` says when to stop taking changes until it does.
//! * Data: `prepare_write(ino, object)` before the shard's write (its record must be on the device before that begins),
//!   `wrote(..)` after it and `write_ended(ino)` in any case, `accessed(..)` after reads, `commit_dirty(ino)` at fsync and last
//!   close, `commit_all_dirty()` each second, then a flush, then `clear_marks(stamp from before the flush)`.
//! * After a crash: `pending_cuts()` (cut as `free_chunks` says, `freed`), then `dirty_inodes()` and `rebuild(..)`; after the
//!   grace window `orphans()` and `reap_orphan(..)`.
//! * Free list: after each device flush up to record `s`, `free_work(s, ..)`, delete what `free_chunks(entry, ..)` names,
//!   `freed(entry)` until it gives no record.
//! * Exactly once: `replayed(request)` before executing anything that has a slot; if new, `stale_open(request)` and close it.
//!   The answer of a data operation is kept by the shard. One on many chunks is noted by `intend(..)` before it begins, and
//!   ends with `answered(..)`; a start carries out `intents()` before it serves anybody.

pub mod acl;
pub mod applier;
pub mod dirty;
mod exec;
mod filter;
mod free;
pub mod fsck;
pub mod intents;
pub mod kv;
pub mod layout;
pub mod leases;
pub mod limits;
pub mod locks;
pub mod machine;
mod ns;
mod once;
pub mod op;
mod opens;
pub mod paths;
pub mod record;
mod reply;
pub mod sessions;
mod txn;
pub mod view;

pub use dirty::{ChunkFact, LazyError, Rebuilt, Updated, Wrote};
pub use exec::{Space, Touched};
pub use free::FreeChunks;
pub use ns::{Boot, Executed, LastStop, Namespace, OpenError, Pressure, Stats, mkfs};
pub use once::Replayed;
pub use op::{Access, Create, DirEntry, Effect, Op, OpCtx, Outcome, Reply};
pub use record::{Record, Seq};
pub use view::{CacheConfig, Fetched, FetchedRange, Miss, RangeMiss};
