//! The names of files whose data is bad, for the log and for reports.
//!
//! Owns the searches: one at a time, on a thread of the applier, never on a reactor. Whoever reports an error does not wait:
//! the name follows in a line of its own, and is in the line at once where it was found a little while ago.

use crate::applying::Applying;
use namespace::applier::Error;
use namespace::paths::{self, Named};
use reactor::mail;
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Files of failed reads that wait for their names; more are told without.
const WAITING: usize = 64;
/// Names remembered for this long: a file may be renamed.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Names remembered at once.
const NAMES: usize = 256;
/// Until the database is looked at again where somebody else does, or a new name may not be in it yet.
const PAUSE: Duration = Duration::from_millis(500);
/// Looks before a search is given up: a minute.
const ATTEMPTS: usize = 120;
/// Looks that find nothing before there is nothing: the database is at most a second behind.
const EMPTY: usize = 6;

/// What a search found.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// Inode of a body of data.
    pub(crate) owners: HashMap<u64, u64>,
    /// Names of inodes.
    pub(crate) named: HashMap<u64, Named>,
}

struct Inner {
    applying: Applying,
    waiting: RefCell<HashSet<u64>>,
    running: Cell<bool>,
    known: RefCell<FxHashMap<u64, (Instant, String)>>,
}

/// See the module; clones are cheap.
#[derive(Clone)]
pub(crate) struct Naming(Rc<Inner>);

impl Naming {
    pub(crate) fn new(applying: Applying) -> Self {
        let inner = Inner {
            applying,
            waiting: RefCell::default(),
            running: Cell::new(false),
            known: RefCell::default(),
        };
        Self(Rc::new(inner))
    }

    /// The name of a file that was told of lately; otherwise it is searched for and told in a line of its own.
    pub(crate) fn of(&self, ino: u64) -> Option<String> {
        let now = reactor::now();
        let mut known = self.0.known.borrow_mut();
        known.retain(|_, (at, _)| now.duration_since(*at) < REMEMBERED);
        if let Some((_, name)) = known.get(&ino) {
            return Some(name.clone());
        }
        let mut waiting = self.0.waiting.borrow_mut();
        if waiting.len() < WAITING
            && known.len() < NAMES
            && waiting.insert(ino)
            && !self.0.running.replace(true)
        {
            let this = self.clone();
            drop(reactor::spawn(async move { this.search().await }));
        }
        None
    }

    async fn search(&self) {
        loop {
            let inos = std::mem::take(&mut *self.0.waiting.borrow_mut());
            if inos.is_empty() {
                return self.0.running.set(false);
            }
            match self.files(HashSet::new(), inos).await {
                Ok(files) => files.named.iter().for_each(|(ino, named)| self.tell(*ino, named)),
                Err(e) => tracing::warn!(error = e, "the names of files with bad data can't be found"),
            }
        }
    }

    fn tell(&self, ino: u64, named: &Named) {
        let path = named.shown();
        tracing::error!(ino, path, "this is the file whose data failed");
        self.0.known.borrow_mut().insert(ino, (reactor::now(), path));
    }

    /// Finds the files of these bodies of data, and the names of theirs and of `inos`.
    pub(crate) async fn files(&self, objects: HashSet<u64>, inos: HashSet<u64>) -> Result<Files, String> {
        let mut empty = 0;
        for _ in 0..ATTEMPTS {
            let (give, mut take) = mail::channel(1);
            let (objects, inos) = (objects.clone(), inos.clone());
            let wanted = objects.len() + inos.len();
            let looking = self.0.applying.look(move |rows| {
                let found = rows.and_then(|rows| {
                    let owners = paths::owners(rows, &objects)?;
                    let all = inos.into_iter().chain(owners.values().copied()).collect();
                    let named = paths::find(rows, &all)?;
                    Ok(Files { owners, named })
                });
                drop(give.send_blocking(found));
            });
            match if looking { take.recv().await } else { None } {
                Some(Ok(files)) => {
                    let named = files.named.values().filter(|n| n.path.is_some()).count();
                    empty += 1;
                    if named >= wanted || empty >= EMPTY {
                        return Ok(files);
                    }
                    self.0.applying.hurry();
                }
                None | Some(Err(Error::Wanted)) => {}
                Some(Err(e)) => return Err(e.to_string()),
            }
            reactor::sleep(PAUSE).await;
        }
        Err("the database is busy".to_owned())
    }
}
