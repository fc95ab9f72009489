//! DirPage: the answer to ReadDir; its payload is a sequence of entries, which this file reads and writes.
//!
//! `.` and `..` are not among them: front ends that show them make them up.

use crate::codec::{DecodeError, Field, check_name, take, take_raw};
use crate::limits::MAX_NAME;
use crate::macros::message;
use crate::types::{Attr, FileKind, Grant, Ino};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

message! {
    /// Entries follow as payload.
    pub struct DirPage: 25 {
        /// No entry comes after these.
        eof: bool,
        /// What the client may cache of the directory from now on.
        dir_grant: Grant,
    }
}

/// Attributes and grant of an entry, where ReadDir asked for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plus {
    /// Attributes of the inode.
    pub attr: Attr,
    /// What the client may cache of the inode from now on.
    pub grant: Grant,
}

/// One entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Its inode.
    pub ino: Ino,
    /// Where a listing goes on after this entry; stable, never reused, not zero.
    pub cookie: u64,
    /// Kind of its inode.
    pub kind: FileKind,
    /// Its name.
    pub name: &'a [u8],
    /// Attributes, where asked for.
    pub plus: Option<Plus>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    ino: le::U64,
    cookie: le::U64,
    name_len: le::U16,
    kind: u8,
    plus: u8,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPlus {
    attr: Attr,
    grant: Grant,
}

/// Bytes of the longest entry in a payload.
pub const MAX_DIR_ENTRY: usize = size_of::<Raw>() + MAX_NAME + size_of::<RawPlus>();

const _: () = assert!(size_of::<Raw>() == 20 && size_of::<RawPlus>() == 160);

impl DirEntry<'_> {
    /// Bytes that it takes in a payload.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        size_of::<Raw>() + self.name.len() + if self.plus.is_some() { size_of::<RawPlus>() } else { 0 }
    }
}

/// Fills a payload with entries.
#[derive(Debug)]
pub struct DirWriter<'a> {
    out: &'a mut [u8],
    len: usize,
}

impl<'a> DirWriter<'a> {
    /// Writes into `out`, from its beginning.
    #[must_use]
    pub fn new(out: &'a mut [u8]) -> Self {
        Self { out, len: 0 }
    }

    /// Adds an entry; `false`, and nothing is written, where it does not fit.
    #[must_use]
    pub fn push(&mut self, entry: &DirEntry<'_>) -> bool {
        debug_assert!(check_name(entry.name).is_ok());
        let raw = Raw {
            ino: entry.ino.into(),
            cookie: entry.cookie.into(),
            name_len: (entry.name.len() as u16).into(),
            kind: entry.kind.dirent_type(),
            plus: u8::from(entry.plus.is_some()),
        };
        let Some(room) = self.out.get_mut(self.len..self.len + entry.encoded_len()) else { return false };
        let (head, rest) = room.split_at_mut(size_of::<Raw>());
        let (name, plus) = rest.split_at_mut(entry.name.len());
        head.copy_from_slice(raw.as_bytes());
        name.copy_from_slice(entry.name);
        if let Some(Plus { attr, grant }) = entry.plus {
            plus.copy_from_slice(RawPlus { attr, grant }.as_bytes());
        }
        self.len += entry.encoded_len();
        true
    }

    /// Bytes written.
    #[must_use]
    pub fn finish(self) -> usize {
        self.len
    }
}

/// The entries of a payload, in order. After an error there are no more.
#[derive(Clone, Debug)]
pub struct DirEntries<'a> {
    rest: &'a [u8],
}

impl<'a> DirEntries<'a> {
    /// Reads `payload`.
    #[must_use]
    pub fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload }
    }

    fn entry(&mut self) -> Result<DirEntry<'a>, DecodeError> {
        let raw: Raw = take_raw(&mut self.rest)?;
        let name = take(&mut self.rest, usize::from(raw.name_len.get()))?;
        check_name(name)?;
        let plus = if bool::from_raw(&raw.plus)? {
            let plus: RawPlus = take_raw(&mut self.rest)?;
            Some(Plus { attr: Attr::from_raw(&plus.attr)?, grant: Grant::from_raw(&plus.grant)? })
        } else {
            None
        };
        let kind = FileKind::from_raw(&raw.kind)?;
        Ok(DirEntry { ino: raw.ino.into(), cookie: raw.cookie.get(), kind, name, plus })
    }
}

impl<'a> Iterator for DirEntries<'a> {
    type Item = Result<DirEntry<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let entry = self.entry();
        if entry.is_err() {
            self.rest = &[];
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Name;
    use crate::sample::{Rng, Sample, SampleTail};
    use alloc::{vec, vec::Vec};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pages_read_back(seed: u64, room in 0usize..8000) {
            let mut rng = Rng(seed);
            let mut page = vec![0; room];
            let mut writer = DirWriter::new(&mut page);
            let mut written = Vec::new();
            loop {
                let plus = bool::sample(&mut rng);
                let entry = DirEntry {
                    ino: Sample::sample(&mut rng),
                    cookie: Sample::sample(&mut rng),
                    kind: Sample::sample(&mut rng),
                    name: Name::sample(&mut rng),
                    plus: plus.then(|| Plus { attr: Sample::sample(&mut rng), grant: Sample::sample(&mut rng) }),
                };
                if !writer.push(&entry) {
                    break;
                }
                written.push(Ok(entry));
            }
            let len = writer.finish();
            prop_assert_eq!(DirEntries::new(&page[..len]).collect::<Vec<_>>(), written);
        }

        #[test]
        fn garbage_ends_with_one_error(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let errors = DirEntries::new(&bytes).filter(Result::is_err).count();
            prop_assert!(errors <= 1);
        }
    }
}
