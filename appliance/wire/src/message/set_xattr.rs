//! SetXattr (0x010E): sets an extended attribute, its value the payload; the reply is `Done`.

use crate::codec::{DecodeError, XattrName};
use crate::macros::{bits, message};
use crate::types::Ino;

bits! {
    /// setxattr(2) flags and one of FUSE.
    pub struct XattrFlags {
        /// Fail with EEXIST where it exists.
        CREATE = 1;
        /// Fail with ENODATA where it does not.
        REPLACE = 2;
        /// An access ACL set by one who is not of the group: clear set-group-ID (FUSE_SETXATTR_ACL_KILL_SGID).
        ACL_KILL_SGID = 4;
    }
}

message! {
    /// Sets an extended attribute.
    pub struct SetXattr<'a>: 12 {
        /// The inode.
        ino: Ino,
        /// How.
        flags: XattrFlags,
    }
    tail {
        /// Full name, such as `user.comment`.
        name: &'a [u8] = XattrName,
    }
    check check;
}

impl SetXattr<'_> {
    fn check(&self) -> Result<(), DecodeError> {
        if self.flags.has(XattrFlags::CREATE | XattrFlags::REPLACE) {
            return Err(DecodeError::Value("CREATE and REPLACE exclude each other"));
        }
        Ok(())
    }
}
