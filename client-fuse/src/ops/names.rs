//! LOOKUP, READLINK, creations of every kind, UNLINK, RMDIR, RENAME, LINK.

use super::Result;
use crate::abi::ROOT_NODE;
use crate::abi::flags::OPEN_KILL_SUIDGID;
use crate::abi::reply::{CreateOut, EntryOut, OpenOut};
use crate::abi::request::{CreateIn, MkdirIn, MknodIn};
use crate::convert;
use crate::reply::Reply;
use crate::session::{Rq, Session};
use client::FileService;
use client::service::{Attr, Create, Entry, FileKind, Found, RenameMode};
use std::time::Duration;
use wire::types::Errno;

impl<S: FileService> Session<S> {
    /// A name's reply. The inode of a directory may be known to the kernel at another place: see [`crate::nodes`].
    pub(super) fn entry_out(
        &self,
        parent: u64,
        name: &[u8],
        attr: &Attr,
        attr_ttl: Duration,
        entry_ttl: Duration,
    ) -> Option<EntryOut> {
        let is_dir = attr.kind() == Some(FileKind::Directory);
        let entered = self.nodes.enter(attr.ino(), is_dir, parent, name)?;
        self.departed.note(attr);
        if !entered.outdated.is_empty() {
            self.notifier.drop_entries(entered.outdated);
            self.service.uncache(attr.ino());
        }
        let attr_ttl = self.nodes.ttl(attr.ino(), attr_ttl);
        let entry_ttl = self.nodes.ttl(self.nodes.ino(parent), entry_ttl);
        Some(convert::entry_out(entered.node, attr, attr_ttl, entry_ttl))
    }

    fn named(&self, rq: &Rq, name: &[u8], e: &Entry) -> std::result::Result<EntryOut, Errno> {
        self.entry_out(rq.node, name, &e.attr, e.attr_ttl, e.entry_ttl).ok_or(Errno::ESTALE)
    }

    fn entry(&self, rq: &Rq, name: &[u8], entry: Entry) -> Result {
        let out = self.named(rq, name, &entry)?;
        Ok(Reply::Entry(out).held(entry.hold))
    }

    pub(super) async fn lookup(&self, rq: &Rq, name: &[u8]) -> Result {
        // "." and ".." come from opened file handles (EXPORT_SUPPORT). The mount's root has no parent in the mount.
        if name == b"." || (name == b".." && rq.node == ROOT_NODE) {
            let got = self.service.getattr(&rq.ctx, rq.ino).await?;
            if got.attr.kind() == Some(FileKind::Directory) {
                self.nodes.enter_again(rq.node);
            }
            let ttl = self.nodes.ttl(rq.ino, got.ttl);
            let out = convert::entry_out(rq.node, &got.attr, ttl, Duration::ZERO);
            return Ok(Reply::Entry(out).held(got.hold));
        }
        match self.service.lookup(&rq.ctx, rq.ino, name).await? {
            Found::Entry(entry) => self.entry(rq, name, entry),
            Found::Absent { entry_ttl, .. } if entry_ttl.is_zero() => Err(Errno::ENOENT),
            Found::Absent { entry_ttl, hold } => {
                let ttl = self.nodes.ttl(rq.ino, entry_ttl.min(convert::ENTRY_TTL_MAX));
                let out = EntryOut {
                    entry_valid: ttl.as_secs(),
                    entry_valid_nsec: ttl.subsec_nanos(),
                    ..EntryOut::default()
                };
                Ok(Reply::Entry(out).held(hold))
            }
        }
    }

    pub(super) async fn readlink(&self, rq: &Rq) -> Result {
        Ok(Reply::Bytes(self.service.readlink(&rq.ctx, rq.ino).await?).into())
    }

    async fn make(&self, rq: &Rq, name: &[u8], create: Create<'_>) -> Result {
        let made = self.service.create(&rq.ctx, rq.ino, name, create).await?;
        self.entry(rq, name, made.entry)
    }

    pub(super) async fn symlink(&self, rq: &Rq, name: &[u8], target: &[u8]) -> Result {
        let mode = FileKind::Symlink as u32 | 0o777;
        let create = Create { mode, rdev: 0, target, open: None, exclusive: true, tmpfile: false };
        self.make(rq, name, create).await
    }

    pub(super) async fn mknod(&self, rq: &mut Rq, arg: &MknodIn, name: &[u8]) -> Result {
        rq.ctx.umask = arg.umask;
        let kind = match arg.mode & libc::S_IFMT {
            0 => FileKind::Regular,
            _ => FileKind::from_mode(arg.mode).ok_or(Errno::EINVAL)?,
        };
        let mode = kind as u32 | (arg.mode & 0o7777);
        let create =
            Create { mode, rdev: arg.rdev, target: b"", open: None, exclusive: true, tmpfile: false };
        self.make(rq, name, create).await
    }

    pub(super) async fn mkdir(&self, rq: &mut Rq, arg: &MkdirIn, name: &[u8]) -> Result {
        rq.ctx.umask = arg.umask;
        let mode = FileKind::Directory as u32 | (arg.mode & 0o7777);
        let create = Create { mode, rdev: 0, target: b"", open: None, exclusive: true, tmpfile: false };
        self.make(rq, name, create).await
    }

    /// CREATE, and TMPFILE where there is no name.
    pub(super) async fn create(&self, rq: &mut Rq, arg: &CreateIn, name: Option<&[u8]>) -> Result {
        rq.ctx.umask = arg.umask;
        let kill = arg.open_flags & OPEN_KILL_SUIDGID != 0;
        let create = Create {
            mode: FileKind::Regular as u32 | (arg.mode & 0o7777),
            rdev: 0,
            target: b"",
            open: Some(convert::open_flags(arg.flags, kill)),
            exclusive: convert::has_flag(arg.flags, libc::O_EXCL),
            tmpfile: name.is_none(),
        };
        let made = self.service.create(&rq.ctx, rq.ino, name.unwrap_or_default(), create).await?;
        let (handle, io) = made.opened.ok_or(Errno::EIO)?;
        let open_flags = convert::fopen_flags(arg.flags, io);
        self.note_handle(handle, open_flags);
        let entry = self.named(rq, name.unwrap_or_default(), &made.entry)?;
        let open = OpenOut { fh: handle.0, open_flags, backing_id: 0 };
        Ok(Reply::Create(CreateOut { entry, open }).held(made.entry.hold))
    }

    pub(super) async fn unlink(&self, rq: &Rq, name: &[u8]) -> Result {
        self.service.unlink(&rq.ctx, rq.ino, name).await?;
        Ok(Reply::Empty.into())
    }

    pub(super) async fn rmdir(&self, rq: &Rq, name: &[u8]) -> Result {
        self.service.rmdir(&rq.ctx, rq.ino, name).await?;
        Ok(Reply::Empty.into())
    }

    pub(super) async fn rename(
        &self,
        rq: &Rq,
        name: &[u8],
        newdir: u64,
        new_name: &[u8],
        flags: u32,
    ) -> Result {
        let mode = match flags {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            // RENAME_WHITEOUT is for overlayfs's upper layers.
            _ => return Err(Errno::EINVAL),
        };
        let new_dir = self.nodes.ino(newdir);
        let done = self.service.rename(&rq.ctx, rq.ino, name, new_dir, new_name, mode).await?;
        self.nodes.moved(done.moved, rq.node, newdir, new_name);
        if let Some(back) = done.replaced.filter(|_| mode == RenameMode::Exchange) {
            self.nodes.moved(back, newdir, rq.node, name);
        }
        Ok(Reply::Empty.into())
    }

    pub(super) async fn link(&self, rq: &Rq, old: u64, name: &[u8]) -> Result {
        let made = self.service.link(&rq.ctx, self.nodes.ino(old), rq.ino, name).await?;
        self.entry(rq, name, made)
    }
}
