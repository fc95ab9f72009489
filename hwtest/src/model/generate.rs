//! Chooses the next operation: mostly ones that succeed, often ones that meet, sometimes ones that fail.

use super::fs::{Body, Model, ROOT};
use super::ops::{LOCK_CELLS, Locking, Mode, Op, Renaming, Space};
use crate::rng::Rng;

/// Names are few, so that operations meet; one is the longest allowed, one is too long.
const NAMES: &[&str] = &["a", "b", "c", "d", "e", "name with blanks", "ümlaut", "h"];
/// Files that each worker keeps open at most.
pub(super) const SLOTS: u64 = 4;
/// Largest file: past three chunks of 1 MiB.
const FAR: u64 = (3 << 20) + 5000;
/// Attribute names; `trusted.` needs root, as do the workers.
const XATTRS: &[&str] = &["user.a", "user.b", "trusted.c"];

/// The next operation of a worker.
pub(super) fn next(rng: &mut Rng, model: &Model, worker: usize) -> Op {
    // An operation that a real file system may answer in more than one way is not asked.
    for _ in 0..100 {
        let op = propose(rng, model);
        if is_definite(model, worker, &op) {
            return op;
        }
    }
    Op::Stat { path: String::new() }
}

fn propose(rng: &mut Rng, model: &Model) -> Op {
    match rng.below(100) {
        0..=6 => Op::Create { path: path(rng, model), mode: mode(rng), excl: rng.percent(50) },
        7..=9 => Op::Mkdir { path: path(rng, model), mode: dir_mode(rng) },
        10..=11 => Op::Rmdir { path: path(rng, model) },
        12..=16 => Op::Unlink { path: path(rng, model) },
        17..=22 => Op::Rename { from: path(rng, model), to: path(rng, model), how: renaming(rng) },
        23..=24 => Op::Link { from: path(rng, model), to: path(rng, model) },
        25..=26 => Op::Symlink { target: target(rng), path: path(rng, model) },
        27 => Op::Readlink { path: path(rng, model) },
        28 => Op::Fifo { path: path(rng, model), mode: mode(rng) },
        29..=36 => Op::Stat { path: path(rng, model) },
        37..=40 => Op::List { path: any_dir(rng, model) },
        41..=55 => propose_data(rng, model),
        56..=57 => Op::Chmod { path: path(rng, model), mode: mode(rng) | special(rng) },
        58 => Op::Chown { path: path(rng, model), uid: small(rng), gid: small(rng) },
        59..=60 => Op::Utimes {
            path: path(rng, model),
            sec: i64::try_from(rng.below(4_000_000_000)).unwrap_or(0),
            nsec: u32::try_from(rng.below(1_000_000_000)).unwrap_or(0),
        },
        61..=64 => propose_xattr(rng, model),
        _ => propose_slot(rng, model),
    }
}

fn propose_data(rng: &mut Rng, model: &Model) -> Op {
    let path = path(rng, model);
    match rng.below(15) {
        0..=3 => Op::Write { path, offset: offset(rng), seed: rng.draw(), len: len(rng) },
        4..=6 => Op::Append { path, seed: rng.draw(), len: len(rng) },
        7..=10 => Op::Read { path, offset: offset(rng), len: len(rng) * 2 },
        11..=12 => Op::Truncate { path, len: if rng.percent(30) { 0 } else { offset(rng) } },
        13 => Op::Allocate { path, how: space(rng), offset: offset(rng), len: len(rng) as u64 - 1 },
        _ => Op::Copy {
            from: path,
            from_offset: offset(rng),
            to: self::path(rng, model),
            to_offset: offset(rng),
            len: len(rng) as u64 * 4,
        },
    }
}

fn propose_xattr(rng: &mut Rng, model: &Model) -> Op {
    let path = path(rng, model);
    let name = (*rng.pick(XATTRS).unwrap_or(&"user.a")).to_owned();
    match rng.below(6) {
        0..=1 => {
            let (create, replace) = *rng
                .pick(&[(false, false), (false, false), (true, false), (false, true)])
                .unwrap_or(&(false, false));
            let len = usize::try_from(rng.below(300)).unwrap_or(0);
            Op::SetXattr { path, name, seed: rng.draw(), len, create, replace }
        }
        2..=3 => Op::GetXattr { path, name },
        4 => Op::RemoveXattr { path, name },
        _ => Op::ListXattr { path },
    }
}

fn propose_slot(rng: &mut Rng, model: &Model) -> Op {
    let slot = usize::try_from(rng.below(SLOTS)).unwrap_or(0);
    match rng.below(35) {
        0..=7 => {
            let write = rng.percent(75);
            let mode = Mode {
                read: !write || rng.percent(70),
                write,
                append: write && rng.percent(25),
                truncate: write && rng.percent(10),
                create: write && rng.percent(30),
            };
            Op::Open { slot, path: path(rng, model), mode }
        }
        8..=14 => Op::SlotWrite { slot, offset: offset(rng), seed: rng.draw(), len: len(rng) },
        15..=19 => Op::SlotRead { slot, offset: offset(rng), len: len(rng) * 2 },
        20..=21 => Op::SlotTruncate { slot, len: offset(rng) },
        22..=25 => Op::SlotStat { slot },
        26 => Op::SlotSync { slot },
        27..=28 => Op::SlotClose { slot },
        29..=31 => Op::Flock { slot, how: locking(rng) },
        _ => {
            let cell = rng.below(LOCK_CELLS);
            Op::Lock { slot, how: locking(rng), cell, cells: 1 + rng.below(LOCK_CELLS - cell) }
        }
    }
}

/// Whether Linux promises one answer.
fn is_definite(model: &Model, worker: usize, op: &Op) -> bool {
    let pipe =
        |path: &str| model.existing(path, true).is_ok_and(|n| matches!(model.node(n).body, Body::Fifo));
    let dir = |path: &str| model.existing(path, true).is_ok_and(|n| model.is_dir(n));
    match op {
        // Data of a pipe depends on who else has it open.
        Op::Create { path, .. }
        | Op::Write { path, .. }
        | Op::Append { path, .. }
        | Op::Read { path, .. }
        | Op::Allocate { path, .. } => !pipe(path),
        // The kernel keeps locks of directories to itself, so two mounts do not share them.
        Op::Open { path, .. } => !pipe(path) && !dir(path),
        // How much one call copies is the file system's choice, so a copy onto itself must end before the end.
        Op::Copy { from, from_offset, to, len, .. } => {
            let ends = |n: u64| model.data(n).map_or(0, |d| d.len() as u64);
            let same = match (model.existing(from, true), model.existing(to, true)) {
                (Ok(a), Ok(b)) if a == b => from_offset + len > ends(a),
                _ => false,
            };
            !pipe(from) && !pipe(to) && !same
        }
        Op::Flock { slot, how } => {
            let holder = (worker, *slot);
            model.opens.get(&holder).is_none_or(|o| !model.locks.would_lose(o.node, holder, *how))
        }
        _ => true,
    }
}

/// A path: a walk down, mostly along what exists.
fn path(rng: &mut Rng, model: &Model) -> String {
    let mut out = String::new();
    let mut dir = ROOT;
    loop {
        let Ok(entries) = model.entries(dir) else { return out };
        let existing = !entries.is_empty() && rng.percent(75);
        let name = if existing {
            let n = usize::try_from(rng.below(entries.len() as u64)).unwrap_or(0);
            entries.keys().nth(n).cloned().unwrap_or_default()
        } else {
            name(rng)
        };
        if !out.is_empty() {
            out.push('/');
        }
        out.push_str(&name);
        let deeper = match entries.get(&name).map(|n| (*n, &model.node(*n).body)) {
            Some((n, Body::Dir { .. })) => {
                dir = n;
                rng.percent(if out.len() < 40 { 70 } else { 10 })
            }
            // Now and then through something that is no directory, or through a link.
            Some(_) if rng.percent(3) => {
                out.push('/');
                out.push_str(NAMES[0]);
                false
            }
            _ => false,
        };
        if !deeper {
            return out;
        }
    }
}

fn any_dir(rng: &mut Rng, model: &Model) -> String {
    if rng.percent(20) {
        return String::new();
    }
    let path = path(rng, model);
    if rng.percent(10) {
        return path;
    }
    path.rsplit_once('/').map(|(dir, _)| dir.to_owned()).unwrap_or_default()
}

fn name(rng: &mut Rng) -> String {
    match rng.below(200) {
        0 => "n".repeat(256),
        1..=4 => "l".repeat(255),
        _ => (*rng.pick(NAMES).unwrap_or(&"a")).to_owned(),
    }
}

/// A link's target: relative and downwards, so that it stays within the model.
fn target(rng: &mut Rng) -> String {
    let first = name(rng);
    if rng.percent(40) { format!("{first}/{}", name(rng)) } else { first }
}

fn mode(rng: &mut Rng) -> u32 {
    u32::try_from(rng.below(0o1000)).unwrap_or(0)
}

fn dir_mode(rng: &mut Rng) -> u32 {
    mode(rng)
}

fn special(rng: &mut Rng) -> u32 {
    *rng.pick(&[0, 0, 0, 0o2000, 0o4000, 0o6000]).unwrap_or(&0)
}

fn small(rng: &mut Rng) -> u32 {
    u32::try_from(rng.below(3)).unwrap_or(0)
}

/// Mostly within the first pages, sometimes anywhere up to past three chunks.
fn offset(rng: &mut Rng) -> u64 {
    match rng.below(20) {
        0..=9 => rng.below(9000),
        10..=16 => rng.below(70_000),
        17 => rng.below(4) << 20,
        18 => ((1 + rng.below(3)) << 20) - rng.below(6000),
        _ => rng.below(FAR),
    }
}

/// At least one byte.
fn len(rng: &mut Rng) -> usize {
    let n = match rng.below(40) {
        0..=19 => rng.below(600),
        20..=34 => rng.below(9000),
        35..=38 => rng.below(70_000),
        _ => rng.below(400_000),
    };
    usize::try_from(n).unwrap_or(0) + 1
}

fn renaming(rng: &mut Rng) -> Renaming {
    *rng.pick(&[Renaming::Plain, Renaming::Plain, Renaming::Plain, Renaming::NoReplace, Renaming::Exchange])
        .unwrap_or(&Renaming::Plain)
}

fn space(rng: &mut Rng) -> Space {
    *rng.pick(&[Space::Grow, Space::Keep, Space::Punch, Space::Zero, Space::ZeroKeep]).unwrap_or(&Space::Grow)
}

fn locking(rng: &mut Rng) -> Locking {
    *rng.pick(&[Locking::Read, Locking::Write, Locking::Unlock]).unwrap_or(&Locking::Unlock)
}
