//! Tests of the in-memory file system.

use super::*;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Nothing in memory waits: one poll is all.
fn now<T>(f: impl Future<Output = T>) -> T {
    match pin!(f).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(v) => v,
        Poll::Pending => unreachable!("the memory service never waits"),
    }
}

fn file(mode: u32) -> Create<'static> {
    let open = Some(OpenFlags { read: true, write: true, ..OpenFlags::default() });
    Create {
        mode: FileKind::Regular as u32 | mode,
        rdev: 0,
        target: b"",
        open,
        exclusive: true,
        tmpfile: false,
    }
}

fn dir() -> Create<'static> {
    Create { mode: FileKind::Directory as u32 | 0o755, open: None, ..file(0) }
}

#[test]
fn files_live_until_the_last_close() {
    let (fs, ctx) = (Memory::default(), Ctx::default());
    let made = now(fs.create(&ctx, ROOT_INO, b"a", file(0o644))).expect("created");
    let (ino, (h, _)) = (made.entry.attr.ino(), made.opened.expect("opened"));
    now(fs.write(&ctx, ino, h, 3, Bytes::from_static(b"xyz"), WriteFlags::default())).expect("written");
    now(fs.append(&ctx, ino, h, Bytes::from_static(b"!"), WriteFlags::default())).expect("appended");
    assert_eq!(now(fs.create(&ctx, ROOT_INO, b"a", file(0))).map(|_| ()), Err(Errno::EEXIST));
    now(fs.unlink(&ctx, ROOT_INO, b"a")).expect("unlinked");
    assert_eq!(now(fs.read(&ctx, ino, h, 0, 100)).expect("read").to_vec(), b"\0\0\0xyz!");
    now(fs.close(&ctx, ino, h, None)).expect("closed");
    assert_eq!(now(fs.getattr(&ctx, ino)).map(|_| ()), Err(Errno::ESTALE));
    assert_eq!(fs.inodes(), 1);
}

#[test]
fn renames_keep_links_right() {
    let (fs, ctx) = (Memory::default(), Ctx::default());
    let a = now(fs.create(&ctx, ROOT_INO, b"a", dir())).expect("a").entry.attr.ino();
    let b = now(fs.create(&ctx, a, b"b", dir())).expect("b").entry.attr.ino();
    let rename = |d, n: &'static [u8], nd, nn: &'static [u8], m| now(fs.rename(&ctx, d, n, nd, nn, m));
    assert_eq!(rename(ROOT_INO, b"a", b, b"x", RenameMode::Replace), Err(Errno::EINVAL));
    rename(a, b"b", ROOT_INO, b"c", RenameMode::Replace).expect("moved");
    let links = |ino| now(fs.getattr(&ctx, ino)).expect("attr").attr.nlink.get();
    assert_eq!((links(ROOT_INO), links(a), links(b)), (4, 2, 2));
    assert_eq!(rename(ROOT_INO, b"a", ROOT_INO, b"c", RenameMode::NoReplace), Err(Errno::EEXIST));
    rename(ROOT_INO, b"a", ROOT_INO, b"c", RenameMode::Replace).expect("replaced");
    assert_eq!(links(ROOT_INO), 3);
    assert_eq!(now(fs.unlink(&ctx, ROOT_INO, b"c")), Err(Errno::EISDIR));
    now(fs.rmdir(&ctx, ROOT_INO, b"c")).expect("removed");
    assert_eq!(links(ROOT_INO), 2);
}

#[test]
fn pages_of_a_directory_hold_each_name_once() {
    let (fs, ctx) = (Memory::default(), Ctx::default());
    for i in 0..100 {
        let name = format!("n{i}");
        now(fs.create(&ctx, ROOT_INO, name.as_bytes(), Create { open: None, ..file(0) })).expect("created");
    }
    let (mut cookie, mut seen) = (0, Vec::new());
    loop {
        let page = now(fs.readdir(&ctx, ROOT_INO, cookie, 200, true)).expect("page");
        for e in &page.entries {
            cookie = e.cookie;
            seen.push(e.name.to_vec());
        }
        if page.eof {
            break;
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 100);
}
