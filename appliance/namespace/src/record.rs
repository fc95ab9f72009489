//! A log record: a sequence and the rows that it puts or deletes. Results only, so applying one twice changes nothing.
//!
//! Owns the bytes. Must not know what rows mean. The log that carries records guards them with its own checksum.

use crate::kv::{KEY_MAX, Key};
use crate::limits::{RECORD_MAX, RECORD_ROWS_MAX};

/// Number of a record: one more than that of the one before.
pub type Seq = u64;

/// Version of the encoding, the first byte of a record.
pub const VERSION: u8 = 1;
const HEAD: usize = 12;
const ROW: usize = 8;
const DELETED: u32 = u32::MAX;

/// An encoded record.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    seq: Seq,
    bytes: Vec<u8>,
}

impl core::fmt::Debug for Record {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Record")
            .field("seq", &self.seq)
            .field("rows", &self.rows().collect::<Vec<_>>())
            .finish()
    }
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bytes are no namespace record: {0}")]
pub struct BadRecord(pub &'static str);

impl Record {
    /// Encodes rows; a value of `None` deletes.
    pub(crate) fn encode<'a>(seq: Seq, rows: impl Iterator<Item = (&'a Key, Option<&'a [u8]>)>) -> Self {
        let mut bytes = vec![0; HEAD];
        let mut n = 0_u16;
        for (key, value) in rows {
            n += 1;
            bytes.extend_from_slice(&(key.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&value.map_or(DELETED, |v| v.len() as u32).to_le_bytes());
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(value.unwrap_or_default());
        }
        debug_assert!(usize::from(n) <= RECORD_ROWS_MAX && bytes.len() <= RECORD_MAX, "record of {n} rows");
        bytes[0] = VERSION;
        bytes[2..4].copy_from_slice(&n.to_le_bytes());
        bytes[4..12].copy_from_slice(&seq.to_le_bytes());
        Self { seq, bytes }
    }

    /// Takes bytes of a log after checking all of them.
    pub fn decode(bytes: Vec<u8>) -> Result<Self, BadRecord> {
        let head = bytes.get(..HEAD).ok_or(BadRecord("shorter than its head"))?;
        if head[0] != VERSION {
            return Err(BadRecord("unknown version"));
        }
        if head[1] != 0 {
            return Err(BadRecord("padding is not zero"));
        }
        if bytes.len() > RECORD_MAX {
            return Err(BadRecord("longer than a record can be"));
        }
        let n = u16::from_le_bytes([head[2], head[3]]);
        let seq = u64::from_le_bytes(head[4..12].try_into().map_err(|_| BadRecord("head"))?);
        let mut at = HEAD;
        for _ in 0..n {
            let (key, _, next) = row(&bytes, at).ok_or(BadRecord("a row runs past the end"))?;
            if !Key::raw(key).validate() {
                return Err(BadRecord("a key fits no table"));
            }
            at = next;
        }
        if at != bytes.len() {
            return Err(BadRecord("bytes after the last row"));
        }
        Ok(Self { seq, bytes })
    }

    /// Its number.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.seq
    }
    /// What goes into the log.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    /// The bytes, given away.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
    /// Keys and values; `None` deletes.
    pub fn rows(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let mut at = HEAD;
        core::iter::from_fn(move || {
            let (key, value, next) = row(&self.bytes, at)?;
            at = next;
            Some((key, value))
        })
    }
}

type Row<'a> = (&'a [u8], Option<&'a [u8]>, usize);

fn row(bytes: &[u8], at: usize) -> Option<Row<'_>> {
    let head = bytes.get(at..at + ROW)?;
    let klen = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
    let vlen = u32::from_le_bytes(head[4..].try_into().ok()?);
    if klen == 0 || klen > KEY_MAX {
        return None;
    }
    let kend = at + ROW + klen;
    let key = bytes.get(at + ROW..kend)?;
    if vlen == DELETED {
        return Some((key, None, kend));
    }
    let vend = kend.checked_add(vlen as usize)?;
    Some((key, Some(bytes.get(kend..vend)?), vend))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wire::Ino;

    #[test]
    fn comes_back() {
        let (a, b) = (Key::inode(Ino(7)), Key::dentry(Ino(7), b"name"));
        let r = Record::encode(42, [(&a, Some(&b"value"[..])), (&b, None)].into_iter());
        let back = Record::decode(r.bytes().to_vec()).expect("it was just made");
        assert_eq!(back, r);
        assert_eq!(back.seq(), 42);
        assert_eq!(
            back.rows().collect::<Vec<_>>(),
            vec![(a.bytes(), Some(&b"value"[..])), (b.bytes(), None)]
        );
    }

    proptest! {
        #[test]
        fn any_bytes_and_any_damage(
            raw in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..60, bit in 0_u8..8, cut in 0_usize..60,
        ) {
            let _ = Record::decode(raw);
            let (a, b) = (Key::inode(Ino(7)), Key::dentry(Ino(7), b"name"));
            let r = Record::encode(42, [(&a, Some(&b"value"[..])), (&b, None)].into_iter());
            let mut v = r.bytes().to_vec();
            let at = at % v.len();
            v[at] ^= 1 << bit;
            if let Ok(r) = Record::decode(v) {
                prop_assert!(r.rows().count() <= 2);
            }
            let cut = cut % r.bytes().len();
            prop_assert!(Record::decode(r.bytes()[..cut].to_vec()).is_err());
        }
    }
}
