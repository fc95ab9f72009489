//! Measures from which size on a send without a copy is faster than one with, on the link at hand.
//!
//! `zc_threshold` alone sends over loopback, where the kernel copies in any case. Over a real link run
//! `zc_threshold listen ADDRESS:PORT` on one machine and `zc_threshold ADDRESS:PORT` on the other; the number
//! that it prints is for `TcpStream::set_zc_threshold`.

use hugepages::{Arena, ArenaConfig, PageChoice};
use reactor::{Config, TcpListener, TcpStream, spawn};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const SIZES: [usize; 7] = [1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 512 << 10, 1 << 20];
/// Bytes per size and mode, and the rounds over which the best counts.
const VOLUME: usize = 256 << 20;
const ROUNDS: usize = 3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arena = Arena::new(ArenaConfig { bytes: 64 << 20, pages: PageChoice::Best })?;
    let cfg = Config { arenas: vec![arena.clone()], ..Config::default() };
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {
            let listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
            let address = listener.local_addr();
            // The receiver has a reactor, and a core, of its own.
            drop(listener);
            std::thread::spawn(move || reactor::run(Config::default(), sink(address)));
            std::thread::sleep(Duration::from_millis(200));
            reactor::run(cfg, compare(address, &arena))??;
        }
        ["listen", address] => reactor::run(cfg, sink(address.parse()?))??,
        [address] => reactor::run(cfg, compare(address.parse()?, &arena))??,
        _ => return Err("usage: zc_threshold [[listen] ADDRESS:PORT]".into()),
    }
    Ok(())
}

async fn sink(address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    loop {
        let (stream, _) = listener.accept().await?;
        spawn(async move {
            let mut incoming = stream.recv_multishot();
            while let Some(Ok(_)) = incoming.next().await {}
        });
    }
}

async fn compare(address: SocketAddr, arena: &Arena) -> io::Result<()> {
    println!("{:>9}  {:>12}  {:>12}  {:>6}", "bytes", "copied MB/s", "zc MB/s", "ratio");
    let mut threshold = None;
    for size in SIZES {
        let (mut copied, mut direct) = (0.0_f64, 0.0_f64);
        for _ in 0..ROUNDS {
            copied = copied.max(rate(address, arena, size, usize::MAX).await?);
            direct = direct.max(rate(address, arena, size, 1).await?);
        }
        println!("{size:>9}  {copied:>12.0}  {direct:>12.0}  {:>6.2}", direct / copied);
        if direct <= copied {
            threshold = None;
        } else if threshold.is_none() {
            threshold = Some(size);
        }
    }
    match threshold {
        Some(size) => println!("zero copy wins from {size} bytes on"),
        None => println!("zero copy does not win on this link: leave it off"),
    }
    Ok(())
}

/// Megabytes per second of sends of `size` bytes.
async fn rate(address: SocketAddr, arena: &Arena, size: usize, threshold: usize) -> io::Result<f64> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    stream.set_zc_threshold(threshold);
    let Some(buf) = arena.alloc(size) else { return Err(io::ErrorKind::OutOfMemory.into()) };
    let data = buf.freeze();
    let start = Instant::now();
    let count = (VOLUME / size).min(20_000);
    for _ in 0..count {
        stream.send_all(vec![data.clone()]).await?;
    }
    Ok((count * size) as f64 / start.elapsed().as_secs_f64() / 1e6)
}
