//! The four macros that messages are written with: [`message!`], [`record!`], [`bits!`] and [`choice!`].
//!
//! Each makes the plain type, its layout and the codec from one list of fields, so that these can't disagree.

/// A set of bits with names; unknown bits are a decode error.
macro_rules! bits {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* $flag:ident = $bit:expr;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct $name(u32);
        impl $name {
            $($(#[$fmeta])* pub const $flag: Self = Self($bit);)*
            const KNOWN: u32 = 0 $(| $bit)*;
            /// No bit.
            #[must_use]
            pub const fn none() -> Self {
                Self(0)
            }
            /// Both sets.
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
            /// Are all bits of `other` set?
            #[must_use]
            pub const fn has(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }
            /// The number on the wire.
            #[must_use]
            pub const fn bits(self) -> u32 {
                self.0
            }
            /// From the number on the wire; `None` where it has unknown bits.
            #[must_use]
            pub const fn from_bits(bits: u32) -> Option<Self> {
                if bits & !Self::KNOWN == 0 { Some(Self(bits)) } else { None }
            }
        }
        impl core::ops::BitOr for $name {
            type Output = Self;
            fn bitor(self, other: Self) -> Self {
                self.with(other)
            }
        }
        impl $crate::codec::Field for $name {
            type Raw = zerocopy::little_endian::U32;
            fn to_raw(&self) -> Self::Raw {
                self.0.into()
            }
            fn from_raw(raw: &Self::Raw) -> Result<Self, $crate::codec::DecodeError> {
                Self::from_bits(raw.get())
                    .ok_or($crate::codec::DecodeError::Value(concat!("unknown bit in ", stringify!($name))))
            }
        }
        #[cfg(test)]
        impl $crate::sample::Sample for $name {
            fn sample(rng: &mut $crate::sample::Rng) -> Self {
                Self(rng.next() as u32 & Self::KNOWN)
            }
        }
    };
}
pub(crate) use bits;

/// A number that stands for one of several names; others are a decode error.
macro_rules! choice {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$fmeta:meta])* $variant:ident = $n:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$fmeta])* $variant = $n,)* }
        impl $name {
            /// From the number on the wire.
            #[must_use]
            pub const fn from_u8(n: u8) -> Option<Self> {
                match n {
                    $($n => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
        impl $crate::codec::Field for $name {
            type Raw = u8;
            fn to_raw(&self) -> u8 {
                *self as u8
            }
            fn from_raw(raw: &u8) -> Result<Self, $crate::codec::DecodeError> {
                Self::from_u8(*raw).ok_or($crate::codec::DecodeError::Value(concat!("unknown ", stringify!($name))))
            }
        }
        #[cfg(test)]
        impl $crate::sample::Sample for $name {
            fn sample(rng: &mut $crate::sample::Rng) -> Self {
                *rng.pick(&[$(Self::$variant),*])
            }
        }
    };
}
pub(crate) use choice;

/// A struct of fixed size that occurs within messages and lists.
macro_rules! record {
    (
        $(#[$meta:meta])*
        pub struct $name:ident: $size:literal { $($(#[$fmeta:meta])* $field:ident: $ty:ty,)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }
        const _: () = {
            use $crate::codec::{DecodeError, Field};
            /// The layout.
            #[derive(
                Clone, Copy, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
                zerocopy::Unaligned,
            )]
            #[repr(C)]
            pub struct Raw { $($field: <$ty as Field>::Raw,)* }
            assert!(size_of::<Raw>() == $size);
            impl Field for $name {
                type Raw = Raw;
                fn to_raw(&self) -> Raw {
                    Raw { $($field: self.$field.to_raw(),)* }
                }
                fn from_raw(raw: &Raw) -> Result<Self, DecodeError> {
                    Ok(Self { $($field: <$ty>::from_raw(&raw.$field)?,)* })
                }
            }
        };
        #[cfg(test)]
        impl $crate::sample::Sample for $name {
            fn sample(rng: &mut $crate::sample::Rng) -> Self {
                Self { $($field: <$ty as $crate::sample::Sample>::sample(rng),)* }
            }
        }
    };
}
pub(crate) use record;

/// A body: fixed fields (the number is their size in bytes), then `tail` parts, then an optional check of the whole.
macro_rules! message {
    (
        $(#[$meta:meta])*
        pub struct $name:ident: $size:literal { $($(#[$fmeta:meta])* $field:ident: $ty:ty,)* }
        $(check $check:ident;)?
    ) => {
        $crate::macros::message! { @ 'a, [], [$name],
            $(#[$meta])* $name: $size { $($(#[$fmeta])* $field: $ty,)* } tail {} $(check $check;)?
        }
    };
    (
        $(#[$meta:meta])*
        pub struct $name:ident<$a:lifetime>: $size:literal { $($(#[$fmeta:meta])* $field:ident: $ty:ty,)* }
        tail { $($(#[$tmeta:meta])* $tail:ident: $tty:ty = $codec:ty,)* }
        $(check $check:ident;)?
    ) => {
        $crate::macros::message! { @ $a, [<$a>], [$name<$a>],
            $(#[$meta])* $name: $size { $($(#[$fmeta])* $field: $ty,)* }
            tail { $($(#[$tmeta])* $tail: $tty = $codec,)* } $(check $check;)?
        }
    };
    (@ $a:lifetime, [$($generic:tt)*], [$self:ty],
        $(#[$meta:meta])*
        $name:ident: $size:literal { $($(#[$fmeta:meta])* $field:ident: $ty:ty,)* }
        tail { $($(#[$tmeta:meta])* $tail:ident: $tty:ty = $codec:ty,)* }
        $(check $check:ident;)?
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name $($generic)* {
            $($(#[$fmeta])* pub $field: $ty,)*
            $($(#[$tmeta])* pub $tail: $tty,)*
        }
        const _: () = {
            use $crate::codec::{Body, BodyBuf, DecodeError};
            #[derive(
                zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
                zerocopy::Unaligned,
            )]
            #[repr(C)]
            struct Raw { $($field: <$ty as $crate::codec::Field>::Raw,)* }
            assert!(size_of::<Raw>() == $size);
            impl<$a> Body<$a> for $self {
                fn encode(&self, out: &mut BodyBuf) {
                    out.put(zerocopy::IntoBytes::as_bytes(&Raw { $($field: $crate::codec::Field::to_raw(&self.$field),)* }));
                    $(<$codec as $crate::codec::Tail<'_>>::put(self.$tail, out);)*
                }
                fn decode(body: &$a [u8]) -> Result<Self, DecodeError> {
                    let mut rest = body;
                    let _raw = $crate::codec::take_raw::<Raw>(&mut rest)?;
                    let message = Self {
                        $($field: <$ty as $crate::codec::Field>::from_raw(&_raw.$field)?,)*
                        $($tail: <$codec as $crate::codec::Tail<'_>>::take(&mut rest)?,)*
                    };
                    $crate::codec::finish(rest)?;
                    $(message.$check()?;)?
                    Ok(message)
                }
            }
        };
        #[cfg(test)]
        $crate::sample::sample_message! { [$($generic)*], $self, [$($field: $ty,)*], [$($tail: $codec,)*], [$($check)?] }
    };
}
pub(crate) use message;
