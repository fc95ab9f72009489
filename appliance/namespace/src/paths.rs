//! The path of an inode, found from the rows: for reports of damage, never for serving.
//!
//! An inode does not know its names. They are found by reading all names once, however many inodes are asked for; the
//! directories above are found from each directory's parent. Takes seconds at millions of names.

use crate::applier::{AllRows, Error};
use crate::kv::{Key, KeyRange, Table};
use crate::layout;
use std::collections::{HashMap, HashSet};
use wire::{Ino, ROOT_INO};

/// Inodes and bodies of data that one search looks for at most.
pub const WANTED_MAX: usize = 10_000;
/// Directories above each other before the climb is given up: damage may have made a loop.
const DEPTH_MAX: usize = 4096;

/// What an inode is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// From the root on; `None` where no name leads there.
    pub path: Option<Vec<u8>>,
    /// How many names it has: the path is one of them.
    pub names: u64,
}

impl Named {
    /// For people: the path with what is not printable escaped, and how many other names there are.
    #[must_use]
    pub fn shown(&self) -> String {
        let Some(path) = &self.path else { return "(no name)".to_owned() };
        let mut out = shown(path);
        if self.names > 1 {
            out.push_str(&format!(" (one of {} names)", self.names));
        }
        out
    }
}

/// A name or path for people.
#[must_use]
pub fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
        out
    })
}

/// The inodes that have these bodies of data.
///
/// # Errors
/// The database can't be read.
pub fn owners(rows: &AllRows, objects: &HashSet<u64>) -> Result<HashMap<u64, u64>, Error> {
    let mut found = HashMap::new();
    if objects.is_empty() {
        return Ok(found);
    }
    rows.scan(&KeyRange::table(Table::Inode), |key, value| {
        if let (Some(ino), Ok(row)) = (Key::raw(key).id(), layout::inode(value))
            && row.is_file()
            && objects.contains(&row.object.get())
        {
            found.insert(row.object.get(), ino);
        }
        found.len() < objects.len()
    })?;
    Ok(found)
}

/// The paths of these inodes, at most [`WANTED_MAX`] of them; the others are left out.
///
/// # Errors
/// The database can't be read.
pub fn find(rows: &AllRows, inos: &HashSet<u64>) -> Result<HashMap<u64, Named>, Error> {
    let mut found: HashMap<u64, (u64, Vec<u8>, u64)> = HashMap::new();
    let wanted: HashSet<u64> = inos.iter().copied().take(WANTED_MAX).collect();
    if !wanted.is_empty() {
        rows.scan(&KeyRange::table(Table::Dentry), |key, value| {
            if let Ok(entry) = layout::dentry(value)
                && wanted.contains(&entry.ino.get())
                && let (Some(dir), Some(name)) = (Key::raw(key).id(), key.get(9..))
            {
                let seen = found.entry(entry.ino.get()).or_insert_with(|| (dir, name.to_vec(), 0));
                seen.2 += 1;
            }
            true
        })?;
    }
    let mut known = HashMap::from([(ROOT_INO.0, Some(Vec::new()))]);
    let mut out = HashMap::new();
    for ino in wanted {
        let named = match found.get(&ino) {
            _ if ino == ROOT_INO.0 => Named { path: Some(b"/".to_vec()), names: 1 },
            Some((dir, name, names)) => {
                let path = above(rows, *dir, &mut known)?.map(|p| joined(&p, name));
                Named { path, names: *names }
            }
            None => Named::default(),
        };
        out.insert(ino, named);
    }
    Ok(out)
}

fn joined(dir: &[u8], name: &[u8]) -> Vec<u8> {
    [dir, b"/", name].concat()
}

/// The path of a directory, empty for the root; remembers what it found on the way.
fn above(
    rows: &AllRows,
    dir: u64,
    known: &mut HashMap<u64, Option<Vec<u8>>>,
) -> Result<Option<Vec<u8>>, Error> {
    let mut climbed: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut at = dir;
    let mut path = loop {
        if let Some(path) = known.get(&at) {
            break path.clone();
        }
        let row = rows.get(&Key::inode(Ino(at)))?;
        let Some(parent) = row.and_then(|v| layout::inode(&v).ok()).map(|r| r.parent.get()) else {
            break None;
        };
        let Some(name) = name_in(rows, parent, at)?.filter(|_| climbed.len() < DEPTH_MAX) else {
            break None;
        };
        climbed.push((at, name));
        at = parent;
    };
    for (dir, name) in climbed.into_iter().rev() {
        path = path.map(|p| joined(&p, &name));
        known.insert(dir, path.clone());
    }
    Ok(path)
}

fn name_in(rows: &AllRows, dir: u64, ino: u64) -> Result<Option<Vec<u8>>, Error> {
    let mut name = None;
    rows.scan(&KeyRange::of(Table::Dentry, dir), |key, value| {
        if layout::dentry(value).is_ok_and(|d| d.ino.get() == ino) {
            name = key.get(9..).map(<[u8]>::to_vec);
        }
        name.is_none()
    })?;
    Ok(name)
}
