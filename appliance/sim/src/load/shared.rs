//! One file to which all clients append: each record stands in it once, whole, in its client's order.

use anyhow::{Result, ensure};
use client::service::{FileService, Handle, WriteFlags};
use client::{Client, Ctx};
use hugepages::Buf;
use reactor::sim;
use wire::{Ino, ROOT_INO};

/// Its name.
pub(super) const NAME: &[u8] = b"log";

/// Bytes of a record's head: client, number, length.
const HEAD: usize = 12;
const MOST: u64 = 9000;

/// What a client appended.
pub(super) struct Sent {
    client: u32,
    lens: Vec<u32>,
}

fn fill(client: u32, number: u32, at: usize) -> u8 {
    (client as usize * 31 + number as usize * 7 + at) as u8
}

impl Sent {
    pub(super) fn new(client: usize) -> Sent {
        Sent { client: client as u32, lens: Vec::new() }
    }

    pub(super) async fn append(&mut self, client: &Client, ino: Ino, handle: Handle) -> Result<()> {
        let (number, len) = (self.lens.len() as u32, sim::below(MOST) as u32);
        let mut data = Vec::with_capacity(HEAD + len as usize);
        for part in [self.client, number, len] {
            data.extend_from_slice(&part.to_le_bytes());
        }
        data.extend((0..len as usize).map(|at| fill(self.client, number, at)));
        let total = data.len();
        let bytes = Buf::copy_of(&data).freeze();
        let written = client.append(&Ctx::default(), ino, handle, bytes, WriteFlags::default()).await?;
        ensure!(written.len as usize == total, "{} of {total} bytes appended", written.len);
        drop(written.hold);
        // What was appended is there, whole, where the answer says.
        let read = client.read(&Ctx::default(), ino, handle, written.offset, total as u32).await?;
        ensure!(read.to_vec() == data, "record {number} does not stand at {}", written.offset);
        self.lens.push(len);
        Ok(())
    }
}

/// Reads the whole file and accounts for every byte.
pub(super) async fn check<'a>(client: &Client, sent: impl Iterator<Item = &'a Sent>) -> Result<()> {
    let sent: Vec<&Sent> = sent.collect();
    let ctx = Ctx::default();
    let ino = super::find(client, ROOT_INO, NAME).await?;
    let handle = super::open(client, ino).await?;
    let mut all = Vec::new();
    loop {
        let piece = client.read(&ctx, ino, handle, all.len() as u64, 1 << 20).await?.to_vec();
        if piece.is_empty() {
            break;
        }
        all.extend(piece);
    }
    client.close(&ctx, ino, handle, None).await?;
    let size = client.getattr(&ctx, ino).await?.attr.size;
    ensure!(size == all.len() as u64, "the size is {size}, {} bytes could be read", all.len());
    let mut next = vec![0_u32; sent.len()];
    let mut at = 0;
    while at < all.len() {
        ensure!(at + HEAD <= all.len(), "a record is cut off at {at}");
        let word = |n: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| all[at + n * 4 + i]));
        let (client, number, len) = (word(0), word(1), word(2));
        let Some(from) = sent.get(client as usize) else { anyhow::bail!("no record at {at}") };
        ensure!(next[client as usize] == number, "client {client}: record {number} at {at} is out of order");
        ensure!(
            from.lens.get(number as usize) == Some(&len),
            "client {client}: record {number} has another length"
        );
        let body = at + HEAD..at + HEAD + len as usize;
        ensure!(body.end <= all.len(), "record {number} of client {client} is cut off");
        let whole = all[body.clone()].iter().enumerate().all(|(i, b)| *b == fill(client, number, i));
        ensure!(whole, "record {number} of client {client} at {at} has other bytes");
        next[client as usize] += 1;
        at = body.end;
    }
    for (from, next) in sent.iter().zip(next) {
        ensure!(
            next as usize == from.lens.len(),
            "client {}: {next} of {} records",
            from.client,
            from.lens.len()
        );
    }
    Ok(())
}
