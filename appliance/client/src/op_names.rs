//! Operations on names: lookup, creation, links, removal, rename, listing.
//!
//! A name gets a lifetime in the kernel only under an exclusive lease of its directory, and only where no change of this
//! client's own ran beside the request: two answers may arrive in the other order than they were made.
//!
//! A rename takes a name's lifetime along to the new name, without asking. So before a rename that may do this, a lease of
//! the new directory is taken, and a recall of it waits for the rename: then it takes the new name out, too.

use crate::changes::Change;
use crate::core::{Core, cred};
use crate::hold::{Counter, Hold};
use crate::leases::{Cover, Since};
use crate::names::Name;
use crate::opens::{MAX_HANDLES, Open, wire_flags};
use crate::rpc::{Outgoing, Reply};
use crate::service::{
    Create, Created, Ctx, DirEntry, DirPage, Entry, Found, Handle, Ino, IoMode, OpenFlags, Recall,
    RenameMode, Renamed, Result, TTL_LEASED,
};
use crate::stats::{Op, add};
use hugepages::Bytes;
use smallvec::SmallVec;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use wire::message::{self, CreateFlags, DirEntries, RenameFlags};
use wire::types::{Attr, Errno, Grant, LeaseMode};

/// Longest name in bytes.
const NAME_MAX: usize = 255;

/// Bytes of a directory page asked for at most.
const PAGE_MAX: u32 = wire::limits::MAX_PAYLOAD as u32;

/// Names that take over the lifetime of another in the kernel; recalls of their directories wait while it lives.
struct Carried<'n> {
    names: SmallVec<[(Ino, &'n [u8]); 2]>,
    _hold: Hold,
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    wire::check_name(name).map_err(|_| Errno::EINVAL)
}

impl Core {
    pub(crate) async fn lookup(&self, ctx: &Ctx, dir: Ino, name: &[u8]) -> Result<Found> {
        check_name(name)?;
        let (known, cover, since, blank) = {
            let mut table = self.table.borrow_mut();
            let (known, cover) = table.name(dir, name);
            (known, cover, table.since(dir), table.blank())
        };
        match known {
            Name::Absent => {
                self.stats.cached(Op::Lookup);
                return Ok(self.absent(dir, name, cover));
            }
            Name::Leads(ino) => {
                let attr = {
                    let mut table = self.table.borrow_mut();
                    table.attr(ino).map(|a| (a, table.cover(ino)))
                };
                if let Some((attr, inode)) = attr {
                    self.stats.cached(Op::Lookup);
                    return Ok(Found::Entry(self.named(dir, name, cover, attr, inode)));
                }
            }
            Name::Unknown => {}
        }
        match self.ask(ctx, Outgoing::new(message::Lookup { dir, name })).await {
            Ok(reply) => {
                let e = self.decode::<message::Lookup<'_>>(&reply)?;
                let dir_cover = self.cover_of_dir(dir, since, &e.dir_grant, 0);
                let cover = self.learn(&e.attr, blank, &e.grant);
                Ok(Found::Entry(self.named(dir, name, dir_cover, e.attr, cover)))
            }
            Err(Errno::ENOENT) => {
                let cover = self.cover_of_dir(dir, since, &Grant::none(), 0);
                Ok(self.absent(dir, name, cover))
            }
            Err(e) => Err(e),
        }
    }

    /// Asks for a change of names, which gives way where a recall waits for it.
    async fn ask_changing(
        &self,
        ctx: &Ctx,
        mut out: Outgoing<'_>,
        change: Option<&Rc<Change>>,
    ) -> Result<Reply> {
        let Some(change) = change else { return self.ask(ctx, out).await };
        out.keep = Some(Rc::clone(change) as Rc<dyn std::any::Any>);
        out.gives_way = change.gives_way();
        let asked = out.gives_way.clone();
        let result = self.ask(ctx, out).await;
        if matches!(result, Err(Errno::EDEADLK)) && asked.is_some_and(|e| e.is_set()) {
            add(&self.stats.events.gave_way, 1);
            change.gave_way();
        }
        result
    }

    /// What covers names of `dir` in a reply; `mine` own changes of it are under way on this request's behalf.
    fn cover_of_dir(&self, dir: Ino, since: Since, grant: &Grant, mine: u32) -> Cover {
        let mut table = self.table.borrow_mut();
        let cover = table.settle(dir, since, grant);
        if table.undisturbed(dir, since, mine) { cover } else { LeaseMode::None }
    }

    /// An entry, remembered under `dir_cover`.
    fn named(&self, dir: Ino, name: &[u8], dir_cover: Cover, attr: Attr, cover: Cover) -> Entry {
        let kernel = dir_cover == LeaseMode::Exclusive && self.caches();
        let what = Name::Leads(attr.ino());
        let kept = self.table.borrow_mut().put_name(dir, name, what, dir_cover, kernel);
        self.entry(attr, cover, (kept && kernel).then_some(dir))
    }

    fn absent(&self, dir: Ino, name: &[u8], cover: Cover) -> Found {
        let kernel = cover == LeaseMode::Exclusive && self.caches();
        let mut table = self.table.borrow_mut();
        let kept = table.put_name(dir, name, Name::Absent, cover, kernel);
        if !(kept && kernel) {
            return Found::Absent { entry_ttl: Duration::ZERO, hold: Hold::none() };
        }
        let out: Rc<Counter> = table.names_out(dir);
        Found::Absent { entry_ttl: TTL_LEASED, hold: Hold::new(Some(out), None) }
    }

    pub(crate) async fn create(&self, ctx: &Ctx, dir: Ino, name: &[u8], c: Create<'_>) -> Result<Created> {
        let name = if c.tmpfile { &b""[..] } else { name };
        if !c.tmpfile {
            check_name(name)?;
        }
        if c.open.is_some() && self.opens.borrow().len() >= MAX_HANDLES {
            return Err(Errno::ENFILE);
        }
        let mut flags = CreateFlags::none();
        for (on, flag) in [
            (c.open.is_some(), CreateFlags::OPEN),
            (c.exclusive, CreateFlags::EXCL),
            (c.tmpfile, CreateFlags::TMPFILE),
        ] {
            flags = if on { flags | flag } else { flags };
        }
        let open = c.open.unwrap_or_default();
        let (since, blank) = self.before(dir);
        let names = [(dir, name)];
        let change = Change::new(self, ctx, if c.tmpfile { &[] } else { &names });
        let out = Outgoing::new(message::Create {
            dir,
            mode: c.mode,
            umask: ctx.umask & 0o777,
            rdev: c.rdev,
            cred: cred(ctx),
            flags,
            open_flags: wire_flags(open, false),
            name,
            target: c.target,
        });
        let reply = self.ask_changing(ctx, out, change.as_ref()).await?;
        let made = self.decode::<message::Create<'_>>(&reply)?;
        let dir_cover = self.cover_of_dir(dir, since, &made.dir_grant, 1);
        let cover = self.learn_change(&made.attr, blank, &made.grant);
        let entry = if c.tmpfile {
            self.entry(made.attr, cover, None)
        } else {
            self.named(dir, name, dir_cover, made.attr, cover)
        };
        drop(change);
        let opened = c.open.filter(|_| made.handle != 0);
        let opened = opened.map(|flags| self.keep_open(ctx, &made.attr, flags, made.handle, made.io_mode));
        Ok(Created { entry, opened, existed: made.existed })
    }

    fn before(&self, dir: Ino) -> (Since, Since) {
        let table = self.table.borrow();
        (table.since(dir), table.blank())
    }

    /// A handle of the server becomes one of ours.
    pub(crate) fn keep_open(
        &self,
        ctx: &Ctx,
        attr: &Attr,
        flags: OpenFlags,
        remote: u64,
        io: message::IoMode,
    ) -> (Handle, IoMode) {
        let io = match io {
            // An append's place is known only when it is done, so its pages could not be told apart in a recall.
            message::IoMode::Cached if !flags.direct && !flags.append && self.caches() => IoMode::Cached,
            _ => IoMode::Direct,
        };
        let ino = attr.ino();
        self.table.borrow_mut().opened(ino, 1, flags.write);
        let open = Open {
            ino,
            flags,
            cred: cred(ctx),
            io,
            remote: Cell::new(remote),
            object: Cell::new(attr.object()),
            dead: Cell::new(None),
            closed: Cell::new(false),
            busy: Rc::default(),
        };
        (self.opens.borrow_mut().insert(open), io)
    }

    pub(crate) async fn link(&self, ctx: &Ctx, ino: Ino, dir: Ino, name: &[u8]) -> Result<Entry> {
        check_name(name)?;
        let (since, inode) = (self.before(dir).0, self.before(ino).0);
        let change = Change::new(self, ctx, &[(dir, name)]);
        let out = Outgoing::new(message::Link { ino, dir, name });
        let reply = self.ask_changing(ctx, out, change.as_ref()).await?;
        let e = self.decode::<message::Link<'_>>(&reply)?;
        let dir_cover = self.cover_of_dir(dir, since, &e.dir_grant, 1);
        let cover = self.learn_change(&e.attr, inode, &e.grant);
        Ok(self.named(dir, name, dir_cover, e.attr, cover))
    }

    pub(crate) async fn remove(&self, ctx: &Ctx, dir: Ino, name: &[u8], is_dir: bool) -> Result<()> {
        check_name(name)?;
        let (since, _) = self.before(dir);
        let change = Change::new(self, ctx, &[(dir, name)]);
        let out = if is_dir {
            Outgoing::new(message::Rmdir { dir, name })
        } else {
            Outgoing::new(message::Unlink { dir, name })
        };
        let reply = self.ask_changing(ctx, out, change.as_ref()).await?;
        // Rmdir and Unlink have the same answer.
        let removed = self.decode::<message::Unlink<'_>>(&reply)?;
        let cover = self.cover_of_dir(dir, since, &removed.dir_grant, 1);
        let mut table = self.table.borrow_mut();
        table.put_name(dir, name, Name::Absent, cover, false);
        table.forget_attr(removed.ino);
        drop(table);
        drop(change);
        Ok(())
    }

    pub(crate) async fn rename(
        &self,
        ctx: &Ctx,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
    ) -> Result<Renamed> {
        check_name(from.1)?;
        check_name(to.1)?;
        let flags = match mode {
            RenameMode::Replace => RenameFlags::none(),
            RenameMode::NoReplace => RenameFlags::NOREPLACE,
            RenameMode::Exchange => RenameFlags::EXCHANGE,
        };
        let change = Change::new(self, ctx, &[from, to]);
        let carried = self.carried(ctx, from, to, mode, change.as_deref()).await;
        let (since, new_since) = {
            let table = self.table.borrow();
            (table.since(from.0), table.since(to.0))
        };
        let out = Outgoing::new(message::Rename {
            dir: from.0,
            new_dir: to.0,
            flags,
            name: from.1,
            new_name: to.1,
        });
        let reply = self.ask_changing(ctx, out, change.as_ref()).await?;
        let done = self.decode::<message::Rename<'_>>(&reply)?;
        let mine = if from.0 == to.0 { 2 } else { 1 };
        let cover = self.cover_of_dir(from.0, since, &done.dir_grant, mine);
        let new_cover = self.cover_of_dir(to.0, new_since, &done.new_dir_grant, mine);
        let mut table = self.table.borrow_mut();
        // Two names of one inode: rename(2) does nothing, and both stay. What is not sure is not remembered.
        let same = done.moved == done.replaced;
        let left = match mode {
            _ if same => Name::Unknown,
            RenameMode::Exchange => Name::Leads(done.replaced),
            _ => Name::Absent,
        };
        table.put_name(from.0, from.1, left, cover, false);
        let arrived = if same { Name::Unknown } else { Name::Leads(done.moved) };
        table.put_name(to.0, to.1, arrived, new_cover, false);
        table.forget_attr(done.moved);
        table.forget_attr(done.replaced);
        let late: Vec<_> =
            carried.names.into_iter().filter(|(dir, name)| !table.moved_in(*dir, name)).collect();
        drop(table);
        drop(change);
        let replaced = (done.replaced != Ino(0)).then_some(done.replaced);
        let renamed = Renamed { moved: done.moved, replaced };
        self.expire(late);
        Ok(renamed)
    }

    /// Finds which names get the lifetime of another one by this rename, and sees to it that a recall will know them.
    async fn carried<'n>(
        &self,
        ctx: &Ctx,
        from: (Ino, &'n [u8]),
        to: (Ino, &'n [u8]),
        mode: RenameMode,
        change: Option<&Change>,
    ) -> Carried<'n> {
        let mut carried = Carried { names: SmallVec::new(), _hold: Hold::none() };
        let back = (mode == RenameMode::Exchange).then_some((to, from));
        for (old, new) in std::iter::once((from, to)).chain(back) {
            let (alive, covered) = {
                let table = self.table.borrow();
                (table.in_kernel(old.0, old.1), table.cover(new.0) != LeaseMode::None)
            };
            if !alive || !self.caches() {
                continue;
            }
            if !covered {
                let since = self.table.borrow().since(new.0);
                let request = message::AcquireLease { ino: new.0, mode: LeaseMode::Shared };
                // Without a lease the name is taken out right after; the rename itself tells what is wrong, if anything is.
                let mut out = Outgoing::new(request);
                out.gives_way = change.and_then(Change::gives_way);
                if let Ok(reply) = self.ask(ctx, out).await
                    && let Ok(got) = self.decode::<message::AcquireLease>(&reply)
                {
                    self.learn(&got.attr, since, &got.grant);
                }
            }
            carried._hold.push(self.table.borrow_mut().names_out(new.0));
            carried.names.push(new);
        }
        carried
    }

    /// Takes names out of the kernel after the fact: they have a lifetime, and no lease of their directory is held.
    fn expire(&self, names: Vec<(Ino, &[u8])>) {
        let Some(invalidator) = self.invalidator.borrow().clone() else { return };
        for (ino, name) in names {
            let names = vec![Box::from(name)];
            self.spawn(invalidator.invalidate(Recall { ino, names, ..Recall::default() }));
        }
    }

    pub(crate) async fn readdir(
        &self,
        ctx: &Ctx,
        dir: Ino,
        cookie: u64,
        max: u32,
        plus: bool,
    ) -> Result<DirPage> {
        let (since, blank) = self.before(dir);
        let max = max.clamp(message::MAX_DIR_ENTRY as u32, PAGE_MAX);
        let noatime = self.options.noatime || self.options.nodiratime;
        let request = message::ReadDir { dir, cookie, max, plus, noatime };
        let reply = self.ask(ctx, Outgoing::new(request)).await?;
        if !noatime {
            self.table.borrow_mut().accessed(dir);
        }
        let page = self.decode::<message::ReadDir>(&reply)?;
        let dir_cover = self.cover_of_dir(dir, since, &page.dir_grant, 0);
        let names_live = dir_cover == LeaseMode::Exclusive && self.caches();
        let mut entries = Vec::new();
        let mut hold = Hold::none();
        if names_live {
            hold.push(self.table.borrow_mut().names_out(dir));
        }
        let start = reply.payload.as_ptr() as usize;
        for entry in DirEntries::new(&reply.payload) {
            let e = entry.map_err(|error| {
                tracing::error!(ino = dir.0, %error, "the server's directory page is malformed");
                Errno::EIO
            })?;
            let plus = e.plus.map(|p| {
                let cover = self.learn(&p.attr, blank, &p.grant);
                let mut table = self.table.borrow_mut();
                let kept = names_live && table.put_name(dir, e.name, Name::Leads(e.ino), dir_cover, true);
                let live = cover != LeaseMode::None && self.caches();
                if live {
                    hold.push(table.attrs_out(e.ino));
                }
                let ttl = |on| if on { TTL_LEASED } else { Duration::ZERO };
                (p.attr, ttl(live), ttl(kept))
            });
            let at = e.name.as_ptr() as usize - start;
            let name: Bytes = reply.payload.slice(at..at + e.name.len());
            entries.push(DirEntry { ino: e.ino, cookie: e.cookie, kind: e.kind, name, plus });
        }
        Ok(DirPage { entries, eof: page.eof, hold })
    }
}
