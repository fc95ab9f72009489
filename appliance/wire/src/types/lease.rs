//! Leases: what a client may cache of an inode until the server recalls it (DESIGN decision 8).

use super::Ino;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

/// How much a client may cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum LeaseMode {
    /// Nothing.
    #[default]
    None = 0,
    /// Attributes, data and names for reading, as may others.
    Shared = 1,
    /// All of it, alone: names may get a lifetime in the kernel.
    Exclusive = 2,
}

impl LeaseMode {
    /// From its number.
    #[must_use]
    pub const fn from_u8(v: u8) -> Option<Self> {
        match v {
            0 => Some(Self::None),
            1 => Some(Self::Shared),
            2 => Some(Self::Exclusive),
            _ => None,
        }
    }
}

/// Why a server took everything from a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FenceReason {
    /// A recall went unanswered for the lease time.
    RecallTimeout = 1,
    /// Nothing was heard of the client for the lease time, or it did not return within the grace window.
    Expired = 2,
    /// An operator removed it.
    Operator = 3,
}

impl FenceReason {
    /// From its number.
    #[must_use]
    pub const fn from_u8(v: u8) -> Option<Self> {
        match v {
            1 => Some(Self::RecallTimeout),
            2 => Some(Self::Expired),
            3 => Some(Self::Operator),
            _ => None,
        }
    }
}

/// A grant that travels in a reply: from now on this client holds `mode` on `ino`. 24 bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Grant {
    /// The inode; 0 where the reply grants nothing.
    pub ino: le::U64,
    /// Grows with each grant of the server; a recall names the highest that it takes back, so that a later grant is not
    /// lost to an earlier recall that overtook it.
    pub serial: le::U64,
    mode: u8,
    zero: [u8; 7],
}

impl Grant {
    /// Nothing granted.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }
    /// `mode` on `ino`.
    #[must_use]
    pub fn new(ino: Ino, mode: LeaseMode, serial: u64) -> Self {
        Self { ino: ino.into(), serial: serial.into(), mode: mode as u8, zero: [0; 7] }
    }
    /// The inode it is about.
    #[must_use]
    pub fn ino(&self) -> Ino {
        self.ino.into()
    }
    /// The mode; `None` where the byte is not one.
    #[must_use]
    pub fn mode(&self) -> Option<LeaseMode> {
        LeaseMode::from_u8(self.mode)
    }
    /// Why these bytes are no grant, if they are not.
    pub fn validate(&self) -> Result<(), &'static str> {
        if self.mode().is_none() {
            return Err("lease mode is above 2");
        }
        if self.zero != [0; 7] { Err("padding of a grant is not zero") } else { Ok(()) }
    }
}
