//! Bytes of a stored reply, for the repeat of a request after a restart.
//!
//! Owns the encoding of the replies of operations that change something, and of errors that may have changed something. Must not hold grants: leases do not survive.

use crate::op::{Outcome, Reply};
use wire::{Attr, Errno, Ino};
use zerocopy::{FromBytes, IntoBytes, little_endian as le};

const DONE: u8 = 1;
const ATTR: u8 = 2;
const ENTRY: u8 = 3;
const CREATED: u8 = 4;
const REMOVED: u8 = 5;
const RENAMED: u8 = 6;
const OPENED: u8 = 7;
const COUNT: u8 = 8;
const FAILED: u8 = 9;
const EXISTED: u8 = 1;
const HAS_HANDLE: u8 = 2;

/// Appends a reply. Replies of operations that only read have no encoding: they run again.
pub(crate) fn encode(outcome: Result<&Reply, Errno>, out: &mut Vec<u8>) {
    let head = |out: &mut Vec<u8>, tag, flags| out.extend_from_slice(&[tag, flags, 0, 0, 0, 0, 0, 0]);
    let int = |out: &mut Vec<u8>, v: u64| out.extend_from_slice(&v.to_le_bytes());
    let reply = match outcome {
        Ok(reply) => reply,
        Err(e) => {
            head(out, FAILED, 0);
            return int(out, u64::from(e.0));
        }
    };
    match reply {
        Reply::Attr(a) | Reply::Entry(a) => {
            head(out, if matches!(reply, Reply::Attr(_)) { ATTR } else { ENTRY }, 0);
            out.extend_from_slice(a.as_bytes());
        }
        Reply::Created { attr, handle, existed } => {
            let flags = if *existed { EXISTED } else { 0 } | if handle.is_some() { HAS_HANDLE } else { 0 };
            head(out, CREATED, flags);
            int(out, handle.unwrap_or(0));
            out.extend_from_slice(attr.as_bytes());
        }
        Reply::Removed { ino, nlink } => {
            head(out, REMOVED, 0);
            int(out, ino.0);
            int(out, u64::from(*nlink));
        }
        Reply::Renamed { moved, replaced } => {
            head(out, RENAMED, 0);
            int(out, moved.0);
            int(out, replaced.map_or(0, |i| i.0));
        }
        Reply::Opened { attr, handle } => {
            head(out, OPENED, 0);
            int(out, *handle);
            out.extend_from_slice(attr.as_bytes());
        }
        Reply::Count(n) => {
            head(out, COUNT, 0);
            int(out, *n);
        }
        Reply::Done | Reply::DirPage { .. } | Reply::Bytes(_) | Reply::StatFs(_) => head(out, DONE, 0),
    }
}

/// Decodes a stored reply.
pub(crate) fn decode(bytes: &[u8]) -> Result<Outcome, &'static str> {
    let (head, rest) = bytes.split_at_checked(8).ok_or("stored reply is too short")?;
    if head[2..] != [0; 6] || head[1] > (EXISTED | HAS_HANDLE) {
        return Err("stored reply has unknown flags");
    }
    let attr = |b: &[u8]| -> Result<Attr, &'static str> {
        let a = Attr::read_from_bytes(b).map_err(|_| "attributes of a stored reply have a wrong length")?;
        a.validate().map(|()| a)
    };
    let int = |b: &[u8], n: usize| -> Result<u64, &'static str> {
        let b = b.get(n * 8..n * 8 + 8).ok_or("stored reply is too short")?;
        Ok(le::U64::read_from_bytes(b).map_err(|_| "stored reply is too short")?.get())
    };
    let after = |n: usize| rest.get(n * 8..).unwrap_or_default();
    let reply = match head[0] {
        DONE if rest.is_empty() => Reply::Done,
        ATTR => Reply::Attr(attr(rest)?),
        ENTRY => Reply::Entry(attr(rest)?),
        CREATED => {
            let handle = int(rest, 0)?;
            let handle = (head[1] & HAS_HANDLE != 0).then_some(handle);
            Reply::Created { attr: attr(after(1))?, handle, existed: head[1] & EXISTED != 0 }
        }
        REMOVED if rest.len() == 16 => {
            let nlink = u32::try_from(int(rest, 1)?).map_err(|_| "link count of a stored reply")?;
            Reply::Removed { ino: Ino(int(rest, 0)?), nlink }
        }
        RENAMED if rest.len() == 16 => {
            let replaced = int(rest, 1)?;
            Reply::Renamed { moved: Ino(int(rest, 0)?), replaced: (replaced != 0).then_some(Ino(replaced)) }
        }
        COUNT if rest.len() == 8 => Reply::Count(int(rest, 0)?),
        FAILED if rest.len() == 8 => {
            let errno = u16::try_from(int(rest, 0)?).ok().filter(|e| (1..4096).contains(e));
            return Ok(Err(Errno(errno.ok_or("error of a stored reply")?)));
        }
        OPENED => Reply::Opened { handle: int(rest, 0)?, attr: attr(after(1))? },
        _ => return Err("stored reply of unknown kind or length"),
    };
    Ok(Ok(reply))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::InodeRow;
    use proptest::prelude::*;
    use wire::Timestamp;

    #[test]
    fn come_back() {
        let attr = InodeRow::new(0o100_600, 1, 2, Timestamp::new(3, 4)).attr(Ino(5));
        for r in [
            Reply::Done,
            Reply::Attr(attr),
            Reply::Entry(attr),
            Reply::Created { attr, handle: Some(9), existed: true },
            Reply::Created { attr, handle: None, existed: false },
            Reply::Removed { ino: Ino(7), nlink: 2 },
            Reply::Renamed { moved: Ino(7), replaced: None },
            Reply::Renamed { moved: Ino(7), replaced: Some(Ino(8)) },
            Reply::Opened { attr, handle: 1 },
            Reply::Count(1 << 40),
        ] {
            let mut v = Vec::new();
            encode(Ok(&r), &mut v);
            assert_eq!(decode(&v), Ok(Ok(r)));
        }
        let mut v = Vec::new();
        encode(Err(Errno::ENOSPC), &mut v);
        assert_eq!(decode(&v), Ok(Err(Errno::ENOSPC)));
    }

    proptest! {
        #[test]
        fn any_bytes(v in proptest::collection::vec(any::<u8>(), 0..200), tag in 0_u8..11) {
            let _ = decode(&v);
            let mut v = v;
            if v.len() > 8 {
                v[..8].copy_from_slice(&[tag, 0, 0, 0, 0, 0, 0, 0]);
                let _ = decode(&v);
            }
        }
    }
}
