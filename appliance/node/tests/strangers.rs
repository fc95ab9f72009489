//! The real daemon and peers that are no sound clients: garbage, silence, floods and replays end their own connection, with a
//! reason, and nobody else's.
#![expect(clippy::expect_used, reason = "a test ends at the first surprise")]

mod common;

use common::load::PATIENCE;
use common::{Client, Daemon, ROOT, Rig, errno};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use transport::handshake::{ClientHandshake, ClientStep};
use wire::message as m;
use wire::{Body, BodyBuf, ClientId, Errno, Flags, HEADER_LEN, Header, Opcode, Request, Slot, Status};

/// A daemon, what it logs, and a client that must be served whatever others do.
fn daemon(rig: &Rig) -> (Daemon, std::thread::JoinHandle<String>) {
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_claudefsd"))
        .arg("--config")
        .arg(rig.config_file())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the daemon starts");
    let mut log = daemon.stderr.take().expect("its log");
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        log.read_to_string(&mut text).expect("text");
        text
    });
    let daemon = Daemon(daemon);
    // A session is enough: a lease would have to be recalled from nobody.
    rig.with_client(1, async |_| ());
    (daemon, reading)
}

fn served(rig: &Rig) {
    static CLIENTS: AtomicU64 = AtomicU64::new(100);
    // A session that was left alone may have expired.
    let client = CLIENTS.fetch_add(1, Ordering::Relaxed);
    rig.with_client(client, async |c: Client| {
        assert_eq!(c.lookup(ROOT, "none").await.err(), Some(errno(Errno::ENOENT)));
    });
}

fn connect(rig: &Rig) -> TcpStream {
    let stream = TcpStream::connect(rig.address()).expect("connected");
    stream.set_nodelay(true).expect("a socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream
}

/// What comes until the daemon closes the connection.
#[track_caller]
fn rest(mut stream: &TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(e) => panic!("the daemon does not close the connection: {e}"),
    }
    all
}

/// Sends `bytes` and nothing more; gives what the daemon says to that.
#[track_caller]
fn said(rig: &Rig, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(rig);
    // It may have closed the connection at an earlier byte.
    let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    rest(&stream)
}

fn receive(stream: &mut TcpStream) -> (Header, Vec<u8>) {
    let mut head = [0; HEADER_LEN];
    stream.read_exact(&mut head).expect("a header");
    let header = Header::decode(&head).expect("a sound header");
    let mut body = vec![0; usize::from(header.body_len)];
    stream.read_exact(&mut body).expect("a body");
    Header::verify(&head, &body).expect("a sound frame");
    let mut payload = vec![0; header.payload_len as usize];
    stream.read_exact(&mut payload).expect("a payload");
    (header, body)
}

/// A connection that has proved its key, and the frames that it took.
fn proved(rig: &Rig, client: u64) -> (TcpStream, Vec<u8>) {
    let mut stream = connect(rig);
    let (mut machine, mut next) =
        ClientHandshake::new(&rig.key(), m::Role::Client, ClientId(client), [7; 32]);
    let mut sent = Vec::new();
    loop {
        stream.write_all(&next).expect("sent");
        sent.extend_from_slice(&next);
        let (header, body) = receive(&mut stream);
        match machine.on_frame(&header, &body).expect("agreed") {
            ClientStep::Send(frame) => next = frame,
            ClientStep::Done(_) => return (stream, sent),
        }
    }
}

fn frame<'a>(request: impl Into<Request<'a>>, client: u64, slot: Slot, sequence: u64) -> Vec<u8> {
    let (request, mut body) = (request.into(), BodyBuf::new());
    request.encode(&mut body);
    let header = Header { client: ClientId(client), slot, sequence, ..Header::request(request.opcode()) };
    body.into_frame(&header).expect("it fits")
}

fn hello(rig: &Rig, versions: (u8, u8)) -> Vec<u8> {
    let (min_version, max_version) = versions;
    let (role, key_id, client) = (m::Role::Client, rig.key().id(), ClientId(9));
    let mut body = BodyBuf::new();
    m::Hello { min_version, max_version, role, key_id, client, nonce: [1; 32] }.encode(&mut body);
    let header = Header { version: wire::HANDSHAKE_VERSION, ..Header::request(Opcode::Hello) };
    body.into_frame(&header).expect("small")
}

/// Changes the header's field at `at`, checksum and all left as they were.
fn with(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

#[test]
fn bad_frames_end_their_connection_and_no_other() {
    let rig = Rig::new(256 << 20, 1);
    let (mut daemon, log) = daemon(&rig);
    let ours = hello(&rig, (1, 1));

    // A peer of another protocol version is told which ones there are.
    let answer = said(&rig, &hello(&rig, (5, 9)));
    let refusal = m::Refusal { min_version: 1, max_version: 1, reason: m::RefusalReason::Version };
    assert_eq!(m::Refusal::decode(&answer[HEADER_LEN..]), Ok(refusal));

    // Garbage before Hello, within it, and in place of Prove.
    let http = b"GET / HTTP/1.1\r\nHost: here\r\nAccept: everything-there-is-to-be-had\r\n\r\n";
    let getattr = frame(m::GetAttr { ino: ROOT }, 9, Slot::IDEMPOTENT, 1);
    for bad in [
        http.to_vec(),
        vec![0; 4096],
        vec![0xFF; 100_000],
        ours[..HEADER_LEN + 10].to_vec(),
        with(ours.clone(), 38, &[0xFF, 0xFF]),
        with(ours.clone(), 40, &[0xFF, 0xFF, 0xFF, 0x7F]),
        with(ours.clone(), 80, &[0xAA]),
        getattr.clone(),
    ] {
        assert_eq!(said(&rig, &bad), b"", "{:02x?}", &bad[..8]);
    }
    for bad in [&http[..], &[0xFF; 64], &getattr, &ours] {
        let mut stream = connect(&rig);
        stream.write_all(&ours).expect("sent");
        assert_eq!(receive(&mut stream).0.op(), Some(Opcode::Hello), "a challenge");
        stream.write_all(bad).expect("sent");
        let answer = rest(&stream);
        if let Some(head) = answer.first_chunk() {
            assert_eq!(Header::decode(head).map(|h| h.status), Ok(Status::Denied), "no Welcome");
        }
    }

    // The same with the key proved: truncated, oversized, of another version, another client's, a reply, a damaged one.
    let other = frame(m::GetAttr { ino: ROOT }, 10, Slot::IDEMPOTENT, 1);
    let mut reply = BodyBuf::new();
    m::GetAttr { ino: ROOT }.encode(&mut reply);
    let header = Header { client: ClientId(9), flags: Flags::REPLY, ..Header::request(Opcode::GetAttr) };
    let reply = reply.into_frame(&header).expect("small");
    for bad in [
        getattr[..70].to_vec(),
        with(getattr.clone(), 12, &[9]),
        with(getattr.clone(), 38, &[0xFF, 0xFF]),
        with(getattr.clone(), 40, &[0, 0, 0, 0x10]),
        with(getattr.clone(), HEADER_LEN, &[0xAA]),
        http.to_vec(),
        other,
        reply,
        frame(m::Unlink { dir: ROOT, name: b"x" }, 9, Slot(9999), 1),
    ] {
        let (mut stream, _) = proved(&rig, 9);
        let _ = stream.write_all(&bad).and_then(|()| stream.shutdown(Shutdown::Write));
        assert_eq!(rest(&stream), b"", "{:02x?}", &bad[..16]);
    }
    served(&rig);
    assert_eq!(daemon.terminate(), Some(0));
    let log = log.join().expect("the log");
    for reason in [
        "no common protocol version",
        "another version than agreed",
        "another client",
        "a client sent a reply",
        "slot is beyond",
    ] {
        assert!(log.contains(reason), "`{reason}` is not in the log:\n{log}");
    }
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn a_replayed_dialogue_proves_nothing_and_a_replayed_request_does_nothing() {
    let rig = Rig::new(256 << 20, 1).patient();
    let (mut daemon, log) = daemon(&rig);
    let (mut stream, dialogue) = proved(&rig, 9);
    // Who has listened says the same again.
    let answer = said(&rig, &dialogue);
    let refused = m::Refusal { min_version: 1, max_version: 1, reason: m::RefusalReason::Key };
    let mut body = BodyBuf::new();
    refused.encode(&mut body);
    assert!(answer.ends_with(body.body()), "{answer:02x?}");

    let mut ask = |frame: &[u8]| {
        stream.write_all(frame).expect("sent");
        receive(&mut stream).0.status
    };
    let open = m::OpenSession { flags: m::SessionFlags::default() };
    assert_eq!(ask(&frame(open, 9, Slot::IDEMPOTENT, 1)), Status::Ok);
    let mkdir = |name: &'static [u8]| m::Create {
        dir: ROOT,
        mode: 0o040_755,
        umask: 0,
        rdev: 0,
        cred: common::CRED,
        flags: m::CreateFlags::EXCL,
        open_flags: m::OpenFlags::default(),
        name,
        target: b"",
    };
    let (a, b) = (frame(mkdir(b"a"), 9, Slot(0), 1), frame(mkdir(b"b"), 9, Slot(0), 2));
    assert_eq!([ask(&a), ask(&a), ask(&b), ask(&b)], [Status::Ok; 4], "a repeat gets the answer that it had");
    let remove = frame(m::Rmdir { dir: ROOT, name: b"a" }, 9, Slot(0), 3);
    assert_eq!([ask(&remove), ask(&remove)], [Status::Ok; 2]);
    assert_eq!(
        [ask(&a), ask(&b)],
        [Status::BadSequence; 2],
        "what was acknowledged is forgotten, not run again"
    );

    // Nor does the next daemon run them again.
    daemon.kill();
    drop(log);
    let mut next = Daemon(rig.spawn());
    let wait = || rig.with_client(1, async |c| assert_eq!(c.names(ROOT).await, ["b"]));
    // It serves when the other client is back.
    let session = Cell::new(None);
    rig.with_client(1, async |_| session.set(Some(proved(&rig, 9).0)));
    let mut stream = session.take().expect("a connection");
    let mut ask = |frame: &[u8]| {
        stream.write_all(frame).expect("sent");
        receive(&mut stream).0.status
    };
    assert_eq!(ask(&frame(open, 9, Slot::IDEMPOTENT, 1)), Status::Ok);
    assert_eq!(ask(&frame(m::ReclaimDone {}, 9, Slot::IDEMPOTENT, 2)), Status::Ok);
    wait();
    assert_eq!([ask(&a), ask(&b), ask(&remove)], [Status::BadSequence, Status::BadSequence, Status::Ok]);
    wait();
    assert_eq!(next.terminate(), Some(0));
}

#[test]
fn a_flood_of_silent_connections_keeps_no_client_out_and_has_an_end() {
    let rig = Rig::new(256 << 20, 1);
    let (mut daemon, log) = daemon(&rig);
    let ours = hello(&rig, (1, 1));
    let mut silent = Vec::new();
    for n in 0..transport::HALF_OPEN_MAX + 40 {
        let mut stream = connect(&rig);
        // Byte by byte, if at all.
        stream.write_all(&ours[..n % ours.len()]).expect("sent");
        silent.push(stream);
    }
    served(&rig);
    for stream in &silent {
        assert_eq!(rest(stream), b"", "nothing is said to who says nothing");
    }
    served(&rig);
    assert_eq!(daemon.terminate(), Some(0));
    let log = log.join().expect("the log");
    assert!(log.contains("this one was the oldest") && log.contains("the handshake took longer"), "{log}");
}

#[test]
fn silence_and_floods_of_a_proved_client_end_its_connection() {
    let mut rig = Rig::new(256 << 20, 1);
    // The keep-alive time is a sixth of it.
    rig.config.lease.time_ms = node::units::Millis(1200);
    rig.config.limits.credits = 16;
    let (mut daemon, log) = daemon(&rig);
    let (silent, _) = proved(&rig, 9);
    assert_eq!(rest(&silent), b"", "three keep-alive times of silence");

    // Lock waits do not end: more of them than credits.
    let (mut stream, _) = proved(&rig, 10);
    let open = m::OpenSession { flags: m::SessionFlags::default() };
    stream.write_all(&frame(open, 10, Slot::IDEMPOTENT, 1)).expect("sent");
    assert_eq!(receive(&mut stream).0.status, Status::Ok);
    let lock = |owner| m::SetLock {
        ino: ROOT,
        space: wire::LockSpace::Flock,
        owner: wire::LockOwner(owner),
        lock: wire::LockType::Lock(wire::LockKind::Write),
        range: wire::LockRange::ALL,
        pid: 1,
        wait: true,
    };
    let flood: Vec<u8> = (0..18_u16).flat_map(|n| frame(lock(u64::from(n)), 10, Slot(n), 1)).collect();
    let _ = stream.write_all(&flood);
    rest(&stream);
    served(&rig);
    assert_eq!(daemon.terminate(), Some(0));
    let log = log.join().expect("the log");
    assert!(log.contains("more requests in flight than the connection has credits"), "{log}");
}
