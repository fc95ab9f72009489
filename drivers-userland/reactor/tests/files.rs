//! Files, pipes and devices against the real kernel.
mod common;

use common::{arena, pattern, run, run_with};
use hugepages::{Arena, ArenaConfig, Buf, Bytes, PageChoice};
use reactor::{Config, FallocateFlags, File, OpenOptions, Wait};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

const RW: OpenOptions = OpenOptions {
    read: true,
    write: true,
    create: true,
    create_new: false,
    truncate: false,
    direct: false,
    dsync: false,
    nonblock: false,
    exclusive: false,
    custom_flags: 0,
};

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder on the disk")
}

#[test]
fn direct_reads_and_writes_use_registered_buffers() {
    let arena = arena(8 << 20);
    let dir = scratch();
    let cfg = Config { arenas: vec![arena.clone()], wait: Wait::Sleep, ..Config::default() };
    run_with(cfg, async {
        assert!(reactor::stats().fixed_buffers);
        let options = OpenOptions { direct: true, ..RW };
        let file = File::open(dir.path().join("data"), &options).await.expect("it can be made");
        for (at, len) in [(0, 1 << 20), (1 << 20, 4096), (5 << 20, 65536)] {
            let mut buf = arena.alloc(len).expect("room");
            buf.copy_from_slice(&pattern(len));
            let (count, data) = file.write_at(buf.freeze(), at).await;
            assert_eq!(count.expect("written"), len);
            drop(data);
            let (count, buf) = file.read_at(arena.alloc(len).expect("room"), at).await;
            assert_eq!(count.expect("read"), len);
            assert!(*buf == pattern(len));
        }
        file.fdatasync().await.expect("stable");
        file.fsync().await.expect("stable");
        assert_eq!(file.capacity().expect("a size"), (5 << 20) + 65536);
    });
    assert_eq!(arena.stats().in_use, 0);
}

/// With huge pages where the machine has some, and with what stands in for them elsewhere.
#[test]
fn the_best_pages_serve_direct_io() {
    let cfg = ArenaConfig { bytes: 4 << 20, pages: PageChoice::Best };
    let arena = Arena::new(cfg).expect("memory");
    println!("pages: {:?}", arena.page_kind());
    let dir = scratch();
    run_with(Config { arenas: vec![arena.clone()], ..Config::default() }, async {
        let options = OpenOptions { direct: true, ..RW };
        let file = File::open(dir.path().join("data"), &options).await.expect("it can be made");
        let mut buf = arena.alloc(256 << 10).expect("room");
        buf.copy_from_slice(&pattern(256 << 10));
        let (count, data) = file.write_at(buf.freeze(), 0).await;
        assert_eq!(count.expect("written"), 256 << 10);
        let (count, buf) = file.read_at(arena.alloc(256 << 10).expect("room"), 0).await;
        assert_eq!(count.expect("read"), 256 << 10);
        assert!(*buf == *data);
    });
}

#[test]
fn a_window_of_a_registered_buffer_is_written() {
    let arena = arena(4 << 20);
    let dir = scratch();
    run_with(Config { arenas: vec![arena.clone()], ..Config::default() }, async {
        let file = File::open(dir.path().join("data"), &RW).await.expect("it can be made");
        let mut buf = arena.alloc(10_000).expect("room");
        buf.copy_from_slice(&pattern(10_000));
        let (count, _) = file.write_at(buf.freeze().slice(1000..1500), 7).await;
        assert_eq!(count.expect("written"), 500);
        let (count, buf) = file.read_at(Buf::heap(500), 7).await;
        assert_eq!(count.expect("read"), 500);
        assert_eq!(*buf, pattern(10_000)[1000..1500]);
    });
}

#[test]
fn fallocate_punch_and_length() {
    let dir = scratch();
    run(async {
        let file = File::open(dir.path().join("data"), &RW).await.expect("it can be made");
        file.fallocate(FallocateFlags::empty(), 0, 1 << 20).await.expect("allocated");
        assert_eq!(file.capacity().expect("a size"), 1 << 20);
        let (count, _) = file.write_at(Bytes::from(vec![7; 8192]), 0).await;
        assert_eq!(count.expect("written"), 8192);
        file.discard(0, 4096).await.expect("punched");
        let (_, buf) = file.read_at(Buf::heap(8192), 0).await;
        assert!(buf[..4096].iter().all(|&byte| byte == 0) && buf[4096..].iter().all(|&byte| byte == 7));
        file.set_len(100).expect("cut");
        let (count, _) = file.read_at(Buf::heap(8192), 0).await;
        assert_eq!(count.expect("a short read"), 100);
        let parts = [Bytes::from_static(b"ab"), Bytes::from_static(b"cde")];
        assert_eq!(file.write_parts_at(parts.to_vec(), 10).await.expect("written"), 5);
        let (_, buf) = file.read_at(Buf::heap(5), 10).await;
        assert_eq!(&*buf, b"abcde");
        assert!(!file.is_block_device().expect("a type"));
    });
}

#[test]
fn errors_come_back_with_the_buffer() {
    let dir = scratch();
    run(async {
        let missing =
            File::open(dir.path().join("none"), &OpenOptions { read: true, ..OpenOptions::new() }).await;
        assert_eq!(missing.expect_err("it does not exist").kind(), io::ErrorKind::NotFound);
        let file =
            File::open(dir.path().join("data"), &OpenOptions { read: false, ..RW }).await.expect("made");
        let (count, buf) = file.read_at(Buf::heap(77), 0).await;
        assert_eq!(count.expect_err("write only").raw_os_error(), Some(9));
        assert_eq!(buf.len(), 77);
    });
}

#[test]
fn a_second_lock_is_refused() {
    let dir = scratch();
    run(async {
        let one = File::open(dir.path().join("data"), &RW).await.expect("it can be made");
        let two = File::open(dir.path().join("data"), &RW).await.expect("it can be opened");
        one.lock_exclusive().expect("nobody has it");
        let error = two.lock_exclusive().expect_err("the first has it");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(one);
        two.lock_exclusive().expect("it was given up");
    });
}

fn pipe() -> (File, File) {
    let (reader, writer) = io::pipe().expect("a pipe");
    let file = |fd: OwnedFd| File::from_fd(fd).expect("an open descriptor");
    (file(reader.into()), file(writer.into()))
}

#[test]
fn several_reads_of_one_pipe_each_get_a_message() {
    run(async {
        let (reader, writer) = pipe();
        let reader = std::rc::Rc::new(reader);
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let reader = std::rc::Rc::clone(&reader);
                reactor::spawn(async move {
                    let (count, buf) = reader.read(Buf::heap(1)).await;
                    assert_eq!(count.expect("read"), 1);
                    buf[0]
                })
            })
            .collect();
        reactor::yield_now().await;
        for message in 0..4_u8 {
            let (count, _) = writer.write(Bytes::from(vec![message])).await;
            assert_eq!(count.expect("written"), 1);
        }
        let mut got = Vec::new();
        for task in tasks {
            got.push(task.await.expect("it ends"));
        }
        got.sort_unstable();
        assert_eq!(got, [0, 1, 2, 3]);
        drop(writer);
        let (count, _) = reader.read(Buf::heap(1)).await;
        assert_eq!(count.expect("the end"), 0);
    });
}

#[test]
fn a_full_pipe_makes_the_writer_wait() {
    run(async {
        let (reader, writer) = pipe();
        let total = 1 << 20;
        let task = reactor::spawn(async move {
            let mut data = Bytes::from(pattern(total));
            while !data.is_empty() {
                let count = writer.write_parts(vec![data.clone()]).await.expect("written");
                data = data.slice(count..);
            }
        });
        let mut got = Vec::new();
        while got.len() < total {
            let (count, buf) = reader.read(Buf::heap(50_000)).await;
            got.extend_from_slice(&buf[..count.expect("read")]);
        }
        task.await.expect("it ends");
        assert!(got == pattern(total));
    });
}

/// A cancelled read must not write into a buffer that has a new owner.
#[test]
fn a_dropped_read_keeps_its_buffer_until_the_kernel_lets_go() {
    let arena = arena(64 << 10);
    run_with(Config { arenas: vec![arena.clone()], wait: Wait::Sleep, ..Config::default() }, async {
        let (reader, writer) = pipe();
        let mut held: Vec<Buf> = std::iter::from_fn(|| arena.alloc(4096)).collect();
        for round in 0..50_u8 {
            let victim = held.pop().expect("some are left");
            let address = victim.as_ptr();
            let read = reactor::timeout(Duration::from_micros(50), reader.read(victim)).await;
            assert!(read.is_err(), "nothing was written");
            // Not back in the arena before the kernel said so.
            let mut again = loop {
                if let Some(buf) = arena.alloc(4096) {
                    break buf;
                }
                reactor::yield_now().await;
            };
            assert_eq!(again.as_ptr(), address, "it was the only one missing");
            again.fill(round);
            let (count, _) = writer.write(Bytes::from(vec![255; 100])).await;
            assert_eq!(count.expect("written"), 100);
            assert!(again.iter().all(|&byte| byte == round), "the kernel wrote into a freed buffer");
            let (count, _) = reader.read(Buf::heap(100)).await;
            assert_eq!(count.expect("read"), 100);
            held.push(again);
        }
    });
}

#[test]
fn the_end_of_run_waits_for_reads_in_flight() {
    let arena = arena(64 << 10);
    let (reader, writer) = io::pipe().expect("a pipe");
    run_with(Config { arenas: vec![arena.clone()], ..Config::default() }, async {
        let file = std::rc::Rc::new(File::from_fd(reader.into()).expect("open"));
        for _ in 0..5 {
            let file = std::rc::Rc::clone(&file);
            let buf = arena.alloc(4096).expect("room");
            reactor::spawn(async move { file.read(buf).await.0 });
        }
        reactor::yield_now().await;
        reactor::yield_now().await;
        assert!(reactor::stats().in_flight >= 5);
    });
    assert_eq!(arena.stats().in_use, 0);
    drop(writer);
}

#[test]
fn more_operations_than_the_ring_holds() {
    let dir = scratch();
    run_with(Config { entries: 4, wait: Wait::Sleep, ..Config::default() }, async {
        let path = dir.path().join("data");
        let file = std::rc::Rc::new(File::open(path, &RW).await.expect("it can be made"));
        let tasks: Vec<_> = (0..300_u64)
            .map(|n| {
                let file = std::rc::Rc::clone(&file);
                reactor::spawn(async move {
                    let (count, _) = file.write_at(Bytes::from(vec![n as u8; 512]), n * 512).await;
                    count.expect("written")
                })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.expect("it ends"), 512);
        }
        let stats = reactor::stats();
        assert!(stats.full_queue > 0 && stats.full_slab > 0, "{stats:?}");
        let (count, buf) = file.read_at(Buf::heap(300 * 512), 0).await;
        assert_eq!(count.expect("read"), 300 * 512);
        assert!(buf.chunks(512).zip(0_u64..).all(|(block, n)| block.iter().all(|&byte| byte == n as u8)));
    });
}

#[test]
fn a_file_outlives_its_reactor() {
    let dir = scratch();
    let path = dir.path().join("data");
    let file = run(async { File::open(path, &RW).await.expect("it can be made") });
    run(async {
        let (count, _) = file.write_at(Bytes::from_static(b"later"), 0).await;
        assert_eq!(count.expect("written"), 5);
    });
}
