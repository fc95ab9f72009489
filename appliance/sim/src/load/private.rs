//! A client's own folder: nobody else works there, so every answer is known beforehand.

use anyhow::{Context, Result, bail, ensure};
use client::service::{FileService, Handle, Place, RenameMode, SetAttr, WriteFlags};
use client::{Client, Ctx};
use hugepages::Buf;
use reactor::sim;
use std::collections::BTreeMap;
use std::fmt::Debug;
use wire::{Errno, Ino};

const NAMES: u64 = 6;
/// Files reach into the third chunk.
const SIZE_MAX: u64 = (2 << 20) + 100_000;
const KEEP_SIZE: u32 = 1;
const PUNCH: u32 = 2;
const ZERO: u32 = 16;

struct File {
    ino: Ino,
    data: Vec<u8>,
    links: u32,
}

/// The folder as it must be.
#[derive(Default)]
pub(super) struct Model {
    names: BTreeMap<Vec<u8>, usize>,
    files: Vec<File>,
    /// Fills what is written, never twice the same.
    stamp: u64,
}

fn name() -> Vec<u8> {
    format!("f{}", sim::below(NAMES)).into_bytes()
}

/// An offset: often small, often beside a boundary between chunks, sometimes anywhere.
fn offset() -> u64 {
    match sim::below(4) {
        0 | 1 => sim::below(20_000),
        2 => (1 << 20) * (1 + sim::below(2)) - 5000 + sim::below(10_000),
        _ => sim::below(SIZE_MAX),
    }
}

fn length() -> u64 {
    match sim::below(6) {
        0 => 4096,
        1 => 1 + sim::below(70_000),
        _ => 1 + sim::below(6000),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "a comparison of literals reads better")]
fn same<T: PartialEq + Debug>(what: &str, got: T, want: T) -> Result<()> {
    ensure!(got == want, "{what}: {got:?}, expected {want:?}");
    Ok(())
}

fn shown(name: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(name)
}

impl Model {
    fn file(&self, name: &[u8]) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// One operation, compared with what it must answer.
    pub(super) async fn step(&mut self, client: &Client, dir: Ino) -> Result<()> {
        let name = name();
        let Some(file) = self.file(&name) else {
            return match sim::below(8) {
                0 => self.absent(client, dir, &name).await,
                1 => self.link(client, dir, &name).await,
                _ => self.create(client, dir, &name).await,
            };
        };
        let shown = shown(&name).into_owned();
        match sim::below(16) {
            0..5 => self.write(client, file).await.with_context(|| format!("writing {shown}")),
            5..7 => self.read(client, file).await.with_context(|| format!("reading {shown}")),
            7..9 => self.truncate(client, file).await.with_context(|| format!("truncating {shown}")),
            9 if sim::below(2) == 0 => {
                self.copy(client, file).await.with_context(|| format!("copying to {shown}"))
            }
            9 => self.allocate(client, file).await.with_context(|| format!("fallocate of {shown}")),
            10 => self.stat(client, dir, &name, file).await.with_context(|| format!("stat of {shown}")),
            11 => self.rename(client, dir, &name).await.with_context(|| format!("renaming {shown}")),
            12 | 13 => self.unlink(client, dir, &name).await.with_context(|| format!("removing {shown}")),
            14 => self.list(client, dir).await.context("listing"),
            _ => match sim::below(3) {
                0 => self.exists(client, dir, &name).await.with_context(|| format!("making {shown} again")),
                _ => Ok(client.fsync(&Ctx::default(), self.files[file].ino, sim::below(2) == 0).await?),
            },
        }
    }

    async fn absent(&self, client: &Client, dir: Ino, name: &[u8]) -> Result<()> {
        same("a lookup", super::find(client, dir, name).await, Err(Errno::ENOENT))?;
        same("an unlink", client.unlink(&Ctx::default(), dir, name).await, Err(Errno::ENOENT))
    }

    async fn exists(&self, client: &Client, dir: Ino, name: &[u8]) -> Result<()> {
        same("a creation", super::make(client, dir, name, 0o100_644, b"").await, Err(Errno::EEXIST))
    }

    async fn create(&mut self, client: &Client, dir: Ino, name: &[u8]) -> Result<()> {
        let ino = super::make(client, dir, name, 0o100_644, b"").await.context("making a file")?;
        tracing::debug!(dir = dir.0, name = %shown(name), ino = ino.0, "create");
        self.names.insert(name.to_vec(), self.files.len());
        self.files.push(File { ino, data: Vec::new(), links: 1 });
        Ok(())
    }

    async fn link(&mut self, client: &Client, dir: Ino, name: &[u8]) -> Result<()> {
        let Some((_, &file)) = self.names.iter().next() else { return Ok(()) };
        let entry = client.link(&Ctx::default(), self.files[file].ino, dir, name).await.context("linking")?;
        tracing::debug!(dir = dir.0, name = %shown(name), ino = self.files[file].ino.0, "link");
        self.files[file].links += 1;
        self.names.insert(name.to_vec(), file);
        same("links", entry.attr.nlink.get(), self.files[file].links)
    }

    async fn rename(&mut self, client: &Client, dir: Ino, name: &[u8]) -> Result<()> {
        let to = self::name();
        let ctx = Ctx::default();
        tracing::debug!(dir = dir.0, name = %shown(name), to = %shown(&to), "rename");
        if sim::below(4) == 0 && to != name {
            let answer = client.rename(&ctx, dir, name, dir, &to, RenameMode::NoReplace).await.map(drop);
            if self.names.contains_key(&to) {
                return same("rename to a name that exists", answer, Err(Errno::EEXIST));
            }
            answer?;
        } else {
            client.rename(&ctx, dir, name, dir, &to, RenameMode::Replace).await?;
        }
        // Two names of one file both stay, as rename(2) has it.
        if self.names.get(name) == self.names.get(&to) {
            return Ok(());
        }
        let Some(file) = self.names.remove(name) else { bail!("the model lost {name:?}") };
        if let Some(old) = self.names.insert(to, file) {
            self.files[old].links -= 1;
        }
        Ok(())
    }

    async fn unlink(&mut self, client: &Client, dir: Ino, name: &[u8]) -> Result<()> {
        tracing::debug!(dir = dir.0, name = %shown(name), "unlink");
        client.unlink(&Ctx::default(), dir, name).await?;
        if let Some(file) = self.names.remove(name) {
            self.files[file].links -= 1;
        }
        Ok(())
    }

    async fn write(&mut self, client: &Client, file: usize) -> Result<()> {
        let (at, len) = (offset(), length());
        let end = (at + len).min(SIZE_MAX);
        let at = at.min(end);
        self.stamp += 1;
        let stamp = self.stamp;
        let data: Vec<u8> = (at..end).map(|i| (i ^ stamp.wrapping_mul(0x9e37)) as u8 | 1).collect();
        let ino = self.files[file].ino;
        let handle = super::open(client, ino).await?;
        let flags = WriteFlags { sync: sim::below(8) == 0, ..WriteFlags::default() };
        let bytes = Buf::copy_of(&data).freeze();
        let written = client.write(&Ctx::default(), ino, handle, at, bytes, flags).await?;
        same("bytes written", written.len as usize, data.len())?;
        drop(written);
        client.close(&Ctx::default(), ino, handle, None).await?;
        let known = &mut self.files[file].data;
        if !data.is_empty() && known.len() < end as usize {
            known.resize(end as usize, 0);
        }
        known[at as usize..end as usize].copy_from_slice(&data);
        Ok(())
    }

    async fn read(&self, client: &Client, file: usize) -> Result<()> {
        let known = &self.files[file];
        let handle = super::open(client, known.ino).await?;
        let (at, len) = (offset(), 1 + sim::below(300_000));
        compare(client, known, handle, at, len).await?;
        Ok(client.close(&Ctx::default(), known.ino, handle, None).await?)
    }

    async fn truncate(&mut self, client: &Client, file: usize) -> Result<()> {
        let size = match sim::below(3) {
            0 => 0,
            1 => offset(),
            _ => sim::below(self.files[file].data.len() as u64 + 1),
        };
        let known = &mut self.files[file];
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        let attrs = client.setattr(&Ctx::default(), known.ino, None, set).await?;
        known.data.resize(size as usize, 0);
        same("the size after it", attrs.attr.size.get(), size)
    }

    async fn allocate(&mut self, client: &Client, file: usize) -> Result<()> {
        let (at, len) = (offset(), length() * (1 + sim::below(4)));
        let mode = [0, KEEP_SIZE, PUNCH | KEEP_SIZE, ZERO, ZERO | KEEP_SIZE][sim::below(5) as usize];
        let known = &mut self.files[file];
        let handle = super::open(client, known.ino).await?;
        let attrs = client.fallocate(&Ctx::default(), known.ino, handle, mode, at, len).await?;
        client.close(&Ctx::default(), known.ino, handle, None).await?;
        let (at, end) = (at as usize, (at + len) as usize);
        if mode & KEEP_SIZE == 0 && known.data.len() < end {
            known.data.resize(end, 0);
        }
        if mode & (PUNCH | ZERO) != 0 {
            let end = end.min(known.data.len());
            known.data[at.min(end)..end].fill(0);
        }
        same("the size after it", attrs.attr.size.get(), known.data.len() as u64)
    }

    /// From one of the files with a name, perhaps the same.
    async fn copy(&mut self, client: &Client, to: usize) -> Result<()> {
        let drawn = sim::below(self.names.len() as u64) as usize;
        let Some(&from) = self.names.values().nth(drawn) else { bail!("no file has a name") };
        let (src, dst, len) = (offset(), offset(), length() * (1 + sim::below(40)));
        let (source, target) = (self.files[from].ino, self.files[to].ino);
        let known = &self.files[from].data;
        let bytes = known[(src as usize).min(known.len())..((src + len) as usize).min(known.len())].to_vec();
        let (reader, writer) = (super::open(client, source).await?, super::open(client, target).await?);
        let place = |ino, handle, offset| Place { ino, handle, offset };
        let (src, at) = (place(source, reader, src), place(target, writer, dst));
        let copied = client.copy_range(&Ctx::default(), src, at, len).await;
        client.close(&Ctx::default(), source, reader, None).await?;
        client.close(&Ctx::default(), target, writer, None).await?;
        let overlap = src.offset < dst + bytes.len() as u64 && dst < src.offset + bytes.len() as u64;
        if from == to && overlap && !bytes.is_empty() {
            return same("a copy onto itself", copied, Err(Errno::EINVAL));
        }
        same("bytes copied", copied, Ok(bytes.len() as u64))?;
        let known = &mut self.files[to].data;
        let end = dst as usize + bytes.len();
        if !bytes.is_empty() && known.len() < end {
            known.resize(end, 0);
        }
        if !bytes.is_empty() {
            known[dst as usize..end].copy_from_slice(&bytes);
        }
        Ok(())
    }

    async fn stat(&self, client: &Client, dir: Ino, name: &[u8], file: usize) -> Result<()> {
        let known = &self.files[file];
        same("the inode", super::find(client, dir, name).await, Ok(known.ino))?;
        let attr = client.getattr(&Ctx::default(), known.ino).await?.attr;
        same("the size", attr.size.get(), known.data.len() as u64)?;
        same("links", attr.nlink.get(), known.links)
    }

    async fn list(&self, client: &Client, dir: Ino) -> Result<()> {
        let mut found = BTreeMap::new();
        let mut cookie = 0;
        loop {
            let page =
                client.readdir(&Ctx::default(), dir, cookie, 100 + sim::below(4000) as u32, false).await?;
            for entry in &page.entries {
                cookie = entry.cookie;
                let twice = found.insert(entry.name.to_vec(), entry.ino);
                ensure!(twice.is_none(), "{:?} is listed twice", entry.name);
            }
            if page.eof {
                break;
            }
        }
        let want: BTreeMap<Vec<u8>, Ino> =
            self.names.iter().map(|(name, file)| (name.clone(), self.files[*file].ino)).collect();
        same("the names", found, want)
    }

    /// Compares the whole folder.
    pub(super) async fn compare(&self, client: &Client, dir: Ino) -> Result<()> {
        self.list(client, dir).await?;
        for (name, file) in &self.names {
            self.stat(client, dir, name, *file).await.with_context(|| shown(name).to_string())?;
            let known = &self.files[*file];
            let handle = super::open(client, known.ino).await?;
            let len = known.data.len() as u64 + 1;
            compare(client, known, handle, 0, len).await.with_context(|| shown(name).to_string())?;
            client.close(&Ctx::default(), known.ino, handle, None).await?;
        }
        Ok(())
    }
}

async fn compare(client: &Client, known: &File, handle: Handle, at: u64, len: u64) -> Result<()> {
    let (mut at, end) = (at, at + len);
    while at < end {
        let part = (end - at).min(1 << 20) as u32;
        let got = client.read(&Ctx::default(), known.ino, handle, at, part).await?.to_vec();
        let from = (at as usize).min(known.data.len());
        let want = &known.data[from..(at as usize + part as usize).min(known.data.len())];
        if got != want {
            let differs = got.iter().zip(want).position(|(a, b)| a != b).unwrap_or(got.len().min(want.len()));
            bail!(
                "byte {} differs: {:?}, expected {:?} ({} bytes read at {at}, {} expected)",
                at as usize + differs,
                got.get(differs),
                want.get(differs),
                got.len(),
                want.len()
            );
        }
        if got.len() < part as usize {
            return Ok(());
        }
        at += got.len() as u64;
    }
    Ok(())
}
