//! Types that several messages share: identifiers, attributes, leases, locks, statuses.
//!
//! All `repr(C)` little-endian layouts without implicit padding. Must not hold behaviour beyond conversion and validation.

mod attr;
mod id;
mod lease;
mod lock;
mod status;
mod time;

pub use attr::{Attr, FileKind, SetAttr, SetTime, StatFs};
pub use id::{CHUNK_SIZE, ChunkKey, ClientId, Ino, ObjectId, ROOT_INO, RequestId, ShardId, Slot, shard_of};
pub use lease::{FenceReason, Grant, LeaseMode};
pub use lock::{LockKind, LockOwner, LockRange, LockSpace, LockType};
pub use status::{Errno, Status};
pub use time::Timestamp;
