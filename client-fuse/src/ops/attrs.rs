//! GETATTR, STATX, SETATTR, STATFS.

use super::Result;
use crate::abi::flags::fattr;
use crate::abi::request::SetattrIn;
use crate::convert;
use crate::reply::Reply;
use crate::session::{Rq, Session};
use client::FileService;
use client::service::Handle;

impl<S: FileService> Session<S> {
    pub(super) async fn getattr(&self, rq: &Rq) -> Result {
        let got = self.service.getattr(&rq.ctx, rq.ino).await?;
        Ok(Reply::Attr(convert::attr_out(&got.attr, self.nodes.ttl(rq.ino, got.ttl))).held(got.hold))
    }

    pub(super) async fn statx(&self, rq: &Rq) -> Result {
        let got = self.service.getattr(&rq.ctx, rq.ino).await?;
        Ok(Reply::Statx(convert::statx_out(&got.attr, self.nodes.ttl(rq.ino, got.ttl))).held(got.hold))
    }

    pub(super) async fn setattr(&self, rq: &Rq, arg: &SetattrIn) -> Result {
        let handle = (arg.valid & fattr::FH != 0).then_some(Handle(arg.fh));
        let got = self.service.setattr(&rq.ctx, rq.ino, handle, convert::set_attr(arg)).await?;
        Ok(Reply::Attr(convert::attr_out(&got.attr, self.nodes.ttl(rq.ino, got.ttl))).held(got.hold))
    }

    pub(super) async fn statfs(&self, rq: &Rq) -> Result {
        let totals = self.service.statfs(&rq.ctx).await?;
        Ok(Reply::Statfs(convert::statfs_out(&totals)).into())
    }
}
