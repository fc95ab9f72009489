//! SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR.

use super::Result;
use crate::abi::flags::SETXATTR_ACL_KILL_SGID;
use crate::abi::reply::GetxattrOut;
use crate::abi::request::{SetxattrIn, SetxattrInExt};
use crate::reply::{Answer, Reply};
use crate::session::{Rq, Session};
use client::FileService;
use client::service::XattrFlags;
use hugepages::Bytes;
use wire::types::Errno;

/// A value, or its size where the caller asked with 0.
fn sized(value: Bytes, size: u32) -> std::result::Result<Answer, Errno> {
    if size == 0 {
        return Ok(Reply::XattrSize(GetxattrOut { size: value.len() as u32, padding: 0 }).into());
    }
    if value.len() > size as usize { Err(Errno::ERANGE) } else { Ok(Reply::Bytes(value).into()) }
}

/// Flags of setxattr(2) that exclude each other.
const BOTH: u32 = (libc::XATTR_CREATE | libc::XATTR_REPLACE) as u32;

/// Names as others than the superuser see them, xattr(7).
fn without_trusted(names: Bytes) -> Bytes {
    let hidden = |name: &&[u8]| name.starts_with(b"trusted.");
    if !names.split_inclusive(|&b| b == 0).any(|name| hidden(&name)) {
        return names;
    }
    let seen: Vec<&[u8]> = names.split_inclusive(|&b| b == 0).filter(|name| !hidden(name)).collect();
    Bytes::copy_of(&seen.concat())
}

impl<S: FileService> Session<S> {
    pub(super) async fn setxattr(
        &self,
        rq: &Rq,
        arg: &SetxattrIn,
        ext: &SetxattrInExt,
        name: &[u8],
        value: &[u8],
    ) -> Result {
        if arg.flags & BOTH == BOTH {
            // Only one of them can be met; which one is not depends on whether there is a value.
            return match self.service.getxattr(&rq.ctx, rq.ino, name).await {
                Ok(_) => Err(Errno::EEXIST),
                Err(e) => Err(e),
            };
        }
        let flags = XattrFlags {
            create: arg.flags & libc::XATTR_CREATE as u32 != 0,
            replace: arg.flags & libc::XATTR_REPLACE as u32 != 0,
            kill_sgid: ext.setxattr_flags & SETXATTR_ACL_KILL_SGID != 0,
        };
        self.service.setxattr(&rq.ctx, rq.ino, name, Bytes::copy_of(value), flags).await?;
        Ok(Reply::Empty.into())
    }

    pub(super) async fn getxattr(&self, rq: &Rq, size: u32, name: &[u8]) -> Result {
        match self.service.getxattr(&rq.ctx, rq.ino, name).await {
            Err(Errno::ESTALE) if self.departed.has(rq.ino) => Err(Errno::ENODATA),
            value => sized(value?, size),
        }
    }

    pub(super) async fn listxattr(&self, rq: &Rq, size: u32) -> Result {
        let names = match self.service.listxattr(&rq.ctx, rq.ino).await {
            Err(Errno::ESTALE) if self.departed.has(rq.ino) => Bytes::new(),
            names => names?,
        };
        sized(if rq.ctx.uid == 0 { names } else { without_trusted(names) }, size)
    }

    pub(super) async fn removexattr(&self, rq: &Rq, name: &[u8]) -> Result {
        self.service.removexattr(&rq.ctx, rq.ino, name).await?;
        Ok(Reply::Empty.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trusted_names_are_for_the_superuser() {
        let names = |bytes: &'static [u8]| Bytes::from_static(bytes);
        assert_eq!(&without_trusted(names(b"user.a\0trusted.b\0user.c\0"))[..], b"user.a\0user.c\0");
        assert_eq!(&without_trusted(names(b"trusted.b\0"))[..], b"");
        assert_eq!(&without_trusted(names(b"user.trusted.b\0"))[..], b"user.trusted.b\0");
    }
}
