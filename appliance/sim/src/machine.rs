//! The simulated server: a disk, and the daemon on it that comes and goes.

use anyhow::{Context, Result, bail};
use chunkstore::{FormatOptions, MemDevice, MemOptions};
use client::{Client, Endpoint, Options};
use node::config::Config;
use node::units::ByteSize;
use node::{Control, Ended, NodeError};
use reactor::JoinHandle;
use reactor::sim::{self, Process};
use reactor::{mail, sync::Event};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use transport::Key;

/// Bytes of the disk: small enough that space is reused.
const DISK: u64 = 256 << 20;

struct Running {
    process: Process,
    control: mail::Sender<Control>,
    ended: JoinHandle<std::result::Result<Ended, NodeError>>,
}

/// See the module.
pub struct Machine {
    disk: RefCell<MemDevice>,
    running: RefCell<Option<Running>>,
    key: Key,
    starts: Cell<u64>,
}

fn address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 7420))
}

fn disk_options() -> MemOptions {
    MemOptions { seed: sim::random(), max_delay: 40, ..MemOptions::default() }
}

fn config() -> Config {
    let mut config = Config { listen: vec![address()], ..Config::default() };
    config.cores.count = 1;
    // Small caches: rows must be fetched again and again.
    config.memory.namespace_cache = ByteSize::mib(1);
    config.memory.leaf_cache = ByteSize::mib(1);
    config.memory.checkpoint_cache = ByteSize::mib(1);
    config
}

impl Machine {
    /// A machine with a fresh, formatted disk.
    pub(crate) async fn format() -> Result<Machine> {
        let disk = MemDevice::new(DISK, MemOptions::default());
        node::sim::format(disk.clone(), FormatOptions { shards: 4, ..FormatOptions::default() }).await?;
        let disk = disk.kill(sim::random(), disk_options());
        Ok(Machine {
            disk: RefCell::new(disk),
            running: RefCell::default(),
            key: Key::from_bytes([7; 32]),
            starts: Cell::new(0),
        })
    }

    /// Starts the daemon and waits until it serves.
    pub(crate) async fn start(&self) -> Result<()> {
        self.starts.set(self.starts.get() + 1);
        let process = Process::new();
        let (control, told) = mail::channel(1);
        let serves = Rc::new(Event::new());
        let (disk, key, ready) = (self.disk.borrow().clone(), self.key.clone(), Rc::clone(&serves));
        let done = Rc::clone(&serves);
        let ended = process.spawn(async move {
            let ended = node::sim::serve(config(), key, disk, told, move |_| ready.set()).await;
            done.set();
            ended
        });
        self.running.replace(Some(Running { process, control, ended }));
        serves.wait().await;
        self.check().await.with_context(|| format!("start {}", self.starts.get()))
    }

    /// An error where the daemon has ended by itself.
    pub(crate) async fn check(&self) -> Result<()> {
        if !self.running.borrow().as_ref().is_some_and(|r| r.ended.is_finished()) {
            return Ok(());
        }
        let Some(running) = self.running.take() else { return Ok(()) };
        match running.ended.await {
            Ok(Ok(ended)) => bail!("the daemon ended by itself: {ended:?}"),
            Ok(Err(e)) => bail!("the daemon failed: {e}"),
            Err(_) => bail!("the daemon was aborted"),
        }
    }

    /// As kill -9: what the disk completed stays, what was under way may be there or not.
    pub(crate) async fn kill(&self) -> Result<()> {
        self.check().await?;
        if let Some(running) = self.running.take() {
            running.process.kill();
            let up = self.disk.borrow().kill(sim::random(), disk_options());
            self.disk.replace(up);
        }
        Ok(())
    }

    /// As SIGTERM.
    pub(crate) async fn stop(&self) -> Result<()> {
        self.check().await?;
        let Some(running) = self.running.take() else { return Ok(()) };
        running.control.send(Control::Stop).await.ok().context("the daemon does not listen")?;
        match running.ended.await {
            Ok(Ok(Ended::Clean)) => {}
            Ok(Ok(ended)) => bail!("ended otherwise: {ended:?}"),
            Ok(Err(e)) => bail!("{e}"),
            Err(_) => bail!("the daemon was aborted"),
        }
        running.process.kill();
        let up = self.disk.borrow().kill(sim::random(), disk_options());
        self.disk.replace(up);
        Ok(())
    }

    /// The daemon's process, while it runs.
    pub(crate) fn process(&self) -> Option<Process> {
        self.running.borrow().as_ref().map(|r| r.process)
    }

    /// A client; call it in the client's process.
    pub(crate) async fn connect(key: Key) -> Result<Client> {
        let endpoint = Endpoint { address: address(), key, arena: None, payload_crc: true };
        Client::connect(endpoint, Options::default()).await.map_err(|e| anyhow::anyhow!("connecting: {e}"))
    }

    pub(crate) fn key(&self) -> Key {
        self.key.clone()
    }
}
