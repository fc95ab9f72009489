//! What a check says: problems by class and severity, and what would correct them.

use crate::kv::Key;
use std::fmt;
use wire::ObjectId;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Space or numbers are wrong; no file is.
    Waste,
    /// A file or name shows something wrong.
    Wrong,
    /// A file or name is lost or unreadable.
    Lost,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waste => "waste",
            Self::Wrong => "wrong",
            Self::Lost => "lost",
        })
    }
}

/// What kind of rule does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A row can't be used.
    Row,
    /// Names, inodes and directories don't fit together.
    Name,
    /// A number is not what is there.
    Count,
    /// A row that belongs to nothing.
    Leftover,
    /// A chunk that a file names and no shard has.
    LostChunk,
    /// A chunk that a shard has and no file names.
    OrphanChunk,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Row => "bad-row",
            Self::Name => "name",
            Self::Count => "count",
            Self::Leftover => "leftover",
            Self::LostChunk => "lost-chunk",
            Self::OrphanChunk => "orphan-chunk",
        })
    }
}

/// Something that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What kind it is.
    pub class: Class,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, with the numbers that it is about.
    pub text: String,
    /// The inode that it is about, if it is about one.
    pub ino: Option<u64>,
    /// It can be corrected without losing or guessing anything.
    pub fixable: bool,
}

/// A correction of the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fix {
    /// Put or delete a row.
    Row(Key, Option<Box<[u8]>>),
    /// Set these fields of an inode.
    Inode(u64, Field),
    /// Make positions and kinds in a directory what its names say.
    Listing(u64),
}

/// A field of an inode and its right value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Links(u32),
    Entries(u64),
    XattrList(u32),
    Parent(u64),
    Blocks(u64),
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The first [`Report::KEPT`] problems.
    pub problems: Vec<Problem>,
    /// How many there are.
    pub count: u64,
    /// Inodes seen.
    pub inodes: u64,
    /// Names seen.
    pub names: u64,
    /// Chunks that files and free list speak of.
    pub chunks: u64,
    /// Chunks that nobody names: to be deleted. At most [`Report::ORPHANS`].
    pub orphans: Vec<(ObjectId, u32)>,
    /// Chunks that shards still have and the next start deletes: their files are gone or cut.
    pub deleting: u64,
    /// Files whose last changes the next start works out from their chunks.
    pub dirty: u64,
    /// A row could not be used, so that what is derived from rows may be wrong: nothing is corrected.
    pub unsure: bool,
    pub(crate) fixes: Vec<Fix>,
}

impl Report {
    /// Problems that are listed; more are only counted.
    pub const KEPT: usize = 10_000;
    /// Orphaned chunks of one report: bounds memory to 16 MiB. More are found by another check.
    pub const ORPHANS: usize = 1 << 20;

    pub(crate) fn add(&mut self, class: Class, severity: Severity, ino: Option<u64>, text: String) {
        self.push(Problem { class, severity, text, ino, fixable: false });
    }

    /// Adds a problem that `fix` corrects.
    pub(crate) fn add_fixable(
        &mut self,
        class: Class,
        severity: Severity,
        ino: Option<u64>,
        text: String,
        fix: Fix,
    ) {
        // A check after a repair finds what did not fit.
        let fixable = self.fixes.len() < Self::ORPHANS;
        if fixable {
            self.fixes.push(fix);
        }
        self.push(Problem { class, severity, text, ino, fixable });
    }

    pub(crate) fn push(&mut self, problem: Problem) {
        self.count += 1;
        if self.problems.len() < Self::KEPT {
            self.problems.push(problem);
        }
    }

    /// Nothing found?
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.count == 0
    }
}
