//! The program as scripts see it: exit codes, what is on stdout, what is said on stderr.

use serde_json::Value;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Smallest device there can be.
const SMALLEST: u64 = 256 << 20;

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_claudefs"));
    command.args(args).env_remove("CLAUDEFS_KEY").env_remove("CLAUDEFS_SERVER").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    command(args).output().expect("the program runs")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it ends by itself")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

#[track_caller]
fn fails(output: &Output, with: i32, says: &[&str]) {
    let text = stderr(output);
    assert_eq!(code(output), with, "{text}");
    for part in says {
        assert!(text.contains(part), "`{part}` is missing in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    assert_eq!(code(output), 0, "{}", stderr(output));
    stdout(output)
}

/// A scratch directory whose file system takes direct I/O, which tmpfs of older kernels does not.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a scratch directory")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a printable path")
}

fn formatted(device: &Path) {
    succeeds(&run(&["format", "--yes", "--size", "256MiB", "--shards", "2", text(device)]));
}

#[test]
fn the_command_line_teaches() {
    fails(&run(&[]), 2, &["Usage: claudefs"]);
    fails(&run(&["frobnicate"]), 2, &["frobnicate"]);
    assert!(succeeds(&run(&["--help"])).contains("Exit codes:"));
    assert!(succeeds(&run(&["--version"])).starts_with("claudefs "));
    for words in [&["format", "--help"][..], &["key", "generate", "--help"], &["mount", "--help"]] {
        assert!(succeeds(&run(words)).contains("Examples:"), "{words:?}");
    }
}

#[test]
fn a_file_is_made_formatted_and_read_back() {
    let dir = scratch();
    let device = dir.path().join("device");
    let made =
        succeeds(&run(&["format", "--yes", "--size", "256MiB", "--shards", "2", "--json", text(&device)]));
    let made: Value = serde_json::from_str(&made).expect("one JSON document");
    assert_eq!((made["capacity"].as_u64(), made["shards"].as_u64()), (Some(SMALLEST), Some(2)));
    let mode = std::fs::metadata(&device).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "file data lies in it");

    let listed = succeeds(&run(&["device", "list", "--json", "--offline", text(&device)]));
    let listed: Value = serde_json::from_str(&listed).expect("one JSON document");
    assert_eq!(listed[0]["uuid"], made["uuid"]);
    assert_eq!(listed[0]["clean"], Value::Bool(true));
    let table = succeeds(&run(&["device", "list", "--offline", text(&device)]));
    assert!(table.contains("clean") && table.contains("256 MiB"), "{table}");
}

#[test]
fn what_a_device_holds_is_not_destroyed_by_accident() {
    let dir = scratch();
    let device = dir.path().join("device");
    formatted(&device);
    let before = std::fs::read(&device).expect("read");
    // Ours, known: needs --force, and then an answer.
    fails(&run(&["format", "--yes", text(&device)]), 6, &["ClaudeFS store", "--force"]);
    fails(&run(&["format", "--force", text(&device)]), 6, &["will be lost", "--yes"]);
    assert!(std::fs::read(&device).expect("read") == before, "nothing was changed");
    succeeds(&run(&["format", "--force", "--yes", text(&device)]));

    // Someone else's, known by its signature.
    let other = dir.path().join("other");
    std::fs::File::create(&other).and_then(|f| f.set_len(SMALLEST)).expect("a file");
    let mut head = vec![0; 4096];
    head[1080..1082].copy_from_slice(&[0x53, 0xef]);
    std::fs::File::options().write(true).open(&other).and_then(|mut f| f.write_all(&head)).expect("written");
    fails(&run(&["format", "--yes", text(&other)]), 6, &["ext2/3/4", "--force"]);
    fails(&run(&["device", "list", "--offline", text(&other)]), 3, &["ext2/3/4"]);

    // Unknown data: nothing to force, but to be confirmed.
    head[1080..1082].copy_from_slice(b"xx");
    std::fs::File::options().write(true).open(&other).and_then(|mut f| f.write_all(&head)).expect("written");
    fails(&run(&["format", text(&other)]), 6, &["not recognised", "--yes"]);
    succeeds(&run(&["format", "--yes", text(&other)]));
}

#[test]
fn devices_that_cannot_be_used_are_named_with_the_reason() {
    let dir = scratch();
    let device = dir.path().join("device");
    fails(&run(&["format", "--yes", text(&device)]), 3, &["does not exist", "--size"]);
    fails(&run(&["format", "--yes", "--size", "1MiB", text(&device)]), 3, &["too small", "256 MiB"]);
    assert!(!device.exists(), "nothing is left behind");
    fails(&run(&["format", "--yes", "/dev/none"]), 3, &["lsblk"]);
    fails(&run(&["format", "--yes", text(dir.path())]), 3, &["neither a disk nor a file"]);
    fails(&run(&["format", "--yes", "--size", "8GiB", "/none/device"]), 3, &["mkdir"]);
    fails(&run(&["device", "list", "--offline", text(&device)]), 3, &["does not exist"]);

    std::fs::File::create(&device).and_then(|f| f.set_len(SMALLEST)).expect("a file");
    fails(&run(&["format", "--size", "300M", "--shards", "0", text(&device)]), 2, &["--shards"]);
    fails(&run(&["device", "list", "--offline", text(&device)]), 3, &["not a ClaudeFS store"]);

    let held = std::fs::File::open(&device).expect("open");
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).expect("locked");
    fails(&run(&["format", "--yes", text(&device)]), 3, &["in use", "systemctl stop claudefsd"]);
    fails(&run(&["device", "list", "--offline", text(&device)]), 3, &["in use"]);
}

#[test]
fn damaged_superblocks_are_told_apart() {
    let dir = scratch();
    let device = dir.path().join("device");
    formatted(&device);
    let file = std::fs::File::options().write(true).open(&device).expect("open");
    let spoil = |at: u64| {
        use std::os::unix::fs::FileExt;
        file.write_all_at(&[0xff; 64], at + 64).expect("written");
    };
    spoil(0);
    succeeds(&run(&["device", "list", "--offline", text(&device)]));
    spoil(chunkstore::SUPER_B * chunkstore::BLOCK_BYTES);
    fails(&run(&["device", "list", "--offline", text(&device)]), 3, &["both superblocks are damaged"]);
    fails(&run(&["format", "--yes", text(&device)]), 6, &["--force"]);

    let shrunk = dir.path().join("shrunk");
    succeeds(&run(&["format", "--yes", "--size", "300MiB", text(&shrunk)]));
    std::fs::File::options().write(true).open(&shrunk).and_then(|f| f.set_len(SMALLEST)).expect("cut");
    fails(&run(&["device", "list", "--offline", text(&shrunk)]), 3, &["shrank"]);
}

#[test]
fn keys_are_private_and_never_replaced_by_accident() {
    let dir = scratch();
    let file = dir.path().join("cluster.key");
    let said = succeeds(&run(&["key", "generate", text(&file)]));
    assert_eq!(std::fs::metadata(&file).expect("there").permissions().mode() & 0o7777, 0o600);
    let id = succeeds(&run(&["key", "show-id", text(&file)]));
    assert_eq!(id.trim().len(), 16, "{id}");
    assert!(said.contains(id.trim()), "{said}");
    assert_eq!(
        succeeds(&command(&["key", "show-id"]).env("CLAUDEFS_KEY", &file).output().expect("runs")),
        id
    );

    let before = std::fs::read(&file).expect("read");
    fails(&run(&["key", "generate", text(&file)]), 5, &["exists", "--force"]);
    assert!(std::fs::read(&file).expect("read") == before, "the key is kept");
    succeeds(&run(&["key", "generate", "--force", text(&file)]));
    assert!(std::fs::read(&file).expect("read") != before, "a new key");
    assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1, "no other file is left");

    fails(&run(&["key", "generate", "/none/here/key"]), 5, &["mkdir -p /none/here"]);
    fails(&run(&["key", "show-id", text(&dir.path().join("none"))]), 5, &["claudefs key generate"]);
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).expect("chmod");
    fails(&run(&["key", "show-id", text(&file)]), 5, &["chmod 600"]);
    let garbage = dir.path().join("garbage");
    let made = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&garbage);
    made.and_then(|mut f| f.write_all(b"no key\n")).expect("written");
    fails(&run(&["key", "show-id", text(&garbage)]), 5, &["is not a key"]);
}

#[test]
fn a_node_that_is_not_there_or_not_ours_is_told_apart() {
    let dir = scratch();
    let key = dir.path().join("key");
    succeeds(&run(&["key", "generate", text(&key)]));
    let ask = |server: &str, words: &[&str]| {
        let mut all = words.to_vec();
        all.extend(["--server", server, "--key", text(&key), "--timeout", "5"]);
        run(&all)
    };
    // A port that was just free: nobody listens on it.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").to_string();
    for words in [&["status"][..], &["df"], &["scrub"], &["device", "list"], &["device", "grow"]] {
        fails(&ask(&free, words), 4, &["connection refused", "systemctl start claudefsd"]);
    }
    fails(&ask("no-such-host.invalid", &["status"]), 4, &["no-such-host.invalid"]);
    fails(&ask("host:port", &["status"]), 2, &["HOST[:PORT]"]);
    fails(&run(&["status", "--key", text(&dir.path().join("none"))]), 5, &["key generate"]);

    // Something else listens there.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    let other = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let _ =
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    });
    fails(&ask(&address, &["status"]), 4, &[&address]);
    other.join().expect("the listener ends");
}

#[test]
fn mounts_say_what_is_wrong() {
    let dir = scratch();
    fails(&run(&["mount", "nonsense", text(dir.path())]), 2, &["HOST[:PORT]:/PATH"]);
    fails(&run(&["mount", "h:/", text(dir.path()), "-o", "strange"]), 2, &["strange", "known are"]);
    fails(&run(&["umount", text(dir.path())]), 1, &["not a mount point"]);
    fails(&run(&["umount", "/proc"]), 2, &["not of ClaudeFS"]);
}

#[test]
fn completions_and_manual_pages_are_made() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(succeeds(&run(&["completions", shell])).contains("claudefs"), "{shell}");
    }
    fails(&run(&["completions", "tcsh"]), 2, &["tcsh"]);
    let dir = scratch();
    succeeds(&run(&["man", text(dir.path())]));
    assert!(dir.path().join("claudefs-device-list.1").exists());
    fails(&run(&["man", "/none"]), 2, &["mkdir"]);
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let mut child = command(&["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((code(&output), stderr(&output).as_str()), (0, ""));
}

/// mount(8) runs the program by another name, with the source where a command would stand.
#[test]
fn under_the_name_of_the_mount_helper_it_mounts() {
    let dir = tempfile::tempdir().expect("a folder");
    let helper = dir.path().join("mount.claudefs");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_claudefs"), &helper).expect("a link");
    let missing = format!("key={}", dir.path().join("none").display());
    let out =
        Command::new(&helper).args(["127.0.0.1:/", "/mnt", "-n", "-o", &missing]).output().expect("it runs");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("mount.claudefs: ") && said.contains("key generate"), "{said}");
}

#[test]
fn fsck_finds_mends_and_tells_by_its_exit_code() {
    let dir = scratch();
    let device = dir.path().join("device");
    formatted(&device);
    let path = text(&device);
    assert!(succeeds(&run(&["fsck", path])).ends_with("clean\n"));
    let report: Value =
        serde_json::from_str(&succeeds(&run(&["fsck", "--data", "--json", path]))).expect("JSON");
    assert_eq!((&report["clean"], &report["found"]["count"]), (&Value::Bool(true), &Value::from(0)));

    let second = chunkstore::SUPER_B * chunkstore::BLOCK_BYTES;
    let file = std::fs::File::options().write(true).open(&device).expect("the device");
    std::os::unix::fs::FileExt::write_all_at(&file, b"damage", second + 200).expect("written");
    let output = run(&["fsck", path]);
    assert_eq!(code(&output), 4);
    let found = stdout(&output);
    for part in ["superblock (waste): 1", "superblock 2", "1 error, 1 can be corrected with --repair"] {
        assert!(found.contains(part), "`{part}` is missing in: {found}");
    }
    fails(&run(&["fsck", "--repair", path]), 4, &["nothing was changed", "--yes"]);
    assert_eq!(code(&run(&["fsck", path])), 4, "nothing was changed");
    let output = run(&["fsck", "--repair", "--yes", path]);
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    assert!(
        stdout(&output).contains("corrected 1 of 1 errors; a second check found none"),
        "{}",
        stdout(&output)
    );
    assert_eq!(code(&run(&["fsck", "--repair", "--yes", path])), 0, "there is nothing to correct");

    fails(&run(&["fsck", "/dev/none"]), 8, &["does not exist"]);
    fails(&run(&["fsck", "--yes", path]), 16, &["--repair"]);
    fails(&run(&["fsck"]), 16, &["DEVICE"]);
    let zeros = dir.path().join("zeros");
    std::fs::File::create(&zeros).and_then(|f| f.set_len(SMALLEST)).expect("a file");
    fails(&run(&["fsck", text(&zeros)]), 8, &["not a ClaudeFS store"]);
}
