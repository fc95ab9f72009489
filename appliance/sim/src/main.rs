//! `cargo xtask sim`: plays seeds and prints how to reproduce the one that fails.

use clap::Parser;
use std::process::ExitCode;

/// Plays seeds of the simulator: real node, real clients, simulated clock, network and disk.
#[derive(Parser)]
#[command(
    after_help = "A seed that fails is printed; play it again with --from SEED --seeds 1 (RUST_LOG=debug shows what \
                        the node and the clients say)."
)]
struct Cli {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Clients in each run.
    #[arg(long, default_value_t = 3)]
    clients: usize,
    /// Operations of each client.
    #[arg(long, default_value_t = 120)]
    ops: usize,
    /// Play each seed twice and compare.
    #[arg(long)]
    twice: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    let mut failed = 0;
    for seed in cli.from..cli.from.saturating_add(cli.seeds) {
        let plan = sim::Plan { seed, clients: cli.clients, ops: cli.ops };
        let first = sim::run(plan);
        let again = cli.twice.then(|| sim::run(plan));
        match (first, again) {
            (Ok(one), Some(Ok(two))) if one != two => {
                eprintln!("seed {seed}: two runs differ:\n  {one}\n  {two}");
                failed += 1;
            }
            (Err(e), _) | (_, Some(Err(e))) => {
                eprintln!("FAILED {e:#}");
                failed += 1;
            }
            (Ok(outcome), _) => println!("seed {seed}: {outcome}"),
        }
    }
    if failed > 0 {
        eprintln!("{failed} of {} seeds failed", cli.seeds);
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
