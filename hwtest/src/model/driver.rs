//! The driver: starts workers, hands each operation to one of them, compares, and tells the story when they differ.

use super::fs::{Expected, Model};
use super::generate;
use super::ops::{Kind, Op, Reply};
use crate::rng::Rng;
use anyhow::{Context as _, Result, bail};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

/// A run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The program that is started as `PROGRAM worker DIR` (`hwtest`).
    pub program: PathBuf,
    /// The same directory, as each mount shows it; workers take turns over them.
    pub dirs: Vec<PathBuf>,
    /// Worker processes.
    pub workers: usize,
    /// Operations.
    pub ops: u64,
    /// Seed.
    pub seed: u64,
    /// Longest wait for one answer.
    pub patience: Duration,
    /// Say now and then how far it is.
    pub progress: bool,
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Operations compared.
    pub ops: u64,
    /// Of these, expected to fail and failing as expected.
    pub refused: u64,
    /// Whole trees compared, entry by entry.
    pub sweeps: u64,
    /// How often each kind of operation ran.
    pub by_kind: BTreeMap<String, u64>,
}

/// Operations between two comparisons of the whole tree.
const SWEEP_EVERY: u64 = 20_000;
/// How much later than close(2) a flock may be freed. The kernel does not wait for a FUSE close, so it is the time that a busy
/// machine takes to run the client; a restart of the server adds nothing to it.
const LATE_UNLOCK: Duration = Duration::from_secs(1);
/// Operations that the story of a difference begins with.
const STORY: usize = 30;

/// Does a run in a fresh directory below each of `plan.dirs`, which is removed after a run without difference.
///
/// # Errors
/// The first answer that is not the model's, with the operations that led to it; or a worker that dies or hangs.
pub fn run(plan: &Plan) -> Result<Summary> {
    let name = format!("model-{}-{}", plan.seed, std::process::id());
    let first = plan.dirs.first().context("a run needs a directory")?.join(&name);
    std::fs::create_dir(&first).with_context(|| format!("can't create {}", first.display()))?;
    std::fs::set_permissions(&first, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut driver = Driver {
        workers: Vec::new(),
        model: Model::default(),
        story: VecDeque::new(),
        summary: Summary::default(),
        seed: plan.seed,
        patience: plan.patience,
    };
    for n in 0..plan.workers {
        driver.workers.push(Worker::start(&plan.program, &plan.dirs[n % plan.dirs.len()].join(&name))?);
    }
    let mut rng = Rng::new(plan.seed);
    let mut said = Instant::now();
    for n in 0..plan.ops {
        let worker = usize::try_from(rng.below(plan.workers as u64)).unwrap_or(0);
        let op = generate::next(&mut rng, &driver.model, worker);
        *driver.summary.by_kind.entry(kind_name(&op)).or_default() += 1;
        driver.step(worker, &op)?;
        if n % SWEEP_EVERY == SWEEP_EVERY - 1 {
            driver.sweep()?;
        }
        if plan.progress && said.elapsed() > Duration::from_secs(10) {
            println!("{n} of {} operations agree", plan.ops);
            said = Instant::now();
        }
    }
    driver.sweep()?;
    let Driver { workers, summary, .. } = driver;
    drop(workers);
    std::fs::remove_dir_all(&first).with_context(|| format!("can't remove {}", first.display()))?;
    Ok(summary)
}

fn kind_name(op: &Op) -> String {
    format!("{op:?}").split([' ', '{']).next().unwrap_or_default().to_owned()
}

struct Driver {
    workers: Vec<Worker>,
    model: Model,
    story: VecDeque<String>,
    summary: Summary,
    seed: u64,
    patience: Duration,
}

impl Driver {
    fn step(&mut self, worker: usize, op: &Op) -> Result<()> {
        self.story.push_back(format!("worker {worker}: {op:?}"));
        if self.story.len() > STORY {
            self.story.pop_front();
        }
        let expected = self.model.apply(worker, op);
        let mut got = self.workers[worker].ask(op, self.patience).with_context(|| self.tell("no answer"))?;
        // A FUSE server hears of a close a little later than close(2) returns, so a flock may be freed a little later.
        let end = Instant::now() + LATE_UNLOCK;
        while matches!(op, Op::Flock { .. })
            && expected == Expected::Exactly(Reply::Ok)
            && got == Reply::Error("EAGAIN".to_owned())
            && Instant::now() < end
        {
            got = self.workers[worker].ask(op, self.patience).with_context(|| self.tell("no answer"))?;
        }
        self.summary.ops += 1;
        self.summary.refused += u64::from(matches!(expected, Expected::Exactly(Reply::Error(_))));
        if let Err(difference) = self.model.compare(&expected, &got) {
            bail!("{}", self.tell(&difference));
        }
        Ok(())
    }

    /// Compares the whole tree through the first worker and the last, which are on different mounts where there are two.
    fn sweep(&mut self) -> Result<()> {
        let mut seen = vec![0];
        seen.extend((self.workers.len() > 1).then(|| self.workers.len() - 1));
        for worker in seen {
            let mut todo = vec![String::new()];
            while let Some(path) = todo.pop() {
                self.step(worker, &Op::Stat { path: path.clone() })?;
                self.step(worker, &Op::ListXattr { path: path.clone() })?;
                let Expected::Exactly(Reply::Names(names)) =
                    self.model.apply(worker, &Op::List { path: path.clone() })
                else {
                    continue;
                };
                self.step(worker, &Op::List { path: path.clone() })?;
                for (name, kind) in names {
                    let path = if path.is_empty() { name } else { format!("{path}/{name}") };
                    match kind {
                        Kind::Dir => todo.push(path),
                        Kind::Link => self.step(worker, &Op::Readlink { path })?,
                        Kind::File => {
                            self.step(worker, &Op::Stat { path: path.clone() })?;
                            self.step(worker, &Op::Read { path, offset: 0, len: 8 << 20 })?;
                        }
                        _ => self.step(worker, &Op::Stat { path })?,
                    }
                }
            }
        }
        self.summary.sweeps += 1;
        Ok(())
    }

    fn tell(&self, what: &str) -> String {
        let mut out =
            format!("seed {}, operation {}: {what}\nthe last operations:", self.seed, self.summary.ops);
        for line in &self.story {
            let _ = write!(out, "\n  {line}");
        }
        out
    }
}

struct Worker {
    child: Child,
    requests: Option<ChildStdin>,
    replies: Receiver<std::io::Result<String>>,
}

impl Worker {
    fn start(program: &Path, dir: &Path) -> Result<Self> {
        let mut child = Command::new(program)
            .arg("worker")
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("can't start {}", program.display()))?;
        let out = child.stdout.take().context("a worker without output")?;
        let requests = child.stdin.take();
        let (tell, replies) = sync_channel(1);
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines() {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, requests, replies })
    }

    fn ask(&mut self, op: &Op, patience: Duration) -> Result<Reply> {
        let mut line = serde_json::to_vec(op)?;
        line.push(b'\n');
        self.requests
            .as_mut()
            .context("the worker is gone")?
            .write_all(&line)
            .context("the worker has died")?;
        let reply = self.replies.recv_timeout(patience).context("the worker hangs or has died")??;
        Ok(serde_json::from_str(&reply)?)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // At the end of its input a worker ends by itself; one that hangs is killed.
        drop(self.requests.take());
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
