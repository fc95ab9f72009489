//! The store on a real file through the reactor: the lock, O_DIRECT, and what a restart finds.

use chunkstore::{
    Device, DeviceError, FileHandle, FileOptions, FormatOptions, Key, MIN_DEVICE, ShardOptions, Spawner,
    Stamp,
};
use hugepages::{Buf, Bytes};
use std::path::Path;
use std::rc::Rc;

fn spawner() -> Spawner {
    Rc::new(|task| drop(reactor::spawn(task)))
}

fn handle(path: &Path) -> FileHandle {
    let direct = FileHandle::open(path, FileOptions::default());
    // tmpfs knows no O_DIRECT before Linux 6.6.
    direct.unwrap_or_else(|_| {
        FileHandle::open(path, FileOptions { direct: false, ..FileOptions::default() })
            .expect("the file opens")
    })
}

fn run(future: impl Future<Output = ()>) {
    reactor::run(reactor::Config::default(), future).expect("a reactor");
}

#[test]
fn a_file_keeps_what_was_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("device");
    std::fs::File::create(&path).expect("a file").set_len(MIN_DEVICE).expect("its length");
    let key = |object| Key { object, index: 0 };
    run(async {
        let handle = handle(&path);
        assert!(matches!(
            FileHandle::open(&path, FileOptions { direct: false, ..FileOptions::default() }),
            Err(DeviceError::InUse { .. })
        ));
        let file = handle.attach().expect("attaches");
        chunkstore::format(&file, &FormatOptions::default(), |_, _| {}).await.expect("formats");
        let device = Device::open(file, spawner()).await.expect("opens");
        let mut shards = Vec::new();
        for number in 0..device.shards() {
            shards.push(device.open_shard(number, ShardOptions::default()).await.expect("opens"));
        }
        for object in 0..64 {
            let shard = &shards[object as usize % shards.len()];
            let data = Buf::copy_of(&vec![object as u8; 300_000]).freeze();
            shard.write(key(object), 0, data, &Stamp::at(1)).await.expect("writes");
            shard.write(key(object), 5, Bytes::from(vec![255; 3]), &Stamp::at(2)).await.expect("writes");
        }
        device.flush().await.expect("flushes");
        // No stop: the next opening replays the logs.
    });
    run(async {
        let device = Device::open(handle(&path).attach().expect("attaches"), spawner()).await.expect("opens");
        let mut shards = Vec::new();
        for number in 0..device.shards() {
            shards.push(device.open_shard(number, ShardOptions::default()).await.expect("opens"));
        }
        for object in 0..64 {
            let shard = &shards[object as usize % shards.len()];
            let read = shard.read(key(object), 0, 300_000).await.expect("reads");
            assert!(read.exists && read.length == 300_000);
            let bytes = read.into_bytes();
            assert_eq!(bytes[5..8], [255; 3]);
            assert!(bytes[8..].iter().all(|&b| b == object as u8));
        }
        for shard in &shards {
            shard.stop().await.expect("stops");
        }
        device.stop().await.expect("stops");
    });
}
