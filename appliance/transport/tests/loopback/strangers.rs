//! Peers that are not let in.

use crate::common::{append, key, options, parts, read, run, serve, session};
use reactor::TcpStream;
use std::net::SocketAddr;
use transport::{CallOptions, CloseReason, ConnectOptions, Connection, HALF_OPEN_MAX, Key, Parts, Session};
use wire::message::{Hello, Refusal, RefusalReason, Role, SetLock, StatFs};
use wire::{
    Body, BodyBuf, ClientId, HEADER_LEN, Header, Ino, LockKind, LockOwner, LockRange, LockSpace, LockType,
    Opcode, Slot, Status,
};

/// The next frame's header and body.
async fn receive(stream: &TcpStream) -> (Header, Vec<u8>) {
    let (got, head) = stream.read_exact(hugepages::Buf::heap(HEADER_LEN), 0..HEADER_LEN).await;
    got.expect("a header");
    let header = Header::decode(head.first_chunk().expect("64 bytes")).expect("valid");
    let len = usize::from(header.body_len);
    let (got, body) = stream.read_exact(hugepages::Buf::heap(len), 0..len).await;
    got.expect("a body");
    (header, body.to_vec())
}

#[test]
fn replayed_frames_are_refused() {
    use transport::handshake::{ClientHandshake, ClientStep};
    run(async {
        let (server, address) = serve(1000, 8);
        let (mut machine, hello) = ClientHandshake::new(&key(), Role::Client, ClientId(9), [3; 32]);
        let stream = TcpStream::connect(address).await.expect("connected");
        stream.send_all(parts(hello.clone())).await.expect("sent");
        let (header, body) = receive(&stream).await;
        let Ok(ClientStep::Send(prove)) = machine.on_frame(&header, &body) else { panic!("no challenge") };
        stream.send_all(parts(prove.clone())).await.expect("sent");
        let (header, body) = receive(&stream).await;
        assert!(matches!(machine.on_frame(&header, &body), Ok(ClientStep::Done(_))));
        // The same dialogue again, by one who has listened.
        let again = stranger(address, [hello, prove].concat()).await;
        let refusal = Refusal { min_version: 1, max_version: 1, reason: RefusalReason::Key };
        assert!(again.ends_with(&{
            let mut body = BodyBuf::new();
            refusal.encode(&mut body);
            body.body().to_vec()
        }));
        // A request twice, while the first runs.
        let mut body = BodyBuf::new();
        let lock = SetLock {
            ino: Ino(2),
            space: LockSpace::Flock,
            owner: LockOwner(1),
            lock: LockType::Lock(LockKind::Read),
            range: LockRange::ALL,
            pid: 1,
            wait: true,
        };
        lock.encode(&mut body);
        let header =
            Header { client: ClientId(9), slot: Slot(0), sequence: 1, ..Header::request(Opcode::SetLock) };
        let frame = body.into_frame(&header).expect("small");
        stream.send_all(parts([frame.clone(), frame].concat())).await.expect("sent");
        server.handler().ended_one.wait().await;
        assert!(matches!(server.handler().ended.borrow()[..], [CloseReason::Pending(_)]));
        server.stop();
    });
}

/// Sends `bytes` as a stranger and returns what comes back before the server closes.
async fn stranger(address: SocketAddr, bytes: Vec<u8>) -> Vec<u8> {
    let stream = TcpStream::connect(address).await.expect("connected");
    stream.send_all(parts(bytes)).await.expect("sent");
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut all = Vec::new();
    loop {
        let (got, buf) = stream.read(hugepages::Buf::heap(4096)).await;
        match got {
            Ok(len @ 1..) => all.extend_from_slice(&buf[..len]),
            _ => return all,
        }
    }
}

fn hello(versions: (u8, u8)) -> Vec<u8> {
    let (min_version, max_version) = versions;
    let hello = Hello {
        min_version,
        max_version,
        role: Role::Client,
        key_id: key().id(),
        client: ClientId(9),
        nonce: [1; 32],
    };
    let mut body = BodyBuf::new();
    hello.encode(&mut body);
    body.into_frame(&Header { version: 0, ..Header::request(Opcode::Hello) }).expect("small")
}

#[test]
fn strangers_are_turned_away_and_others_go_on() {
    run(async {
        let (server, address) = serve(1000, 8);
        let session = session(address).await;
        let http = b"GET / HTTP/1.1\r\nHost: here\r\nAccept: everything-there-is-to-be-had\r\n\r\n".to_vec();
        assert_eq!(stranger(address, http).await, b"");
        assert_eq!(stranger(address, hello((1, 1))[..70].to_vec()).await, b"");
        assert_eq!(stranger(address, Vec::new()).await, b"");
        let mut oversized = hello((1, 1));
        oversized[38..40].copy_from_slice(&[0xFF, 0xFF]);
        assert_eq!(stranger(address, oversized).await, b"");
        let mut damaged = hello((1, 1));
        damaged[80] ^= 1;
        assert_eq!(stranger(address, damaged).await, b"");
        let mut early = BodyBuf::new();
        append().encode(&mut early);
        let early = early.into_frame(&Header::request(Opcode::Append)).expect("small");
        assert_eq!(stranger(address, early).await, b"");
        let refused = stranger(address, hello((5, 9))).await;
        let refusal = Refusal { min_version: 1, max_version: 1, reason: RefusalReason::Version };
        assert_eq!(Refusal::decode(&refused[HEADER_LEN..]), Ok(refusal));
        let reply = session.call(&read(10), Parts::new(), CallOptions::default()).await.expect("answered");
        assert_eq!(reply.status(), Status::Ok);
        session.stop();
        server.stop();
    });
}

#[test]
fn a_wrong_key_and_a_full_server_say_so() {
    run(async {
        let (server, address) = serve(1000, 1);
        let wrong = ConnectOptions { key: Key::from_bytes([8; 32]), ..options(address) };
        let error = Connection::connect(&wrong).await.map(drop).expect_err("refused");
        assert!(error.is_permanent() && error.to_string().contains("copy the key file"), "{error}");
        let quiet = Box::new(|_| Box::pin(async {}) as _);
        let hook = Box::new(|_| Box::pin(async { Ok(()) }) as _);
        assert!(Session::connect(wrong, hook, quiet).await.is_err(), "not tried for ever");
        let session = session(address).await;
        let error = Connection::connect(&options(address)).await.map(drop).expect_err("full");
        assert!(!error.is_permanent() && error.to_string().contains("no connections now"), "{error}");
        session.stop();
        server.stop();
    });
}

/// Connections of strangers once counted as connections of clients: a few hundred that said nothing kept everyone out.
#[test]
fn strangers_who_say_nothing_keep_nobody_out() {
    run(async {
        let (server, address) = serve(1000, 1);
        let mut silent = Vec::new();
        for n in 0..HALF_OPEN_MAX + 20 {
            let stream = TcpStream::connect(address).await.expect("connected");
            // Some have begun.
            stream.send_all(parts(hello((1, 1))[..n % 100].to_vec())).await.expect("sent");
            silent.push(stream);
        }
        let session = session(address).await;
        let reply = session.call(&read(10), Parts::new(), CallOptions::default()).await.expect("answered");
        assert_eq!(reply.status(), Status::Ok);
        // The oldest made room; the youngest have their time, and then they go, too.
        for stream in [&silent[0], &silent[20], &silent[HALF_OPEN_MAX + 19]] {
            let (got, _) = stream.read(hugepages::Buf::heap(64)).await;
            assert!(!matches!(got, Ok(1..)), "nothing is said to them");
        }
        session.stop();
        server.stop();
    });
}

/// One that has proved its key, but does not keep to what was agreed.
async fn unruly(address: SocketAddr) -> TcpStream {
    use transport::handshake::{ClientHandshake, ClientStep};
    let (mut machine, mut next) = ClientHandshake::new(&key(), Role::Client, ClientId(9), [3; 32]);
    let stream = TcpStream::connect(address).await.expect("connected");
    loop {
        stream.send_all(parts(next)).await.expect("sent");
        let (header, body) = receive(&stream).await;
        match machine.on_frame(&header, &body).expect("agreed") {
            ClientStep::Send(frame) => next = frame,
            ClientStep::Done(_) => return stream,
        }
    }
}

#[test]
fn more_requests_than_credits_end_the_connection_with_a_reason() {
    run(async {
        let (server, address) = serve(1000, 8);
        let stream = unruly(address).await;
        let mut flood = Vec::new();
        // None of them ends by itself: 8 slots, and 9 without a slot, for 16 credits.
        for slot in 0..8 {
            let mut body = BodyBuf::new();
            crate::calls::lock().encode(&mut body);
            let header = Header {
                client: ClientId(9),
                slot: Slot(slot),
                sequence: 1,
                ..Header::request(Opcode::SetLock)
            };
            flood.extend(body.into_frame(&header).expect("small"));
        }
        for sequence in 1..=9 {
            let mut body = BodyBuf::new();
            StatFs {}.encode(&mut body);
            let header = Header { client: ClientId(9), sequence, ..Header::request(Opcode::StatFs) };
            flood.extend(body.into_frame(&header).expect("small"));
        }
        stream.send_all(parts(flood)).await.expect("sent");
        server.handler().ended_one.wait().await;
        let ended = server.handler().ended.borrow().clone();
        assert!(matches!(ended[..], [CloseReason::Pending(transport::PendingError::Credits)]), "{ended:?}");
        assert!(ended[0].is_fault() && ended[0].to_string().contains("credits"));
        let session = session(address).await;
        let reply = session.call(&read(10), Parts::new(), CallOptions::default()).await.expect("answered");
        assert_eq!(reply.status(), Status::Ok, "others go on");
        session.stop();
        server.stop();
    });
}
