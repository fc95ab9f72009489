//! Time stamps: signed seconds since 1970 and nanoseconds.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

/// A point in time. 16 bytes; `nsec` is below 1,000,000,000.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Timestamp {
    sec: le::I64,
    nsec: le::U32,
    zero: le::U32,
}

impl Timestamp {
    /// From seconds and nanoseconds; nanoseconds beyond a second are clamped to the last one.
    #[must_use]
    pub fn new(sec: i64, nsec: u32) -> Self {
        Self { sec: sec.into(), nsec: nsec.min(999_999_999).into(), zero: 0.into() }
    }
    /// From nanoseconds since 1970.
    #[must_use]
    pub fn from_nanos(nanos: i64) -> Self {
        Self::new(nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000) as u32)
    }
    /// Nanoseconds since 1970, saturating about the year 2262.
    #[must_use]
    pub fn nanos(&self) -> i64 {
        self.sec().saturating_mul(1_000_000_000).saturating_add(i64::from(self.nsec()))
    }
    /// Seconds since 1970.
    #[must_use]
    pub fn sec(&self) -> i64 {
        self.sec.get()
    }
    /// Nanoseconds within the second.
    #[must_use]
    pub fn nsec(&self) -> u32 {
        self.nsec.get()
    }
    /// Why these bytes are not a time stamp, if they are not.
    pub fn validate(&self) -> Result<(), &'static str> {
        if self.nsec() > 999_999_999 {
            return Err("nanoseconds of a time stamp are 1,000,000,000 or more");
        }
        if self.zero.get() != 0 { Err("padding of a time stamp is not zero") } else { Ok(()) }
    }
}

impl PartialOrd for Timestamp {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timestamp {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        (self.sec(), self.nsec()).cmp(&(other.sec(), other.nsec()))
    }
}
