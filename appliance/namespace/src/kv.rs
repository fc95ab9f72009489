//! The ordered key space: `[table u8][parts]`, integers big-endian so that byte order is numeric order.
//!
//! Owns how keys are made and taken apart. Must not know values (`layout`). Decoders never panic: a key read from disk
//! that does not fit its table is `None`.

use smallvec::SmallVec;
use wire::{ClientId, Ino, ObjectId, Slot};

/// Tables, the first byte of each key. Numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// `[]` -> [`crate::layout::SuperRow`].
    Super = 0x01,
    /// `[counter u8]` -> u64: nothing at or above it was ever given out.
    Counter = 0x02,
    /// `[ino]` -> [`crate::layout::InodeRow`].
    Inode = 0x10,
    /// `[dir][name]` -> [`crate::layout::DentryRow`].
    Dentry = 0x11,
    /// `[dir][cookie]` -> [`crate::layout::CookieRow`] and the name.
    DirCookie = 0x12,
    /// `[ino][name]` -> value.
    Xattr = 0x13,
    /// `[ino]` -> target.
    Symlink = 0x14,
    /// `[object][page u32]` -> bitmap of 4096 chunks.
    ChunkMap = 0x15,
    /// `[ino]` -> empty: link count zero, kept for an open.
    Orphan = 0x16,
    /// `[entry]` -> [`crate::layout::FreeRow`].
    Free = 0x17,
    /// `[ino]` -> empty: lazy updates may be newer than the inode's row.
    Dirty = 0x18,
    /// `[client]` -> bytes of the session table.
    Session = 0x20,
    /// `[client][slot u16]` -> sequence and reply.
    Replay = 0x21,
    /// `[ino]` -> [`crate::layout::IntentRow`].
    Intent = 0x22,
}

impl Table {
    /// All tables in key order.
    pub const ALL: [Self; 14] = [
        Self::Super,
        Self::Counter,
        Self::Inode,
        Self::Dentry,
        Self::DirCookie,
        Self::Xattr,
        Self::Symlink,
        Self::ChunkMap,
        Self::Orphan,
        Self::Free,
        Self::Dirty,
        Self::Session,
        Self::Replay,
        Self::Intent,
    ];

    /// From its number.
    #[must_use]
    pub fn from_u8(v: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|t| *t as u8 == v)
    }

    /// Are ranges of it ever listed? The overlay keeps an ordered index of these only.
    pub(crate) const fn listed(self) -> bool {
        matches!(
            self,
            Self::DirCookie
                | Self::Xattr
                | Self::ChunkMap
                | Self::Orphan
                | Self::Free
                | Self::Dirty
                | Self::Dentry
        )
    }
}

/// Persisted counters, the second byte of a [`Table::Counter`] key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Counter {
    /// Ceiling of inode numbers handed out.
    Ino = 1,
    /// Ceiling of object numbers.
    Object = 2,
    /// Ceiling of free list entries.
    Free = 3,
    /// Inodes in use (exact, not a ceiling).
    Inodes = 4,
    /// Boot epoch of the last start.
    Boot = 5,
}

/// Longest key: table, 8 bytes and a name of 255.
pub const KEY_MAX: usize = 1 + 8 + 255;

/// A key. Short ones, the usual case, live inline.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(SmallVec<[u8; 32]>);

impl core::borrow::Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl core::ops::Deref for Key {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl core::fmt::Debug for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.0.split_first() {
            Some((t, rest)) => match Table::from_u8(*t) {
                Some(t) => write!(f, "{t:?}[{}]", rest.escape_ascii()),
                None => write!(f, "?{t:#x}[{}]", rest.escape_ascii()),
            },
            None => f.write_str("(empty key)"),
        }
    }
}

impl Key {
    fn of(table: Table, parts: &[&[u8]]) -> Self {
        let mut k = SmallVec::new();
        k.push(table as u8);
        for p in parts {
            k.extend_from_slice(p);
        }
        Self(k)
    }

    /// From bytes of any kind: also used for bounds of ranges.
    #[must_use]
    pub fn raw(bytes: &[u8]) -> Self {
        Self(SmallVec::from_slice(bytes))
    }
    /// The one superblock row.
    #[must_use]
    pub fn superblock() -> Self {
        Self::of(Table::Super, &[])
    }
    /// A counter.
    #[must_use]
    pub fn counter(c: Counter) -> Self {
        Self::of(Table::Counter, &[&[c as u8]])
    }
    /// An inode.
    #[must_use]
    pub fn inode(ino: Ino) -> Self {
        Self::of(Table::Inode, &[&ino.0.to_be_bytes()])
    }
    /// A name.
    #[must_use]
    pub fn dentry(dir: Ino, name: &[u8]) -> Self {
        Self::of(Table::Dentry, &[&dir.0.to_be_bytes(), name])
    }
    /// A position in a directory.
    #[must_use]
    pub fn cookie(dir: Ino, cookie: u64) -> Self {
        Self::of(Table::DirCookie, &[&dir.0.to_be_bytes(), &cookie.to_be_bytes()])
    }
    /// An extended attribute.
    #[must_use]
    pub fn xattr(ino: Ino, name: &[u8]) -> Self {
        Self::of(Table::Xattr, &[&ino.0.to_be_bytes(), name])
    }
    /// A symbolic link's target.
    #[must_use]
    pub fn symlink(ino: Ino) -> Self {
        Self::of(Table::Symlink, &[&ino.0.to_be_bytes()])
    }
    /// A page of an object's chunk map.
    #[must_use]
    pub fn chunk_map(object: ObjectId, page: u32) -> Self {
        Self::of(Table::ChunkMap, &[&object.0.to_be_bytes(), &page.to_be_bytes()])
    }
    /// An inode kept for an open.
    #[must_use]
    pub fn orphan(ino: Ino) -> Self {
        Self::of(Table::Orphan, &[&ino.0.to_be_bytes()])
    }
    /// An entry of the free list.
    #[must_use]
    pub fn free(entry: u64) -> Self {
        Self::of(Table::Free, &[&entry.to_be_bytes()])
    }
    /// The mark of lazy updates.
    #[must_use]
    pub fn dirty(ino: Ino) -> Self {
        Self::of(Table::Dirty, &[&ino.0.to_be_bytes()])
    }
    /// A session.
    #[must_use]
    pub fn session(client: ClientId) -> Self {
        Self::of(Table::Session, &[&client.0.to_be_bytes()])
    }
    /// A slot's last reply.
    #[must_use]
    pub fn replay(client: ClientId, slot: Slot) -> Self {
        Self::of(Table::Replay, &[&client.0.to_be_bytes(), &slot.0.to_be_bytes()])
    }
    /// A change of a range under way.
    #[must_use]
    pub fn intent(ino: Ino) -> Self {
        Self::of(Table::Intent, &[&ino.0.to_be_bytes()])
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
    /// Its table, `None` for a number this version does not know.
    #[must_use]
    pub fn table(&self) -> Option<Table> {
        Table::from_u8(*self.0.first()?)
    }
    /// The least key above it.
    #[must_use]
    pub fn successor(&self) -> Self {
        let mut k = self.0.clone();
        k.push(0);
        Self(k)
    }
    /// First 64-bit part.
    #[must_use]
    pub fn id(&self) -> Option<u64> {
        Some(u64::from_be_bytes(self.0.get(1..9)?.try_into().ok()?))
    }
    /// What follows the first 64-bit part: a name, cookie, page or slot.
    #[must_use]
    pub fn rest(&self) -> Option<&[u8]> {
        self.0.get(9..)
    }

    /// Are the parts what the table demands?
    #[must_use]
    pub fn validate(&self) -> bool {
        let Some(table) = self.table() else { return false };
        let n = self.0.len();
        match table {
            Table::Super => n == 1,
            Table::Counter => n == 2,
            Table::Inode
            | Table::Symlink
            | Table::Orphan
            | Table::Free
            | Table::Dirty
            | Table::Session
            | Table::Intent => n == 9,
            Table::Dentry | Table::Xattr => n > 9 && n <= KEY_MAX,
            Table::DirCookie => n == 17,
            Table::ChunkMap => n == 13,
            Table::Replay => n == 11,
        }
    }
}

/// A half-open range of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// First key.
    pub start: Key,
    /// First key beyond.
    pub end: Key,
}

impl KeyRange {
    /// All keys of a table.
    #[must_use]
    pub fn table(table: Table) -> Self {
        Self { start: Key::raw(&[table as u8]), end: Key::raw(&[table as u8 + 1]) }
    }
    /// All keys of a table whose first part is `id`.
    #[must_use]
    pub fn of(table: Table, id: u64) -> Self {
        let start = Key::of(table, &[&id.to_be_bytes()]);
        let end = match id.checked_add(1) {
            Some(next) => Key::of(table, &[&next.to_be_bytes()]),
            None => Key::raw(&[table as u8 + 1]),
        };
        Self { start, end }
    }
    /// The rest of a directory behind `cookie`.
    #[must_use]
    pub fn after_cookie(dir: Ino, cookie: u64) -> Self {
        Self { start: Key::cookie(dir, cookie).successor(), end: Self::of(Table::DirCookie, dir.0).end }
    }
    /// Does it hold `key`?
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start.bytes() <= key && key < self.end.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_bytes_is_order_of_numbers() {
        assert!(Key::inode(Ino(255)) < Key::inode(Ino(256)));
        assert!(Key::cookie(Ino(1), u64::MAX) < Key::cookie(Ino(2), 0));
        let r = KeyRange::of(Table::Dentry, 7);
        assert!(r.contains(&Key::dentry(Ino(7), b"\xff\xff")) && !r.contains(&Key::dentry(Ino(8), b"")));
        let r = KeyRange::of(Table::Xattr, u64::MAX);
        assert!(r.contains(&Key::xattr(Ino(u64::MAX), b"\xff")) && !r.contains(&Key::symlink(Ino(0))));
        let r = KeyRange::after_cookie(Ino(3), 9);
        assert!(!r.contains(&Key::cookie(Ino(3), 9)) && r.contains(&Key::cookie(Ino(3), 10)));
    }

    #[test]
    fn odd_keys_are_refused() {
        for bytes in
            [&[][..], &[0], &[0x10], &[0x10, 1, 2], &[0x11, 0, 0, 0, 0, 0, 0, 0, 1], &[0xEE, 0], &[0x21; 12]]
        {
            assert!(!Key::raw(bytes).validate(), "{bytes:?}");
        }
        assert!(Key::dentry(Ino(1), b"x").validate() && Key::replay(ClientId(1), Slot(2)).validate());
    }
}
