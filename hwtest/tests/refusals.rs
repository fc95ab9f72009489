//! Bad input: each gets a clear error, loses nothing, and the daemon goes on serving others.

use hwtest::rig::{LIMIT, Rig, Setup, said};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;

fn prepared() -> Rig {
    Rig::prepare(&Setup::default()).expect("a device and a key")
}

fn served() -> Rig {
    Rig::start(&Setup::default()).expect("a daemon")
}

/// The daemon still answers.
fn serves(rig: &mut Rig) {
    assert!(rig.is_alive(), "the daemon died\n{}", rig.tail());
    let server = rig.server_args();
    let args: Vec<&str> = ["status", "--json"].into_iter().chain(server.iter().map(String::as_str)).collect();
    rig.claudefs(&args).expect("a status report");
}

fn contains_all(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is missing in: {text}");
    }
}

#[test]
fn mount_with_a_wrong_or_missing_key_is_refused() {
    let mut rig = served();
    let wrong = rig.dir.join("wrong");
    rig.claudefs(&["key", "generate", &wrong.to_string_lossy()]).expect("a key");
    let point = rig.dir.join("mnt");
    fs::create_dir(&point).expect("a folder");
    for key in [wrong, rig.dir.join("none")] {
        let out = rig.try_mount(&point, &format!("key={}", key.display())).expect("it ends");
        assert!(!out.status.success(), "{}", said(&out));
        contains_all(&said(&out), &["key"]);
    }
    serves(&mut rig);
}

#[test]
fn mount_point_that_is_missing_or_busy_is_named() {
    let mut rig = served();
    let out = rig.try_mount(&rig.dir.join("none"), "").expect("it ends");
    assert!(!out.status.success());
    contains_all(&said(&out), &["none", "mkdir"]);
    let mnt = rig.mount("mnt").expect("a mount");
    let out = rig.try_mount(&mnt, "").expect("it ends");
    assert!(!out.status.success());
    contains_all(&said(&out), &["busy"]);
    let out = rig.try_mount(&rig.dir.join("none"), "no_such_option").expect("it ends");
    contains_all(&said(&out), &["no_such_option"]);
    serves(&mut rig);
}

#[test]
fn mount_refusals_garbage_frames_end_their_connection_only() {
    let mut rig = served();
    let mnt = rig.mount("mnt").expect("a mount");
    fs::write(mnt.join("file"), "x").expect("written");
    let garbage: [Vec<u8>; 5] = [
        vec![0; 64],
        vec![0xFF; 4096],
        hwtest::rng::bytes(1, 64),
        hwtest::rng::bytes(2, 100_000),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
    ];
    for bytes in garbage {
        let mut stream = TcpStream::connect(rig.address()).expect("connected");
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        // The server may close before it has read everything.
        stream.write_all(&bytes).ok();
        stream.shutdown(std::net::Shutdown::Write).ok();
        let mut rest = Vec::new();
        if let Err(e) = stream.read_to_end(&mut rest) {
            assert!(e.kind() != std::io::ErrorKind::WouldBlock, "the connection stays open");
        }
    }
    serves(&mut rig);
    assert_eq!(fs::read_to_string(mnt.join("file")).expect("read"), "x");
}

#[test]
fn mount_refusals_port_in_use_is_named() {
    let rig = prepared();
    let _taken = TcpListener::bind(rig.address()).expect("the port");
    let text = rig.refusing_daemon().expect("it refuses");
    contains_all(&text, &[&rig.address().to_string(), "listen"]);
}

#[test]
fn mount_refusals_bad_configuration_names_the_line() {
    let rig = prepared();
    for (more, words) in [
        ("no_such_key = 1", vec!["no_such_key", "line 4"]),
        ("[durability]\nflush_ms = 60000", vec!["flush_ms", "60000"]),
        ("[cores]\ncount = \"many\"", vec!["line 5"]),
    ] {
        fs::write(rig.config(), rig.config_text(more)).expect("written");
        contains_all(&rig.refusing_daemon().expect("it refuses"), &words);
    }
}

#[test]
fn mount_refusals_bad_devices() {
    let rig = prepared();
    let good = fs::read(rig.config()).expect("read");
    let with_device = |path: &std::path::Path| {
        let text =
            String::from_utf8_lossy(&good).replace(&*rig.device().to_string_lossy(), &path.to_string_lossy());
        fs::write(rig.config(), text).expect("written");
        rig.refusing_daemon().expect("it refuses")
    };
    let other = rig.dir.join("other");
    contains_all(&with_device(&other), &["other"]);
    File::create(&other).expect("created").set_len(1 << 30).expect("sized");
    contains_all(&with_device(&other), &["format"]);
    fs::write(&other, hwtest::rng::bytes(3, 1 << 20)).expect("written");
    contains_all(&with_device(&other), &["device"]);
    // Too small to format.
    let small = rig.dir.join("small").to_string_lossy().into_owned();
    let out = rig.try_claudefs(&["format", "--yes", "--size", "64KiB", &small]).expect("it ends");
    assert!(!out.status.success());
    contains_all(&said(&out), &["small"]);
    // What holds data is not overwritten.
    let device = rig.device().to_string_lossy().into_owned();
    let out = rig.try_claudefs(&["format", "--yes", &device]).expect("it ends");
    assert!(!out.status.success());
    contains_all(&said(&out), &["force"]);
}

#[test]
fn mount_refusals_device_in_use() {
    let mut rig = served();
    let port = hwtest::rig::free_port().expect("a port");
    let text = rig.config_text("").replace(&rig.address().port().to_string(), &port.to_string());
    fs::write(rig.config(), text).expect("written");
    contains_all(&rig.refusing_daemon().expect("it refuses"), &["in use"]);
    assert!(rig.is_alive());
}

#[test]
fn mount_refusals_device_that_shrank() {
    let mut rig = prepared();
    let size = fs::metadata(rig.device()).expect("there").len();
    let resize = |to: u64| {
        File::options().write(true).open(rig.device()).expect("opened").set_len(to).expect("resized");
    };
    resize(size / 2);
    rig.refusing_daemon().expect("it refuses");
    resize(size);
    rig.start_daemon().expect("its size is back, so it serves");
}

/// The first superblock is in the device's first blocks, the second at its end or further in: damage the first.
#[test]
fn mount_refusals_damaged_superblock_is_mended_from_the_other() {
    let mut rig = served();
    let mnt = rig.mount("mnt").expect("a mount");
    fs::write(mnt.join("file"), "kept").expect("written");
    rig.unmount(&mnt).expect("unmounted");
    rig.stop_daemon().expect("a clean stop");
    let device = File::options().write(true).open(rig.device()).expect("opened");
    device.write_all_at(&[0xEE; 4096], 0).expect("damaged");
    drop(device);
    rig.start_daemon().expect("it starts from the other");
    let mnt = rig.mount("mnt").expect("a mount");
    assert_eq!(fs::read_to_string(mnt.join("file")).expect("read"), "kept");
}
