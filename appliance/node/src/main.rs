//! claudefsd: reads its configuration, starts the node, tells systemd, stops on signals. All else is in the library.

use clap::Parser;
use node::config::{Config, DEFAULT_PATH, LogFormat};
use node::{Control, exit};
use reactor::signal;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What the daemon waits for.
const SIGNALS: [i32; 3] = [signal::SIGTERM, signal::SIGINT, signal::SIGHUP];

/// The ClaudeFS storage daemon.
///
/// Serves one device, made with `claudefs format`, to clients over TCP. SIGTERM and SIGINT drain and stop it cleanly; a
/// second one ends it at once, which loses nothing that was acknowledged. SIGHUP changes nothing: the configuration is read
/// at the start, and the log is the supervisor's to rotate.
///
/// Exit codes: 0 stopped cleanly, 1 other failure, 2 configuration or key, 3 device, 4 address in use, 5 kernel feature
/// missing, 6 the store failed while running, 7 ended by a second signal.
#[derive(Parser)]
#[command(name = "claudefsd", version)]
struct Arguments {
    /// Configuration file [default: /etc/claudefs/claudefsd.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the effective configuration as a file to start from, and exit; without a file, the defaults
    #[arg(long)]
    print_config: bool,
    /// Check the configuration and exit
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let path = arguments.config.clone().unwrap_or_else(|| DEFAULT_PATH.into());
    // A file that was named and is missing is a mistake; the usual one is missing on a new machine.
    let defaults = arguments.print_config && arguments.config.is_none() && !path.exists();
    let config = match if defaults { Ok(Config::default()) } else { Config::load(&path) } {
        Ok(config) => config,
        Err(e) => {
            eprintln!("claudefsd: {e}");
            return ExitCode::from(exit::CONFIG);
        }
    };
    if arguments.print_config {
        let of = match defaults {
            true => format!("the defaults, as there is no {}; `devices` is to be filled in", path.display()),
            false => format!("the effective configuration of {}", path.display()),
        };
        return print(&format!("# {of}\n{}", config.to_toml()));
    }
    if let Err(e) = start_log(&config) {
        eprintln!("claudefsd: {}: key `log.filter`: {e}", path.display());
        return ExitCode::from(exit::CONFIG);
    }
    if arguments.check {
        return print(&format!("{}: the configuration is good\n", path.display()));
    }
    // Before any thread starts: a signal must not reach one that would die of it.
    if let Err(e) = signal::block(&SIGNALS) {
        return failed(&format!("can't block signals: {e}"), exit::FAILURE);
    }
    let (give, control) = reactor::mail::channel(1);
    let watcher = std::thread::Builder::new().name("signals".into()).spawn(move || watch(&give));
    if let Err(e) = watcher {
        return failed(&format!("can't start a thread: {e}"), exit::FAILURE);
    }
    let result = node::run(&config, control, |addresses| {
        let status = format!("STATUS=serving on {addresses:?}");
        tell(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Custom(&status)]);
        start_watchdog();
    });
    match result {
        Ok(_) => ExitCode::from(exit::OK),
        Err(e) => failed(&e.to_string(), e.exit_code()),
    }
}

/// Says why it ends: in the log, or on the terminal where the log's filter hides errors.
fn failed(text: &str, code: u8) -> ExitCode {
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!("{text}");
    } else {
        eprintln!("claudefsd: {text}");
    }
    ExitCode::from(code)
}

/// Prints an answer; a reader that has gone needs none.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            failed(&format!("can't write: {e}"), exit::FAILURE)
        }
        _ => ExitCode::SUCCESS,
    }
}

fn start_log(config: &Config) -> Result<(), String> {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_new(&config.log.filter).map_err(|e| e.to_string())?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A file or a journal wants no colours.
    let log = log.with_ansi(std::io::stderr().is_terminal());
    let started = match config.log.format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().try_init(),
    };
    started.map_err(|e| e.to_string())
}

/// Waits for signals on a reactor of its own, which sleeps: the data core is busy with other things.
fn watch(control: &reactor::mail::Sender<Control>) {
    let config = reactor::Config {
        name: "signals".into(),
        entries: 8,
        wait: reactor::Wait::Sleep,
        ..reactor::Config::default()
    };
    let ended = reactor::run(config, async {
        let mut stream = signal::wait(&SIGNALS)?;
        let mut stopping = false;
        loop {
            match stream.next().await? {
                signal::SIGHUP => {
                    tracing::info!("SIGHUP changes nothing: restart to read the configuration again");
                }
                _ if stopping => {
                    tracing::warn!("a second signal: ending at once; nothing acknowledged is lost");
                    std::process::exit(i32::from(exit::KILLED));
                }
                _ => {
                    stopping = true;
                    tell(&[sd_notify::NotifyState::Stopping]);
                    let _ = control.try_send(Control::Stop);
                }
            }
        }
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

/// Tells systemd's watchdog, where there is one, for as long as the data core turns.
///
/// The core counts and a thread tells, so that the core never waits for systemd's socket.
fn start_watchdog() {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    let pause = (interval / 4).max(Duration::from_millis(10));
    let turns = Arc::new(AtomicU64::new(1));
    let counted = Arc::clone(&turns);
    drop(reactor::spawn(async move {
        loop {
            reactor::sleep(pause).await;
            counted.fetch_add(1, Ordering::Relaxed);
        }
    }));
    let beat = move || {
        let mut told = 0;
        loop {
            let now = turns.load(Ordering::Relaxed);
            if now != told {
                tell(&[sd_notify::NotifyState::Watchdog]);
            }
            told = now;
            std::thread::sleep(pause);
        }
    };
    if let Err(e) = std::thread::Builder::new().name("watchdog".into()).spawn(beat) {
        tracing::warn!(error = %e, "the watchdog can't be served");
    }
}
