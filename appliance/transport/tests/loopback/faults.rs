//! A network that cuts, splits and falls silent.

use crate::common::{ADDRESS, append, options, parts, pattern, read, run, serve, session};
use reactor::{TcpListener, TcpStream};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use transport::{CallOptions, CloseReason, Connection, Error, Parts};
use wire::Status;
use wire::message::Appended;

/// Bytes that the next connections may pass, up and down, last first.
type Budgets = Rc<RefCell<Vec<(usize, usize)>>>;

/// SplitMix64: the seed names a whole run.
fn random(state: &Cell<u64>) -> u64 {
    state.set(state.get().wrapping_add(0x9E37_79B9_7F4A_7C15));
    let mut x = state.get();
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Passes bytes on until a connection's budget is spent, then cuts it; `None` passes all.
async fn proxy(listener: TcpListener, to: SocketAddr, budgets: Budgets, piece: usize) {
    loop {
        let Ok((near, _)) = listener.accept().await else { return };
        let (up, down) = budgets.borrow_mut().pop().unwrap_or((usize::MAX, usize::MAX));
        let far = TcpStream::connect(to).await.expect("the server");
        for (a, b, budget) in [(near.clone(), far.clone(), up), (far, near, down)] {
            drop(reactor::spawn(async move {
                let mut left = budget;
                while left > 0 {
                    let (got, buf) = a.read(hugepages::Buf::heap(piece)).await;
                    let Ok(got @ 1..) = got else { break };
                    let pass = got.min(left);
                    left -= pass;
                    let mut out = Parts::new();
                    out.push(buf.freeze().slice(..pass));
                    if b.send_all(out).await.is_err() {
                        break;
                    }
                }
                let _ = (a.shutdown(std::net::Shutdown::Both), b.shutdown(std::net::Shutdown::Both));
            }));
        }
    }
}

#[test]
fn a_connection_cut_anywhere_loses_and_repeats_nothing() {
    run(async {
        let (server, address) = serve(1000, 64);
        let listener = TcpListener::bind(ADDRESS.parse().expect("an address")).expect("bound");
        let through = listener.local_addr();
        let budgets = Rc::new(RefCell::new(Vec::new()));
        drop(reactor::spawn(proxy(listener, address, Rc::clone(&budgets), 4096)));
        let session = session(through).await;
        let (mut expected, mut repeats) = (0, 0);
        // Sent by the client: Hello 115, Prove 96, Append 76 and its payload; by the server: 153, 116, 232.
        for cut in (0..520usize).step_by(9) {
            let after = if cut % 2 == 0 { (cut, usize::MAX) } else { (usize::MAX, cut) };
            budgets.borrow_mut().push(after);
            if let Some(connection) = session.current() {
                connection.close();
            }
            let reply =
                session.call(&append(), parts(pattern(200)), CallOptions::default()).await.expect("answered");
            assert_eq!(reply.status(), Status::Ok, "cut after {cut} bytes");
            assert_eq!(
                reply.decode::<Appended>().expect("a reply").offset,
                expected,
                "cut after {cut} bytes"
            );
            expected += 200;
            repeats = session.counters().1;
        }
        assert_eq!(server.handler().sum.get(), expected);
        assert!(server.handler().ran.borrow().values().all(|&times| times == 1));
        assert!(repeats > 0, "some cuts fall after the request was sent");
        session.stop();
        server.stop();
    });
}

#[test]
fn a_network_that_splits_and_cuts_at_random_changes_nothing() {
    let first = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    for seed in first..first + 6u64 {
        println!("SEED={seed}");
        run(async {
            let (server, address) = serve(1000, 64);
            let listener = TcpListener::bind(ADDRESS.parse().expect("an address")).expect("bound");
            let (through, state) = (listener.local_addr(), Rc::new(Cell::new(seed)));
            let budget = || 300 + (random(&state) % 20_000) as usize;
            let budgets = Rc::new(RefCell::new((0..25).map(|_| (budget(), budget())).collect()));
            let piece = [1, 7, 64, 150, 1000, 5000][(seed % 6) as usize];
            drop(reactor::spawn(proxy(listener, address, budgets, piece)));
            let session = session(through).await;
            let tasks: Vec<_> = (0..8)
                .map(|_| {
                    let (session, state) = (session.clone(), Rc::clone(&state));
                    reactor::spawn(async move {
                        let mut sent = 0;
                        for _ in 0..3 {
                            let len = (random(&state) % 3000) as usize;
                            let options = CallOptions::default();
                            let reply = session
                                .call(&append(), parts(pattern(len)), options)
                                .await
                                .expect("answered");
                            assert_eq!(reply.status(), Status::Ok);
                            sent += len as u64;
                            let reply = session
                                .call(&read(len as u32), Parts::new(), options)
                                .await
                                .expect("answered");
                            assert_eq!(&*reply.payload, pattern(len));
                        }
                        sent
                    })
                })
                .collect();
            let mut sent = 0;
            for task in tasks {
                sent += task.await.expect("not aborted");
            }
            assert_eq!(server.handler().sum.get(), sent);
            assert!(server.handler().ran.borrow().values().all(|&times| times == 1));
            assert!(session.counters().0 > 0, "the network was cut at least once");
            session.stop();
            server.stop();
        });
    }
}

/// Says nothing at all after the handshake.
async fn fall_silent(listener: TcpListener, to: SocketAddr, bytes: usize) {
    let (near, _) = listener.accept().await.expect("a connection");
    let far = TcpStream::connect(to).await.expect("the server");
    let (n, f) = (near.clone(), far.clone());
    drop(reactor::spawn(async move {
        // Hello and Prove.
        let (_, buf) = n.read_exact(hugepages::Buf::heap(211), 0..115).await;
        let bytes = buf.freeze();
        f.send_all(vec_parts(&bytes[..115])).await.expect("Hello");
        let (_, buf) = n.read_exact(hugepages::Buf::heap(96), 0..96).await;
        f.send_all(vec_parts(&buf)).await.expect("Prove");
        std::future::pending::<()>().await;
    }));
    let (_, buf) = far.read_exact(hugepages::Buf::heap(bytes), 0..bytes).await;
    near.send_all(vec_parts(&buf)).await.expect("Challenge");
    let (_, buf) = far.read_exact(hugepages::Buf::heap(116), 0..116).await;
    near.send_all(vec_parts(&buf)).await.expect("Welcome");
    std::future::pending::<()>().await;
}

fn vec_parts(bytes: &[u8]) -> Parts {
    parts(bytes.to_vec())
}

#[test]
fn silence_ends_a_connection_on_both_sides() {
    run(async {
        let (server, address) = serve(20, 8);
        let listener = TcpListener::bind(ADDRESS.parse().expect("an address")).expect("bound");
        let through = listener.local_addr();
        drop(reactor::spawn(fall_silent(listener, address, 153)));
        let (connection, _notifications) = Connection::connect(&options(through)).await.expect("connected");
        let call = connection.call(&read(1), CallOptions::default()).await;
        assert!(matches!(call, Err(Error::Closed(CloseReason::Silent))), "{call:?}");
        assert!(matches!(connection.closed().await, CloseReason::Silent));
        server.handler().ended_one.wait().await;
        assert!(matches!(server.handler().ended.borrow()[..], [CloseReason::Silent]));
        // A quiet client that keeps alive stays.
        let (connection, _notifications) = Connection::connect(&options(address)).await.expect("connected");
        reactor::sleep(Duration::from_millis(200)).await;
        assert!(connection.close_reason().is_none());
        server.stop();
    });
}
