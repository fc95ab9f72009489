//! Entry of `hwtest`.

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};
use hwtest::battery;
use hwtest::scale::{Meter, Watched, names, restart};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Checks of a ClaudeFS mount, or of any other file system.
#[derive(Debug, Parser)]
#[command(name = "hwtest", max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run random operations over several processes and compare every answer with a model
    Model(ModelArgs),
    /// Run the smoke battery: quick checks, and with --work real work of git, sqlite, tar, rsync, cc, mkfs
    Smoke {
        /// A directory on the file system.
        #[arg(long = "on", value_name = "DIR")]
        dir: PathBuf,
        /// Also the checks that take seconds each
        #[arg(long)]
        work: bool,
    },
    /// Kill a daemon of its own again and again under loads through two mounts, then check its device
    Kills(KillsArgs),
    /// Check that two mounts of one directory agree, then let both work in one directory
    Pair(PairArgs),
    /// Check that concurrent operations through two mounts answer as one file system could
    Linear(LinearArgs),
    /// Run the pjdfstest crate on a reference (ext4) and here, and compare case by case
    Pjdfstest(PjdfstestArgs),
    /// Measure time and memory with very many names, or very many files and chunks
    #[command(subcommand)]
    Scale(Scale),
    /// Run a program as under a kernel that refuses io_uring, or parts of it
    Without {
        /// What is refused.
        refusal: hwtest::seccomp::Refusal,
        /// The program and its arguments.
        #[arg(trailing_var_arg = true, required = true, value_name = "PROGRAM")]
        words: Vec<String>,
    },
    /// Do what a model's driver says on standard input (started by `model`)
    #[command(hide = true)]
    Worker {
        /// The directory under test.
        dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum Scale {
    /// One directory of a million names: create, list, look up, list while others come and go, remove
    ///
    /// Every answer is checked: a name that stays is listed exactly once, a removed one never. Memory of the daemon and
    /// of the mount is told for each step. Without --on it runs a daemon and a mount of its own, which takes root and
    /// the programs built beside this one (cargo build --release --workspace --bins).
    #[command(after_help = "Example: target/release/hwtest scale names --entries 1000000")]
    Names(NamesArgs),
    /// From the start of a daemon with a million files and 64 GiB of chunks to its first answer
    ///
    /// Runs a daemon and a mount of its own: files are written, chunks allocated (fallocate), then the daemon is killed and
    /// started, stopped and started, in turn, and the parts of each start told. The device is a sparse file:
    /// about 9 KiB for each file and 8 KiB for each allocated chunk are really taken.
    #[command(
        after_help = "Example: target/release/hwtest scale restart --dir /var/tmp --files 1000000 --chunks 65536"
    )]
    Restart(RestartArgs),
}

#[derive(Debug, Args)]
struct NamesArgs {
    /// A directory on the file system; give it once for each mount of the same directory
    #[arg(long = "on", value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// A process whose memory is told (with --on)
    #[arg(long = "watch", value_name = "PID", requires = "dirs")]
    watch: Vec<u32>,
    /// Names in the directory
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(10..=90_000_000))]
    entries: u64,
    /// Threads that make, look up and remove
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=64))]
    workers: u64,
    /// Listings while others make and remove
    #[arg(long, default_value_t = 5)]
    listings: u64,
    /// Seed of the names that are looked up
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where a daemon and device of its own go (without --on)
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    dir: PathBuf,
    /// Mounts of its own daemon, in parallel (without --on)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    mounts: u64,
    /// Print figures as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RestartArgs {
    /// Where the device goes
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    dir: PathBuf,
    /// Files to write
    #[arg(long, default_value_t = 1_000_000)]
    files: u64,
    /// Bytes of each file
    #[arg(long, default_value_t = 4096)]
    file_bytes: usize,
    /// Chunks of 1 MiB to allocate
    #[arg(long, default_value_t = 65_536)]
    chunks: u64,
    /// Size of the device in GiB; by default twice what is put on it
    #[arg(long, value_name = "GIB")]
    device: Option<u64>,
    /// Files that are being written when the daemon is killed
    #[arg(long, default_value_t = 1000)]
    dirty: u64,
    /// Starts after a kill, and as many after a clean stop
    #[arg(long, default_value_t = 3)]
    rounds: u64,
    /// Threads that write
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=64))]
    workers: u64,
    /// Print figures as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ModelArgs {
    /// A directory on the file system; give it once for each mount of the same directory
    #[arg(long = "on", required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// Operations to run
    #[arg(long, default_value_t = 100_000)]
    ops: u64,
    /// Seed: the same seed gives the same run
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Worker processes, spread over the directories in turn
    #[arg(long, default_value_t = 4)]
    workers: usize,
}

#[derive(Debug, Args)]
struct KillsArgs {
    /// First seed: what the loads do, and when the kills come
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Campaigns, each with the next seed
    #[arg(long, default_value_t = 1, value_name = "N")]
    runs: u64,
    /// Kills in each campaign
    #[arg(long, default_value_t = 10)]
    kills: u64,
    /// Model runs at a time
    #[arg(long, default_value_t = 3)]
    loads: u64,
    /// Operations of one model run
    #[arg(long, default_value_t = 400)]
    ops: u64,
    /// A shell command that runs beside them, again and again; $OTHER is its folder through the other mount
    #[arg(long = "command", value_name = "COMMAND")]
    commands: Vec<String>,
    /// MiB of the device
    #[arg(long, default_value_t = 2048)]
    size: u64,
    /// Where the device and the logs are kept after a failure
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct PairArgs {
    /// The directory through one mount, then through the other
    #[arg(long = "on", required = true, value_name = "DIR", num_args = 1)]
    dirs: Vec<PathBuf>,
    /// How long both create, rename and stat in one directory
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

#[derive(Debug, Args)]
struct LinearArgs {
    /// The directory through one mount, then through the other
    #[arg(long = "on", required = true, value_name = "DIR", num_args = 1)]
    dirs: Vec<PathBuf>,
    /// How long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seed of what is asked
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Workers, spread over the directories in turn
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=16))]
    workers: u64,
}

#[derive(Debug, Args)]
struct PjdfstestArgs {
    /// The directory under test
    #[arg(long = "on", value_name = "DIR")]
    dir: PathBuf,
    /// A directory of the reference, an ext4
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    reference: PathBuf,
    /// Where the program is installed
    #[arg(long, value_name = "DIR", default_value = "target/tools")]
    tools: PathBuf,
    /// Only cases whose names contain one of these
    filter: Vec<String>,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Smoke { dir, work } => {
            battery::run(&dir, battery::QUICK)?;
            if work { battery::run(&dir, battery::WORK) } else { Ok(()) }
        }
        Task::Kills(args) => kills(&args),
        Task::Pair(args) => pair(&args),
        Task::Linear(args) => linear(args),
        Task::Pjdfstest(args) => pjdfstest(&args),
        Task::Model(args) => model(args),
        Task::Scale(Scale::Names(args)) => names(args),
        Task::Scale(Scale::Restart(args)) => restart(args),
        Task::Without { refusal, words } => match hwtest::seccomp::exec(refusal, &words)? {},
        Task::Worker { dir } => hwtest::model::worker::serve(&dir),
    }
}

fn model(args: ModelArgs) -> Result<()> {
    let summary = hwtest::model::run(&hwtest::model::Plan {
        program: std::env::current_exe()?,
        dirs: args.dirs,
        workers: args.workers.max(1),
        ops: args.ops,
        seed: args.seed,
        patience: Duration::from_secs(120),
        progress: true,
    })?;
    println!(
        "{} operations agree with the model ({} of them refused, as they should be); {} whole trees compared",
        summary.ops, summary.refused, summary.sweeps
    );
    for (kind, n) in &summary.by_kind {
        println!("  {kind:<14}{n:>9}");
    }
    Ok(())
}

fn kills(args: &KillsArgs) -> Result<()> {
    for seed in args.seed..args.seed + args.runs {
        let began = std::time::Instant::now();
        let summary = hwtest::kills::run(&hwtest::kills::Plan {
            program: std::env::current_exe()?,
            seed,
            kills: args.kills,
            loads: args.loads,
            ops: args.ops,
            commands: args.commands.clone(),
            size: args.size << 20,
            keep: args.keep.as_ref().map(|k| k.join(seed.to_string())),
        })?;
        println!(
            "ok      seed {seed}: {} operations and {} commands over {} kills, fsck clean, {:.1} s",
            summary.ops,
            summary.commands,
            args.kills,
            began.elapsed().as_secs_f64()
        );
    }
    Ok(())
}

fn names(args: NamesArgs) -> Result<()> {
    let NamesArgs { dirs, watch, entries, workers, listings, seed, dir, mounts, json } = args;
    let plan = names::Plan { dirs, entries, workers, listings, seed };
    let phases = if plan.dirs.is_empty() {
        names::on_own(&plan, &dir, mounts, !json)?
    } else {
        let named = |pid| Watched { label: format!("process {pid}"), pid };
        names::run(&plan, Meter::new(watch.into_iter().map(named).collect(), !json))?
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&phases)?);
    }
    Ok(())
}

fn restart(args: RestartArgs) -> Result<()> {
    let json = args.json;
    let needed = args.files * (args.file_bytes as u64 + 8192) + (args.chunks << 20) + (8 << 30);
    let figures = restart::run(&restart::Plan {
        device: args.device.map_or(needed * 2, |gib| gib << 30),
        dir: args.dir,
        files: args.files,
        file_bytes: args.file_bytes,
        chunks: args.chunks,
        dirty: args.dirty,
        rounds: args.rounds,
        workers: args.workers,
        progress: !json,
    })?;
    if json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else {
        print!("{figures}");
    }
    Ok(())
}

fn pair(args: &PairArgs) -> Result<()> {
    let [a, b] = args.dirs.as_slice() else { bail!("give --on twice: the directory through each mount") };
    battery::pairs::run(a, b)?;
    let own = format!("contended-{}", std::process::id());
    std::fs::create_dir(a.join(&own))?;
    let time = Duration::from_secs(args.seconds);
    let rounds = battery::pairs::contend(&a.join(&own), &b.join(&own), time, Duration::from_secs(10))?;
    std::fs::remove_dir_all(a.join(&own))?;
    println!("ok      {rounds} rounds of both in one directory without a stall");
    Ok(())
}

fn linear(args: LinearArgs) -> Result<()> {
    let summary = hwtest::linear::run(&hwtest::linear::Plan {
        dirs: args.dirs,
        workers: args.workers as usize,
        ops: 8,
        seed: args.seed,
        end: hwtest::linear::End::Time(Duration::from_secs(args.seconds)),
    })?;
    println!(
        "ok      {} operations in {} rounds have an order; {} rounds were too tangled to tell",
        summary.ops, summary.rounds, summary.undecided
    );
    Ok(())
}

fn pjdfstest(args: &PjdfstestArgs) -> Result<()> {
    let program = hwtest::pjdfstest::install(&args.tools)?;
    let comparison = hwtest::pjdfstest::compare(&program, &args.reference, &args.dir, &args.filter)?;
    print!("{comparison}");
    match comparison.worse().len() {
        0 => Ok(()),
        n => bail!("{n} cases pass on the reference and not in {}", args.dir.display()),
    }
}
