//! One directory of very many names: made, listed, looked up, listed while others make and remove, removed.
//!
//! Owns the load and its checks. POSIX: a listing gives a name that is there from opendir(3) to its end exactly once, no name
//! twice, and none that was removed before; of names that come and go meanwhile it may give either.

use super::{Meter, Phase, Watched};
use crate::rig::{Rig, Setup};
use crate::rng::Rng;
use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{AtFlags, FileType, Mode, mknodat, statat, unlinkat};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The directory on the file system, once for each mount of it.
    pub dirs: Vec<PathBuf>,
    /// Names in the one directory that is made there.
    pub entries: u64,
    /// Threads that make, look up and remove.
    pub workers: u64,
    /// Listings while others make and remove.
    pub listings: u64,
    /// Seed of the names that are looked up.
    pub seed: u64,
}

/// Names by role: those that stay, those that are removed during listings, those that are made meanwhile.
const ROLES: [&str; 3] = ["stays", "goes", "comes"];

/// Bytes of the device for a name: two copies of its rows in a database that is half empty at worst.
const NAME_BYTES: u64 = 4096;

fn name(role: usize, n: u64) -> String {
    format!("{}-{n:08}", ROLES[role])
}

/// Runs it all on a daemon and a mount of its own, in a folder that is made in `parent`.
///
/// # Errors
/// As [`run`], or they can't be started.
pub fn on_own(plan: &Plan, parent: &Path, mounts: u64, progress: bool) -> Result<Vec<Phase>> {
    let size = (2 << 30) + plan.entries * NAME_BYTES;
    let mut rig = Rig::start(&Setup { size, dir: Some(parent.to_path_buf()), ..Setup::default() })?;
    let mut watched: Vec<Watched> =
        rig.daemon_pid().map(|pid| Watched { label: "daemon".into(), pid }).into_iter().collect();
    let mut dirs = Vec::new();
    for n in 0..mounts.max(1) {
        let mnt = rig.mount(&format!("mnt{n}"))?;
        watched.extend(rig.clients(&mnt).into_iter().map(|pid| Watched { label: format!("mount {n}"), pid }));
        dirs.push(mnt);
    }
    let phases = run(&Plan { dirs: dirs.clone(), ..plan.clone() }, Meter::new(watched, progress))?;
    dirs.iter().try_for_each(|mnt| rig.unmount(mnt))?;
    rig.stop_daemon()?;
    Ok(phases)
}

/// Runs it all.
///
/// # Errors
/// The first answer that is wrong.
pub fn run(plan: &Plan, mut meter: Meter) -> Result<Vec<Phase>> {
    let Some(first) = plan.dirs.first() else { bail!("no directory is given") };
    let own = format!("scale-{}", std::process::id());
    std::fs::create_dir(first.join(&own)).with_context(|| format!("in {}", first.display()))?;
    let dirs: Vec<PathBuf> = plan.dirs.iter().map(|d| d.join(&own)).collect();
    let n = plan.entries;
    let goes = n / 10;
    meter.phase("create", || spread(plan, &dirs, n, |dir, i| create(dir, 0, i)))?;
    meter.phase("list (ls -f)", || list_still(&dirs, n))?;
    meter.phase("list with attributes (ls -l)", || list_attributes(&dirs[0], n))?;
    meter.phase("look up at random", || look_up(plan, &dirs, n))?;
    meter.phase("create those that go", || spread(plan, &dirs, goes, |dir, i| create(dir, 1, i)))?;
    meter.phase("list while others come and go", || list_changing(plan, &dirs, goes))?;
    meter.phase("remove", || {
        spread(plan, &dirs, n, |dir, i| unlinkat(dir, name(0, i), AtFlags::empty()).context("removing"))
    })?;
    meter.phase("remove the rest", || remove_listed(&dirs[0]))?;
    ensure!(std::fs::read_dir(&dirs[0])?.next().is_none(), "names are listed in an emptied directory");
    std::fs::remove_dir(&dirs[0])?;
    Ok(meter.finish())
}

/// Does `n` things on all workers; worker `w` works through mount `w`, in turn.
fn spread(
    plan: &Plan,
    dirs: &[PathBuf],
    n: u64,
    each: impl Fn(&File, u64) -> Result<()> + Sync,
) -> Result<u64> {
    let workers = plan.workers.max(1);
    std::thread::scope(|scope| {
        let each = &each;
        let threads: Vec<_> = (0..workers)
            .map(|w| {
                let dir = &dirs[w as usize % dirs.len()];
                scope.spawn(move || -> Result<()> {
                    let dir = File::open(dir)?;
                    (w..n).step_by(workers as usize).try_for_each(|i| each(&dir, i))
                })
            })
            .collect();
        threads.into_iter().try_for_each(|t| joined(t.join()))
    })?;
    Ok(n)
}

fn joined(result: std::thread::Result<Result<()>>) -> Result<()> {
    result.unwrap_or_else(|_| bail!("a worker panicked"))
}

fn create(dir: &File, role: usize, n: u64) -> Result<()> {
    let name = name(role, n);
    // One request where open(2) and close(2) are four: the names are what is measured.
    mknodat(dir, &name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)
        .with_context(|| format!("creating {name}"))
}

/// Which names a listing gave.
struct Seen {
    bits: [Vec<u64>; 3],
    counts: [u64; 3],
}

impl Seen {
    fn new() -> Self {
        Self { bits: [const { Vec::new() }; 3], counts: [0; 3] }
    }

    fn add(&mut self, name: &str) -> Result<()> {
        let known = name.split_once('-').and_then(|(role, n)| {
            let role = ROLES.iter().position(|r| *r == role)?;
            Some((role, n.parse::<usize>().ok()?))
        });
        let Some((role, n)) = known else { bail!("the listing gave {name}, which nobody made") };
        let bits = &mut self.bits[role];
        if bits.len() <= n / 64 {
            bits.resize(n / 64 + 1, 0);
        }
        ensure!(bits[n / 64] >> (n % 64) & 1 == 0, "the listing gave {name} twice");
        bits[n / 64] |= 1 << (n % 64);
        self.counts[role] += 1;
        Ok(())
    }

    fn has(&self, role: usize, n: u64) -> bool {
        self.bits[role].get(n as usize / 64).is_some_and(|word| word >> (n % 64) & 1 == 1)
    }
}

fn listed(dir: &Path) -> Result<Seen> {
    let mut seen = Seen::new();
    for entry in std::fs::read_dir(dir)? {
        seen.add(&entry?.file_name().to_string_lossy())?;
    }
    Ok(seen)
}

fn list_still(dirs: &[PathBuf], n: u64) -> Result<u64> {
    for dir in dirs {
        let seen = listed(dir)?;
        ensure!(
            seen.counts == [n, 0, 0],
            "{} names were listed where {n} are: {:?}",
            seen.counts[0],
            seen.counts
        );
    }
    Ok(n * dirs.len() as u64)
}

fn list_attributes(dir: &Path, n: u64) -> Result<u64> {
    let mut seen = Seen::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        seen.add(&entry.file_name().to_string_lossy())?;
        let meta =
            entry.metadata().with_context(|| format!("the attributes of {}", entry.path().display()))?;
        ensure!(meta.is_file() && meta.len() == 0, "{} has the wrong attributes", entry.path().display());
    }
    ensure!(seen.counts[0] == n, "{} names were listed where {n} are", seen.counts[0]);
    Ok(n)
}

/// A tenth as many names as there are, and a tenth of these that are not there.
fn look_up(plan: &Plan, dirs: &[PathBuf], n: u64) -> Result<u64> {
    spread(plan, dirs, n / 10, |dir, i| {
        let mut rng = Rng::new(plan.seed.wrapping_add(i.wrapping_mul(0x9E37_79B9)));
        let absent = rng.percent(10);
        let which = rng.below(n) + if absent { n } else { 0 };
        match (statat(dir, name(0, which), AtFlags::SYMLINK_NOFOLLOW), absent) {
            (Ok(_), false) | (Err(Errno::NOENT), true) => Ok(()),
            (found, _) => bail!(
                "stat of {} (which {} there) gave {found:?}",
                name(0, which),
                if absent { "is not" } else { "is" }
            ),
        }
    })
}

fn list_changing(plan: &Plan, dirs: &[PathBuf], goes: u64) -> Result<u64> {
    // How far the two have come: in order, so that one number says which names are (not) there for certain.
    let (removed, made, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let last = dirs.last().context("no directory is given")?;
    std::thread::scope(|scope| {
        let remover = scope.spawn(|| -> Result<()> {
            let dir = File::open(last)?;
            for i in (0..goes).take_while(|_| !stop.load(Ordering::Relaxed)) {
                unlinkat(dir.as_fd(), name(1, i), AtFlags::empty()).context("removing")?;
                removed.store(i + 1, Ordering::SeqCst);
            }
            Ok(())
        });
        let maker = scope.spawn(|| -> Result<()> {
            let dir = File::open(last)?;
            for i in (0..goes).take_while(|_| !stop.load(Ordering::Relaxed)) {
                create(&dir, 2, i)?;
                made.store(i + 1, Ordering::SeqCst);
            }
            Ok(())
        });
        let mut total = 0;
        let mut result = Ok(());
        for i in 0..plan.listings {
            let (gone, there) = (removed.load(Ordering::SeqCst), made.load(Ordering::SeqCst));
            let one = listed(&dirs[i as usize % dirs.len()]).and_then(|seen| {
                total += seen.counts.iter().sum::<u64>();
                check_changing(plan.entries, &seen, gone, there)
            });
            result = one.with_context(|| format!("listing {i}"));
            if result.is_err() {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        joined(remover.join())?;
        joined(maker.join())?;
        result.map(|()| total)
    })
}

/// `gone` names had been removed and `there` names been made before the listing began.
fn check_changing(stays: u64, seen: &Seen, gone: u64, there: u64) -> Result<()> {
    if let Some(i) = (0..stays).find(|&i| !seen.has(0, i)) {
        bail!("the listing missed {}, which was there all the time", name(0, i));
    }
    if let Some(i) = (0..gone).find(|&i| seen.has(1, i)) {
        bail!("the listing gave {}, which had been removed before", name(1, i));
    }
    if let Some(i) = (0..there).find(|&i| !seen.has(2, i)) {
        bail!("the listing missed {}, which had been made before", name(2, i));
    }
    Ok(())
}

/// As `rm -r`: lists and removes what it lists.
fn remove_listed(dir: &Path) -> Result<u64> {
    let mut removed = 0;
    for entry in std::fs::read_dir(dir)? {
        std::fs::remove_file(entry?.path())?;
        removed += 1;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_listing_is_told() {
        let mut seen = Seen::new();
        for i in [0, 1, 200] {
            seen.add(&name(0, i)).expect("new");
        }
        seen.add(&name(1, 3)).expect("new");
        assert!(seen.add(&name(0, 200)).is_err(), "twice");
        assert!(seen.add("nobody").is_err() && seen.add("stays-x").is_err());
        assert_eq!(
            (seen.counts, seen.has(0, 200), seen.has(0, 199), seen.has(2, 5)),
            ([3, 1, 0], true, false, false)
        );
        assert!(check_changing(2, &seen, 3, 0).is_ok());
        assert!(check_changing(3, &seen, 0, 0).is_err(), "one that stays is missing");
        assert!(check_changing(2, &seen, 4, 0).is_err(), "one that went is there");
        assert!(check_changing(2, &seen, 0, 1).is_err(), "one that came is missing");
    }
}
