//! What the kernel may still ask about inodes that are gone.
//!
//! A process can stand in a directory that was removed, or hold one, or a pipe or device without a name, open: such opens never reach the
//! server, so it frees the inode with its last name. On a local file system fstat(2) goes on answering there, with no links. So the attributes
//! that the kernel was last told are kept as long as the kernel may ask for them.
//!
//! Regular files are not kept: the server holds those that are open, and there may be very many. Must not know the device.

use client::service::{Attr, FileKind, Ino};
use rustc_hash::FxHashMap;
use std::cell::RefCell;

/// Last attributes of directories, pipes, sockets and devices that the kernel knows: some 150 bytes each.
#[derive(Debug, Default)]
pub(crate) struct Departed(RefCell<FxHashMap<Ino, Attr>>);

impl Departed {
    /// A reply is about to tell the kernel these.
    pub(crate) fn note(&self, attr: &Attr) {
        if !matches!(attr.kind(), Some(FileKind::Regular | FileKind::Symlink) | None) {
            self.0.borrow_mut().insert(attr.ino(), *attr);
        }
    }

    /// Whether the inode is kept.
    pub(crate) fn has(&self, ino: Ino) -> bool {
        self.0.borrow().contains_key(&ino)
    }

    /// What fstat(2) says of an inode that the server does not know any more.
    pub(crate) fn last(&self, ino: Ino) -> Option<Attr> {
        let mut attr = *self.0.borrow().get(&ino)?;
        attr.nlink = 0.into();
        Some(attr)
    }

    /// The kernel asks no more.
    pub(crate) fn forget(&self, ino: Ino) {
        self.0.borrow_mut().remove(&ino);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_regular_file_is_kept_until_the_kernel_forgets() {
        let kept = Departed::default();
        let attr = |ino: u64, kind: FileKind| Attr {
            ino: ino.into(),
            mode: (kind as u32 | 0o700).into(),
            nlink: 2.into(),
            ..Attr::default()
        };
        kept.note(&attr(5, FileKind::Directory));
        kept.note(&attr(6, FileKind::Regular));
        let last = kept.last(Ino(5)).expect("kept");
        assert_eq!((last.nlink.get(), last.mode.get() & 0o7777), (0, 0o700));
        assert!(kept.has(Ino(5)) && !kept.has(Ino(6)));
        kept.forget(Ino(5));
        assert!(!kept.has(Ino(5)));
    }
}
