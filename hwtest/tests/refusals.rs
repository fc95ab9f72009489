//! Bad input: each gets a clear error, loses nothing, and the daemon goes on serving others.

use hwtest::rig::{LIMIT, Rig, Setup, bounded, said};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::process::Command;

/// mount(8)'s exit code for a mount that failed.
const MOUNT_FAILED: i32 = 32;

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
    assert_eq!(out.status.code(), Some(MOUNT_FAILED));
    contains_all(&said(&out), &["none", "does not exist", "mkdir -p"]);
    fs::write(rig.dir.join("plain"), "x").expect("written");
    let out = rig.try_mount(&rig.dir.join("plain"), "").expect("it ends");
    assert_eq!(out.status.code(), Some(MOUNT_FAILED));
    contains_all(&said(&out), &["plain", "not a directory"]);
    let mnt = rig.mount("mnt").expect("a mount");
    let out = rig.try_mount(&mnt, "").expect("it ends");
    assert_eq!(out.status.code(), Some(MOUNT_FAILED));
    contains_all(&said(&out), &["busy", &rig.address().to_string(), "claudefs umount"]);
    let out = rig.try_mount(std::path::Path::new("/proc"), "").expect("it ends");
    assert_eq!(out.status.code(), Some(MOUNT_FAILED));
    contains_all(&said(&out), &["busy", "proc"]);
    let out = rig.try_mount(&rig.dir.join("none"), "no_such_option").expect("it ends");
    contains_all(&said(&out), &["no_such_option"]);
    serves(&mut rig);
}

/// mount(8) hides what a folder holds, and so does this; but it says so.
#[test]
fn mount_point_with_files_in_it_is_told_and_keeps_them() {
    let mut rig = served();
    let point = rig.dir.join("full");
    fs::create_dir(&point).expect("a folder");
    fs::write(point.join("below"), "kept").expect("written");
    let mut command = Command::new(&rig.programs.claudefs);
    command.arg("mount").arg(format!("{}:/", rig.address())).arg(&point);
    let out = bounded(command.args(["-o", &format!("key={}", rig.key().display())])).expect("it ends");
    assert!(out.status.success(), "{}", said(&out));
    contains_all(&said(&out), &["full", "not empty", "hidden"]);
    assert!(!point.join("below").exists(), "the mount lies above it");
    rig.unmount(&point).expect("unmounted");
    assert_eq!(fs::read_to_string(point.join("below")).expect("read"), "kept");
}

/// Runs a script in a mount namespace of its own, whose /dev has nothing but `null`.
fn without_fuse(rig: &Rig, script: &str) -> std::process::Output {
    const DEV: &str = "mkdir -p \"$DIR/dev\" \"$DIR/mnt\"; mount -t tmpfs tmpfs \"$DIR/dev\"; touch \"$DIR/dev/null\"; \
                       mount --bind /dev/null \"$DIR/dev/null\"; mount --rbind \"$DIR/dev\" /dev;";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-euc", &format!("{DEV}\n{script}")])
        .env("DIR", &rig.dir)
        .env("CLAUDEFS", &rig.programs.claudefs)
        .env("OPTIONS", format!("key={}", rig.key().display()))
        .env("SOURCE", format!("{}:/", rig.address()));
    bounded(&mut command).expect("it ends")
}

#[test]
fn mount_refusals_no_fuse() {
    let mut rig = served();
    let mount = "exec \"$CLAUDEFS\" mount \"$SOURCE\" \"$DIR/mnt\" -o \"$OPTIONS\"";
    let out = without_fuse(&rig, mount);
    assert_eq!(out.status.code(), Some(MOUNT_FAILED), "{}", said(&out));
    contains_all(&said(&out), &["no FUSE", "/dev/fuse", "No such file", "modprobe fuse"]);
    let out = without_fuse(&rig, &format!("touch /dev/fuse; mount --bind /dev/null /dev/fuse; {mount}"));
    assert_eq!(out.status.code(), Some(MOUNT_FAILED), "{}", said(&out));
    contains_all(&said(&out), &["no FUSE", "/dev/fuse", "another device"]);
    // Nothing is left behind at the server, and who has FUSE is served.
    serves(&mut rig);
    rig.mount("mnt").expect("a mount");
}

/// The daemon, the mount and the tools, each under a kernel that refuses io_uring or a part of it.
#[test]
fn mount_refusals_kernel_without_a_ring_feature_is_told_which() {
    let mut rig = served();
    // The node's own is in use, which would be told first.
    let other = rig.dir.join("other").to_string_lossy().into_owned();
    File::create(&other).expect("created").set_len(1 << 30).expect("sized");
    let point = rig.dir.join("mnt");
    fs::create_dir(&point).expect("a folder");
    let (key, address) = (rig.key().display().to_string(), rig.address().to_string());
    let claudefs = rig.programs.claudefs.to_string_lossy().into_owned();
    let claudefsd = rig.programs.claudefsd.to_string_lossy().into_owned();
    for (refusal, says) in [
        ("disabled", &["io_uring is missing", "Linux 5.1", "io_uring_disabled", "seccomp"][..]),
        ("unknown", &["io_uring is missing", "Linux 5.1"]),
        ("provided-buffers", &["rings of provided buffers", "Linux 5.19"]),
    ] {
        let without = |words: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_hwtest"));
            let out = bounded(command.args(["without", refusal, "--"]).args(words)).expect("it ends");
            contains_all(&said(&out), says);
            out.status.code()
        };
        assert_eq!(without(&[&claudefsd, "--config", &rig.config().to_string_lossy()]), Some(5));
        let mount = [
            &claudefs,
            "mount",
            &format!("{address}:/"),
            &point.to_string_lossy(),
            "-o",
            &format!("key={key}"),
        ];
        assert_eq!(without(&mount), Some(2));
        assert_eq!(without(&[&claudefs, "status", "--server", &address, "--key", &key]), Some(1));
        assert_eq!(without(&[&claudefs, "device", "list", "--offline", &other]), Some(1));
    }
    serves(&mut rig);
}

/// Without hugepages for its buffers the daemon warns once, not per core, and serves.
#[test]
fn mount_without_hugepages_works_after_one_warning() {
    let pages = fs::read_to_string("/proc/sys/vm/nr_hugepages").unwrap_or_default();
    let reserved: u64 = pages.trim().parse().unwrap_or(0);
    // More than there are in all, so that it does not matter who has them.
    let arena = (reserved * 2 + 64).min(64 << 10);
    let config = format!("[memory]\narena = \"{arena}MiB\"\npages = \"2m\"\n[cores]\ncount = 2");
    let mut rig = Rig::start(&Setup { config, ..Setup::default() }).expect("a daemon");
    let mnt = rig.mount("mnt").expect("a mount");
    fs::write(mnt.join("file"), hwtest::rng::bytes(1, 3 << 20)).expect("written");
    assert!(fs::read(mnt.join("file")).expect("read") == hwtest::rng::bytes(1, 3 << 20));
    let log = fs::read_to_string(rig.dir.join("claudefsd.log")).expect("its log");
    let warnings: Vec<&str> = log.lines().filter(|l| l.contains("huge pages")).collect();
    assert_eq!(warnings.len(), 1, "{log}");
    contains_all(warnings[0], &["WARN", "missing", "nr_hugepages"]);
    rig.unmount(&mnt).expect("unmounted");
    rig.stop_daemon().expect("a clean stop");
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
    let name = other.to_string_lossy().into_owned();
    contains_all(&with_device(&other), &[&name, "No such file"]);
    let file = File::create(&other).expect("created");
    file.set_len(1 << 30).expect("sized");
    contains_all(&with_device(&other), &[&name, "unknown data", "not a ClaudeFS store", "format"]);
    file.write_all_at(&hwtest::rng::bytes(3, 1 << 20), 0).expect("written");
    contains_all(&with_device(&other), &[&name, "unknown data", "not a ClaudeFS store", "format"]);
    file.set_len(1 << 20).expect("sized");
    contains_all(&with_device(&other), &[&name, "1048576 bytes", "at least"]);
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
    let text = rig.config_text("").replace(&rig.address().to_string(), &format!("127.0.0.1:{port}"));
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
