//! A data request is executed, its answer is lost, another client changes the file, the node is killed and starts again or
//! not, the request comes again: it has no second effect.
#![expect(clippy::expect_used, reason = "a test ends at the first surprise")]

mod common;

use common::{CRED, Client, ROOT, Rig, pattern};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use wire::message as m;
use wire::{CHUNK_SIZE, Ino, ObjectId, Status};

/// Between the first client and the node: swallows answers, drops connections.
#[derive(Clone)]
struct Proxy {
    address: SocketAddr,
    mute: Arc<AtomicBool>,
    cuts: Arc<AtomicU64>,
}

impl Proxy {
    fn new(node: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let (mute, cuts) = (Arc::default(), Arc::default());
        let proxy = Self { address, mute, cuts };
        let mine = proxy.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(node) else { continue };
                for socket in [&client, &server] {
                    socket.set_nodelay(true).expect("a socket");
                    socket.set_read_timeout(Some(Duration::from_millis(10))).expect("a socket");
                }
                let clone = |s: &TcpStream| s.try_clone().expect("a descriptor");
                let (up, down) = ((clone(&client), clone(&server)), (server, client));
                let (a, b, at) = (mine.clone(), mine.clone(), mine.cuts.load(Ordering::SeqCst));
                std::thread::spawn(move || a.pump(up, false, at));
                std::thread::spawn(move || b.pump(down, true, at));
            }
        });
        proxy
    }

    fn pump(&self, (mut from, mut to): (TcpStream, TcpStream), answers: bool, at: u64) {
        let mut buf = vec![0; 64 << 10];
        while self.cuts.load(Ordering::SeqCst) == at {
            match from.read(&mut buf) {
                Ok(0) => break,
                Ok(_) if answers && self.mute.load(Ordering::SeqCst) => {}
                Ok(n) => {
                    if to.write_all(&buf[..n]).is_err() {
                        break;
                    }
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => break,
            }
        }
        // The other direction may have done so already.
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    fn cut(&self) {
        self.cuts.fetch_add(1, Ordering::SeqCst);
        self.mute.store(false, Ordering::SeqCst);
    }
}

/// What became of the request and of the file.
struct Seen<T> {
    answer: T,
    data: Vec<u8>,
    blocks: u64,
}

/// Runs `ask` of the first client on a file of 50 bytes on which no lease is held, loses its answer, runs `change` of the
/// second, kills and starts the node if asked, and lets the first ask again. Gives the file.
fn again<T: 'static>(
    restart: bool,
    ask: impl AsyncFnOnce(Client, Ino, ObjectId) -> Result<T, Status> + 'static,
    change: impl AsyncFnOnce(Client, Ino, ObjectId),
) -> Seen<T> {
    let rig = Rig::new(256 << 20, 1);
    let mut node = Some(rig.start());
    let proxy = Proxy::new(rig.address());
    let out = rig.with_client(2, async |b| {
        let a = Client::connect(proxy.address, rig.key(), 1).await;
        let (ino, object) = a.create(ROOT, "f").await.expect("create");
        a.write(ino, object, 0, &pattern(1, 50)).await.expect("write");
        b.write(ino, object, 0, &pattern(2, 50)).await.expect("write");
        let before = b.getattr(ino).await.expect("attributes").mtime;
        proxy.mute.store(true, Ordering::SeqCst);
        let asking = a.clone();
        let asked = reactor::spawn(async move { ask(asking, ino, object).await });
        // Its effect tells that it was executed.
        while b.getattr(ino).await.expect("attributes").mtime == before {
            reactor::sleep(Duration::from_millis(5)).await;
        }
        change(b.clone(), ino, object).await;
        if restart {
            node.take().expect("it runs").drop_dead();
            proxy.cut();
            node = Some(rig.start());
        } else {
            proxy.cut();
        }
        let answer = asked.await.expect("it ends").expect("it succeeds");
        let blocks = b.getattr(ino).await.expect("attributes").blocks.get();
        Seen { answer, data: b.read(ino).await.expect("read"), blocks }
    });
    node.expect("it runs").drop_dead();
    out
}

async fn allocate(c: Client, ino: Ino, mode: u32, len: u64) -> Result<(), Status> {
    c.call(m::Fallocate { ino, mode, offset: 0, len, cred: CRED }, &[]).await.map(drop)
}

/// A punch, and zeroing, once ran a second time.
#[test]
fn a_repeated_punch_does_not_destroy_what_was_written_since() {
    for (restart, mode) in [(false, 3), (true, 3), (false, 16), (true, 16)] {
        let seen = again(
            restart,
            async move |c, ino, _| allocate(c, ino, mode, 50).await,
            async |c, ino, object| c.write(ino, object, 0, &[9; 50]).await.expect("write"),
        );
        assert_eq!(seen.data, [9; 50], "mode {mode}, restart {restart}");
    }
}

/// Space that another client gave back was once taken again.
#[test]
fn a_repeated_preallocation_does_not_undo_a_later_truncate() {
    for restart in [false, true] {
        let seen = again(
            restart,
            async |c, ino, _| allocate(c, ino, 0, 100_000).await,
            async |c, ino, _| {
                c.truncate(ino, 10).await.expect("truncate");
            },
        );
        assert_eq!((&seen.data[..], seen.blocks), (&pattern(2, 10)[..], 8), "restart {restart}");
    }
}

/// A repeat once told the namespace of its end, so that the size grew again.
#[test]
fn a_repeated_write_does_not_undo_a_later_truncate() {
    for restart in [false, true] {
        let seen = again(
            restart,
            async |c, ino, object| c.write(ino, object, 0, &[7; 200]).await,
            async |c, ino, _| {
                c.truncate(ino, 10).await.expect("truncate");
            },
        );
        assert_eq!(seen.data, [7; 10], "restart {restart}");
    }
}

/// The blocks of a repeated write were once counted twice.
#[test]
fn a_repeated_write_counts_its_blocks_once() {
    for restart in [false, true] {
        let seen = again(
            restart,
            async |c, ino, object| c.write(ino, object, 4096, &[7; 8192]).await,
            async |_, _, _| {},
        );
        assert_eq!((seen.data.len(), seen.blocks), (3 * 4096, 24), "restart {restart}");
    }
}

/// A write whose body of data is gone was once written to the new one.
#[test]
fn a_repeated_write_after_a_truncate_to_nothing_is_not_done_anew() {
    for restart in [false, true] {
        let seen = again(
            restart,
            async |c, ino, object| c.write(ino, object, 0, &[7; 200]).await,
            async |c, ino, _| {
                c.truncate(ino, 0).await.expect("truncate");
            },
        );
        assert_eq!(seen.data, [0; 0], "restart {restart}");
    }
}

/// A repeat once wrote at its old offset into the new body of data.
#[test]
fn a_repeated_append_after_a_truncate_is_sound() {
    for restart in [false, true] {
        let seen = again(
            restart,
            async |c, ino, _| c.append(ino, &[7; 200]).await,
            async |c, ino, _| {
                c.truncate(ino, 0).await.expect("truncate");
            },
        );
        assert_eq!((seen.answer, seen.data), (50, Vec::new()), "restart {restart}");
    }
}

/// Where a repeated append began was once guessed from the length of the file's last chunk.
#[test]
fn a_repeated_append_is_where_it_was_when_others_appended_since() {
    for restart in [false, true] {
        let seen = again(
            restart,
            async |c, ino, _| c.append(ino, &[7; 200]).await,
            async |c, ino, _| {
                c.append(ino, &[8; 300]).await.expect("append");
            },
        );
        let expect = [&pattern(2, 50)[..], &[7; 200], &[8; 300]].concat();
        assert!((seen.answer, seen.data) == (50, expect), "restart {restart}");
    }
}

/// Both pieces of an append over the end of a chunk are found again.
#[test]
fn a_repeated_append_over_the_end_of_a_chunk_is_done_once() {
    for restart in [false, true] {
        let seen = again(
            restart,
            async |c, ino, _| c.append(ino, &vec![7; CHUNK_SIZE as usize]).await,
            async |c, ino, _| {
                c.append(ino, &[8; 10]).await.expect("append");
            },
        );
        let expect = [&pattern(2, 50)[..], &vec![7; CHUNK_SIZE as usize], &[8; 10]].concat();
        assert!((seen.answer, seen.data) == (50, expect), "restart {restart}");
    }
}

/// A copy once ran a second time.
#[test]
fn a_repeated_copy_does_not_destroy_what_was_written_since() {
    for restart in [false, true] {
        let seen = again(
            restart,
            async |c, ino, _| {
                let copy = m::CopyRange { src: ino, src_offset: 0, dst: ino, dst_offset: 60, len: 40 };
                let reply = c.call(copy, &[]).await?;
                Ok(reply.decode::<m::Copied>().expect("Copied").len)
            },
            async |c, ino, object| c.write(ino, object, 60, &[9; 40]).await.expect("write"),
        );
        let expect = [&pattern(2, 50)[..], &[0; 10], &[9; 40]].concat();
        assert!((seen.answer, seen.data) == (40, expect), "restart {restart}");
    }
}

/// A wait that was repeated over a new connection once heard of no cancellation any more: the process could not be killed.
#[test]
fn a_lock_wait_can_be_cancelled_after_a_reconnect_and_gets_nothing_later() {
    let rig = Rig::new(256 << 20, 1);
    let node = rig.start();
    let proxy = Proxy::new(rig.address());
    rig.with_client(2, async |b| {
        let a = Client::connect(proxy.address, rig.key(), 1).await;
        let (ino, _) = b.create(ROOT, "f").await.expect("create");
        let write = wire::LockType::Lock(wire::LockKind::Write);
        let lock = move |owner, lock, wait| m::SetLock {
            ino,
            space: wire::LockSpace::Flock,
            owner: wire::LockOwner(owner),
            lock,
            range: wire::LockRange::ALL,
            pid: 1,
            wait,
        };
        b.call(lock(1, write, true), &[]).await.expect("nobody has it");
        let cancel = Rc::new(reactor::sync::Event::new());
        let (waiting, told) = (a.clone(), Rc::clone(&cancel));
        let wait = reactor::spawn(async move {
            let (parts, options) = (transport::Parts::new(), transport::CallOptions::default());
            let request = lock(2, write, true).into();
            waiting.session.call_until(&request, parts, options, told).await.map(|r| r.status())
        });
        // Requests of a connection are taken in order: an answer says that the wait came in before it.
        a.getattr(ino).await.expect("attributes");
        proxy.cut();
        a.getattr(ino).await.expect("attributes over the next connection");
        cancel.set();
        let ended = reactor::timeout(Duration::from_secs(60), wait).await.expect("the wait ends");
        let ended = ended.expect("it does not panic").expect("it has an answer");
        assert!(matches!(ended, Status::Cancelled | Status::Errno(wire::Errno::EINTR)), "{ended:?}");
        b.call(lock(1, wire::LockType::Unlock, false), &[]).await.expect("unlock");
        b.call(lock(3, write, false), &[]).await.expect("the cancelled wait did not get it");
    });
    node.drop_dead();
}
