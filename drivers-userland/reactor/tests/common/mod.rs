//! What the tests of the reactor share.
#![allow(dead_code, reason = "each test file uses a part of it")]

use hugepages::{Arena, ArenaConfig, PageChoice};
use reactor::{Config, TcpListener, TcpStream, Wait};
use std::future::Future;

/// Runs `future` on a reactor that sleeps when idle.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    run_with(Config { wait: Wait::Sleep, ..Config::default() }, future)
}

/// Runs `future` on a reactor of this configuration.
pub(crate) fn run_with<T>(cfg: Config, future: impl Future<Output = T>) -> T {
    reactor::run(cfg, future).expect("the kernel has io_uring")
}

/// An arena of normal pages.
pub(crate) fn arena(bytes: usize) -> Arena {
    Arena::new(ArenaConfig { bytes, pages: PageChoice::Small }).expect("memory")
}

/// Two ends of a connection over loopback.
pub(crate) async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let near = TcpStream::connect(listener.local_addr()).await.expect("it listens");
    let (far, _) = listener.accept().await.expect("it was connected to");
    (near, far)
}

/// Bytes that tell their place.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}
