//! A file system in memory behind [`FileService`]: the reference model of front ends' tests.
//!
//! Small and plain: no lifetimes, no locks (ENOLCK), no permission checks. Must not be used outside a front end's tests.

use crate::hold::Hold;
use crate::service::*;
use hugepages::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;
use std::time::Duration;

/// Longest name in bytes, as on Linux.
const NAME_MAX: usize = 255;
/// Longest file: contents lie in one vector each.
const FILE_MAX: u64 = 1 << 32;
const FALLOC_KEEP_SIZE: u32 = 1;
const FALLOC_PUNCH_HOLE: u32 = 2;
const FALLOC_ZERO_RANGE: u32 = 16;

#[derive(Debug, Default)]
struct Node {
    attr: Attr,
    data: Vec<u8>,
    target: Vec<u8>,
    /// Name to inode and cookie.
    names: BTreeMap<Vec<u8>, (Ino, u64)>,
    /// Cookie to name.
    cookies: BTreeMap<u64, Vec<u8>>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    parent: Ino,
    opens: u32,
}

impl Node {
    fn is_dir(&self) -> bool {
        self.attr.kind() == Some(FileKind::Directory)
    }
    fn dir(&self) -> Result<&Self> {
        if self.is_dir() { Ok(self) } else { Err(Errno::ENOTDIR) }
    }
    fn file(&mut self) -> Result<&mut Self> {
        match self.attr.kind() {
            Some(FileKind::Regular) => Ok(self),
            Some(FileKind::Directory) => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }
    fn resize(&mut self, size: u64) -> Result<()> {
        if size > FILE_MAX {
            return Err(Errno::EFBIG);
        }
        self.data.resize(size as usize, 0);
        self.attr.size = size.into();
        self.attr.blocks = (size.div_ceil(4096) * 8).into();
        Ok(())
    }
    fn put(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let end = offset.checked_add(data.len() as u64).ok_or(Errno::EFBIG)?;
        if end > self.data.len() as u64 {
            self.resize(end)?;
        }
        self.data[offset as usize..end as usize].copy_from_slice(data);
        Ok(())
    }
    /// The contents between two offsets, clipped to the file.
    fn range(&self, from: u64, to: u64) -> std::ops::Range<usize> {
        let size = self.data.len() as u64;
        from.min(size) as usize..to.min(size) as usize
    }
    fn kill_suidgid(&mut self) {
        let mut mode = self.attr.mode.get() & !0o4000;
        if mode & 0o010 != 0 {
            mode &= !0o2000;
        }
        self.attr.mode = mode.into();
    }
}

#[derive(Debug)]
struct Tree {
    nodes: BTreeMap<Ino, Node>,
    handles: BTreeMap<Handle, Ino>,
    next: u64,
    clock: i64,
}

impl Tree {
    /// A new moment, later than all before.
    fn now(&mut self) -> Timestamp {
        self.clock += 1;
        Timestamp::from_nanos(self.clock)
    }
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
    fn node(&mut self, ino: Ino) -> Result<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(Errno::ESTALE)
    }
    fn child(&mut self, dir: Ino, name: &[u8]) -> Result<Ino> {
        let node = self.node(dir)?.dir()?;
        if name == b".." {
            return Ok(node.parent);
        }
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        node.names.get(name).map(|n| n.0).ok_or(Errno::ENOENT)
    }
    /// A live directory and a name that may be made in it.
    fn free_name(&mut self, dir: Ino, name: &[u8]) -> Result<()> {
        match self.child(dir, name) {
            Ok(_) => Err(Errno::EEXIST),
            Err(Errno::ENOENT) if self.node(dir)?.attr.nlink.get() == 0 => Err(Errno::ENOENT),
            Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(e),
        }
    }
    fn changed(&mut self, ino: Ino, contents: bool) {
        let now = self.now();
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.attr.ctime = now;
            if contents {
                node.attr.mtime = now;
            }
            node.attr.change = (node.attr.change.get() + 1).into();
        }
    }
    fn links(&mut self, ino: Ino, by: i32) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.attr.nlink = node.attr.nlink.get().saturating_add_signed(by).into();
        }
    }
    fn insert(&mut self, dir: Ino, name: &[u8], ino: Ino) {
        let cookie = self.number();
        let is_dir = self.nodes.get(&ino).is_some_and(Node::is_dir);
        if let Some(node) = self.nodes.get_mut(&dir) {
            node.names.insert(name.to_vec(), (ino, cookie));
            node.cookies.insert(cookie, name.to_vec());
        }
        if is_dir {
            self.links(dir, 1);
            if let Some(node) = self.nodes.get_mut(&ino) {
                node.parent = dir;
            }
        }
        self.changed(dir, true);
    }
    fn remove(&mut self, dir: Ino, name: &[u8]) {
        let Some(node) = self.nodes.get_mut(&dir) else { return };
        let Some((ino, cookie)) = node.names.remove(name) else { return };
        node.cookies.remove(&cookie);
        if self.nodes.get(&ino).is_some_and(Node::is_dir) {
            self.links(dir, -1);
        }
        self.changed(dir, true);
    }
    /// Takes a name off an inode: directories lose both of their links.
    fn drop_link(&mut self, ino: Ino) {
        let by = if self.nodes.get(&ino).is_some_and(Node::is_dir) { -2 } else { -1 };
        self.links(ino, by);
        self.changed(ino, false);
        self.reap(ino);
    }
    fn reap(&mut self, ino: Ino) {
        if self.nodes.get(&ino).is_some_and(|n| n.attr.nlink.get() == 0 && n.opens == 0 && !n.is_dir()) {
            self.nodes.remove(&ino);
        }
    }
    fn entry(&mut self, ino: Ino) -> Result<Entry> {
        Ok(Entry {
            attr: self.node(ino)?.attr,
            attr_ttl: Duration::ZERO,
            entry_ttl: Duration::ZERO,
            hold: Hold::none(),
        })
    }
    fn attrs(&mut self, ino: Ino) -> Result<Attrs> {
        Ok(Attrs { attr: self.node(ino)?.attr, ttl: Duration::ZERO, hold: Hold::none() })
    }
    fn make(&mut self, ctx: &Ctx, dir: Ino, c: &Create<'_>) -> Result<Ino> {
        let kind = FileKind::from_mode(c.mode).ok_or(Errno::EINVAL)?;
        let (dir_mode, dir_gid) = {
            let d = self.node(dir)?;
            (d.attr.mode.get(), d.attr.gid.get())
        };
        let ino = Ino(self.number());
        let now = self.now();
        let mut mode = if kind == FileKind::Symlink { c.mode | 0o777 } else { c.mode & !ctx.umask };
        let mut gid = ctx.gid;
        if dir_mode & 0o2000 != 0 {
            gid = dir_gid;
            if kind == FileKind::Directory {
                mode |= 0o2000;
            }
        }
        let nlink = match kind {
            _ if c.tmpfile => 0,
            FileKind::Directory => 2,
            _ => 1,
        };
        let attr = Attr {
            ino: ino.into(),
            size: (c.target.len() as u64).into(),
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            mode: mode.into(),
            nlink: nlink.into(),
            uid: ctx.uid.into(),
            gid: gid.into(),
            rdev: c.rdev.into(),
            ..Attr::default()
        };
        self.nodes.insert(ino, Node { attr, target: c.target.to_vec(), parent: dir, ..Node::default() });
        Ok(ino)
    }
    fn open(&mut self, ino: Ino, flags: OpenFlags) -> Result<Handle> {
        self.node(ino)?.opens += 1;
        if flags.truncate {
            let node = self.node(ino)?;
            node.resize(0)?;
            if flags.kill_suidgid {
                node.kill_suidgid();
            }
            self.changed(ino, true);
        }
        let handle = Handle(self.number());
        self.handles.insert(handle, ino);
        Ok(handle)
    }
    fn within(&self, mut dir: Ino, ancestor: Ino) -> bool {
        loop {
            if dir == ancestor {
                return true;
            }
            match self.nodes.get(&dir) {
                Some(n) if n.parent != dir => dir = n.parent,
                _ => return false,
            }
        }
    }
    fn removable(&mut self, ino: Ino, want_dir: bool) -> Result<()> {
        let node = self.node(ino)?;
        match (node.is_dir(), want_dir) {
            (true, false) => Err(Errno::EISDIR),
            (false, true) => Err(Errno::ENOTDIR),
            (true, true) if !node.names.is_empty() => Err(Errno::ENOTEMPTY),
            _ => Ok(()),
        }
    }
    fn rename(&mut self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Result<Renamed> {
        let moved = self.child(from.0, from.1)?;
        let there = match self.child(to.0, to.1) {
            Ok(ino) => Some(ino),
            Err(Errno::ENOENT) => None,
            Err(e) => return Err(e),
        };
        if mode == RenameMode::NoReplace && there.is_some() {
            return Err(Errno::EEXIST);
        }
        if self.node(moved)?.is_dir() && self.within(to.0, moved) {
            return Err(Errno::EINVAL);
        }
        if mode == RenameMode::Exchange {
            let back = there.ok_or(Errno::ENOENT)?;
            if self.node(back)?.is_dir() && self.within(from.0, back) {
                return Err(Errno::EINVAL);
            }
            self.remove(from.0, from.1);
            self.remove(to.0, to.1);
            self.insert(from.0, from.1, back);
            self.insert(to.0, to.1, moved);
            self.changed(back, false);
            self.changed(moved, false);
            return Ok(Renamed { moved, replaced: there });
        }
        if there == Some(moved) {
            return Ok(Renamed { moved, replaced: there });
        }
        if let Some(old) = there {
            let is_dir = self.node(moved)?.is_dir();
            self.removable(old, is_dir)?;
        }
        if self.node(to.0)?.attr.nlink.get() == 0 {
            return Err(Errno::ENOENT);
        }
        self.remove(from.0, from.1);
        if let Some(old) = there {
            self.remove(to.0, to.1);
            self.drop_link(old);
        }
        self.insert(to.0, to.1, moved);
        self.changed(moved, false);
        Ok(Renamed { moved, replaced: there })
    }
    fn set(&mut self, ino: Ino, set: &SetAttr) -> Result<()> {
        let now = self.now();
        let node = self.node(ino)?;
        if let Some(size) = set.size {
            node.file()?.resize(size)?;
            node.attr.mtime = now;
        }
        if let Some(mode) = set.mode {
            node.attr.mode = (node.attr.mode.get() & !0o7777 | mode & 0o7777).into();
        }
        if let Some(uid) = set.uid {
            node.attr.uid = uid.into();
        }
        if let Some(gid) = set.gid {
            node.attr.gid = gid.into();
        }
        let time = |t: SetTime| match t {
            SetTime::At(t) => t,
            SetTime::Now => now,
        };
        if let Some(t) = set.atime {
            node.attr.atime = time(t);
        }
        if let Some(t) = set.mtime {
            node.attr.mtime = time(t);
        }
        if set.kill_suidgid {
            node.kill_suidgid();
        }
        self.changed(ino, false);
        Ok(())
    }
}

/// The file system in memory.
#[derive(Debug)]
pub struct Memory {
    tree: RefCell<Tree>,
    forgotten: Cell<u64>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(0, 0)
    }
}

impl Memory {
    /// An empty root directory of mode 0755 and this owner.
    #[must_use]
    pub fn new(uid: u32, gid: u32) -> Self {
        let attr = Attr {
            ino: ROOT_INO.into(),
            mode: (FileKind::Directory as u32 | 0o755).into(),
            nlink: 2.into(),
            uid: uid.into(),
            gid: gid.into(),
            ..Attr::default()
        };
        let root = Node { attr, parent: ROOT_INO, ..Node::default() };
        let tree =
            Tree { nodes: [(ROOT_INO, root)].into(), handles: BTreeMap::new(), next: ROOT_INO.0, clock: 0 };
        Self { tree: RefCell::new(tree), forgotten: Cell::new(0) }
    }
    /// Handles that are open.
    pub fn open_handles(&self) -> usize {
        self.tree.borrow().handles.len()
    }
    /// Inodes that exist.
    pub fn inodes(&self) -> usize {
        self.tree.borrow().nodes.len()
    }
    /// Sum of what [`FileService::forget`] was told.
    pub fn forgotten(&self) -> u64 {
        self.forgotten.get()
    }
}

impl FileService for Memory {
    fn set_invalidator(&self, _: Rc<dyn Invalidator>) {}

    async fn lookup(&self, _: &Ctx, dir: Ino, name: &[u8]) -> Result<Found> {
        let mut t = self.tree.borrow_mut();
        match t.child(dir, name) {
            Ok(ino) => t.entry(ino).map(Found::Entry),
            Err(Errno::ENOENT) => Ok(Found::Absent { entry_ttl: Duration::ZERO, hold: Hold::none() }),
            Err(e) => Err(e),
        }
    }
    fn uncache(&self, _: Ino) {}
    fn forget(&self, _: Ino, n: u64) {
        self.forgotten.set(self.forgotten.get().saturating_add(n));
    }
    async fn getattr(&self, _: &Ctx, ino: Ino) -> Result<Attrs> {
        self.tree.borrow_mut().attrs(ino)
    }
    async fn setattr(&self, _: &Ctx, ino: Ino, _: Option<Handle>, set: SetAttr) -> Result<Attrs> {
        let mut t = self.tree.borrow_mut();
        t.set(ino, &set)?;
        t.attrs(ino)
    }
    async fn readlink(&self, _: &Ctx, ino: Ino) -> Result<Bytes> {
        let mut t = self.tree.borrow_mut();
        let node = t.node(ino)?;
        match node.attr.kind() {
            Some(FileKind::Symlink) => Ok(Bytes::copy_of(&node.target)),
            _ => Err(Errno::EINVAL),
        }
    }

    async fn create(&self, ctx: &Ctx, dir: Ino, name: &[u8], c: Create<'_>) -> Result<Created> {
        let mut t = self.tree.borrow_mut();
        t.node(dir)?.dir()?;
        if !c.tmpfile {
            match t.free_name(dir, name) {
                Err(Errno::EEXIST) if !c.exclusive && c.open.is_some() => {
                    let ino = t.child(dir, name)?;
                    t.node(ino)?.file()?;
                    let handle = t.open(ino, c.open.unwrap_or_default())?;
                    let opened = Some((handle, IoMode::Cached));
                    return Ok(Created { entry: t.entry(ino)?, opened, existed: true });
                }
                other => other?,
            }
        }
        let ino = t.make(ctx, dir, &c)?;
        let opened = match c.open {
            Some(flags) => Some((t.open(ino, flags)?, IoMode::Cached)),
            None => None,
        };
        if !c.tmpfile {
            t.insert(dir, name, ino);
        }
        Ok(Created { entry: t.entry(ino)?, opened, existed: false })
    }
    async fn link(&self, _: &Ctx, ino: Ino, dir: Ino, name: &[u8]) -> Result<Entry> {
        let mut t = self.tree.borrow_mut();
        if t.node(ino)?.is_dir() {
            return Err(Errno::EPERM);
        }
        t.free_name(dir, name)?;
        t.links(ino, 1);
        t.insert(dir, name, ino);
        t.changed(ino, false);
        t.entry(ino)
    }
    async fn unlink(&self, _: &Ctx, dir: Ino, name: &[u8]) -> Result<()> {
        let mut t = self.tree.borrow_mut();
        let ino = t.child(dir, name)?;
        t.removable(ino, false)?;
        t.remove(dir, name);
        t.drop_link(ino);
        Ok(())
    }
    async fn rmdir(&self, _: &Ctx, dir: Ino, name: &[u8]) -> Result<()> {
        let mut t = self.tree.borrow_mut();
        let ino = t.child(dir, name)?;
        t.removable(ino, true)?;
        t.remove(dir, name);
        t.drop_link(ino);
        Ok(())
    }
    async fn rename(
        &self,
        _: &Ctx,
        dir: Ino,
        name: &[u8],
        new_dir: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<Renamed> {
        self.tree.borrow_mut().rename((dir, name), (new_dir, new_name), mode)
    }

    async fn open(&self, _: &Ctx, ino: Ino, flags: OpenFlags) -> Result<Opened> {
        let mut t = self.tree.borrow_mut();
        let handle = t.open(ino, flags)?;
        let io = if flags.direct { IoMode::Direct } else { IoMode::Cached };
        Ok(Opened { handle, io, attrs: t.attrs(ino)? })
    }
    async fn close(&self, _: &Ctx, ino: Ino, handle: Handle, _: Option<LockOwner>) -> Result<()> {
        let mut t = self.tree.borrow_mut();
        t.handles.remove(&handle).ok_or(Errno::EBADF)?;
        t.node(ino)?.opens -= 1;
        t.reap(ino);
        Ok(())
    }
    async fn flush(&self, _: &Ctx, _: Ino, _: Handle, _: LockOwner) -> Result<()> {
        Ok(())
    }
    async fn fsync(&self, _: &Ctx, _: Ino, _: bool) -> Result<()> {
        Ok(())
    }
    async fn sync(&self, _: &Ctx) -> Result<()> {
        Ok(())
    }

    async fn read(&self, _: &Ctx, ino: Ino, _: Handle, offset: u64, len: u32) -> Result<ReadData> {
        let mut t = self.tree.borrow_mut();
        let node = t.node(ino)?.file()?;
        let range = node.range(offset, offset.saturating_add(u64::from(len)));
        let data = Data::from_iter([Bytes::copy_of(&node.data[range])]);
        Ok(ReadData { data, hold: Hold::none() })
    }
    async fn write(
        &self,
        _: &Ctx,
        ino: Ino,
        _: Handle,
        offset: u64,
        data: Bytes,
        flags: WriteFlags,
    ) -> Result<Written> {
        let mut t = self.tree.borrow_mut();
        let node = t.node(ino)?.file()?;
        node.put(offset, &data)?;
        if flags.kill_suidgid {
            node.kill_suidgid();
        }
        t.changed(ino, true);
        Ok(Written { len: data.len() as u32, offset, hold: Hold::none() })
    }
    async fn append(
        &self,
        ctx: &Ctx,
        ino: Ino,
        h: Handle,
        data: Bytes,
        flags: WriteFlags,
    ) -> Result<Written> {
        let end = self.tree.borrow_mut().node(ino)?.data.len() as u64;
        self.write(ctx, ino, h, end, data, flags).await
    }
    async fn fallocate(
        &self,
        _: &Ctx,
        ino: Ino,
        _: Handle,
        mode: u32,
        offset: u64,
        len: u64,
    ) -> Result<Attrs> {
        let mut t = self.tree.borrow_mut();
        let node = t.node(ino)?.file()?;
        let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
        if mode & !(FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE) != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if mode & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE) != 0 {
            let range = node.range(offset, end);
            node.data[range].fill(0);
        }
        if mode & FALLOC_KEEP_SIZE == 0 && end > node.data.len() as u64 {
            node.resize(end)?;
        }
        t.changed(ino, true);
        t.attrs(ino)
    }
    async fn seek(&self, _: &Ctx, ino: Ino, _: Handle, offset: u64, whence: Seek) -> Result<u64> {
        let size = self.tree.borrow_mut().node(ino)?.data.len() as u64;
        match whence {
            _ if offset >= size => Err(Errno::ENXIO),
            Seek::Data => Ok(offset),
            Seek::Hole => Ok(size),
        }
    }
    async fn copy_range(&self, ctx: &Ctx, from: Place, to: Place, len: u64) -> Result<u64> {
        let len = len.min(1 << 30) as u32;
        let read = self.read(ctx, from.ino, from.handle, from.offset, len).await?.to_vec();
        let data = Bytes::from(read);
        let done = self.write(ctx, to.ino, to.handle, to.offset, data, WriteFlags::default()).await?;
        Ok(u64::from(done.len))
    }

    async fn readdir(&self, _: &Ctx, dir: Ino, cookie: u64, max: u32, plus: bool) -> Result<DirPage> {
        let mut t = self.tree.borrow_mut();
        let mut entries = Vec::new();
        let mut room = max as usize;
        let node = t.node(dir)?.dir()?;
        let mut eof = true;
        let mut picked = Vec::new();
        for (&cookie, name) in node.cookies.range((Bound::Excluded(cookie), Bound::Unbounded)) {
            let cost = name.len() + 24;
            if cost > room && !picked.is_empty() {
                eof = false;
                break;
            }
            room = room.saturating_sub(cost);
            if let Some(&(ino, _)) = node.names.get(name) {
                picked.push((ino, cookie, name.clone()));
            }
        }
        for (ino, cookie, name) in picked {
            let attr = t.node(ino)?.attr;
            let kind = attr.kind().ok_or(Errno::EIO)?;
            let plus = plus.then_some((attr, Duration::ZERO, Duration::ZERO));
            entries.push(DirEntry { ino, cookie, kind, name: Bytes::from(name), plus });
        }
        Ok(DirPage { entries, eof, hold: Hold::none() })
    }
    async fn getxattr(&self, _: &Ctx, ino: Ino, name: &[u8]) -> Result<Bytes> {
        let mut t = self.tree.borrow_mut();
        t.node(ino)?.xattrs.get(name).map(|v| Bytes::copy_of(v)).ok_or(Errno::ENODATA)
    }
    async fn setxattr(&self, _: &Ctx, ino: Ino, name: &[u8], value: Bytes, flags: XattrFlags) -> Result<()> {
        let mut t = self.tree.borrow_mut();
        let xattrs = &mut t.node(ino)?.xattrs;
        match xattrs.contains_key(name) {
            true if flags.create => return Err(Errno::EEXIST),
            false if flags.replace => return Err(Errno::ENODATA),
            _ => xattrs.insert(name.to_vec(), value.to_vec()),
        };
        t.changed(ino, false);
        Ok(())
    }
    async fn listxattr(&self, _: &Ctx, ino: Ino) -> Result<Bytes> {
        let mut t = self.tree.borrow_mut();
        let names = t.node(ino)?.xattrs.keys();
        Ok(Bytes::from(names.flat_map(|n| n.iter().copied().chain([0])).collect::<Vec<u8>>()))
    }
    async fn removexattr(&self, _: &Ctx, ino: Ino, name: &[u8]) -> Result<()> {
        let mut t = self.tree.borrow_mut();
        t.node(ino)?.xattrs.remove(name).ok_or(Errno::ENODATA)?;
        t.changed(ino, false);
        Ok(())
    }
    async fn statfs(&self, _: &Ctx) -> Result<StatFs> {
        let files = self.inodes() as u64;
        Ok(StatFs {
            blocks: (1 << 20).into(),
            free: (1 << 19).into(),
            available: (1 << 19).into(),
            files: (files + (1 << 20)).into(),
            files_free: (1 << 20).into(),
            block_size: 4096.into(),
            name_max: (NAME_MAX as u32).into(),
        })
    }

    async fn getlk(&self, _: &Ctx, _: Ino, _: Handle, _: LockRequest) -> Result<Option<Conflict>> {
        Err(Errno::ENOLCK)
    }
    async fn setlk(&self, _: &Ctx, _: Ino, _: Handle, _: LockRequest, _: bool) -> Result<()> {
        Err(Errno::ENOLCK)
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
