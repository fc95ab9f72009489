//! What clients do, and what they expect.
//!
//! Each client works in a folder of its own against a model that knows every answer ([`private`]), appends to one file that all
//! share ([`shared`]), and takes part in making and removing the same few names ([`names`]).

mod names;
mod private;
mod shared;

use crate::Plan;
use crate::machine::Machine;
use anyhow::{Context, Result, anyhow};
use client::service::{Create, FileService, Handle, OpenFlags, Recall};
use client::{Client, Ctx};
use reactor::JoinHandle;
use reactor::sim::{self, Process};
use reactor::sync::Event;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use wire::{Errno, Ino, ROOT_INO};

/// What one client's work gave.
struct Worked {
    ops: u64,
    private: private::Model,
    shared: shared::Sent,
    names: Vec<names::Call>,
}

/// The clients at work.
pub(crate) struct Load {
    processes: Vec<Process>,
    workers: RefCell<Vec<JoinHandle<Result<Worked>>>>,
    left: Rc<Cell<usize>>,
}

/// Forgets at its leisure: what was cached may be used until it says so.
struct Slow;

impl client::service::Invalidator for Slow {
    fn invalidate(&self, _: Recall) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(reactor::sleep(Duration::from_micros(sim::below(500))))
    }
}

/// Folder of a client.
fn folder(client: usize) -> String {
    format!("client{client}")
}

/// An inode by its name in a folder.
async fn find(client: &Client, dir: Ino, name: &[u8]) -> Result<Ino, Errno> {
    client.lookup(&Ctx::default(), dir, name).await?.entry().map(|e| Ino(e.attr.ino.get()))
}

/// Makes a folder, file or link.
async fn make(client: &Client, dir: Ino, name: &[u8], mode: u32, target: &[u8]) -> Result<Ino, Errno> {
    let create = Create { mode, rdev: 0, target, open: None, exclusive: true, tmpfile: false };
    client.create(&Ctx::default(), dir, name, create).await.map(|c| Ino(c.entry.attr.ino.get()))
}

async fn open(client: &Client, ino: Ino) -> Result<Handle, Errno> {
    let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
    client.open(&Ctx::default(), ino, flags).await.map(|o| o.handle)
}

async fn connect(machine: &Machine) -> Result<Client> {
    let client = Machine::connect(machine.key()).await?;
    client.set_invalidator(Rc::new(Slow));
    Ok(client)
}

impl Load {
    /// Makes the folders, then starts the clients.
    pub(crate) async fn start(machine: &Rc<Machine>, plan: Plan) -> Result<Load> {
        let setup = connect(machine).await?;
        for n in 0..plan.clients {
            make(&setup, ROOT_INO, folder(n).as_bytes(), 0o040_755, b"").await?;
        }
        make(&setup, ROOT_INO, shared::NAME, 0o100_644, b"").await?;
        make(&setup, ROOT_INO, names::FOLDER, 0o040_755, b"").await?;
        setup.shutdown().await;
        let left = Rc::new(Cell::new(plan.clients));
        let done = Rc::new(Event::new());
        let (mut processes, mut workers) = (Vec::new(), Vec::new());
        for n in 0..plan.clients {
            let process = Process::new();
            let (machine, left, done) = (Rc::clone(machine), Rc::clone(&left), Rc::clone(&done));
            workers.push(process.spawn(async move {
                let worked = work(&machine, n, plan).await.with_context(|| format!("client {n}"));
                // One that failed ends the run; the others need not go on.
                left.set(if worked.is_ok() { left.get().saturating_sub(1) } else { 0 });
                done.set();
                worked
            }));
            processes.push(process);
        }
        Ok(Load { processes, workers: RefCell::new(workers), left })
    }

    /// Whether all have ended, or one has failed.
    pub(crate) fn is_done(&self) -> bool {
        self.left.get() == 0
    }

    /// One of the clients.
    pub(crate) fn draw(&self) -> Process {
        self.processes[sim::below(self.processes.len() as u64) as usize]
    }

    /// Waits for the clients and compares everything, before and after a restart.
    pub(crate) async fn finish(self, machine: &Machine) -> Result<u64> {
        let mut all = Vec::new();
        let mut workers = self.workers.take();
        // The one that failed tells why; the others may wait for ever.
        workers.sort_by_key(|w| !w.is_finished());
        for worker in workers {
            all.push(worker.await.map_err(|_| anyhow!("a client was aborted"))??);
        }
        let calls: Vec<names::Call> = all.iter().flat_map(|w| w.names.iter().copied()).collect();
        names::check(&calls)?;
        for life in ["before the restart", "after the restart"] {
            let client = connect(machine).await?;
            for (n, worked) in all.iter().enumerate() {
                let dir = find(&client, ROOT_INO, folder(n).as_bytes()).await?;
                let compared = worked.private.compare(&client, dir).await;
                compared.with_context(|| format!("folder of client {n}, {life}"))?;
            }
            shared::check(&client, all.iter().map(|w| &w.shared)).await.context(life)?;
            client.shutdown().await;
            if life.starts_with("before") {
                machine.stop().await.context("the stop")?;
                machine.start().await?;
            }
        }
        Ok(all.iter().map(|w| w.ops).sum())
    }
}

async fn work(machine: &Machine, n: usize, plan: Plan) -> Result<Worked> {
    let client = connect(machine).await?;
    let dir = find(&client, ROOT_INO, folder(n).as_bytes()).await?;
    let log = find(&client, ROOT_INO, shared::NAME).await?;
    let names = find(&client, ROOT_INO, names::FOLDER).await?;
    let mut worked = Worked {
        ops: 0,
        private: private::Model::default(),
        shared: shared::Sent::new(n),
        names: Vec::new(),
    };
    let handle = open(&client, log).await?;
    for op in 0..plan.ops {
        let did = match sim::below(10) {
            0..6 => worked.private.step(&client, dir).await,
            6..8 => worked.shared.append(&client, log, handle).await,
            _ => names::step(&client, names, n, &mut worked.names).await,
        };
        did.with_context(|| format!("operation {op}"))?;
        worked.ops += 1;
    }
    client.close(&Ctx::default(), log, handle, None).await?;
    client.shutdown().await;
    Ok(worked)
}
