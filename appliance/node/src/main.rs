//! claudefsd: reads its configuration, starts the node, tells systemd, stops on signals. All else is in the library.

use clap::Parser;
use node::config::{Config, DEFAULT_PATH, LogFormat};
use node::{Control, exit};
use reactor::signal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The ClaudeFS storage daemon.
///
/// Serves one device, made with `claudefs format`, to clients over TCP. SIGTERM and SIGINT drain and stop it cleanly; a
/// second one ends it at once, which loses nothing that was acknowledged.
///
/// Exit codes: 0 stopped cleanly, 1 other failure, 2 configuration or key, 3 device, 4 address in use, 5 kernel feature
/// missing, 6 the store failed while running, 7 ended by a second signal.
#[derive(Parser)]
#[command(name = "claudefsd", version)]
struct Arguments {
    /// Configuration file.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Print the effective configuration and exit; without a file, the defaults.
    #[arg(long)]
    print_config: bool,
    /// Check the configuration and exit.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let defaults = arguments.print_config && !arguments.config.exists();
    let config = match if defaults { Ok(Config::default()) } else { Config::load(&arguments.config) } {
        Ok(config) => config,
        Err(e) => {
            eprintln!("claudefsd: {e}");
            return ExitCode::from(exit::CONFIG);
        }
    };
    if arguments.print_config {
        print!("{}", config.to_toml());
        return ExitCode::SUCCESS;
    }
    if let Err(e) = start_log(&config) {
        eprintln!("claudefsd: {}: key `log.filter`: {e}", arguments.config.display());
        return ExitCode::from(exit::CONFIG);
    }
    if arguments.check {
        println!("{}: the configuration is good", arguments.config.display());
        return ExitCode::SUCCESS;
    }
    // Before any thread starts: a signal must not reach one that would die of it.
    let signals = [signal::SIGTERM, signal::SIGINT];
    if let Err(e) = signal::block(&signals) {
        eprintln!("claudefsd: can't block signals: {e}");
        return ExitCode::from(exit::FAILURE);
    }
    let (give, control) = reactor::mail::channel(1);
    let watcher = std::thread::Builder::new().name("signals".into()).spawn(move || watch(&signals, &give));
    if let Err(e) = watcher {
        eprintln!("claudefsd: can't start a thread: {e}");
        return ExitCode::from(exit::FAILURE);
    }
    let result = node::run(&config, control, |addresses| {
        let status = format!("STATUS=serving on {addresses:?}");
        tell(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Custom(&status)]);
        start_watchdog();
    });
    match result {
        Ok(_) => ExitCode::from(exit::OK),
        Err(e) => {
            tracing::error!("{e}");
            eprintln!("claudefsd: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}

fn start_log(config: &Config) -> Result<(), String> {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_new(&config.log.filter).map_err(|e| e.to_string())?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.log.format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().try_init(),
    };
    started.map_err(|e| e.to_string())
}

/// Waits for signals on a reactor of its own, which sleeps: the data core is busy with other things.
fn watch(signals: &[i32], control: &reactor::mail::Sender<Control>) {
    let config = reactor::Config {
        name: "signals".into(),
        entries: 8,
        wait: reactor::Wait::Sleep,
        ..reactor::Config::default()
    };
    let ended = reactor::run(config, async {
        let mut stream = signal::wait(signals)?;
        stream.next().await?;
        tell(&[sd_notify::NotifyState::Stopping]);
        let _ = control.try_send(Control::Stop);
        stream.next().await?;
        tracing::warn!("a second signal: ending at once; nothing acknowledged is lost");
        std::process::exit(i32::from(exit::KILLED));
        #[expect(unreachable_code, reason = "gives the block its type")]
        Ok::<(), std::io::Error>(())
    });
    if let Err(e) = ended {
        tracing::error!(error = %e, "signals can't be waited for");
    }
}

/// Outside systemd there is nobody to tell.
fn tell(states: &[sd_notify::NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}

/// Tells systemd's watchdog at half its interval, where there is one.
fn start_watchdog() {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    let beat = move || {
        loop {
            tell(&[sd_notify::NotifyState::Watchdog]);
            std::thread::sleep((interval / 2).max(Duration::from_millis(100)));
        }
    };
    if let Err(e) = std::thread::Builder::new().name("watchdog".into()).spawn(beat) {
        tracing::warn!(error = %e, "the watchdog can't be served");
    }
}
