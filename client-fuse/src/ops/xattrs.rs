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

impl<S: FileService> Session<S> {
    pub(super) async fn setxattr(
        &self,
        rq: &Rq,
        arg: &SetxattrIn,
        ext: &SetxattrInExt,
        name: &[u8],
        value: &[u8],
    ) -> Result {
        let flags = XattrFlags {
            create: arg.flags & libc::XATTR_CREATE as u32 != 0,
            replace: arg.flags & libc::XATTR_REPLACE as u32 != 0,
            kill_sgid: ext.setxattr_flags & SETXATTR_ACL_KILL_SGID != 0,
        };
        self.service.setxattr(&rq.ctx, rq.ino, name, Bytes::copy_of(value), flags).await?;
        Ok(Reply::Empty.into())
    }

    pub(super) async fn getxattr(&self, rq: &Rq, size: u32, name: &[u8]) -> Result {
        sized(self.service.getxattr(&rq.ctx, rq.ino, name).await?, size)
    }

    pub(super) async fn listxattr(&self, rq: &Rq, size: u32) -> Result {
        sized(self.service.listxattr(&rq.ctx, rq.ino).await?, size)
    }

    pub(super) async fn removexattr(&self, rq: &Rq, name: &[u8]) -> Result {
        self.service.removexattr(&rq.ctx, rq.ino, name).await?;
        Ok(Reply::Empty.into())
    }
}
