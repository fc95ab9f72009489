//! Operations on inodes and handles: attributes, open and close, durability, extended attributes, totals.

use crate::core::{Core, cred};
use crate::hold::Hold;
use crate::opens::{MAX_HANDLES, wire_flags};
use crate::rpc::Outgoing;
use crate::service::{
    Attrs, Ctx, Handle, Ino, LockOwner, OpenFlags, Opened, Result, SetAttr, StatFs, XattrFlags,
};
use crate::stats::Op;
use hugepages::Bytes;
use wire::limits::MAX_XATTR_NAME;
use wire::message;
use wire::types::{Attr, Errno, LockSpace};

fn check_xattr(name: &[u8]) -> Result<()> {
    if name.is_empty() || name.len() > MAX_XATTR_NAME {
        return Err(Errno::ERANGE);
    }
    if name.contains(&0) { Err(Errno::EINVAL) } else { Ok(()) }
}

impl Core {
    pub(crate) async fn getattr(&self, ctx: &Ctx, ino: Ino) -> Result<Attrs> {
        let (attr, cover, cached) = self.fresh_attr(ctx, ino).await?;
        if cached {
            self.stats.cached(Op::GetAttr);
        }
        Ok(self.attrs(attr, cover))
    }

    pub(crate) async fn setattr(
        &self,
        ctx: &Ctx,
        ino: Ino,
        handle: Option<Handle>,
        set: SetAttr,
    ) -> Result<Attrs> {
        let busy = handle.map(|h| self.handle(ino, h)).transpose()?;
        let since = self.table.borrow().since(ino);
        let reply = self.ask(ctx, Outgoing::new(message::SetAttr { ino, set, cred: cred(ctx) })).await?;
        let got = self.decode::<message::SetAttr>(&reply)?;
        let cover = self.learn_change(&got.attr, since, &got.grant);
        if let Some((open, _busy)) = busy {
            open.object.set(got.attr.object());
        }
        Ok(self.attrs(got.attr, cover))
    }

    pub(crate) async fn readlink(&self, ctx: &Ctx, ino: Ino) -> Result<Bytes> {
        Ok(self.ask(ctx, Outgoing::new(message::ReadLink { ino })).await?.payload)
    }

    pub(crate) async fn open(&self, ctx: &Ctx, ino: Ino, flags: OpenFlags) -> Result<Opened> {
        if self.opens.borrow().len() >= MAX_HANDLES {
            return Err(Errno::ENFILE);
        }
        let since = self.table.borrow().since(ino);
        let request = message::Open { ino, flags: wire_flags(flags, false), cred: cred(ctx) };
        let reply = self.ask(ctx, Outgoing::new(request)).await?;
        let got = self.decode::<message::Open>(&reply)?;
        let cover = self.learn_change(&got.attr, since, &got.grant);
        let (handle, io) = self.keep_open(ctx, &got.attr, flags, got.handle, got.io_mode);
        Ok(Opened { handle, io, attrs: self.attrs(got.attr, cover) })
    }

    /// The handle is gone at once; the server hears of it after what was begun on it.
    pub(crate) async fn close(
        &self,
        ctx: &Ctx,
        ino: Ino,
        handle: Handle,
        flock_owner: Option<LockOwner>,
    ) -> Result<()> {
        let open = self.opens.borrow_mut().remove(ino, handle)?;
        open.closed.set(true);
        open.busy.drained().await;
        self.table.borrow_mut().opened(ino, -1, open.flags.write);
        // Sent in any case: one that dies can't be asked to close again.
        let ctx = Ctx { cancel: crate::CancelToken::never(), ..ctx.clone() };
        if let Some(owner) = flock_owner {
            self.release_owner(&ctx, ino, LockSpace::Flock, owner).await?;
        }
        let remote = open.remote.replace(0);
        if remote != 0 {
            self.ask(&ctx, Outgoing::new(message::Close { ino, handle: remote })).await?;
        }
        Ok(())
    }

    pub(crate) async fn fsync(&self, ctx: &Ctx, ino: Ino, data_only: bool) -> Result<()> {
        self.ask(ctx, Outgoing::new(message::Commit { ino, data_only })).await?;
        Ok(())
    }

    pub(crate) async fn getxattr(&self, ctx: &Ctx, ino: Ino, name: &[u8]) -> Result<Bytes> {
        check_xattr(name)?;
        if self.has_no_xattrs(ino) {
            return Err(Errno::ENODATA);
        }
        Ok(self.ask(ctx, Outgoing::new(message::GetXattr { ino, name })).await?.payload)
    }

    /// Known under a lease: the kernel asks for `security.capability` before the first write to each file.
    fn has_no_xattrs(&self, ino: Ino) -> bool {
        let attr = self.table.borrow_mut().attr(ino);
        let none = attr.is_some_and(|a| a.flags.get() & Attr::FLAG_NO_XATTRS != 0);
        if none {
            self.stats.cached(Op::Xattr);
        }
        none
    }

    pub(crate) async fn setxattr(
        &self,
        ctx: &Ctx,
        ino: Ino,
        name: &[u8],
        value: Bytes,
        f: XattrFlags,
    ) -> Result<()> {
        use message::XattrFlags as W;
        check_xattr(name)?;
        if value.len() > wire::limits::MAX_XATTR_VALUE {
            return Err(Errno::E2BIG);
        }
        let mut flags = W::none();
        for (on, flag) in [(f.create, W::CREATE), (f.replace, W::REPLACE), (f.kill_sgid, W::ACL_KILL_SGID)] {
            flags = if on { flags | flag } else { flags };
        }
        let mut out = Outgoing::new(message::SetXattr { ino, flags, name });
        out.payload = Some(value);
        let result = self.ask(ctx, out).await;
        // An ACL changes the mode, anything the change time.
        self.table.borrow_mut().forget_attr(ino);
        result.map(|_| ())
    }

    pub(crate) async fn listxattr(&self, ctx: &Ctx, ino: Ino) -> Result<Bytes> {
        if self.has_no_xattrs(ino) {
            return Ok(Bytes::new());
        }
        Ok(self.ask(ctx, Outgoing::new(message::ListXattr { ino })).await?.payload)
    }

    pub(crate) async fn removexattr(&self, ctx: &Ctx, ino: Ino, name: &[u8]) -> Result<()> {
        check_xattr(name)?;
        let result = self.ask(ctx, Outgoing::new(message::RemoveXattr { ino, name })).await;
        self.table.borrow_mut().forget_attr(ino);
        result.map(|_| ())
    }

    pub(crate) async fn statfs(&self, ctx: &Ctx) -> Result<StatFs> {
        let reply = self.ask(ctx, Outgoing::new(message::StatFs {})).await?;
        Ok(self.decode::<message::StatFs>(&reply)?.stat)
    }

    /// Proof that an operation is under way.
    pub(crate) fn busy(&self) -> Hold {
        Hold::new(Some(std::rc::Rc::clone(&self.busy)), None)
    }
}
