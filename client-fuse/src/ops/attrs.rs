//! GETATTR, STATX, SETATTR, STATFS.

use super::Result;
use crate::abi::flags::fattr;
use crate::abi::request::SetattrIn;
use crate::convert;
use crate::reply::Reply;
use crate::session::{Rq, Session};
use client::service::{Attr, Errno, Handle};
use client::{FileService, Hold};
use std::time::Duration;

impl<S: FileService> Session<S> {
    pub(super) async fn getattr(&self, rq: &Rq) -> Result {
        let (attr, ttl, hold) = self.attr_of(rq).await?;
        Ok(Reply::Attr(convert::attr_out(&attr, ttl)).held(hold))
    }

    /// Attributes with their lifetime; the last ones of an inode that is gone while the kernel holds it.
    async fn attr_of(&self, rq: &Rq) -> std::result::Result<(Attr, Duration, Hold), Errno> {
        match self.service.getattr(&rq.ctx, rq.ino).await {
            Ok(got) => {
                self.departed.note(&got.attr);
                Ok((got.attr, self.nodes.ttl(rq.ino, got.ttl), got.hold))
            }
            Err(Errno::ESTALE) => {
                let last = self.departed.last(rq.ino).ok_or(Errno::ESTALE)?;
                Ok((last, Duration::ZERO, Hold::none()))
            }
            Err(e) => Err(e),
        }
    }

    pub(super) async fn statx(&self, rq: &Rq) -> Result {
        let (attr, ttl, hold) = self.attr_of(rq).await?;
        Ok(Reply::Statx(convert::statx_out(&attr, ttl)).held(hold))
    }

    pub(super) async fn setattr(&self, rq: &Rq, arg: &SetattrIn) -> Result {
        let handle = (arg.valid & fattr::FH != 0).then_some(Handle(arg.fh));
        let got = self.service.setattr(&rq.ctx, rq.ino, handle, convert::set_attr(arg)).await?;
        self.departed.note(&got.attr);
        Ok(Reply::Attr(convert::attr_out(&got.attr, self.nodes.ttl(rq.ino, got.ttl))).held(got.hold))
    }

    pub(super) async fn statfs(&self, rq: &Rq) -> Result {
        let totals = self.service.statfs(&rq.ctx).await?;
        Ok(Reply::Statfs(convert::statfs_out(&totals)).into())
    }
}
