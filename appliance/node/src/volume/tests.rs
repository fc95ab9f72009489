//! The volume over an in-memory store: redb runs on it, copies heal each other.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use super::*;
use hugepages::{Buf, Bytes};
use redb::{Database, ReadableDatabase, StorageBackend, TableDefinition};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use wire::{CHUNK_SIZE, ChunkKey};

type Chunks = BTreeMap<(u64, u32), Vec<u8>>;

#[derive(Clone, Default)]
struct Fake {
    chunks: Rc<RefCell<Chunks>>,
    damaged: Rc<RefCell<BTreeSet<(u64, u32)>>>,
}

fn name(key: ChunkKey) -> (u64, u32) {
    (key.object.0, key.index)
}

impl CopyStore for Fake {
    async fn read(&self, key: ChunkKey, offset: u32, mut out: Buf) -> Result<Buf, StoreError> {
        reactor::yield_now().await;
        if self.damaged.borrow().contains(&name(key)) {
            return Err(StoreError::Damaged(format!("{key:?}")));
        }
        out.fill(0);
        if let Some(chunk) = self.chunks.borrow().get(&name(key)) {
            let from = chunk.len().min(offset as usize);
            let to = chunk.len().min(offset as usize + out.len());
            out[..to - from].copy_from_slice(&chunk[from..to]);
        }
        Ok(out)
    }
    async fn write(&self, key: ChunkKey, offset: u32, data: Bytes) -> Result<(), StoreError> {
        reactor::yield_now().await;
        self.damaged.borrow_mut().remove(&name(key));
        let mut chunks = self.chunks.borrow_mut();
        let chunk = chunks.entry(name(key)).or_default();
        let end = offset as usize + data.len();
        assert!(end <= CHUNK_SIZE as usize);
        if chunk.len() < end {
            chunk.resize(end, 0);
        }
        chunk[offset as usize..end].copy_from_slice(&data);
        Ok(())
    }
    async fn truncate(&self, key: ChunkKey, len: u32) -> Result<(), StoreError> {
        if let Some(chunk) = self.chunks.borrow_mut().get_mut(&name(key)) {
            chunk.truncate(len as usize);
        }
        Ok(())
    }
    async fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Runs `use_it` on a thread with a volume over `store`; ends when the volume is dropped.
fn with_volume(store: &Fake, use_it: impl FnOnce(Volume) + Send + 'static) -> Rc<Counters> {
    let counters = Rc::new(Counters::default());
    let (volume, mail) = channel();
    let user = std::thread::spawn(move || use_it(volume));
    let config = reactor::Config {
        name: "volume-test".into(),
        cpu: None,
        entries: 64,
        wait: reactor::Wait::Sleep,
        arenas: Vec::new(),
    };
    let server = Server::new(store.clone(), Rc::clone(&counters));
    reactor::run(config, server.serve(mail)).unwrap();
    user.join().unwrap();
    counters
}

const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("t");

#[test]
fn a_database_lives_on_it_and_is_there_again() {
    let store = Fake::default();
    with_volume(&store, |volume| {
        let db = Database::builder().create_with_backend(volume).unwrap();
        for round in 0..4_u64 {
            let tx = db.begin_write().unwrap();
            {
                let mut table = tx.open_table(TABLE).unwrap();
                for key in 0..2000 {
                    table.insert(key, &[round as u8; 600][..]).unwrap();
                }
            }
            tx.commit().unwrap();
        }
    });
    with_volume(&store, |volume| {
        let db = Database::builder().create_with_backend(volume).unwrap();
        let tx = db.begin_read().unwrap();
        let table = tx.open_table(TABLE).unwrap();
        for key in 0..2000 {
            assert_eq!(table.get(key).unwrap().unwrap().value(), [3; 600]);
        }
    });
}

#[test]
fn a_bad_copy_is_read_around_and_repaired() {
    let store = Fake::default();
    let write = |volume: Volume| {
        volume.set_len(3 * CHUNK_SIZE).unwrap();
        volume.write(CHUNK_SIZE - 100, &[7; 200]).unwrap();
        volume.sync_data().unwrap();
    };
    with_volume(&store, write);
    for copy in COPIES {
        store.damaged.borrow_mut().insert((copy.0, 1));
        let read = |volume: Volume| {
            let mut out = [0; 200];
            volume.read(CHUNK_SIZE - 100, &mut out).unwrap();
            assert_eq!(out, [7; 200]);
        };
        let repaired = with_volume(&store, read).repaired.get();
        assert_eq!(
            repaired,
            u64::from(copy == COPIES[0]),
            "the second copy is not read while the first is good"
        );
    }
}

#[test]
fn with_both_copies_bad_the_read_fails() {
    let store = Fake::default();
    with_volume(&store, |volume| volume.set_len(CHUNK_SIZE).unwrap());
    store.damaged.borrow_mut().extend(COPIES.map(|copy| (copy.0, 1)));
    let counters = with_volume(&store, |volume| {
        assert!(volume.read(0, &mut [0; 16]).is_err());
    });
    assert_eq!(counters.lost.get(), 1);
}

#[test]
fn reads_beyond_the_end_fail_and_a_shrunk_tail_reads_zero() {
    with_volume(&Fake::default(), |volume| {
        assert_eq!(volume.len().unwrap(), 0);
        volume.set_len(2 * CHUNK_SIZE).unwrap();
        volume.write(0, &vec![9; 2 << 20]).unwrap();
        assert!(volume.read(2 * CHUNK_SIZE - 8, &mut [0; 16]).is_err());
        volume.set_len(10).unwrap();
        volume.set_len(2 * CHUNK_SIZE).unwrap();
        let mut out = vec![1; 2 << 20];
        volume.read(0, &mut out).unwrap();
        assert!(out[..10].iter().all(|&b| b == 9) && out[10..].iter().all(|&b| b == 0));
    });
}

#[test]
fn resync_makes_the_second_copy_equal() {
    let store = Fake::default();
    with_volume(&store, |volume| {
        volume.set_len(2 * CHUNK_SIZE).unwrap();
        volume.write(5, b"same").unwrap();
        volume.sync_data().unwrap();
    });
    store.chunks.borrow_mut().get_mut(&(COPIES[0].0, 1)).unwrap()[5..9].copy_from_slice(b"newX");
    let counters = Rc::new(Counters::default());
    let config = reactor::Config {
        name: "resync-test".into(),
        cpu: None,
        entries: 64,
        wait: reactor::Wait::Sleep,
        arenas: Vec::new(),
    };
    let server = Server::new(store.clone(), Rc::clone(&counters));
    reactor::run(config, server.resync(reactor::yield_now)).unwrap().unwrap();
    assert_eq!(counters.resynced.get(), 1);
    assert_eq!(&store.chunks.borrow()[&(COPIES[1].0, 1)][5..9], b"newX");
}
