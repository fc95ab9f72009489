//! Packs READDIR and READDIRPLUS replies: records padded to 8 bytes, never beyond what the kernel asked for.

use super::reply::{Dirent, EntryOut};
use zerocopy::IntoBytes;

/// One page of a directory in the making.
pub struct DirPacker {
    out: Vec<u8>,
    limit: usize,
    plus: bool,
}

/// A name as it goes into a page.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// Inode number shown to the reader.
    pub ino: u64,
    /// Cookie that goes on after this name.
    pub next: u64,
    /// `d_type`.
    pub kind: u8,
    /// The name.
    pub name: &'a [u8],
}

impl DirPacker {
    /// A page of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize, plus: bool) -> Self {
        // A page usually fills in small directories' case only in part: grow as needed, never beyond the limit.
        Self { out: Vec::with_capacity(limit.min(4096)), limit, plus }
    }

    fn padded(&self, name: &[u8]) -> usize {
        let head = size_of::<Dirent>() + if self.plus { size_of::<EntryOut>() } else { 0 };
        (head + name.len()).next_multiple_of(8)
    }

    /// Whether a record of this name still fits.
    #[must_use]
    pub fn has_room(&self, name: &[u8]) -> bool {
        self.out.len() + self.padded(name) <= self.limit
    }

    /// Appends a record; `false` and unchanged where it does not fit. `entry` counts only in a READDIRPLUS page.
    pub fn push(&mut self, dirent: &DirEntry<'_>, entry: &EntryOut) -> bool {
        if !self.has_room(dirent.name) {
            return false;
        }
        let end = self.out.len() + self.padded(dirent.name);
        if self.plus {
            self.out.extend_from_slice(entry.as_bytes());
        }
        let raw = Dirent {
            ino: dirent.ino,
            off: dirent.next,
            namelen: dirent.name.len() as u32,
            kind: u32::from(dirent.kind),
        };
        self.out.extend_from_slice(raw.as_bytes());
        self.out.extend_from_slice(dirent.name);
        self.out.resize(end, 0);
        true
    }

    /// Whether nothing has been packed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// The page.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pages_keep_their_limit_and_records_are_aligned(
            limit in 0usize..2000,
            plus in any::<bool>(),
            names in prop::collection::vec(prop::collection::vec(1u8..255, 1..255), 0..20),
        ) {
            let mut page = DirPacker::new(limit, plus);
            let mut fitted = Vec::new();
            for (i, name) in names.iter().enumerate() {
                let entry = DirEntry { ino: i as u64 + 2, next: i as u64 + 1, kind: 8, name };
                if !page.push(&entry, &EntryOut::default()) {
                    break;
                }
                fitted.push(name.clone());
            }
            let bytes = page.into_bytes();
            prop_assert!(bytes.len() <= limit && bytes.len().is_multiple_of(8));
            let skip = if plus { size_of::<EntryOut>() } else { 0 };
            let mut at = 0;
            for (i, name) in fitted.iter().enumerate() {
                let head = Dirent::read(&bytes[at + skip..]);
                prop_assert_eq!((head.ino, head.off, head.namelen as usize), (i as u64 + 2, i as u64 + 1, name.len()));
                let from = at + skip + size_of::<Dirent>();
                prop_assert_eq!(&bytes[from..from + name.len()], &name[..]);
                at = (from + name.len()).next_multiple_of(8);
            }
            prop_assert_eq!(at, bytes.len());
        }
    }

    impl Dirent {
        fn read(bytes: &[u8]) -> Self {
            <Self as zerocopy::FromBytes>::read_from_prefix(bytes).expect("a whole record").0
        }
    }
}
