//! A session fed with what no kernel sends: nothing panics, and every request that wants an answer gets exactly one.

use super::*;
use crate::abi::{InHeader, flags::init};
use client::memory::Memory;
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::collections::BTreeMap;
use wire::types::Ino;
use zerocopy::IntoBytes;

#[derive(Clone, Debug)]
struct Wild {
    opcode: u32,
    node: u64,
    body: Vec<u8>,
}

/// Requests whose numbers are places and lengths: the memory behind the test keeps every byte, so these stay small.
const SIZED: [u32; 5] =
    [opcode::SETATTR, opcode::WRITE, opcode::FALLOCATE, opcode::COPY_FILE_RANGE, opcode::COPY_FILE_RANGE_64];

fn wild() -> impl Strategy<Value = Wild> {
    let code = prop_oneof![9 => 1u32..54, 1 => any::<u32>()];
    let node = prop_oneof![4 => 0u64..6, 1 => any::<u64>(), 1 => Just(1 << 63 | 1)];
    let words = prop::collection::vec((0u32..9000, prop_oneof![3 => Just(0u32), 1 => any::<u32>()]), 0..14);
    let names = prop::collection::vec("[a-c]{1,2}", 0..3);
    (code, node, words, names, any::<bool>()).prop_map(|(opcode, node, words, names, named)| {
        let small = SIZED.contains(&opcode);
        let numbers = words
            .into_iter()
            .flat_map(|(low, high)| [low, if small { 0 } else { high }])
            .flat_map(u32::to_ne_bytes);
        let mut body: Vec<u8> = if named && !small { Vec::new() } else { numbers.collect() };
        names.iter().for_each(|name| body.extend(name.bytes().chain([0])));
        Wild { opcode, node, body }
    })
}

/// Sends all, and counts the answers by request.
fn answers(kernel: &OwnedFd, requests: &[Wild]) -> BTreeMap<u64, u32> {
    let mut got: BTreeMap<u64, u32> = BTreeMap::new();
    let mut buf = vec![0; 256 << 10];
    let mut take = |got: &mut BTreeMap<u64, u32>| {
        let len = rustix::io::read(kernel, &mut buf[..]).expect("an answer");
        let field = |at: usize| u32::from_ne_bytes(buf[at..at + 4].try_into().expect("4 bytes"));
        assert_eq!(field(0) as usize, len, "an answer is as long as it says");
        assert!((-4095..=0).contains(&(field(4) as i32)));
        *got.entry(u64::from_ne_bytes(buf[8..16].try_into().expect("8 bytes"))).or_default() += 1;
    };
    for (n, request) in requests.iter().enumerate() {
        let unique = (n as u64 + 1) * 2;
        let len = (size_of::<InHeader>() + request.body.len()) as u32;
        let header =
            InHeader { len, opcode: request.opcode, unique, nodeid: request.node, ..InHeader::default() };
        rustix::io::write(kernel, &[header.as_bytes(), &request.body].concat()).expect("sent");
        let silent = [opcode::FORGET, opcode::BATCH_FORGET, opcode::INTERRUPT].contains(&request.opcode);
        while !silent && !got.contains_key(&unique) {
            let limit = rustix::time::Timespec { tv_sec: 60, tv_nsec: 0 };
            let ready = poll(&mut [PollFd::new(kernel, PollFlags::IN)], Some(&limit));
            assert_eq!(ready, Ok(1), "no answer to {request:?}");
            take(&mut got);
        }
    }
    // Whatever else comes was not asked for.
    while poll(&mut [PollFd::new(kernel, PollFlags::IN)], Some(&rustix::time::Timespec::default())) == Ok(1) {
        take(&mut got);
    }
    got
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_gets_one_answer(requests in prop::collection::vec(wild(), 1..60)) {
        let (ours, kernel) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a pair");
        // As the device of a mount is opened.
        rustix::fs::fcntl_setfl(&ours, rustix::fs::OFlags::NONBLOCK).expect("set");
        let sent = requests.clone();
        let talk = std::thread::spawn(move || answers(&kernel, &sent));
        let config = reactor::Config { entries: 32, ..reactor::Config::default() };
        let got = reactor::run(config, async move {
            let device = Rc::new(Device::new(ours).expect("a device"));
            let agreed = Agreed { minor: 45, flags: init::SETXATTR_EXT };
            let nodes = Rc::new(Nodes::new(Ino(1)));
            let session =
                Rc::new(Session::new(Rc::new(Memory::default()), device, nodes, agreed, Rc::default()));
            // The other end is closed when all answers were taken; reading then gives an empty message for ever.
            let serving = reactor::spawn(Rc::clone(&session).run(Reader::new(None)));
            while !talk.is_finished() {
                reactor::sleep(std::time::Duration::from_millis(1)).await;
            }
            serving.abort();
            talk.join().expect("every answer was there and well formed")
        })
        .expect("a reactor");
        prop_assert!(got.values().all(|&n| n == 1), "{got:?}");
    }
}
