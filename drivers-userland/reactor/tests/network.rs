//! Sockets against the real kernel, over loopback.
mod common;

use common::{arena, pair, pattern, run, run_with};
use hugepages::{Buf, Bytes};
use reactor::{Config, RECV_BUFFER, RECV_BUFFERS, TcpListener, TcpStream, Wait};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

#[test]
fn parts_arrive_in_order_and_exactly() {
    run(async {
        let (near, far) = pair().await;
        near.set_nodelay(true).expect("an option");
        let data = Bytes::from(pattern(300_000));
        let parts =
            vec![data.slice(..64), data.slice(64..64), data.slice(64..100_000), data.slice(100_000..)];
        let sender = reactor::spawn(async move {
            near.send_all(parts).await.expect("sent");
            near.shutdown(Shutdown::Write).expect("shut");
            near
        });
        let (done, header) = far.read_exact(Buf::heap(64), 0..64).await;
        done.expect("read");
        assert!(*header == data[..64]);
        let (done, buf) = far.read_exact(Buf::heap(300_000), 64..300_000).await;
        done.expect("read");
        assert!(buf[64..] == data[64..]);
        let (done, buf) = far.read_exact(buf, 0..1).await;
        assert_eq!(done.expect_err("the end").kind(), io::ErrorKind::UnexpectedEof);
        let (done, _) = far.read_exact(buf, 1..300_001).await;
        assert_eq!(done.expect_err("out of range").kind(), io::ErrorKind::InvalidInput);
        drop(sender.await.expect("it ends"));
    });
}

async fn receive_all(stream: &TcpStream) -> Vec<u8> {
    let mut incoming = stream.recv_multishot();
    let mut got = Vec::new();
    while let Some(piece) = incoming.next().await {
        got.extend_from_slice(&piece.expect("received"));
    }
    got
}

#[test]
fn a_slow_reader_gets_64_mib() {
    run(async {
        let (near, far) = pair().await;
        let total = 64 << 20;
        let sender = reactor::spawn(async move {
            let block = Bytes::from(pattern(1 << 20));
            near.send_all(vec![block; 64]).await.expect("sent");
        });
        let mut incoming = far.recv_multishot();
        let (mut at, mut pieces) = (0_usize, 0_u32);
        while let Some(piece) = incoming.next().await {
            let piece = piece.expect("received");
            for (n, &byte) in piece.iter().enumerate().step_by(509) {
                let place = (at + n) & ((1 << 20) - 1);
                assert_eq!(byte, (place ^ (place >> 8) ^ (place >> 16)) as u8);
            }
            at += piece.len();
            pieces += 1;
            if pieces.is_multiple_of(64) {
                drop(piece);
                reactor::sleep(Duration::from_micros(200)).await;
            }
        }
        assert_eq!(at, total);
        sender.await.expect("it ends");
    });
}

/// All buffers kept by the reader: the kernel answers ENOBUFS, and the stream goes on in order.
#[test]
fn running_out_of_buffers_loses_nothing() {
    run(async {
        let (near, far) = pair().await;
        let total = 3 * usize::from(RECV_BUFFERS) * RECV_BUFFER;
        let data = Bytes::from(pattern(total));
        let sent = data.clone();
        let sender = reactor::spawn(async move {
            near.send_all(vec![sent]).await.expect("sent");
        });
        let mut incoming = far.recv_multishot();
        let (mut got, mut kept) = (Vec::new(), Vec::new());
        loop {
            match reactor::timeout(Duration::from_millis(20), incoming.next()).await {
                Ok(Some(piece)) => {
                    let piece = piece.expect("received");
                    got.extend_from_slice(&piece);
                    kept.push(piece);
                }
                Ok(None) => break,
                // Starved, as intended: half of what is kept goes back.
                Err(_) => kept.truncate(kept.len() / 2),
            }
        }
        assert!(got == *data);
        sender.await.expect("it ends");
    });
}

#[test]
fn zero_copy_sends_keep_their_buffers_until_the_notification() {
    let arena = arena(8 << 20);
    run_with(Config { arenas: vec![arena.clone()], wait: Wait::Sleep, ..Config::default() }, async {
        let (near, far) = pair().await;
        near.set_zc_threshold(1);
        let reader = reactor::spawn(async move { receive_all(&far).await });
        let mut expected = Vec::new();
        for round in 0..40_usize {
            let len = 1000 * (round + 1);
            let mut buf = loop {
                match arena.alloc(len) {
                    Some(buf) => break buf,
                    None => reactor::yield_now().await,
                }
            };
            buf.fill(round as u8);
            expected.extend_from_slice(&buf);
            let whole = buf.freeze();
            let parts = if round % 2 == 0 { vec![whole] } else { vec![whole.slice(..10), whole.slice(10..)] };
            near.send_all(parts).await.expect("sent");
        }
        drop(near);
        assert!(reader.await.expect("it ends") == expected);
    });
    assert!(arena.alloc(1).is_some(), "the owner takes stock");
    assert_eq!(arena.stats().in_use, 0, "every notification came");
}

#[test]
fn sends_of_two_tasks_do_not_mix() {
    run(async {
        let (near, far) = pair().await;
        let tasks: Vec<_> = (0..4_u8)
            .map(|id| {
                let near = near.clone();
                reactor::spawn(async move {
                    for _ in 0..20 {
                        let part = Bytes::from(vec![id; 20_000]);
                        near.send_all(vec![part.clone(), part]).await.expect("sent");
                    }
                })
            })
            .collect();
        drop(near);
        let got = receive_all(&far).await;
        assert_eq!(got.len(), 4 * 20 * 40_000);
        assert!(got.chunks(40_000).all(|message| message.iter().all(|&byte| byte == message[0])));
        for task in tasks {
            task.await.expect("it ends");
        }
    });
}

#[test]
fn a_send_given_up_half_way_spoils_the_stream() {
    run(async {
        let (near, _far) = pair().await;
        let huge = Bytes::from(vec![1; 64 << 20]);
        let sent = reactor::timeout(Duration::from_millis(20), near.send_all(vec![huge])).await;
        assert!(sent.is_err(), "nobody reads");
        let error = near.send_all(vec![Bytes::from_static(b"x")]).await.expect_err("torn");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    });
}

#[test]
fn a_storm_of_connections_is_accepted() {
    run(async {
        let listener = TcpListener::bind(any_port()).expect("a free port");
        let address = listener.local_addr();
        let clients: Vec<_> = (0..500_u32)
            .map(|n| {
                reactor::spawn(async move {
                    let stream = TcpStream::connect(address).await.expect("it listens");
                    stream.send_all(vec![Bytes::from(n.to_le_bytes().to_vec())]).await.expect("sent");
                    let (done, _) = stream.read_exact(Buf::heap(1), 0..1).await;
                    done.expect("an answer");
                })
            })
            .collect();
        let mut seen = Vec::new();
        for _ in 0..500 {
            let (stream, _) = listener.accept().await.expect("a connection");
            let (done, buf) = stream.read_exact(Buf::heap(4), 0..4).await;
            done.expect("its number");
            seen.push(u32::from_le_bytes(*buf.first_chunk().expect("four bytes")));
            stream.send_all(vec![Bytes::from_static(b"k")]).await.expect("sent");
        }
        for client in clients {
            client.await.expect("it ends");
        }
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..500));
    });
}

#[test]
fn errors_name_the_address() {
    run(async {
        let listener = TcpListener::bind(any_port()).expect("a free port");
        let address = listener.local_addr();
        let error = TcpListener::bind(address).map(drop).expect_err("in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        drop(listener);
        let error = TcpStream::connect(address).await.map(drop).expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        let one = TcpListener::bind_with(any_port(), true).expect("a free port");
        TcpListener::bind_with(one.local_addr(), true).expect("the port is shared");
    });
}

#[test]
fn dropping_an_accept_loses_no_connection() {
    run(async {
        let listener = TcpListener::bind(any_port()).expect("a free port");
        assert!(reactor::timeout(Duration::from_millis(1), listener.accept()).await.is_err());
        let near = TcpStream::connect(listener.local_addr()).await.expect("it listens");
        let (far, peer) = listener.accept().await.expect("a connection");
        assert_eq!(near.local_addr().expect("a name"), peer);
        drop(near);
        assert_eq!(receive_all(&far).await, b"");
    });
}
