//! OPENDIR, READDIR, READDIRPLUS.
//!
//! The kernel's offsets are the service's cookies plus 2: 0 is the start, 1 follows ".", 2 follows "..".

use super::Result;
use crate::abi::dirent::{DirEntry, DirPacker};
use crate::abi::reply::{EntryOut, OpenOut};
use crate::abi::request::ReadIn;
use crate::reply::{Answer, Reply};
use crate::session::{Rq, Session};
use client::FileService;
use client::service::FileKind;
use wire::types::Errno;

/// Offsets below this are those of the dots.
const DOTS: u64 = 2;
/// `d_ino` of ".." of a directory that was found by its handle (libfuse's FUSE_UNKNOWN_INO).
const UNKNOWN_INO: u64 = 0xFFFF_FFFF;
/// A READDIRPLUS record of a short name is some five times as large as the service's count for it.
const PLUS_FACTOR: u32 = 5;

impl<S: FileService> Session<S> {
    /// Listings are not cached, so there is nothing to open.
    pub(super) fn opendir() -> Answer {
        Reply::Open(OpenOut::default()).into()
    }

    pub(super) async fn readdir(&self, rq: &Rq, arg: &ReadIn, plus: bool) -> Result {
        let mut page = DirPacker::new(arg.size as usize, plus);
        let none = EntryOut::default();
        let kind = FileKind::Directory.dirent_type();
        let parent = self.nodes.parent(rq.node).map_or(UNKNOWN_INO, |ino| ino.0);
        for (at, ino, name) in [(0, rq.ino.0, &b"."[..]), (1, parent, b"..")] {
            if arg.offset <= at && !page.push(&DirEntry { ino, next: at + 1, kind, name }, &none) {
                return Err(Errno::EINVAL);
            }
        }
        let cookie = arg.offset.saturating_sub(DOTS);
        let max = if plus { arg.size / PLUS_FACTOR } else { arg.size };
        let got = self.service.readdir(&rq.ctx, rq.ino, cookie, max, plus).await?;
        let mut full = false;
        for e in &got.entries {
            let out =
                e.plus.as_ref().filter(|_| !full && page.has_room(&e.name)).and_then(
                    |(attr, ttl, entry_ttl)| self.entry_out(rq.node, &e.name, attr, *ttl, *entry_ttl),
                );
            let next =
                e.cookie.checked_add(DOTS).filter(|&n| n <= i64::MAX as u64).ok_or(Errno::EOVERFLOW)?;
            let dirent = DirEntry { ino: e.ino.0, next, kind: e.kind.dirent_type(), name: &e.name };
            full = full || !page.push(&dirent, out.as_ref().unwrap_or(&none));
            if e.plus.is_some() && (full || out.is_none()) {
                // The kernel does not get to know this one, so it will not forget it either.
                self.service.forget(e.ino, 1);
            }
        }
        if full && page.is_empty() {
            return Err(Errno::EINVAL);
        }
        Ok(Reply::Page(page.into_bytes()).held(got.hold))
    }
}
