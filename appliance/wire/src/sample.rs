//! Random but valid values of every message, for the round-trip tests.

use crate::codec::{DevicePath, Field, List, Name, NameOrNone, TargetOrNone, XattrName};
use crate::types::*;
use alloc::{boxed::Box, vec::Vec};

/// SplitMix64: a seed names a whole run.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }
    /// Of any magnitude up to `bits`, so that small numbers, which most checks want, are frequent.
    fn sized(&mut self, bits: usize) -> u64 {
        let shift = 64 - bits + self.below(bits + 1);
        if shift == 64 { 0 } else { self.next() >> shift }
    }
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
    /// Lives as long as the test process: messages borrow it.
    fn text(&mut self, min: usize, max: usize) -> &'static [u8] {
        let len = min + self.below(max - min + 1);
        let bytes: Vec<u8> = (0..len).map(|_| b'a' + self.below(26) as u8).collect();
        Box::leak(bytes.into_boxed_slice())
    }
}

pub(crate) trait Sample {
    fn sample(rng: &mut Rng) -> Self;
}

pub(crate) trait SampleTail {
    type Value;
    fn sample(rng: &mut Rng) -> Self::Value;
}

macro_rules! samples {
    ($($t:ty = |$rng:ident| $e:expr;)*) => {$(
        impl Sample for $t { fn sample($rng: &mut Rng) -> Self { $e } }
    )*};
}
samples! {
    u8 = |r| r.sized(8) as u8;
    u16 = |r| r.sized(16) as u16;
    u32 = |r| r.sized(32) as u32;
    u64 = |r| r.sized(64);
    bool = |r| r.below(2) == 1;
    Ino = |r| Self(r.next());
    ObjectId = |r| Self(r.next());
    ClientId = |r| Self(r.next());
    LockOwner = |r| Self(r.next());
    Slot = |r| Self(r.next() as u16);
    ChunkKey = |r| Self { object: ObjectId(r.next()), index: r.next() as u32 };
    LeaseMode = |r| *r.pick(&[Self::None, Self::Shared, Self::Exclusive]);
    LockSpace = |r| *r.pick(&[Self::Posix, Self::Flock]);
    LockKind = |r| *r.pick(&[Self::Read, Self::Write]);
    LockType = |r| *r.pick(&[Self::Lock(LockKind::Read), Self::Lock(LockKind::Write), Self::Unlock]);
    LockRange = |r| { let (a, b) = (r.next(), r.next()); Self { start: a.min(b), end: a.max(b) } };
    FenceReason = |r| *r.pick(&[Self::RecallTimeout, Self::Expired, Self::Operator]);
    FileKind = |r| *r.pick(&[Self::Regular, Self::Directory, Self::Symlink, Self::Socket]);
    Timestamp = |r| Self::new(r.next() as i64, r.below(1_000_000_000) as u32);
    Grant = |r| Self::new(Ino(r.next()), LeaseMode::sample(r), r.next());
    Attr = |r| Self {
        ino: r.next().into(),
        object: r.next().into(),
        size: r.next().into(),
        blocks: r.next().into(),
        change: r.next().into(),
        atime: Timestamp::sample(r),
        mtime: Timestamp::sample(r),
        ctime: Timestamp::sample(r),
        btime: Timestamp::sample(r),
        mode: (FileKind::sample(r) as u32 | r.below(0o10000) as u32).into(),
        nlink: (r.next() as u32).into(),
        uid: (r.next() as u32).into(),
        gid: (r.next() as u32).into(),
        rdev: (r.next() as u32).into(),
        zero: 0.into(),
        flags: r.next().into(),
    };
    SetTime = |r| if bool::sample(r) { Self::Now } else { Self::At(Timestamp::sample(r)) };
    SetAttr = |r| Self {
        mode: Option::<u32>::sample(r).map(|m| m & 0o7777),
        uid: Option::sample(r),
        gid: Option::sample(r),
        size: Option::sample(r),
        atime: Option::sample(r),
        mtime: Option::sample(r),
        kill_suidgid: bool::sample(r),
    };
    StatFs = |r| Self { blocks: r.next().into(), free: r.next().into(), ..Self::default() };
}

impl<T: Sample> Sample for Option<T> {
    fn sample(rng: &mut Rng) -> Self {
        (rng.below(2) == 1).then(|| T::sample(rng))
    }
}

impl<const N: usize> Sample for [u8; N] {
    fn sample(rng: &mut Rng) -> Self {
        core::array::from_fn(|_| rng.next() as u8)
    }
}

macro_rules! text_samples {
    ($($t:ty = $min:literal..=$max:literal;)*) => {$(
        impl SampleTail for $t {
            type Value = &'static [u8];
            fn sample(rng: &mut Rng) -> &'static [u8] {
                let empty = $min == 0 && rng.below(2) == 0;
                if empty { &[] } else { rng.text($min, $max) }
            }
        }
    )*};
}
text_samples! {
    Name = 3..=255;
    NameOrNone = 0..=255;
    TargetOrNone = 0..=4095;
    XattrName = 1..=255;
    DevicePath = 1..=4095;
}

impl<T: Sample + Field + 'static> SampleTail for List<'_, T> {
    type Value = List<'static, T>;
    fn sample(rng: &mut Rng) -> List<'static, T> {
        let items: Vec<T> = (0..rng.below(40)).map(|_| T::sample(rng)).collect();
        List::from(&*Box::leak(items.into_boxed_slice()))
    }
}

macro_rules! sample_message {
    ([$($generic:tt)*], $self:ty, [$($field:ident: $ty:ty,)*], [$($tail:ident: $codec:ty,)*], [$($check:ident)?]) => {
        impl $($generic)* $crate::sample::Sample for $self {
            fn sample(_rng: &mut $crate::sample::Rng) -> Self {
                loop {
                    let message = Self {
                        $($field: <$ty as $crate::sample::Sample>::sample(_rng),)*
                        $($tail: <$codec as $crate::sample::SampleTail>::sample(_rng),)*
                    };
                    $(if message.$check().is_err() { continue; })?
                    return message;
                }
            }
        }
    };
}
pub(crate) use sample_message;
