//! What a check tells.

use namespace::fsck::Severity;

/// What the operator does about a finding that is not mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Repair,
    RestoreFile,
    Restore,
    Name,
}

impl Next {
    fn text(self) -> &'static str {
        match self {
            Self::Repair => "mend it with --repair",
            Self::RestoreFile => "restore the file from a copy, then delete or overwrite the damaged one",
            Self::Restore => "restore the store from a backup; keep the device as it is until then",
            Self::Name => "copy what can be read, delete the name or directory, and restore it",
        }
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which structure or rule: `superblock`, `metadata`, `shard`, `log`, `volume`, `space`, `data`, or a class of
    /// [`namespace::fsck::Class`].
    pub class: String,
    /// `waste`: space or numbers only; `wrong`: something shows wrongly; `lost`: something can't be read.
    pub severity: Severity,
    /// What is wrong.
    pub text: String,
    /// The file's inode.
    pub ino: Option<u64>,
    /// Its path, if it has one, and how many other names it has.
    pub path: Option<String>,
    /// [`super::repair`] mends it.
    pub fixable: bool,
    /// What to do about it.
    pub next: &'static str,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The first ten thousand findings, worst first.
    pub findings: Vec<Finding>,
    /// How many there are.
    pub count: u64,
    /// The store had been stopped clean.
    pub clean_stop: bool,
    /// File data was read too.
    pub data: bool,
    /// Identity of the store.
    pub uuid: [u8; 16],
    /// Bytes of the device in use by the store.
    pub capacity: u64,
    /// Shards of the store.
    pub shards: u16,
    /// Inodes of the namespace.
    pub inodes: u64,
    /// Names of the namespace.
    pub names: u64,
    /// Chunks that the shards have.
    pub chunks: u64,
    /// Blocks of file data that chunks refer to.
    pub used_blocks: u64,
    /// Blocks of file data that were read and verified.
    pub data_blocks: u64,
    /// Blocks of metadata that were verified.
    pub metadata_blocks: u64,
    /// Copies of metadata that an unclean stop left unwritten; the next start writes them.
    pub unfinished: u64,
    /// Chunks that the next start deletes.
    pub deleting: u64,
    /// Files that the next start brings up to date from their chunks.
    pub dirty: u64,
    /// What could not be checked because something before it is damaged.
    pub skipped: Vec<String>,
}

impl Report {
    const KEPT: usize = 10_000;

    pub(super) fn add(&mut self, class: &str, severity: Severity, text: String, fixable: bool, next: Next) {
        let class = class.to_owned();
        self.push(Finding { class, severity, text, ino: None, path: None, fixable, next: next.text() });
    }

    pub(super) fn push(&mut self, finding: Finding) {
        self.count += 1;
        if self.findings.len() < Self::KEPT {
            self.findings.push(finding);
        }
    }

    pub(super) fn next_of(class: namespace::fsck::Class, fixable: bool) -> &'static str {
        use namespace::fsck::Class;
        let next = match class {
            _ if fixable => Next::Repair,
            Class::LostChunk | Class::Count => Next::RestoreFile,
            Class::Name => Next::Name,
            Class::Row | Class::Leftover | Class::OrphanChunk => Next::Restore,
        };
        next.text()
    }

    pub(super) fn skipped(&mut self, what: &str) {
        self.skipped.push(what.to_owned());
    }

    pub(super) fn sort(&mut self) {
        self.findings.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.class.cmp(&b.class)));
    }

    /// Nothing is wrong, and everything could be checked.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.count == 0 && self.skipped.is_empty()
    }

    /// Findings that [`super::repair`] mends.
    #[must_use]
    pub fn fixable(&self) -> usize {
        self.findings.iter().filter(|f| f.fixable).count()
    }
}
