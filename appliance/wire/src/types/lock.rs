//! Byte-range and whole-file locks: fcntl(2) F_SETLK and flock(2) are two spaces which never conflict with each other.

/// Which family of locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LockSpace {
    /// fcntl(2) record locks, owned by a process (or open file description).
    Posix = 0,
    /// flock(2), owned by an open file description, whole file.
    Flock = 1,
}

impl LockSpace {
    /// From its number.
    #[must_use]
    pub const fn from_u8(v: u8) -> Option<Self> {
        match v {
            0 => Some(Self::Posix),
            1 => Some(Self::Flock),
            _ => None,
        }
    }
}

/// Shared or exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LockKind {
    /// Several owners may hold it.
    Read = 0,
    /// One owner.
    Write = 1,
}

impl LockKind {
    /// From its number.
    #[must_use]
    pub const fn from_u8(v: u8) -> Option<Self> {
        match v {
            0 => Some(Self::Read),
            1 => Some(Self::Write),
            _ => None,
        }
    }
}

/// What a lock request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LockType {
    /// Take or convert.
    Lock(LockKind),
    /// Give back.
    Unlock,
}

impl LockType {
    /// The number on the wire: 0 read, 1 write, 2 unlock.
    #[must_use]
    pub const fn to_u8(self) -> u8 {
        match self {
            Self::Lock(kind) => kind as u8,
            Self::Unlock => 2,
        }
    }
    /// From the number on the wire.
    #[must_use]
    pub const fn from_u8(v: u8) -> Option<Self> {
        match v {
            0 => Some(Self::Lock(LockKind::Read)),
            1 => Some(Self::Lock(LockKind::Write)),
            2 => Some(Self::Unlock),
            _ => None,
        }
    }
}

/// Bytes `start..=end`; `end` is `u64::MAX` for "to the end of the file, however it grows".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LockRange {
    /// First byte.
    pub start: u64,
    /// Last byte, not below `start`.
    pub end: u64,
}

impl LockRange {
    /// The whole file.
    pub const ALL: Self = Self { start: 0, end: u64::MAX };
    /// Do two ranges share a byte?
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }
}

/// A lock's owner within its client: opaque to the server (FUSE gives 64 bits; NFSv4 owners are hashed to it by their gateway
/// together with a table that keeps the bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockOwner(pub u64);
