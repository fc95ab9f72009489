//! Limits of the namespace, each with its reason. `docs/namespace.md` lists the same.
//!
//! Must hold nothing but constants and the checks between them.

/// Longest name in bytes: NAME_MAX of Linux.
pub const NAME_MAX: usize = 255;
/// Longest target of a symbolic link: PATH_MAX of Linux less its NUL.
pub const SYMLINK_MAX: usize = 4095;
/// Hard links of anything but a directory: what ext4 allows, so that backup tools meet no new number.
pub const LINK_MAX: u32 = 65_000;
/// Subdirectories of a directory: `nlink` must not wrap.
pub const DIR_LINK_MAX: u32 = u32::MAX - 8;
/// File size: a chunk's index is 32 bits wide.
pub const FILE_MAX: u64 = (1 << 32) * wire::CHUNK_SIZE;
/// Longest name of an extended attribute: XATTR_NAME_MAX of Linux.
pub const XATTR_NAME_MAX: usize = 255;
/// Longest value: XATTR_SIZE_MAX of Linux.
pub const XATTR_VALUE_MAX: usize = 65_536;
/// Bytes of names of one inode's attributes, NULs included (Linux: 64 KiB): all of them go with the inode in one record.
pub const XATTR_LIST_MAX: u32 = 16_384;
/// Entries of an ACL: default and access ACLs of a new directory fit one record together with everything else.
pub const ACL_ENTRIES_MAX: usize = 1024;
/// Directories above a directory: bounds the walk of rename's loop check; PATH_MAX allows no more than 2048 names.
pub const DEPTH_MAX: usize = 4096;
/// Entries of one directory page: bounds the rows that one operation reads.
pub const PAGE_ENTRIES_MAX: usize = 1024;
/// Bytes of one directory page: the largest payload.
pub const PAGE_BYTES_MAX: u32 = 1 << 20;
/// Open handles of one client: the kernel's own default for a process, a thousandfold.
pub const CLIENT_OPENS_MAX: usize = 1 << 20;
/// Bytes of a log record: the largest is an attribute of 64 KiB with its inode and reply.
pub const RECORD_MAX: usize = 128 << 10;
/// Rows of a log record: an inode with as many attributes as fit [`XATTR_LIST_MAX`] goes in one.
pub const RECORD_ROWS_MAX: usize = 4096;
/// Bytes of rows gathered into one record where several would do: commits of lazy updates, cleaning up after a client.
pub const BATCH_BYTES: usize = 48 << 10;
/// Lazily changed rows of one inode; beyond, they are logged at once.
pub const LAZY_ROWS_MAX: usize = 64;
/// Added to the change counter of an inode that is rebuilt: more than memory ever counts between two records, so that no
/// number is told twice.
pub const LOST_CHANGES: u64 = 1 << 32;
/// Entries of a directory that are fetched all at once with the first name asked for.
pub const PREFETCH_DIR: u64 = 512;
/// Numbers reserved at a time: a crash loses at most so many of 2^64.
pub const RESERVE: u64 = 1 << 16;
/// Numbers passed over at a start after an unclean stop. A power cut may have taken the record that raised a ceiling with all
/// behind it, and clients may still use what was made there. Far more than the records that can wait for a flush.
pub const LOST_NUMBERS: u64 = 1 << 24;
/// A ceiling beyond is damage: no store lives so long.
pub const NUMBERS_END: u64 = 1 << 62;
/// First inode number handed out; 1 is the root, the rest is kept for what may come.
pub const FIRST_INO: u64 = 16;
/// First cookie of an entry; 1 and 2 are "." and "..".
pub const FIRST_COOKIE: u64 = 3;

const _: () = assert!(RECORD_MAX > XATTR_VALUE_MAX + 8 * 1024 + 2 * (8 * ACL_ENTRIES_MAX + 4));
const _: () = assert!(FILE_MAX == 1 << 52);
