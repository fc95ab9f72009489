//! Create (0x0105): makes an inode of any kind and, if asked, opens it; the reply is `Created`.

use super::{Cred, OpenFlags};
use crate::codec::{DecodeError, NameOrNone, TargetOrNone};
use crate::macros::{bits, message};
use crate::types::{FileKind, Ino};

bits! {
    /// How to create.
    pub struct CreateFlags {
        /// Open the file, too.
        OPEN = 1;
        /// Fail with EEXIST where the name exists; without it an existing regular file is opened.
        EXCL = 2;
        /// No name: a file that vanishes when closed unless it is linked (O_TMPFILE).
        TMPFILE = 4;
    }
}

message! {
    /// Makes an inode of any kind and, if asked, opens it.
    pub struct Create<'a>: 36 {
        /// The directory.
        dir: Ino,
        /// Kind and permission bits, before `umask`.
        mode: u32,
        /// Of the process; not applied where the directory has a default ACL.
        umask: u32,
        /// Device number of a device node (the kernel's 32-bit form), else 0.
        rdev: u32,
        /// Who asks; decides ownership and what privileges a change of contents takes away.
        cred: Cred,
        /// How to create.
        flags: CreateFlags,
        /// How to open it, with [`CreateFlags::OPEN`].
        open_flags: OpenFlags,
    }
    tail {
        /// Name in `dir`; empty with [`CreateFlags::TMPFILE`].
        name: &'a [u8] = NameOrNone,
        /// Target of a symbolic link, else empty.
        target: &'a [u8] = TargetOrNone,
    }
    check check;
}

impl Create<'_> {
    fn check(&self) -> Result<(), DecodeError> {
        let Some(kind) = FileKind::from_mode(self.mode) else {
            return Err(DecodeError::Value("mode names no kind of file"));
        };
        if self.name.is_empty() != self.flags.has(CreateFlags::TMPFILE) {
            return Err(DecodeError::Value("a name is missing, or there is one with TMPFILE"));
        }
        if self.target.is_empty() == (kind == FileKind::Symlink) {
            return Err(DecodeError::Value("a target is missing, or there is one without a symbolic link"));
        }
        if self.mode & !0o177_777 != 0 || self.umask & !0o777 != 0 {
            return Err(DecodeError::Value("mode or umask has unknown bits"));
        }
        Ok(())
    }
}
