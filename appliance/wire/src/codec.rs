//! How bodies are put together: a fixed part of little-endian fields, then each variable part with its length.
//!
//! Holds the buffer, the traits and the codecs of shared types; `macros.rs` makes messages of them. Decoding
//! borrows from the body and allocates nothing.

use crate::header::{HEADER_LEN, Header};
use crate::limits::{MAX_BODY, MAX_LIST, MAX_NAME, MAX_TARGET, MAX_XATTR_NAME};
use crate::types::{
    Attr, ChunkKey, ClientId, FenceReason, FileKind, Grant, Ino, LeaseMode, LockKind, LockOwner, LockRange,
    LockSpace, LockType, ObjectId, SetAttr, SetTime, Slot, StatFs, Timestamp,
};
use alloc::vec::Vec;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

/// Why a body is not the message that its opcode names. The request is refused with `Status::Malformed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The body ends too early.
    #[error("body is {missing} bytes short")]
    Short {
        /// Bytes that are missing at least.
        missing: usize,
    },
    /// Bytes are left over.
    #[error("body has {0} bytes too many")]
    Trailing(usize),
    /// A field holds a value that it can't have.
    #[error("{0}")]
    Value(&'static str),
}

/// A body is longer than [`MAX_BODY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("body is longer than {MAX_BODY} bytes: send the list in several messages")]
pub struct TooLong;

/// Where a frame's header and body are put together, so that both leave in one piece.
#[derive(Debug)]
pub struct BodyBuf {
    bytes: Vec<u8>,
    full: bool,
}

impl Default for BodyBuf {
    fn default() -> Self {
        Self::new()
    }
}

impl BodyBuf {
    /// Room for a header and a small body.
    #[must_use]
    pub fn new() -> Self {
        let mut bytes = Vec::with_capacity(4 * HEADER_LEN);
        bytes.resize(HEADER_LEN, 0);
        Self { bytes, full: false }
    }

    /// Appends; beyond [`MAX_BODY`] nothing is kept and [`BodyBuf::into_frame`] fails.
    pub fn put(&mut self, bytes: &[u8]) {
        if self.body().len() + bytes.len() > MAX_BODY {
            self.full = true;
        } else if !self.full {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// The body so far.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.bytes[HEADER_LEN..]
    }

    /// Header and body as one piece; the payload, if any, follows it on the wire.
    ///
    /// # Errors
    /// [`TooLong`] where the body went beyond its limit.
    pub fn into_frame(mut self, header: &Header) -> Result<Vec<u8>, TooLong> {
        if self.full {
            return Err(TooLong);
        }
        let (head, body) = self.bytes.split_at_mut(HEADER_LEN);
        head.copy_from_slice(&header.encode(body));
        Ok(self.bytes)
    }
}

/// A body: something that a request or a reply carries.
pub trait Body<'a>: Sized {
    /// Appends this to `out`.
    fn encode(&self, out: &mut BodyBuf);
    /// Reads all of `body`.
    ///
    /// # Errors
    /// The reason; never panics, whatever the bytes.
    fn decode(body: &'a [u8]) -> Result<Self, DecodeError>;
}

/// A value of fixed size.
pub trait Field: Sized + Copy {
    /// Its layout, without alignment.
    type Raw: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + Copy;
    /// To the layout.
    fn to_raw(&self) -> Self::Raw;
    /// From the layout, range-checked.
    ///
    /// # Errors
    /// [`DecodeError::Value`].
    fn from_raw(raw: &Self::Raw) -> Result<Self, DecodeError>;
}

/// A value of variable size; on the wire a 16-bit count and the elements.
pub(crate) trait Tail<'a> {
    type Value: Copy;
    fn put(value: Self::Value, out: &mut BodyBuf);
    fn take(input: &mut &'a [u8]) -> Result<Self::Value, DecodeError>;
}

pub(crate) fn take<'a>(input: &mut &'a [u8], len: usize) -> Result<&'a [u8], DecodeError> {
    let (head, rest) =
        input.split_at_checked(len).ok_or(DecodeError::Short { missing: len.saturating_sub(input.len()) })?;
    *input = rest;
    Ok(head)
}

pub(crate) fn take_raw<T: FromBytes>(input: &mut &[u8]) -> Result<T, DecodeError> {
    let missing = size_of::<T>().saturating_sub(input.len());
    let (raw, rest) = T::read_from_prefix(input).map_err(|_| DecodeError::Short { missing })?;
    *input = rest;
    Ok(raw)
}

pub(crate) fn finish(rest: &[u8]) -> Result<(), DecodeError> {
    if rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(rest.len())) }
}

fn put_count(n: usize, out: &mut BodyBuf) {
    // A count above 16 bits can only belong to a body that is too long anyway.
    match u16::try_from(n) {
        Ok(n) => out.put(&n.to_le_bytes()),
        Err(_) => out.full = true,
    }
}

fn take_count(input: &mut &[u8]) -> Result<usize, DecodeError> {
    Ok(usize::from(take_raw::<le::U16>(input)?.get()))
}

fn take_bytes<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], DecodeError> {
    let len = take_count(input)?;
    take(input, len)
}

/// Why `name` can't be that of a directory entry.
///
/// # Errors
/// [`DecodeError::Value`]: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`.
pub fn check_name(name: &[u8]) -> Result<(), DecodeError> {
    Err(DecodeError::Value(match name {
        [] => "name is empty",
        b"." | b".." => "name is . or ..",
        _ if name.len() > MAX_NAME => "name is longer than 255 bytes",
        _ if name.contains(&b'/') => "name contains a slash",
        _ if name.contains(&0) => "name contains a NUL",
        _ => return Ok(()),
    }))
}

fn check_text(text: &[u8], max: usize) -> Result<(), DecodeError> {
    Err(DecodeError::Value(match text {
        [] => "text is empty",
        _ if text.len() > max => "text is too long",
        _ if text.contains(&0) => "text contains a NUL",
        _ => return Ok(()),
    }))
}

macro_rules! byte_tail {
    ($($(#[$meta:meta])* $name:ident($value:ident) $check:expr;)*) => {$(
        $(#[$meta])*
        pub(crate) struct $name;
        impl<'a> Tail<'a> for $name {
            type Value = &'a [u8];
            fn put(value: &'a [u8], out: &mut BodyBuf) {
                put_count(value.len(), out);
                out.put(value);
            }
            fn take(input: &mut &'a [u8]) -> Result<&'a [u8], DecodeError> {
                let $value = take_bytes(input)?;
                $check?;
                Ok($value)
            }
        }
    )*};
}
byte_tail! {
    /// A name of a directory entry.
    Name(v) check_name(v);
    /// A name, or nothing.
    NameOrNone(v) if v.is_empty() { Ok(()) } else { check_name(v) };
    /// The target of a symbolic link, or nothing.
    TargetOrNone(v) if v.is_empty() { Ok(()) } else { check_text(v, MAX_TARGET) };
    /// Name of an extended attribute.
    XattrName(v) check_text(v, MAX_XATTR_NAME);
    /// Path of a device.
    DevicePath(v) check_text(v, MAX_TARGET);
}

/// A list of fixed-size items: the caller's own slice, or a view of a body that was checked when it was decoded.
#[derive(Clone, Copy)]
pub struct List<'a, T: Field>(Items<'a, T>);

#[derive(Clone, Copy)]
enum Items<'a, T: Field> {
    Host(&'a [T]),
    Wire(&'a [u8]),
}

impl<'a, T: Field> From<&'a [T]> for List<'a, T> {
    fn from(items: &'a [T]) -> Self {
        Self(Items::Host(items))
    }
}

impl<'a, T: Field> List<'a, T> {
    const STRIDE: usize = size_of::<T::Raw>();

    /// Number of items.
    #[must_use]
    pub fn len(&self) -> usize {
        match self.0 {
            Items::Host(items) => items.len(),
            Items::Wire(bytes) => bytes.len() / Self::STRIDE,
        }
    }
    /// No item?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Each item.
    pub fn iter(&self) -> impl Iterator<Item = T> + 'a {
        let (host, wire) = match self.0 {
            Items::Host(items) => (items, &[][..]),
            Items::Wire(bytes) => (&[][..], bytes),
        };
        // Decoding has checked each item, so none is dropped here.
        let wire = wire
            .chunks_exact(Self::STRIDE)
            .filter_map(|mut item| take_raw::<T::Raw>(&mut item).and_then(|raw| T::from_raw(&raw)).ok());
        host.iter().copied().chain(wire)
    }
}

impl<T: Field + core::fmt::Debug> core::fmt::Debug for List<'_, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
impl<T: Field + PartialEq> PartialEq for List<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}
impl<T: Field + Eq> Eq for List<'_, T> {}

impl<'a, T: Field + 'a> Tail<'a> for List<'_, T> {
    type Value = List<'a, T>;
    fn put(value: List<'a, T>, out: &mut BodyBuf) {
        put_count(value.len(), out);
        out.full |= value.len() > MAX_LIST;
        for item in value.iter() {
            out.put(item.to_raw().as_bytes());
        }
    }
    fn take(input: &mut &'a [u8]) -> Result<List<'a, T>, DecodeError> {
        let count = take_count(input)?;
        if count > MAX_LIST {
            return Err(DecodeError::Value("list has more than 160 items"));
        }
        let bytes = take(input, count * Self::STRIDE)?;
        for mut item in bytes.chunks_exact(Self::STRIDE) {
            T::from_raw(&take_raw(&mut item)?)?;
        }
        Ok(List(Items::Wire(bytes)))
    }
}

macro_rules! plain_fields {
    ($($t:ty, $raw:ty, |$v:ident| $to:expr, |$r:ident| $from:expr;)*) => {$(
        impl Field for $t {
            type Raw = $raw;
            fn to_raw(&self) -> $raw {
                let $v = *self;
                $to
            }
            fn from_raw(raw: &$raw) -> Result<Self, DecodeError> {
                let $r = *raw;
                $from
            }
        }
    )*};
}

fn known<T>(value: Option<T>, what: &'static str) -> Result<T, DecodeError> {
    value.ok_or(DecodeError::Value(what))
}

fn checked<T>(value: T, check: Result<(), &'static str>) -> Result<T, DecodeError> {
    check.map(|()| value).map_err(DecodeError::Value)
}

plain_fields! {
    u8, u8, |v| v, |r| Ok(r);
    u16, le::U16, |v| v.into(), |r| Ok(r.get());
    u32, le::U32, |v| v.into(), |r| Ok(r.get());
    u64, le::U64, |v| v.into(), |r| Ok(r.get());
    bool, u8, |v| u8::from(v), |r| known([false, true].get(usize::from(r)).copied(), "truth value is neither 0 nor 1");
    [u8; 8], [u8; 8], |v| v, |r| Ok(r);
    [u8; 16], [u8; 16], |v| v, |r| Ok(r);
    [u8; 32], [u8; 32], |v| v, |r| Ok(r);
    Ino, le::U64, |v| v.into(), |r| Ok(r.into());
    ObjectId, le::U64, |v| v.into(), |r| Ok(r.into());
    ClientId, le::U64, |v| v.into(), |r| Ok(r.into());
    LockOwner, le::U64, |v| v.0.into(), |r| Ok(Self(r.get()));
    Slot, le::U16, |v| v.0.into(), |r| Ok(Self(r.get()));
    LeaseMode, u8, |v| v as u8, |r| known(Self::from_u8(r), "lease mode is above 2");
    LockSpace, u8, |v| v as u8, |r| known(Self::from_u8(r), "lock space is above 1");
    LockKind, u8, |v| v as u8, |r| known(Self::from_u8(r), "lock kind is above 1");
    LockType, u8, |v| v.to_u8(), |r| known(Self::from_u8(r), "lock type is above 2");
    FenceReason, u8, |v| v as u8, |r| known(Self::from_u8(r), "reason of fencing is unknown");
    FileKind, u8, |v| v.dirent_type(), |r| known(Self::from_dirent_type(r), "kind of file is unknown");
    Timestamp, Timestamp, |v| v, |r| checked(r, r.validate());
    Attr, Attr, |v| v, |r| checked(r, r.validate());
    Grant, Grant, |v| v, |r| checked(r, r.validate());
    StatFs, StatFs, |v| v, |r| Ok(r);
}

/// A pair of fields without anything between them.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Pair<A, B>(A, B);

impl Field for LockRange {
    type Raw = Pair<le::U64, le::U64>;
    fn to_raw(&self) -> Self::Raw {
        Pair(self.start.into(), self.end.into())
    }
    fn from_raw(raw: &Self::Raw) -> Result<Self, DecodeError> {
        let range = Self { start: raw.0.get(), end: raw.1.get() };
        if range.start > range.end {
            Err(DecodeError::Value("lock range ends before it starts"))
        } else {
            Ok(range)
        }
    }
}

impl Field for ChunkKey {
    type Raw = Pair<le::U64, le::U32>;
    fn to_raw(&self) -> Self::Raw {
        Pair(self.object.into(), self.index.into())
    }
    fn from_raw(raw: &Self::Raw) -> Result<Self, DecodeError> {
        Ok(Self { object: raw.0.into(), index: raw.1.get() })
    }
}

/// Layout of [`SetAttr`]: which members are set, then all of them. 56 bytes.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawSetAttr {
    valid: le::U32,
    mode: le::U32,
    uid: le::U32,
    gid: le::U32,
    size: le::U64,
    atime: Timestamp,
    mtime: Timestamp,
}

const _: () = assert!(size_of::<RawSetAttr>() == 56);

const SET_MODE: u32 = 1;
const SET_UID: u32 = 2;
const SET_GID: u32 = 4;
const SET_SIZE: u32 = 8;
const SET_ATIME: u32 = 16;
const SET_ATIME_NOW: u32 = 32;
const SET_MTIME: u32 = 64;
const SET_MTIME_NOW: u32 = 128;
const SET_KILL_SUIDGID: u32 = 256;

impl Field for SetAttr {
    type Raw = RawSetAttr;
    fn to_raw(&self) -> RawSetAttr {
        let mut valid = 0;
        let mut bit = |set: bool, bit: u32| valid |= if set { bit } else { 0 };
        bit(self.mode.is_some(), SET_MODE);
        bit(self.uid.is_some(), SET_UID);
        bit(self.gid.is_some(), SET_GID);
        bit(self.size.is_some(), SET_SIZE);
        let mut time = |t: Option<SetTime>, at: u32, now: u32| match t {
            None => Timestamp::default(),
            Some(SetTime::At(t)) => {
                bit(true, at);
                t
            }
            Some(SetTime::Now) => {
                bit(true, now);
                Timestamp::default()
            }
        };
        let atime = time(self.atime, SET_ATIME, SET_ATIME_NOW);
        let mtime = time(self.mtime, SET_MTIME, SET_MTIME_NOW);
        bit(self.kill_suidgid, SET_KILL_SUIDGID);
        RawSetAttr {
            valid: valid.into(),
            mode: self.mode.unwrap_or(0).into(),
            uid: self.uid.unwrap_or(0).into(),
            gid: self.gid.unwrap_or(0).into(),
            size: self.size.unwrap_or(0).into(),
            atime,
            mtime,
        }
    }
    fn from_raw(raw: &RawSetAttr) -> Result<Self, DecodeError> {
        let valid = raw.valid.get();
        let has = |bit: u32| valid & bit != 0;
        let time = |at: u32, now: u32, t: Timestamp| match (has(at), has(now)) {
            (false, false) => Ok(None),
            (true, false) => checked(Some(SetTime::At(t)), t.validate()),
            (false, true) => Ok(Some(SetTime::Now)),
            (true, true) => Err(DecodeError::Value("a time is set both to a value and to now")),
        };
        if valid >= 2 * SET_KILL_SUIDGID {
            return Err(DecodeError::Value("unknown attribute to set"));
        }
        if has(SET_MODE) && raw.mode.get() & !0o7777 != 0 {
            return Err(DecodeError::Value("mode to set has bits beyond 07777"));
        }
        Ok(Self {
            mode: has(SET_MODE).then(|| raw.mode.get()),
            uid: has(SET_UID).then(|| raw.uid.get()),
            gid: has(SET_GID).then(|| raw.gid.get()),
            size: has(SET_SIZE).then(|| raw.size.get()),
            atime: time(SET_ATIME, SET_ATIME_NOW, raw.atime)?,
            mtime: time(SET_MTIME, SET_MTIME_NOW, raw.mtime)?,
            kill_suidgid: has(SET_KILL_SUIDGID),
        })
    }
}
