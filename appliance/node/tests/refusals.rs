//! Bad input at start: each error names the thing, the cause and what to do.
#![expect(clippy::expect_used, reason = "a test ends at the first surprise")]

mod common;

use common::{ROOT, Rig};
use node::exit;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::pin::Pin;
use std::process::Command;
use transport::{CallOptions, ConnectOptions, Connection, Key, Session};
use wire::{ClientId, message as m};

const DEVICE: u64 = 256 << 20;

/// Starts a node that must refuse to.
#[track_caller]
fn refused(rig: &Rig, code: u8, says: &[&str]) {
    let (_control, told) = reactor::mail::channel(1);
    let error = node::run(&rig.config, told, |_| {}).expect_err("it must not start");
    let text = error.to_string();
    assert_eq!(error.exit_code(), code, "{text}");
    for part in says {
        assert!(text.contains(part), "`{part}` is missing in: {text}");
    }
}

/// Overwrites a block of the device.
fn scribble(rig: &Rig, at: u64, bytes: &[u8]) {
    let mut file = File::options().write(true).open(&rig.config.devices[0]).expect("the device");
    file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(bytes)).expect("written");
}

#[test]
fn a_key_file_that_is_missing_or_garbage_is_refused() {
    let mut rig = Rig::new(DEVICE, 1);
    rig.config.key_file = rig.dir.path().join("nowhere");
    refused(&rig, exit::CONFIG, &["nowhere", "claudefs key generate"]);
}

#[test]
fn an_address_in_use_is_named() {
    let rig = Rig::new(DEVICE, 1);
    let _taken = std::net::TcpListener::bind(rig.address()).expect("the port is free");
    refused(&rig, exit::LISTEN, &[&rig.address().to_string(), "change `listen`"]);
}

#[test]
fn a_device_in_use_is_refused_and_goes_on_serving() {
    let rig = Rig::new(DEVICE, 1);
    let node = rig.start();
    refused(&rig, exit::DEVICE, &["device", "in use", "stop it first"]);
    rig.with_client(1, async |c| assert!(c.mkdir(ROOT, "dir").await.is_ok()));
    node.stop();
}

#[test]
fn a_device_that_is_missing_foreign_or_small_is_refused() {
    let mut rig = Rig::new(DEVICE, 1);
    let make = |name: &str, len: u64| {
        let path = rig.dir.path().join(name);
        File::create(&path).and_then(|f| f.set_len(len)).expect("a file");
        path
    };
    let (foreign, small) = (make("foreign", DEVICE), make("small", 4096));
    rig.config.devices = vec![rig.dir.path().join("none")];
    refused(&rig, exit::DEVICE, &["none", "No such file"]);
    rig.config.devices = vec![foreign];
    refused(&rig, exit::DEVICE, &["not a ClaudeFS store", "format"]);
    rig.config.devices = vec![small];
    refused(&rig, exit::DEVICE, &["4096 bytes"]);
}

#[test]
fn a_device_that_shrank_is_refused_and_is_whole_again_when_it_has_its_size() {
    let rig = Rig::new(DEVICE, 1);
    let resize = |len| File::options().write(true).open(&rig.config.devices[0]).and_then(|f| f.set_len(len));
    resize(DEVICE - (64 << 20)).expect("shorter");
    refused(&rig, exit::DEVICE, &["shrank", &DEVICE.to_string(), "make it as large as it was"]);
    resize(DEVICE).expect("longer");
    rig.start().stop();
}

#[test]
fn one_damaged_superblock_is_mended_and_two_are_refused() {
    let rig = Rig::new(DEVICE, 1);
    // The second copy's place is in docs/chunkstore.md.
    let second = 8 << 20;
    scribble(&rig, 64, &[0xAA; 64]);
    rig.start().stop();
    scribble(&rig, second + 64, &[0xAA; 64]);
    rig.start().stop();
    scribble(&rig, 64, &[0xAA; 64]);
    scribble(&rig, second + 64, &[0xAA; 64]);
    refused(&rig, exit::DEVICE, &["both superblocks are damaged", "restore one from a backup"]);
}

#[test]
fn a_wrong_key_is_refused_by_a_serving_node() {
    let rig = Rig::new(DEVICE, 1);
    let node = rig.start();
    let address = rig.address();
    let error = reactor::run(reactor::Config::default(), async move {
        let options = ConnectOptions {
            address,
            key: Key::generate().expect("random bytes"),
            role: m::Role::Client,
            client: ClientId(1),
            arena: None,
            payload_crc: false,
        };
        Connection::connect(&options).await.map(drop).expect_err("the key is wrong")
    });
    let error = error.expect("a reactor");
    assert!(error.is_permanent(), "{error}");
    rig.with_client(2, async |c| assert!(c.mkdir(ROOT, "dir").await.is_ok(), "others are served"));
    node.stop();
}

#[test]
fn growing_names_the_device_that_there_is() {
    let rig = Rig::new(DEVICE, 1);
    let node = rig.start();
    let (address, key) = (rig.address(), rig.key());
    let device = rig.config.devices[0].to_str().expect("a printable path").to_owned();
    let run = reactor::run(reactor::Config::default(), async move {
        let role = m::Role::Admin;
        let client = ClientId(9);
        let options = ConnectOptions { address, key, role, client, arena: None, payload_crc: false };
        let hook = Box::new(|_| Box::pin(async { Ok(()) }) as Pin<Box<dyn Future<Output = _>>>);
        let unasked = Box::new(|_| Box::pin(async {}) as Pin<Box<dyn Future<Output = ()>>>);
        let session = Session::connect(options, hook, unasked).await.expect("an administrator");
        let grow = async |device: &[u8]| {
            let request = m::Grow { device }.into();
            session.call(&request, transport::Parts::new(), CallOptions::default()).await.expect("an answer")
        };
        assert_eq!(grow(b"/dev/other").await.status(), common::errno(wire::Errno::ENODEV));
        assert_eq!(grow(device.as_bytes()).await.status(), wire::Status::Ok);
        session.stop();
    });
    run.expect("a reactor");
    node.stop();
}

#[test]
fn a_bad_configuration_is_refused_with_its_line() {
    let rig = Rig::new(DEVICE, 1);
    let path = rig.config_file();
    let good = std::fs::read_to_string(&path).expect("the configuration");
    for (bad, says) in [("surprise = 1\n", "surprise"), ("listen = 7\n", "listen")] {
        let without = good.lines().filter(|l| !bad.starts_with("listen") || !l.starts_with("listen"));
        let text = bad.to_owned() + &without.collect::<Vec<_>>().join("\n");
        std::fs::write(&path, text).expect("a configuration");
        let output = Command::new(env!("CARGO_BIN_EXE_claudefsd")).arg("--config").arg(&path).output();
        let output = output.expect("the daemon runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(i32::from(exit::CONFIG)), "{text}");
        assert!(text.contains(says) && text.contains("line 1"), "{text}");
    }
}
