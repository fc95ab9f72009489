//! What the checker knows: kinds of objects, what a worker asks of one, and how one on a single machine answers.
//!
//! Only calls that POSIX makes atomic are in it. Values are never written twice, so an answer tells whose it is.

use super::Event;
use crate::rng::Rng;
use anyhow::{Context as _, Result, bail, ensure};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Names in two folders: created, moved, removed, looked up.
    Names,
    /// A file's mode: chmod(2), stat(2), fstat(2).
    Mode,
    /// A file's size: ftruncate(2), stat(2), fstat(2), lseek(2).
    Size,
    /// A block of a file, written and read directly.
    Direct,
    /// A block of a file, written and read through the page cache.
    Cached,
    /// Records appended to a file, which count by its size.
    Append,
}

/// Names of a round: the first half in one folder, the second in the other.
pub const NAMES: usize = 4;
/// Bytes of a block and of a size's step.
const BLOCK: usize = 4096;
/// Bytes of an appended record.
const RECORD: u64 = 64;

/// An operation with its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// open(2) with O_EXCL: the new inode, or that it exists.
    Create {
        /// Which name.
        name: usize,
        /// Its inode.
        made: Option<u64>,
    },
    /// unlink(2): removed, or not there.
    Unlink {
        /// Which name.
        name: usize,
        /// It was there.
        done: bool,
    },
    /// rename(2): moved, or not there.
    Rename {
        /// Which name.
        from: usize,
        /// Where to.
        to: usize,
        /// It was there.
        done: bool,
    },
    /// stat(2).
    Stat {
        /// Which name.
        name: usize,
        /// The inode, if it is there.
        ino: Option<u64>,
    },
    /// The value becomes this one.
    Set {
        /// The value.
        value: u64,
    },
    /// The value is this one.
    Get {
        /// The value.
        value: u64,
    },
    /// One more.
    Add,
}

impl Op {
    /// Did it change anything?
    #[must_use]
    pub fn changes(&self) -> bool {
        match *self {
            Self::Create { made, .. } => made.is_some(),
            Self::Unlink { done, .. } | Self::Rename { done, .. } => done,
            Self::Set { .. } | Self::Add => true,
            Self::Stat { .. } | Self::Get { .. } => false,
        }
    }
}

/// What one machine's file system would know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Inodes of names.
    Names([Option<u64>; NAMES]),
    /// A value.
    Value(u64),
}

impl State {
    /// What it is after an operation, if its answer is right.
    #[must_use]
    pub fn step(&self, op: &Op) -> Option<Self> {
        match (self, *op) {
            (Self::Names(names), Op::Create { name, made }) => match (names[name], made) {
                (None, Some(ino)) => Some(with(names, &[(name, Some(ino))])),
                (Some(_), None) => Some(self.clone()),
                _ => None,
            },
            (Self::Names(names), Op::Unlink { name, done }) => {
                (names[name].is_some() == done).then(|| with(names, &[(name, None)]))
            }
            (Self::Names(names), Op::Rename { from, to, done }) => match (names[from], done) {
                (Some(ino), true) => Some(with(names, &[(from, None), (to, Some(ino))])),
                // Another mount's like rename came between the kernel's two lookups: both names led to one file, so the
                // kernel had nothing to do (SEMANTICS.md).
                (None, true) if names[to].is_some() => Some(self.clone()),
                (None, false) => Some(self.clone()),
                _ => None,
            },
            (Self::Names(names), Op::Stat { name, ino }) => (names[name] == ino).then(|| self.clone()),
            (Self::Value(_), Op::Set { value }) => Some(Self::Value(value)),
            (Self::Value(known), Op::Get { value }) => (*known == value).then(|| self.clone()),
            (Self::Value(known), Op::Add) => Some(Self::Value(known + 1)),
            _ => None,
        }
    }
}

fn with(names: &[Option<u64>; NAMES], changes: &[(usize, Option<u64>)]) -> State {
    let mut names = *names;
    for (name, ino) in changes {
        names[*name] = *ino;
    }
    State::Names(names)
}

impl Kind {
    /// All, in the order of rounds.
    pub const ALL: [Self; 6] =
        [Self::Names, Self::Mode, Self::Size, Self::Direct, Self::Cached, Self::Append];

    /// What is there when a round begins.
    #[must_use]
    pub fn start(self) -> State {
        match self {
            Self::Names => State::Names([None; NAMES]),
            _ => State::Value(0),
        }
    }

    /// Makes the objects of a round.
    pub(super) fn prepare(self, root: &Path) -> Result<()> {
        match self {
            Self::Names => {
                for folder in ["0", "1"] {
                    fs::create_dir(root.join(folder))?;
                }
            }
            Self::Direct | Self::Cached => fs::write(root.join("file"), [0; BLOCK])?,
            _ => fs::write(root.join("file"), "")?,
        }
        if self == Self::Mode {
            fs::set_permissions(root.join("file"), fs::Permissions::from_mode(0o000))?;
        }
        Ok(())
    }

    /// What can be told only at the end of a round.
    pub(super) fn finish(self, roots: &[PathBuf], history: &[Event]) -> Result<()> {
        if self != Self::Append {
            return Ok(());
        }
        for root in roots {
            let text = fs::read(root.join("file"))?;
            let records: Vec<&[u8]> = text.chunks(RECORD as usize).collect();
            let written = history.iter().filter(|e| e.op == Op::Add).count();
            ensure!(records.len() == written, "{} of {written} records are in the file", records.len());
            let mut last: Vec<Option<u64>> = vec![None; 64];
            for record in records {
                let (worker, n) = record_of(record).context("a record is torn")?;
                let before = last.get_mut(worker).context("a record of nobody")?.replace(n);
                ensure!(before.is_none_or(|b| b < n), "worker {worker}: record {n} stands behind {before:?}");
            }
        }
        Ok(())
    }
}

fn record(worker: usize, n: u64) -> Vec<u8> {
    let mut text = format!("{worker:>8} {n:>20} ").into_bytes();
    text.resize(RECORD as usize, b'.');
    text
}

fn record_of(record: &[u8]) -> Option<(usize, u64)> {
    let text = std::str::from_utf8(record).ok()?;
    let mut words = text.split_whitespace();
    let (worker, n) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    (text.as_bytes() == self::record(worker, n)).then_some((worker, n))
}

/// A question.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ask {
    Create(usize),
    Unlink(usize),
    Rename(usize, usize),
    Stat(usize),
    Set(u64),
    Get(u64),
    Add(u64),
}

/// A worker's hold of a round's object.
#[derive(Debug)]
pub(super) struct Object {
    kind: Kind,
    root: PathBuf,
    worker: usize,
    file: Option<File>,
    /// For directly read and written blocks, which take aligned memory.
    memory: Memory,
}

/// A block at an aligned address.
#[derive(Debug)]
struct Memory {
    bytes: Vec<u8>,
    at: usize,
}

impl Memory {
    fn new() -> Self {
        let bytes = vec![0; 2 * BLOCK];
        let at = bytes.as_ptr().align_offset(BLOCK);
        Self { bytes, at }
    }
    fn block(&mut self) -> &mut [u8] {
        &mut self.bytes[self.at..self.at + BLOCK]
    }
}

impl Object {
    pub(super) fn open(kind: Kind, root: &Path, worker: usize) -> Result<Self> {
        let path = root.join("file");
        let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
        let file = match kind {
            Kind::Names => None,
            Kind::Mode | Kind::Size | Kind::Cached => {
                Some(File::options().read(true).write(true).open(&path)?)
            }
            Kind::Direct => Some(File::options().read(true).write(true).custom_flags(direct).open(&path)?),
            Kind::Append => Some(File::options().append(true).open(&path)?),
        };
        let mut object = Self { kind, root: root.to_path_buf(), worker, file, memory: Memory::new() };
        match kind {
            Kind::Names => drop((0..NAMES).map(|n| object.run(Ask::Stat(n))).collect::<Result<Vec<_>>>()?),
            _ => drop(object.run(Ask::Get(0))?),
        }
        Ok(object)
    }

    /// A question that nobody else asks.
    pub(super) fn next(&self, rng: &mut Rng, n: usize) -> Ask {
        let name = |rng: &mut Rng| usize::try_from(rng.below(NAMES as u64)).unwrap_or(0);
        let fresh = (self.worker * 64 + n + 1) as u64;
        match self.kind {
            Kind::Names => match rng.below(10) {
                0..=1 => Ask::Create(name(rng)),
                2 => Ask::Unlink(name(rng)),
                3..=4 => {
                    let from = name(rng);
                    Ask::Rename(from, (from + 1 + name(rng) % (NAMES - 1)) % NAMES)
                }
                _ => Ask::Stat(name(rng)),
            },
            Kind::Append if rng.percent(50) => Ask::Add(fresh),
            _ if self.kind != Kind::Append && rng.percent(30) => Ask::Set(fresh),
            _ => Ask::Get(rng.below(2)),
        }
    }

    fn path(&self, name: usize) -> PathBuf {
        self.root.join(if name < NAMES / 2 { "0" } else { "1" }).join(format!("name{name}"))
    }

    pub(super) fn run(&mut self, ask: Ask) -> Result<Op> {
        Ok(match ask {
            Ask::Create(name) => {
                let made = File::options().write(true).create_new(true).open(self.path(name));
                let made = there(made, Errno::EXIST).context("create")?;
                Op::Create { name, made: made.map(|f| f.metadata()).transpose()?.map(|m| m.ino()) }
            }
            Ask::Unlink(name) => {
                let done = there(fs::remove_file(self.path(name)), Errno::NOENT).context("unlink")?.is_some();
                Op::Unlink { name, done }
            }
            Ask::Rename(from, to) => {
                let moved = fs::rename(self.path(from), self.path(to));
                Op::Rename { from, to, done: there(moved, Errno::NOENT).context("rename")?.is_some() }
            }
            Ask::Stat(name) => {
                let seen = there(fs::symlink_metadata(self.path(name)), Errno::NOENT).context("stat")?;
                Op::Stat { name, ino: seen.map(|m| m.ino()) }
            }
            Ask::Set(value) => {
                self.set(value).context("set")?;
                Op::Set { value }
            }
            Ask::Get(how) => Op::Get { value: self.get(how == 0).context("get")? },
            Ask::Add(n) => {
                let record = record(self.worker, n);
                self.file.as_mut().context("no file")?.write_all(&record).context("append")?;
                Op::Add
            }
        })
    }

    fn set(&mut self, value: u64) -> Result<()> {
        let file = self.file.as_ref().context("no file")?;
        match self.kind {
            Kind::Mode => file.set_permissions(fs::Permissions::from_mode(value as u32))?,
            Kind::Size => file.set_len(value * 10)?,
            Kind::Direct => {
                let block = self.memory.block();
                block.chunks_mut(8).for_each(|c| c.copy_from_slice(&value.to_le_bytes()));
                file.write_all_at(block, 0)?;
            }
            _ => file.write_all_at(&value.to_le_bytes(), 0)?,
        }
        Ok(())
    }

    fn get(&mut self, open: bool) -> Result<u64> {
        let file = self.file.as_ref().context("no file")?;
        let meta = |open: bool| if open { file.metadata() } else { fs::metadata(self.root.join("file")) };
        Ok(match self.kind {
            Kind::Mode => u64::from(meta(open)?.mode() & 0o7777),
            Kind::Size => meta(open)?.len() / 10,
            Kind::Append => meta(open)?.len() / RECORD,
            Kind::Direct => {
                let block = self.memory.block();
                file.read_exact_at(block, 0)?;
                let values: Vec<&[u8]> = block.chunks(8).collect();
                if values.iter().any(|v| v != &values[0]) {
                    bail!("a block is torn");
                }
                u64::from_le_bytes(values[0].try_into()?)
            }
            _ => {
                let mut bytes = [0; 8];
                if open {
                    file.read_exact_at(&mut bytes, 0)?;
                } else {
                    File::open(self.root.join("file"))?.read_exact_at(&mut bytes, 0)?;
                }
                u64::from_le_bytes(bytes)
            }
        })
    }
}

/// Success, or the one refusal that is an answer.
fn there<T>(result: std::io::Result<T>, refusal: Errno) -> std::io::Result<Option<T>> {
    match result {
        Ok(t) => Ok(Some(t)),
        Err(e) if e.raw_os_error() == Some(refusal.raw_os_error()) => Ok(None),
        Err(e) => Err(e),
    }
}
