//! Entry of `hwtest`.

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};
use hwtest::battery;
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
