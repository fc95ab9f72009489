//! Values of the rows: fixed little-endian layouts, each with a layout number, decoded without panics.
//!
//! Owns bytes and their validation; `docs/namespace.md` draws them. Must not hold rules of the file system.

use wire::{Attr, FileKind, Ino, ObjectId, Timestamp};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, little_endian as le};

/// Layout number of every row of this version.
pub const LAYOUT: u16 = 1;

/// A row that can't be decoded: damage, or a newer version. The namespace goes read-only over it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("row {key} of the namespace is unusable: {why}; run `claudefs fsck`")]
pub struct BadRow {
    /// The row.
    pub key: String,
    /// The reason.
    pub why: &'static str,
}

/// The file system as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SuperRow {
    /// [`LAYOUT`].
    pub layout: le::U16,
    /// Must be zero.
    pub zero: [u8; 6],
    /// Identity of the file system.
    pub uuid: [u8; 16],
    /// When it was made.
    pub created: Timestamp,
}

/// Everything about an inode that is not a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InodeRow {
    /// [`LAYOUT`].
    pub layout: le::U16,
    /// Set of `InodeRow::FLAG_*`.
    pub flags: le::U16,
    /// Kind and permission bits.
    pub mode: le::U32,
    /// Hard links; directories count "." and the ".." of their subdirectories.
    pub nlink: le::U32,
    /// Owner.
    pub uid: le::U32,
    /// Group.
    pub gid: le::U32,
    /// Device number.
    pub rdev: le::U32,
    /// Bytes of a regular file or of a link's target.
    pub size: le::U64,
    /// Units of 512 bytes.
    pub blocks: le::U64,
    /// Grows with each change.
    pub change: le::U64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of contents.
    pub mtime: Timestamp,
    /// Last change.
    pub ctime: Timestamp,
    /// Birth.
    pub btime: Timestamp,
    /// Regular files: body of data.
    pub object: le::U64,
    /// Regular files: which of the chunks 0..64 exist.
    pub chunks: le::U64,
    /// Regular files: pages 0..map_pages of the chunk map may exist; chunks 0..64 never stand in a page.
    pub map_pages: le::U32,
    /// Bytes that listxattr(2) returns for the rows of the xattr table.
    pub xattr_list: le::U32,
    /// Directories: the directory above; the root's is itself.
    pub parent: le::U64,
    /// Directories: cookie of the next entry.
    pub next_cookie: le::U64,
    /// Directories: entries.
    pub entries: le::U64,
}

/// A name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DentryRow {
    /// [`LAYOUT`].
    pub layout: le::U16,
    /// `d_type` of the inode.
    pub kind: u8,
    /// Must be zero.
    pub zero: [u8; 5],
    /// What it names.
    pub ino: le::U64,
    /// Its position.
    pub cookie: le::U64,
}

/// A position in a directory; the name follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CookieRow {
    /// [`LAYOUT`].
    pub layout: le::U16,
    /// `d_type` of the inode.
    pub kind: u8,
    /// Must be zero.
    pub zero: [u8; 5],
    /// What stands there.
    pub ino: le::U64,
}

/// Chunks to give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FreeRow {
    /// [`LAYOUT`].
    pub layout: le::U16,
    /// 0: the whole object is dead. 1: it lives, cut to `keep` bytes.
    pub kind: le::U16,
    /// As [`InodeRow::map_pages`] when the entry was made.
    pub map_pages: le::U32,
    /// The object.
    pub object: le::U64,
    /// As [`InodeRow::chunks`] when the entry was made, before the cut.
    pub chunks: le::U64,
    /// Bytes to keep (kind 1).
    pub keep: le::U64,
    /// Size before the cut (kind 1): no chunk stands beyond it.
    pub from: le::U64,
    /// The inode it belonged to, for messages and for locking out writers.
    pub ino: le::U64,
}

/// Head of a slot's stored reply; its encoded reply follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReplayRow {
    /// [`LAYOUT`].
    pub layout: le::U16,
    /// Must be zero.
    pub zero: [u8; 6],
    /// Sequence of the request on its slot.
    pub sequence: le::U64,
}

/// A change of a range of many chunks that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IntentRow {
    /// [`LAYOUT`].
    pub layout: le::U16,
    /// 0: fallocate. 1: a copy.
    pub kind: le::U16,
    /// Slot of the request.
    pub slot: le::U16,
    /// Must be zero.
    pub zero: [u8; 2],
    /// Of fallocate(2) (kind 0).
    pub mode: le::U32,
    /// Must be zero.
    pub zero2: [u8; 4],
    /// Session of the request; 0: nobody waits for its answer.
    pub client: le::U64,
    /// Sequence of the request on its slot.
    pub sequence: le::U64,
    /// Body of data that is changed.
    pub object: le::U64,
    /// First byte.
    pub offset: le::U64,
    /// Bytes.
    pub len: le::U64,
    /// Inode that is copied from (kind 1).
    pub src: le::U64,
    /// Its body of data (kind 1).
    pub src_object: le::U64,
    /// Its first byte (kind 1).
    pub src_offset: le::U64,
}

const _: () = assert!(size_of::<IntentRow>() == 80);
const _: () = assert!(size_of::<SuperRow>() == 40);
const _: () = assert!(size_of::<InodeRow>() == 160);
const _: () = assert!(size_of::<DentryRow>() == 24);
const _: () = assert!(size_of::<CookieRow>() == 16);
const _: () = assert!(size_of::<FreeRow>() == 48);
const _: () = assert!(size_of::<ReplayRow>() == 16);

/// Chunks whose existence stands in the inode itself.
pub const INLINE_CHUNKS: u32 = 64;
/// Chunks per page of the chunk map: 4 GiB of file in 512 bytes.
pub const PAGE_CHUNKS: u32 = 4096;
/// Bytes of a page.
pub const PAGE_BYTES: usize = PAGE_CHUNKS as usize / 8;

/// A page of the chunk map.
pub type Page = [u8; PAGE_BYTES];

impl FreeRow {
    /// The whole object is dead.
    pub const WHOLE: u16 = 0;
    /// The object is cut.
    pub const CUT: u16 = 1;
}

impl IntentRow {
    /// fallocate(2).
    pub const ALLOCATE: u16 = 0;
    /// copy_file_range(2).
    pub const COPY: u16 = 1;
}

impl InodeRow {
    /// Has a POSIX access ACL row.
    pub const FLAG_ACL: u16 = 1;
    /// Directory with a default ACL row.
    pub const FLAG_DEFAULT_ACL: u16 = 2;
    /// Has `security.capability`: writing or changing the owner drops it.
    pub const FLAG_CAPS: u16 = 4;
    /// Made without a name: may get its first link although its count is zero.
    pub const FLAG_TMPFILE: u16 = 8;

    /// A fresh inode; the caller fills in what its kind needs.
    #[must_use]
    pub fn new(mode: u32, uid: u32, gid: u32, now: Timestamp) -> Self {
        let zero = le::U64::ZERO;
        Self {
            layout: LAYOUT.into(),
            flags: 0.into(),
            mode: mode.into(),
            nlink: 1.into(),
            uid: uid.into(),
            gid: gid.into(),
            rdev: 0.into(),
            size: zero,
            blocks: zero,
            change: 1.into(),
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            object: zero,
            chunks: zero,
            map_pages: 0.into(),
            xattr_list: 0.into(),
            parent: zero,
            next_cookie: zero,
            entries: zero,
        }
    }
    /// Kind; a decoded row always has one.
    #[must_use]
    pub fn kind(&self) -> FileKind {
        FileKind::from_mode(self.mode.get()).unwrap_or(FileKind::Regular)
    }
    /// Is it a directory?
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind() == FileKind::Directory
    }
    /// Is it a regular file?
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.kind() == FileKind::Regular
    }
    /// Is a flag set?
    #[must_use]
    pub fn has(&self, flag: u16) -> bool {
        self.flags.get() & flag != 0
    }
    pub(crate) fn set_flag(&mut self, flag: u16, on: bool) {
        let f = self.flags.get();
        self.flags = if on { f | flag } else { f & !flag }.into();
    }
    /// Body of data.
    #[must_use]
    pub fn object(&self) -> ObjectId {
        self.object.into()
    }
    /// May any chunk exist?
    #[must_use]
    pub fn has_chunks(&self) -> bool {
        self.chunks.get() != 0 || self.map_pages.get() != 0
    }
    /// The inode changed: ctime and change counter.
    pub(crate) fn changed(&mut self, now: Timestamp) {
        self.ctime = now;
        self.change = self.change.get().wrapping_add(1).into();
    }
    /// Its contents changed: mtime too.
    pub(crate) fn modified(&mut self, now: Timestamp) {
        self.mtime = now;
        self.changed(now);
    }
    pub(crate) fn add_links(&mut self, n: i64) {
        let v = i64::from(self.nlink.get()) + n;
        self.nlink = u32::try_from(v.max(0)).unwrap_or(u32::MAX).into();
    }
    /// As stat(2) shows it. Directories show 4096 bytes as ext4 does for a small one.
    #[must_use]
    pub fn attr(&self, ino: Ino) -> Attr {
        let dir = self.is_dir();
        let acl = if self.has(Self::FLAG_ACL) { Attr::FLAG_HAS_ACL } else { 0 };
        let plain = if self.xattr_list.get() == 0 { Attr::FLAG_NO_XATTRS } else { 0 };
        Attr {
            ino: ino.into(),
            object: self.object,
            size: if dir { DIR_SIZE.into() } else { self.size },
            blocks: if dir { (DIR_SIZE / 512).into() } else { self.blocks },
            change: self.change,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.btime,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            zero: 0.into(),
            flags: (acl | plain).into(),
        }
    }
    fn check(&self) -> Result<(), &'static str> {
        if self.layout.get() != LAYOUT {
            return Err("unknown layout number");
        }
        if FileKind::from_mode(self.mode.get()).is_none() {
            return Err("mode names no kind of file");
        }
        for t in [&self.atime, &self.mtime, &self.ctime, &self.btime] {
            t.validate()?;
        }
        Ok(())
    }
}

const DIR_SIZE: u64 = 4096;

fn fixed<T: FromBytes + KnownLayout + Immutable>(v: &[u8]) -> Result<T, &'static str> {
    T::read_from_bytes(v).map_err(|_| "wrong length")
}

fn layout(n: le::U16) -> Result<(), &'static str> {
    if n.get() == LAYOUT { Ok(()) } else { Err("unknown layout number") }
}

/// Decodes a superblock row.
pub fn superblock(v: &[u8]) -> Result<SuperRow, &'static str> {
    let r: SuperRow = fixed(v)?;
    layout(r.layout)?;
    r.created.validate()?;
    Ok(r)
}

/// Decodes a counter.
pub fn counter(v: &[u8]) -> Result<u64, &'static str> {
    match fixed::<le::U64>(v)?.get() {
        n if n < crate::limits::NUMBERS_END => Ok(n),
        _ => Err("a counter is out of range"),
    }
}

/// Decodes an inode.
pub fn inode(v: &[u8]) -> Result<InodeRow, &'static str> {
    let r: InodeRow = fixed(v)?;
    r.check()?;
    Ok(r)
}

/// Decodes a directory entry.
pub fn dentry(v: &[u8]) -> Result<DentryRow, &'static str> {
    let r: DentryRow = fixed(v)?;
    layout(r.layout)?;
    FileKind::from_dirent_type(r.kind).ok_or("entry type names no kind of file")?;
    Ok(r)
}

/// Decodes a position and the name behind it.
pub fn cookie(v: &[u8]) -> Result<(CookieRow, &[u8]), &'static str> {
    let (r, name) = CookieRow::read_from_prefix(v).map_err(|_| "too short")?;
    layout(r.layout)?;
    FileKind::from_dirent_type(r.kind).ok_or("entry type names no kind of file")?;
    if name.is_empty() || name.len() > crate::limits::NAME_MAX {
        return Err("name is empty or longer than 255 bytes");
    }
    Ok((r, name))
}

/// Decodes an entry of the free list.
pub fn free(v: &[u8]) -> Result<FreeRow, &'static str> {
    let r: FreeRow = fixed(v)?;
    layout(r.layout)?;
    if r.kind.get() > FreeRow::CUT { Err("unknown kind of free list entry") } else { Ok(r) }
}

/// Decodes a page of a chunk map.
pub fn page(v: &[u8]) -> Result<Page, &'static str> {
    v.try_into().map_err(|_| "wrong length")
}

/// Decodes the head of a stored reply.
pub fn replay(v: &[u8]) -> Result<(u64, &[u8]), &'static str> {
    let (r, body) = ReplayRow::read_from_prefix(v).map_err(|_| "too short")?;
    layout(r.layout)?;
    Ok((r.sequence.get(), body))
}

/// Decodes a change under way.
pub fn intent(v: &[u8]) -> Result<IntentRow, &'static str> {
    let r: IntentRow = fixed(v)?;
    layout(r.layout)?;
    if r.kind.get() > IntentRow::COPY {
        return Err("unknown kind of change under way");
    }
    r.offset.get().checked_add(r.len.get()).ok_or("range of a change under way")?;
    r.src_offset.get().checked_add(r.len.get()).ok_or("range of a change under way")?;
    Ok(r)
}

/// Encodes a directory entry and its position.
pub(crate) fn encode_entry(ino: Ino, kind: FileKind, cookie: u64, name: &[u8]) -> (DentryRow, Vec<u8>) {
    let k = kind.dirent_type();
    let d =
        DentryRow { layout: LAYOUT.into(), kind: k, zero: [0; 5], ino: ino.into(), cookie: cookie.into() };
    let c = CookieRow { layout: LAYOUT.into(), kind: k, zero: [0; 5], ino: ino.into() };
    let mut v = Vec::with_capacity(size_of::<CookieRow>() + name.len());
    v.extend_from_slice(c.as_bytes());
    v.extend_from_slice(name);
    (d, v)
}

/// Indexes of the set bits of an inline map.
pub(crate) fn inline_chunks(map: u64) -> impl Iterator<Item = u32> {
    (0..INLINE_CHUNKS).filter(move |i| map >> i & 1 == 1)
}

/// Indexes of the set bits of page `n`.
pub(crate) fn page_chunks(n: u32, page: &Page) -> impl Iterator<Item = u32> + '_ {
    (0..PAGE_CHUNKS).filter(|i| page[(i / 8) as usize] >> (i % 8) & 1 == 1).map(move |i| n * PAGE_CHUNKS + i)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decoders_take_any_bytes(v in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (superblock(&v), counter(&v), inode(&v), dentry(&v), free(&v), page(&v));
            let _ = (cookie(&v).is_ok(), replay(&v).is_ok(), intent(&v));
        }
    }

    #[test]
    fn rows_come_back() {
        let r = InodeRow::new(0o100_644, 1, 2, Timestamp::new(5, 6));
        assert_eq!(inode(r.as_bytes()), Ok(r));
        let mut newer = r;
        newer.layout = 2.into();
        assert_eq!(inode(newer.as_bytes()), Err("unknown layout number"));
        let (d, c) = encode_entry(Ino(9), FileKind::Fifo, 3, b"pipe");
        assert_eq!(dentry(d.as_bytes()), Ok(d));
        let (row, name) = cookie(&c).expect("it was just made");
        assert_eq!((row.ino.get(), name), (9, &b"pipe"[..]));
    }
}
