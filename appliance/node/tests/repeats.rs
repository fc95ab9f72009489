//! A data request is executed, its answer is lost, another client changes the file, the request comes again: it has no
//! second effect.
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
use wire::{Ino, ObjectId, Status};

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

/// Runs `ask` of the first client on a file of 50 bytes on which no lease is held, loses its answer, runs `change` of the
/// second, and lets the first ask again. Gives the file.
fn again<T: 'static>(
    ask: impl AsyncFnOnce(Client, Ino, ObjectId) -> Result<T, Status> + 'static,
    change: impl AsyncFnOnce(Client, Ino, ObjectId),
) -> (T, Vec<u8>) {
    let rig = Rig::new(256 << 20, 1);
    let node = rig.start();
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
        proxy.cut();
        let answer = asked.await.expect("it ends").expect("it succeeds");
        (answer, b.read(ino).await.expect("read"))
    });
    node.drop_dead();
    out
}

async fn punch(c: Client, ino: Ino) -> Result<(), Status> {
    c.call(m::Fallocate { ino, mode: 3, offset: 0, len: 50, cred: CRED }, &[]).await.map(drop)
}

/// A punch once ran a second time.
#[test]
fn a_repeated_punch_does_not_destroy_what_was_written_since() {
    let ((), data) = again(
        async |c, ino, _| punch(c, ino).await,
        async |c, ino, object| c.write(ino, object, 0, &[9; 50]).await.expect("write"),
    );
    assert_eq!(data, [9; 50]);
}

/// A repeat once told the namespace of its end, so that the size grew again.
#[test]
fn a_repeated_write_does_not_undo_a_later_truncate() {
    let ((), data) = again(
        async |c, ino, object| c.write(ino, object, 0, &[7; 200]).await,
        async |c, ino, _| {
            c.truncate(ino, 10).await.expect("truncate");
        },
    );
    assert_eq!(data, [7; 10]);
}

/// A repeat once wrote at its old offset into the new body of data.
#[test]
fn a_repeated_append_after_a_truncate_is_sound() {
    let (offset, data) = again(
        async |c, ino, _| c.append(ino, &[7; 200]).await,
        async |c, ino, _| {
            c.truncate(ino, 0).await.expect("truncate");
        },
    );
    assert_eq!((offset, data), (50, Vec::new()));
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
