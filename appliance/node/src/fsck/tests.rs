//! Damage that no client can do, put into a store through the libraries below; then found, mended where that is promised, and
//! a node starts on the result.
#![expect(clippy::expect_used, reason = "a test ends at the first surprise")]

use super::*;
use crate::Control;
use chunkstore::{BLOCK_BYTES, Class, FileDevice, Stamp};
use hugepages::Buf;
use namespace::applier;
use namespace::kv::Key;
use namespace::layout;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use wire::{CHUNK_SIZE, ChunkKey, Ino, ObjectId, ROOT_INO};

const STRAY: ChunkKey = ChunkKey { object: ObjectId(999), index: 3 };

struct Store {
    dir: tempfile::TempDir,
    path: PathBuf,
}

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("device");
        File::create(&path).and_then(|f| f.set_len(256 << 20)).expect("a device");
        let store = chunkstore::FormatOptions { shards: 2, ..chunkstore::FormatOptions::default() };
        let options = crate::FormatOptions { store, preallocate: false };
        crate::format(&path, options, |_, _| {}).expect("formatted");
        Self { dir, path }
    }

    /// Opens the store for writing, lets `damage` loose on it, and stops it in good order.
    fn damage(&self, damage: impl AsyncFnOnce(&Opened<FileDevice>)) {
        let handle = open(&self.path, true).expect("nobody has it");
        let run = async {
            let file = handle.attach().expect("attached");
            let mut progress: Progress = Box::new(|_, _, _| {});
            let opened = Opened::open(file, &mut Report::default(), &mut progress).await.expect("opens");
            damage(&opened).await;
            opened.stop().await.expect("stops");
        };
        reactor::run(reactor_config(), run).expect("a reactor");
    }

    /// Puts rows into the database: the bytes of a record are those of its format.
    fn put(&self, rows: Vec<(Key, Vec<u8>)>) {
        self.damage(async |opened| {
            let mut volumes = base::volumes(opened.server.clone());
            let write = base::blocking("test", move || {
                let last = applier::dump(volumes().expect("a volume"), |_, _| {}).expect("a database");
                let mut bytes = vec![1, 0];
                bytes.extend((rows.len() as u16).to_le_bytes());
                bytes.extend((last + 1).to_le_bytes());
                for (key, value) in &rows {
                    bytes.extend((key.bytes().len() as u32).to_le_bytes());
                    bytes.extend((value.len() as u32).to_le_bytes());
                    bytes.extend(key.bytes());
                    bytes.extend(value);
                }
                let record = namespace::Record::decode(bytes).expect("a record");
                applier::amend(volumes().expect("a volume"), &[record]).expect("applied");
            });
            write.await.expect("written");
        });
    }

    fn check(&self) -> Report {
        let handle = open(&self.path, false).expect("nobody has it");
        check(&handle, Options { data: true }, Box::new(|_, _, _| {})).expect("checked")
    }

    /// Everything found is of this class and is mended, and a node starts.
    #[track_caller]
    fn mends(&self, class: &str) {
        let found = self.check();
        assert!(
            found.count > 0 && found.findings.iter().all(|f| f.class == class && f.fixable),
            "{found:#?}"
        );
        let handle = open(&self.path, true).expect("nobody has it");
        repair(&handle, Options::default(), Box::new(|_, _, _| {})).expect("mended");
        drop(handle);
        let left = self.check();
        assert!(left.is_clean(), "{left:#?}");
        self.serves();
    }

    #[track_caller]
    fn serves(&self) {
        let key_file = self.dir.path().join("key");
        if !key_file.exists() {
            transport::Key::generate().expect("random bytes").save(&key_file).expect("a key");
        }
        let mut config = Config { devices: vec![self.path.clone()], key_file, ..Config::default() };
        config.listen = vec![([127, 0, 0, 1], 0).into()];
        config.cores.count = 1;
        config.memory.arena = crate::units::ByteSize::mib(32);
        config.memory.pages = crate::config::Pages::Small;
        let (control, told) = reactor::mail::channel(1);
        let ready = move |_: &[std::net::SocketAddr]| {
            control.try_send(Control::Stop).expect("room for one order");
        };
        crate::run(&config, told, ready).expect("it starts and stops");
        assert!(self.check().is_clean());
    }

    fn flip(&self, offset: u64) {
        let file = File::options().read(true).write(true).open(&self.path).expect("the device");
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).expect("read");
        file.write_all_at(&[byte[0] ^ 0x55], offset).expect("written");
    }

    /// The root's row, changed.
    fn root(&self, change: impl FnOnce(&mut layout::InodeRow)) -> (Key, Vec<u8>) {
        let key = Key::inode(ROOT_INO);
        let mut rows = Vec::new();
        let (give, take) = std::sync::mpsc::channel();
        self.damage(async |opened| {
            let mut volumes = base::volumes(opened.server.clone());
            let read = base::blocking("test", move || {
                let found = |k: &[u8], v: &[u8]| drop(give.send((k.to_vec(), v.to_vec())));
                applier::dump(volumes().expect("a volume"), found).expect("a database");
            });
            read.await.expect("read");
        });
        rows.extend(take);
        let (_, value) = rows.into_iter().find(|(k, _)| *k == key.bytes()).expect("a root");
        let mut row = layout::inode(&value).expect("a good row");
        change(&mut row);
        (key, zerocopy::IntoBytes::as_bytes(&row).to_vec())
    }
}

#[test]
fn stray_chunks_are_freed() {
    let store = Store::new();
    assert!(store.check().is_clean());
    store.damage(async |opened| {
        let stamp = Stamp { time: 1, request: None, class: Class::User, min_length: 0 };
        opened.store.write(STRAY, 0, Buf::heap(10_000).freeze(), stamp).await.expect("written");
    });
    let found = store.check();
    assert!(found.findings[0].text.contains("body of data 999"), "{found:#?}");
    store.mends("orphan-chunk");
}

#[test]
fn counts_and_leftovers_are_corrected() {
    let store = Store::new();
    store.put(vec![store.root(|r| r.nlink = 7.into())]);
    store.mends("count");
    store.put(vec![(Key::orphan(Ino(500)), Vec::new())]);
    store.mends("leftover");
}

#[test]
fn a_lost_chunk_is_told_and_not_mended() {
    let store = Store::new();
    let ino = Ino(100);
    let mut file = layout::InodeRow::new(0o100_644, 0, 0, wire::Timestamp::new(1, 0));
    (file.object, file.chunks, file.size) = (50.into(), 1.into(), CHUNK_SIZE.into());
    let bytes = |row: &layout::InodeRow| zerocopy::IntoBytes::as_bytes(row).to_vec();
    store.put(vec![(Key::inode(ino), bytes(&file))]);
    let found = store.check();
    let lost = found.findings.iter().find(|f| f.class == "lost-chunk").expect("it is found");
    assert!(!lost.fixable && lost.ino == Some(ino.0), "{lost:?}");
    assert_eq!(lost.path.as_deref(), Some("(no name)"));
    let nameless = found.findings.iter().find(|f| f.class == "name").expect("it is found");
    assert!(!nameless.fixable, "{nameless:?}");
}

#[test]
fn a_bad_copy_of_the_volume_is_mended_from_the_other() {
    let store = Store::new();
    for last in [false, true] {
        // The first block of both copies, and what older contents of it are still about.
        let bytes = std::fs::read(&store.path).expect("the device");
        let blocks = bytes.chunks_exact(BLOCK_BYTES as usize).enumerate();
        let heads = blocks.filter(|(_, b)| b.starts_with(b"redb\x1A\x0A"));
        let mut places: Vec<u64> = heads.map(|(n, _)| n as u64 * BLOCK_BYTES).collect();
        if last {
            places.reverse();
        }
        let hit = places.iter().any(|place| {
            store.flip(place + 100);
            let found = !store.check().is_clean();
            if !found {
                store.flip(place + 100);
            }
            found
        });
        assert!(hit, "{places:?}");
        store.mends("volume");
    }
}

#[test]
fn a_shard_that_is_lost_leaves_the_rest_checked() {
    let store = Store::new();
    let handle = open(&store.path, false).expect("nobody has it");
    let layout = reactor::run(reactor_config(), async move {
        chunkstore::inspect(&handle.attach().expect("attached")).await.expect("a store").layout
    });
    let layout = layout.expect("a reactor");
    for slot in [0, 1] {
        layout.root_slot(1, slot).into_iter().for_each(|block| store.flip(block * BLOCK_BYTES + 64));
    }
    let found = store.check();
    assert!(found.findings.iter().any(|f| f.class == "shard" && f.text.contains("shard 1")), "{found:#?}");
    assert!(!found.is_clean() && found.fixable() == 0, "{found:#?}");
    for block in [0, chunkstore::SUPER_B] {
        store.flip(block * BLOCK_BYTES + 100);
    }
    let handle = open(&store.path, false).expect("nobody has it");
    let refused = check(&handle, Options::default(), Box::new(|_, _, _| {})).expect_err("no superblock");
    assert!(refused.to_string().contains("both superblocks"), "{refused}");
}
