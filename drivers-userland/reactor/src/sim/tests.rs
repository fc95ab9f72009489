//! The machine itself: time, order, network and processes follow the seed.

use super::*;
use crate::sim::net::{self, Weather};
use crate::{TcpListener, TcpStream, sync::Notify};
use hugepages::Buf;

fn address() -> std::net::SocketAddr {
    std::net::SocketAddr::from(([10, 0, 0, 1], 7))
}

fn bytes(data: &[u8]) -> hugepages::Bytes {
    Buf::copy_of(data).freeze()
}

/// Echoes every connection.
async fn echo() {
    let listener = TcpListener::bind(address()).expect("free");
    while let Ok((stream, _)) = listener.accept().await {
        drop(crate::spawn(async move {
            loop {
                let (count, buf) = stream.read(Buf::heap(100)).await;
                match count {
                    Ok(count) if count > 0 => {
                        if stream.send_all(vec![bytes(&buf[..count])]).await.is_err() {
                            return;
                        }
                    }
                    _ => return,
                }
            }
        }));
    }
}

/// Sends `data`, gives what came back.
async fn ask(stream: &TcpStream, data: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.send_all(vec![bytes(data)]).await?;
    let (read, buf) = stream.read_exact(Buf::heap(data.len()), 0..data.len()).await;
    read.map(|()| buf.to_vec())
}

fn chatter(seed: u64) -> (u64, u64) {
    run(seed, async {
        let server = Process::new();
        drop(server.spawn(echo()));
        let clients: Vec<_> = (0..5_u8)
            .map(|n| {
                Process::new().spawn(async move {
                    crate::sleep(Duration::from_millis(1)).await;
                    let stream = TcpStream::connect(address()).await.expect("it listens");
                    for round in 0..20_u8 {
                        let data = vec![n ^ round; 1 + below(3000) as usize];
                        assert_eq!(ask(&stream, &data).await.expect("an echo"), data);
                    }
                })
            })
            .collect();
        for client in clients {
            client.await.expect("no panic");
        }
        assert!(net::counters().short > 0, "receives are cut");
        (digest(), turns())
    })
    .expect("it ends")
}

#[test]
fn a_seed_gives_the_same_run_twice_and_another_seed_another() {
    assert_eq!(chatter(1), chatter(1));
    assert_ne!(chatter(1).0, chatter(2).0);
}

#[test]
fn time_jumps_to_the_next_timer() {
    let hour = Duration::from_secs(3600);
    let (passed, wall) = run(3, async {
        let before = crate::wall_clock();
        crate::sleep(hour).await;
        (elapsed(), crate::wall_clock().duration_since(before).expect("it goes on"))
    })
    .expect("it ends");
    assert!(passed >= hour && wall >= hour);
}

#[test]
fn a_lost_wake_up_is_told() {
    let stalled = run(4, async { Notify::new().notified().await });
    assert!(matches!(stalled, Err(Error::Stalled)), "{stalled:?}");
}

#[test]
fn a_killed_process_is_gone_and_its_peer_told() {
    run(5, async {
        let server = Process::new();
        drop(server.spawn(echo()));
        crate::sleep(Duration::from_millis(1)).await;
        let stream = TcpStream::connect(address()).await.expect("it listens");
        assert_eq!(ask(&stream, b"there?").await.expect("an echo"), b"there?");
        server.kill();
        assert!(ask(&stream, b"still?").await.is_err());
        let refused = TcpStream::connect(address()).await.expect_err("nobody listens");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        drop(server.spawn(echo()));
        crate::sleep(Duration::from_millis(1)).await;
        let stream = TcpStream::connect(address()).await.expect("it listens again");
        assert_eq!(ask(&stream, b"again").await.expect("an echo"), b"again");
    })
    .expect("it ends");
}

#[test]
fn a_vanished_process_leaves_its_peer_waiting() {
    run(6, async {
        let server = Process::new();
        drop(server.spawn(echo()));
        crate::sleep(Duration::from_millis(1)).await;
        let stream = TcpStream::connect(address()).await.expect("it listens");
        server.vanish();
        let silent = crate::timeout(Duration::from_secs(60), ask(&stream, b"anyone?")).await;
        assert!(silent.is_err(), "{silent:?}");
    })
    .expect("it ends");
}

#[test]
fn a_cut_resets_and_a_stall_holds_back() {
    run(7, async {
        let (server, client) = (Process::new(), Process::new());
        drop(server.spawn(echo()));
        crate::sleep(Duration::from_millis(1)).await;
        let talk = client.spawn(async move {
            let stream = TcpStream::connect(address()).await.expect("it listens");
            let mut echoes = 0;
            while ask(&stream, b"hello").await.is_ok() {
                echoes += 1;
                crate::sleep(Duration::from_millis(1)).await;
            }
            echoes
        });
        crate::sleep(Duration::from_millis(50)).await;
        net::stall(server, client, true);
        crate::sleep(Duration::from_secs(5)).await;
        net::stall(server, client, false);
        crate::sleep(Duration::from_millis(50)).await;
        assert_eq!(net::cut(server, client), 1);
        let echoes = talk.await.expect("no panic");
        assert!((20..200).contains(&echoes), "{echoes}");
        let counted = net::counters();
        assert!(counted.stalled > 0 && counted.cut == 1, "{counted:?}");
    })
    .expect("it ends");
}

#[test]
fn bytes_keep_their_order_in_any_weather() {
    run(8, async {
        net::set_weather(Weather {
            latency: Duration::ZERO,
            latency_max: Duration::from_millis(20),
            short_one_in: 1,
        });
        let server = Process::new();
        drop(server.spawn(echo()));
        crate::sleep(Duration::from_millis(1)).await;
        let stream = TcpStream::connect(address()).await.expect("it listens");
        let data: Vec<u8> = (0..70_000_u32).map(|n| (n % 251) as u8).collect();
        let sender = stream.clone();
        let sent = data.clone();
        let sending = crate::spawn(async move {
            for piece in sent.chunks(999) {
                sender.send_all(vec![bytes(piece)]).await.expect("it takes it");
            }
        });
        let (read, buf) = stream.read_exact(Buf::heap(data.len()), 0..data.len()).await;
        read.expect("an echo");
        sending.await.expect("no panic");
        assert!(buf[..] == data[..], "another order");
    })
    .expect("it ends");
}
