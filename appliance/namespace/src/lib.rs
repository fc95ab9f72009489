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
//!         Err(miss) => ns.fetched(applier.fetch(miss)),    // nothing has changed; run it again
//!         Ok(done) => {
//!             log.append(done.record);                     // in the order of `Record::seq`, without gaps
//!             // the reply leaves when every record up to `done.depends_on` (its own included) is on the device;
//!             // after `done.effects` of kind Truncate were carried out
//!         }
//!     }
//! }
//! ```
//! * `Namespace::open(boot, config)` after [`applier`] opened the database, then `replay(record)` for each record of the log
//!   after `boot.applied`, then `start(now)`, whose record begins the new boot epoch.
//! * `applied(seq)` when the applier reports it. `pressure()` says when to stop taking changes until it does.
//! * Data: `prepare_write(ino, object, ..)` before or beside the shard's write (its record must be on the device before the
//!   write is acknowledged), `wrote(..)` after it, `accessed(..)` after reads, `commit_dirty(..)` each second, at fsync and at
//!   the last close. After a crash `free_work` truncations, then `dirty_inodes()` and `rebuild(..)`.
//! * Free list: after each device flush `free_work(limit)`, delete the chunks it names, `freed(entry)`.
//! * Exactly once: `replayed(request)` before executing anything that has a slot.

pub mod leases;
pub mod locks;
pub mod acl;
pub mod applier;
pub mod dirty;
mod exec;
mod filter;
mod free;
pub mod fsck;
pub mod kv;
pub mod layout;
pub mod limits;
mod ns;
pub mod op;
mod opens;
pub mod record;
mod reply;
mod txn;
pub mod sessions;
pub mod view;

pub use dirty::{ChunkFact, LazyError, Rebuilt, Updated, Wrote};
pub use exec::{Space, Touched};
pub use free::FreeChunks;
pub use ns::{Boot, Executed, Namespace, OpenError, Pressure, Replayed, Stats, mkfs};
pub use op::{Access, Create, DirEntry, Effect, Op, OpCtx, Outcome, Reply};
pub use record::{Record, Seq};
pub use view::{CacheConfig, Fetched, FetchedRange, Miss, RangeMiss};
