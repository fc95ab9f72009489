//! The table of operations: number, request, reply, whether it may be repeated, and how long its payloads may be.

use crate::codec::{Body, BodyBuf, DecodeError};
use crate::limits::{MAX_PAYLOAD, MAX_REPORT, MAX_TARGET, MAX_XATTR_LIST, MAX_XATTR_VALUE};
use crate::message::{
    AcquireLease, Append, Appended, AttrReply, Cancel, Challenge, ChunkRead, ChunkWrite, Close, CloseSession,
    Commit, Copied, CopyRange, Create, Created, Devices, DirPage, Done, Entry, Fallocate, Fenced, GetAttr,
    GetLock, GetXattr, Grants, Grow, Hello, KeepAlive, LeaseReturn, Link, ListXattr, LockConflict, Lookup,
    Open, OpenSession, Opened, Preallocate, Prove, ReadDir, ReadLink, ReadReply, Recall, ReclaimDone,
    ReclaimLeases, ReclaimLocks, ReclaimOpens, ReleaseOwner, RemoveXattr, Removed, Rename, Renamed, Rmdir,
    Scrub, Seek, SeekReply, SessionState, SetAttr, SetLock, SetXattr, StatFs, StatFsReply, Status, Unlink,
    Welcome, Written,
};

/// What the transport owes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Sets the connection up; frozen layout, no slot.
    Handshake,
    /// Has no reply.
    Notify,
    /// May be repeated freely.
    Repeatable,
    /// Has its effect once: uses a slot, and a repeat gets the first reply.
    Once,
}

/// Numbers that once had a meaning and never get another, with their name and the last version that knew them.
pub const RETIRED: &[(u16, &str, u8)] = &[];

/// A request with its reply.
pub trait Call<'a>: Body<'a> {
    /// Its number.
    const OPCODE: Opcode;
    /// Body of the reply when the status is Ok.
    type Reply<'r>: Body<'r>;
}

macro_rules! table {
    ($($n:literal $name:ident $(<$lt:lifetime>)? -> $reply:ident $(<$rlt:lifetime>)?, $class:ident, $up:expr, $down:expr;)*) => {
        /// Number of an operation.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Opcode { $(#[doc = concat!("See [`crate::message::", stringify!($name), "`].")] $name = $n,)* }

        impl Opcode {
            /// All of them, in order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
            /// From its number.
            #[must_use]
            pub const fn from_u16(n: u16) -> Option<Self> {
                match n { $($n => Some(Self::$name),)* _ => None }
            }
            /// Its name, for logs and counters.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
            /// What the transport owes it.
            #[must_use]
            pub const fn class(self) -> Class {
                match self { $(Self::$name => Class::$class,)* }
            }
            /// Bytes that a request's payload may have.
            #[must_use]
            pub const fn max_request_payload(self) -> usize {
                match self { $(Self::$name => $up,)* }
            }
            /// Bytes that a reply's payload may have.
            #[must_use]
            pub const fn max_reply_payload(self) -> usize {
                match self { $(Self::$name => $down,)* }
            }
        }

        /// Any request or notification.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Request<'a> {
            $(#[doc = concat!("See [`crate::message::", stringify!($name), "`].")] $name($name $(<$lt>)?),)*
        }

        impl<'a> Request<'a> {
            /// Which operation.
            #[must_use]
            pub const fn opcode(&self) -> Opcode {
                match self { $(Self::$name(_) => Opcode::$name,)* }
            }
            /// Appends the body.
            pub fn encode(&self, out: &mut BodyBuf) {
                match self { $(Self::$name(m) => m.encode(out),)* }
            }
            /// Reads the body of `opcode`.
            ///
            /// # Errors
            /// The reason; never panics, whatever the bytes.
            pub fn decode(opcode: Opcode, body: &'a [u8]) -> Result<Self, DecodeError> {
                Ok(match opcode { $(Opcode::$name => Self::$name(Body::decode(body)?),)* })
            }
            #[cfg(test)]
            fn sample(opcode: Opcode, rng: &mut crate::sample::Rng) -> Self {
                match opcode { $(Opcode::$name => Self::$name(crate::sample::Sample::sample(rng)),)* }
            }
        }

        $(
            impl<'a> Call<'a> for $name $(<$lt>)? {
                const OPCODE: Opcode = Opcode::$name;
                type Reply<'r> = $reply $(<$rlt>)?;
            }
            impl<'a> From<$name $(<$lt>)?> for Request<'a> {
                fn from(m: $name $(<$lt>)?) -> Self {
                    Self::$name(m)
                }
            }
        )*

        #[cfg(test)]
        fn reply_round_trips(opcode: Opcode, rng: &mut crate::sample::Rng) {
            use crate::sample::Sample as _;
            match opcode {
                $(Opcode::$name => {
                    let (message, mut out) = ($reply::sample(rng), BodyBuf::new());
                    message.encode(&mut out);
                    assert_eq!($reply::decode(out.body()), Ok(message));
                })*
            }
        }

        #[cfg(test)]
        fn decode_reply(opcode: Opcode, body: &[u8]) -> Result<(), DecodeError> {
            match opcode { $(Opcode::$name => $reply::decode(body).map(|_| ()),)* }
        }
    };
}

table! {
    0x0001 Hello -> Challenge, Handshake, 0, 0;
    0x0002 Prove -> Welcome, Handshake, 0, 0;
    0x0003 KeepAlive -> Done, Repeatable, 0, 0;
    0x0004 Cancel -> Done, Notify, 0, 0;
    0x0010 OpenSession -> SessionState, Repeatable, 0, 0;
    0x0011 CloseSession -> Done, Repeatable, 0, 0;
    0x0012 ReclaimLocks<'a> -> Done, Repeatable, 0, 0;
    0x0013 ReclaimLeases<'a> -> Grants<'r>, Repeatable, 0, 0;
    0x0014 ReclaimOpens<'a> -> Done, Repeatable, 0, 0;
    0x0015 ReclaimDone -> Done, Repeatable, 0, 0;
    0x0020 Recall -> Done, Notify, 0, 0;
    0x0021 LeaseReturn<'a> -> Done, Repeatable, 0, 0;
    0x0022 Fenced -> Done, Notify, 0, 0;
    0x0101 Lookup<'a> -> Entry, Repeatable, 0, 0;
    0x0102 GetAttr -> AttrReply, Repeatable, 0, 0;
    0x0103 SetAttr -> AttrReply, Once, 0, 0;
    0x0104 ReadLink -> Done, Repeatable, 0, MAX_TARGET;
    0x0105 Create<'a> -> Created, Once, 0, 0;
    0x0106 Link<'a> -> Entry, Once, 0, 0;
    0x0107 Unlink<'a> -> Removed, Once, 0, 0;
    0x0108 Rmdir<'a> -> Removed, Once, 0, 0;
    0x0109 Rename<'a> -> Renamed, Once, 0, 0;
    0x010A Open -> Opened, Once, 0, 0;
    0x010B Close -> Done, Once, 0, 0;
    0x010C ReadDir -> DirPage, Repeatable, 0, MAX_PAYLOAD;
    0x010D GetXattr<'a> -> Done, Repeatable, 0, MAX_XATTR_VALUE;
    0x010E SetXattr<'a> -> Done, Once, MAX_XATTR_VALUE, 0;
    0x010F ListXattr -> Done, Repeatable, 0, MAX_XATTR_LIST;
    0x0110 RemoveXattr<'a> -> Done, Once, 0, 0;
    0x0111 StatFs -> StatFsReply, Repeatable, 0, 0;
    0x0112 GetLock -> LockConflict, Repeatable, 0, 0;
    0x0113 SetLock -> Done, Once, 0, 0;
    0x0114 ReleaseOwner -> Done, Once, 0, 0;
    0x0115 Commit -> Done, Repeatable, 0, 0;
    0x0116 Fallocate -> AttrReply, Once, 0, 0;
    0x0117 Seek -> SeekReply, Repeatable, 0, 0;
    0x0118 CopyRange -> Copied, Once, 0, 0;
    0x0119 AcquireLease -> AttrReply, Repeatable, 0, 0;
    0x0201 ChunkRead -> ReadReply, Repeatable, 0, MAX_PAYLOAD;
    0x0202 ChunkWrite -> Written, Once, MAX_PAYLOAD, 0;
    0x0203 Append -> Appended, Once, MAX_PAYLOAD, 0;
    0x0301 Status -> Done, Repeatable, 0, MAX_REPORT;
    0x0302 Scrub -> Done, Repeatable, 0, MAX_REPORT;
    0x0303 Devices -> Done, Repeatable, 0, MAX_REPORT;
    0x0304 Grow<'a> -> Done, Once, 0, MAX_REPORT;
    0x0305 Preallocate<'a> -> Done, Repeatable, 0, MAX_REPORT;
}

const _: () = {
    let mut i = 0;
    while i < RETIRED.len() {
        assert!(Opcode::from_u16(RETIRED[i].0).is_none(), "a retired opcode is in use again");
        i += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Rng;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn body_of(opcode: Opcode, rng: &mut Rng) -> (Request<'static>, Vec<u8>) {
        let (request, mut out) = (Request::sample(opcode, rng), BodyBuf::new());
        request.encode(&mut out);
        (request, out.body().to_vec())
    }

    proptest! {
        #[test]
        fn every_message_reads_back(seed: u64) {
            let mut rng = Rng(seed);
            for &opcode in Opcode::ALL {
                let (request, body) = body_of(opcode, &mut rng);
                prop_assert_eq!(Request::decode(opcode, &body), Ok(request));
                reply_round_trips(opcode, &mut rng);
            }
        }

        #[test]
        fn a_cut_or_longer_body_is_refused(seed: u64) {
            let mut rng = Rng(seed);
            for &opcode in Opcode::ALL {
                let (_, mut body) = body_of(opcode, &mut rng);
                if !body.is_empty() {
                    let cut = rng.below(body.len());
                    prop_assert!(Request::decode(opcode, &body[..cut]).is_err());
                }
                body.push(0);
                prop_assert_eq!(Request::decode(opcode, &body), Err(DecodeError::Trailing(1)));
            }
        }

        #[test]
        fn damaged_bodies_never_panic(seed: u64, garbage in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut rng = Rng(seed);
            for &opcode in Opcode::ALL {
                let (_, mut body) = body_of(opcode, &mut rng);
                for _ in 0..=rng.below(4) {
                    let at = rng.below(body.len().max(1));
                    if let Some(byte) = body.get_mut(at) {
                        *byte = rng.next() as u8;
                    }
                }
                for bytes in [&body[..], &garbage] {
                    let _ = Request::decode(opcode, bytes).map(|m| m.encode(&mut BodyBuf::new()));
                    let _ = decode_reply(opcode, bytes);
                }
            }
        }
    }

    #[test]
    fn numbers_and_opcodes_agree() {
        for &opcode in Opcode::ALL {
            assert_eq!(Opcode::from_u16(opcode as u16), Some(opcode));
        }
        assert!(Opcode::ALL.is_sorted());
        assert_eq!(Opcode::from_u16(0), None);
    }
}
