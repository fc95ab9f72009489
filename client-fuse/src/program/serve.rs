//! The process behind a mount: connects, mounts, serves until the kernel lets go, says goodbye to the server.

use super::background::Ready;
use super::{Failure, Plan};
use crate::{Mount, MountConfig, Unmount, UnmountError};
use client::Client;
use hugepages::{Arena, ArenaConfig, PageChoice};
use reactor::signal;
use rustix::mount::MountFlags;
use std::pin::{Pin, pin};
use std::process::ExitCode;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

/// Memory for requests and replies in flight; the heap serves beyond it. Normal pages: the huge ones are for the daemon,
/// whose device reads into them.
const ARENA: ArenaConfig = ArenaConfig { bytes: 64 << 20, pages: PageChoice::Small };
/// What ends a mount; SIGHUP comes from a terminal that is closed above a mount in the foreground.
const SIGNALS: [i32; 3] = [signal::SIGTERM, signal::SIGINT, signal::SIGHUP];
/// How long the server may take to answer the first time: booting should not wait for it.
const CONNECT: Duration = Duration::from_secs(30);

/// Serves the mount; the exit code tells how it ended.
pub(super) fn main(plan: Plan, ready: Option<Ready>) -> ExitCode {
    start_log(plan.verbose);
    // Before any thread starts: a signal must not reach one that would die of it.
    if let Err(e) = signal::block(&SIGNALS) {
        return Failure::system(format!("can't block signals: {e}")).report();
    }
    if let Err(missing) = reactor::probe() {
        return Failure::system(missing).report();
    }
    // Without one everything still works, from the heap.
    let arena = Arena::new(ARENA).ok();
    let config = reactor::Config {
        name: "claudefs-mount".into(),
        arenas: arena.iter().cloned().collect(),
        ..reactor::Config::default()
    };
    match reactor::run(config, run(plan, arena, ready)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => failure.report(),
        Err(e) => Failure::system(e).report(),
    }
}

fn start_log(verbose: bool) {
    let level = if verbose { "debug" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("CLAUDEFS_LOG").unwrap_or_else(|_| level.into());
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_env_filter(filter);
    // Fails only where a log is set up already.
    let _ = log.try_init();
}

async fn run(plan: Plan, arena: Option<Arena>, ready: Option<Ready>) -> Result<(), Failure> {
    let address = super::resolve(&plan.source)?;
    let Plan { source, mountpoint, options, key, .. } = plan;
    let endpoint = client::Endpoint { address, key, arena: arena.clone(), payload_crc: true };
    let read_only = options.flag_names().contains(&"ro");
    // A mount that only reads changes nothing.
    let noatime = options.noatime || read_only;
    let nodiratime = options.flags.contains(MountFlags::NODIRATIME);
    let wanted = client::Options { read_only, noatime, nodiratime, ..client::Options::default() };
    let client = match reactor::timeout(CONNECT, Client::connect(endpoint, wanted)).await {
        Ok(connected) => connected.map_err(|e| refused(address, &e))?,
        Err(_) => {
            let text = "no claudefsd answers within 30 s; start it, or check host, port and firewall";
            return Err(Failure::mount(format!("{address}: {text}")));
        }
    };
    let log = options.log.clone();
    let config =
        MountConfig { source: source.to_string(), mountpoint, path: source.path.clone(), options, arena };
    let started = Mount::start(config, Rc::new(client.clone())).await;
    let result = match started {
        Ok(mut mount) => match ready.map_or(Ok(()), |ready| ready.announce(log.as_deref())) {
            Ok(()) => serve(&mut mount).await,
            Err(e) => {
                // Nobody waits for this mount any more.
                let _ = mount.unmount(Unmount::Lazy).await;
                Err(Failure::system(format!("can't go to the background: {e}")))
            }
        },
        Err(e) => Err(Failure::mount(e)),
    };
    client.shutdown().await;
    result
}

fn refused(address: std::net::SocketAddr, e: &transport::Error) -> Failure {
    let hint = "is the key that of the server? `claudefs key show-id` tells keys apart";
    Failure::mount(format!("{address}: {e}; {hint}"))
}

/// Serves until the mount ends. A signal unmounts; where it is in use it is detached and served until the last user
/// has gone, or until a second signal.
async fn serve(mount: &mut Mount) -> Result<(), Failure> {
    let mut signals = signal::wait(&SIGNALS).map_err(Failure::system)?;
    if let Some(ended) = either(pin!(mount.unmounted()), pin!(signals.next())).await {
        return ended.map_err(Failure::mount);
    }
    match mount.unmount(Unmount::Plain).await {
        Err(UnmountError::Busy(in_use)) => {
            tracing::warn!(by = ?in_use.by, "the mount is in use; it is detached and served until its last user has gone");
            mount.unmount(Unmount::Lazy).await.map_err(Failure::system)?;
        }
        other => other.map_err(Failure::system)?,
    }
    let ended = either(pin!(mount.unmounted()), pin!(signals.next())).await;
    ended.unwrap_or(Ok(())).map_err(Failure::mount)
}

/// The first future's result, or `None` where the second ended before.
async fn either<A: Future, B: Future>(mut a: Pin<&mut A>, mut b: Pin<&mut B>) -> Option<A::Output> {
    std::future::poll_fn(|cx| {
        if let Poll::Ready(a) = a.as_mut().poll(cx) {
            return Poll::Ready(Some(a));
        }
        b.as_mut().poll(cx).map(|_| None)
    })
    .await
}
