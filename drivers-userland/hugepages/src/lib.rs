//! Memory that devices, the kernel and the network can use in place.
//!
//! An [`Arena`] is one mapping of 1 GiB or 2 MiB pages (normal pages with one warning where those are
//! missing), cut into aligned buffers of five sizes. One thread owns it and allocates without locks; a
//! [`Buf`] may be dropped on any thread and finds its way home through a lock-free stack. [`Bytes`] is a
//! shared, read-only window into a buffer.
//!
//! Memory comes zeroed from the kernel and is reused without clearing, so a buffer is always initialised but
//! may hold old contents. Nothing here grows: an empty arena answers `None` and the caller waits, or takes
//! [`Buf::heap`] where a bound of its own holds.
//!
//! This crate knows no ring, no device and no file. Whoever registers an arena walks [`Arena::regions`];
//! [`Fixed::region`] and [`Fixed::offset`] then name a buffer's place.
//!
//! ```
//! use hugepages::{Arena, ArenaConfig, PageChoice};
//! let arena = Arena::new(ArenaConfig { bytes: 8 << 20, pages: PageChoice::Small })?;
//! let mut buf = arena.alloc(4096).expect("a new arena has room");
//! buf[..5].copy_from_slice(b"hello");
//! let bytes = buf.freeze();
//! assert_eq!(&*bytes.slice(1..5), b"ello");
//! # Ok::<(), hugepages::Error>(())
//! ```

mod arena;
mod buf;
mod bytes;
mod pages;
mod slots;

pub use arena::{Arena, ArenaConfig, ArenaStats, ClassStats, Error, Fixed, MAX_ARENA, REGION};
pub use buf::Buf;
pub use bytes::Bytes;
pub use pages::{PageChoice, PageKind, announce};
pub use slots::{CLASS_SIZES, MAX_ALLOC};

/// Alignment of every buffer: the block size of the chunk store, and what O_DIRECT and NVMe ask for at most.
pub const ALIGN: usize = 4096;
