//! The program against a node that runs: what operators see, and what a wrong key gets.

use node::Control;
use node::config::Config;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// A node on a thread of this process, over a file.
struct Running {
    dir: tempfile::TempDir,
    address: SocketAddr,
    control: reactor::mail::Sender<Control>,
    thread: Option<JoinHandle<()>>,
}

fn claudefs(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_claudefs"));
    command.args(args).env_remove("CLAUDEFS_KEY").env_remove("CLAUDEFS_SERVER").stdin(Stdio::null());
    command
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a printable path")
}

impl Running {
    fn start() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a scratch directory");
        let (key, device) = (dir.path().join("key"), dir.path().join("device"));
        let ok = |args: &[&str]| {
            let output = claudefs(args).output().expect("the program runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        ok(&["key", "generate", text(&key)]);
        ok(&["format", "--yes", "--size", "256MiB", "--shards", "2", text(&device)]);
        let mut config = Config {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            devices: vec![device],
            key_file: key,
            ..Config::default()
        };
        config.cores.count = 1;
        config.cores.pin = false;
        config.memory.arena = node::units::ByteSize::mib(32);
        let (control, told) = reactor::mail::channel(1);
        let (ready, addresses) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let run = node::run(&config, told, |found| drop(ready.send(found.to_vec())));
            run.expect("the node stops cleanly");
        });
        let found = addresses.recv_timeout(Duration::from_secs(60)).expect("the node serves");
        Self { address: found[0], dir, control, thread: Some(thread) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run_with_key(&self, key: &str, words: &[&str]) -> Output {
        let mut command = claudefs(words);
        command.env("CLAUDEFS_SERVER", self.address.to_string()).env("CLAUDEFS_KEY", self.path(key));
        command.output().expect("the program runs")
    }

    fn run(&self, words: &[&str]) -> Output {
        self.run_with_key("key", words)
    }

    /// What a command prints, which must succeed.
    #[track_caller]
    fn prints(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    #[track_caller]
    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.prints(words)).expect("one JSON document")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A node that has ended takes no orders.
        let _ = self.control.send_blocking(Control::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            unreachable!("the node panicked");
        }
    }
}

#[track_caller]
fn fails(output: &Output, code: i32, says: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in says {
        assert!(text.contains(part), "`{part}` is missing in: {text}");
    }
}

#[test]
fn a_node_is_looked_at_scrubbed_and_grown() {
    let node = Running::start();
    let status = node.json(&["status", "--json"]);
    assert_eq!(status["state"], "active");
    let shown = node.prints(&["status"]);
    for part in
        ["active", "device", "sessions", "leases", "cores", "cache", "errors", "OPERATION", "P99.9", "Status"]
    {
        assert!(shown.contains(part), "`{part}` is missing in:\n{shown}");
    }

    let space = node.json(&["df", "--json"]);
    let (size, available) = (space["size"].as_u64(), space["available"].as_u64());
    assert!(size > available && available > Some(0), "{space}");
    assert!(node.prints(&["df"]).contains("AVAILABLE"));

    let devices = node.json(&["device", "list", "--json"]);
    assert_eq!(devices[0]["capacity"].as_u64(), Some(256 << 20));
    assert!(node.prints(&["device", "list"]).contains("health: good"));

    assert!(node.prints(&["scrub", "--wait"]).contains("no damage found"));
    let report = node.json(&["scrub", "--status", "--json"]);
    assert_eq!((&report["running"], report["bad_chunks"].as_u64()), (&Value::Bool(false), Some(0)));

    assert!(node.prints(&["device", "grow"]).contains("still 256 MiB"));
    let device = node.path("device");
    std::fs::File::options().write(true).open(&device).and_then(|f| f.set_len(320 << 20)).expect("longer");
    assert!(node.prints(&["device", "grow", text(&device)]).contains("from 256 MiB to 320 MiB"));
    assert_eq!(node.json(&["device", "list", "--json"])[0]["capacity"].as_u64(), Some(320 << 20));
    fails(&node.run(&["device", "grow", "/dev/other"]), 3, &["/dev/other", text(&device)]);
    let grown = node.json(&["device", "grow", "--json"]);
    assert_eq!((grown["device"].as_str(), grown["capacity"].as_u64()), (device.to_str(), Some(320 << 20)));
}

/// A sparse file gets all its blocks, keeps what it holds, and a second time has nothing to do.
#[test]
fn a_device_that_is_a_file_is_reserved_while_it_serves() {
    use std::os::unix::fs::MetadataExt as _;
    let node = Running::start();
    let device = node.path("device");
    let blocks = || std::fs::metadata(&device).expect("there").blocks() * 512;
    assert!(blocks() < 256 << 20, "it is sparse");
    fails(&node.run(&["device", "preallocate", "/dev/other"]), 3, &["/dev/other"]);
    assert!(node.prints(&["device", "preallocate"]).contains("reserved"));
    assert!(blocks() >= 256 << 20, "{}", blocks());
    let again = node.json(&["device", "preallocate", "--json", text(&device)]);
    assert_eq!((again["needed"].as_bool(), again["device"].as_str()), (Some(true), device.to_str()));
    let list = node.json(&["device", "list", "--json"]);
    let report = &list[0]["preallocation"];
    assert_eq!((report["running"].as_bool(), report["done"].as_u64()), (Some(false), Some(256 << 20)));
    assert!(list[0]["reserved_bytes"].as_u64() >= Some(256 << 20), "{list}");
    assert!(node.prints(&["device", "list"]).contains("reserved below"));
    assert!(node.prints(&["scrub", "--wait"]).contains("no damage found"));
}

/// Who looks after a node is no client of it: no session is opened, and one that is full of them still answers.
#[test]
fn space_and_state_are_told_without_a_session() {
    let node = Running::start();
    node.prints(&["df"]);
    let status = node.json(&["status", "--json"]);
    assert_eq!(status["sessions"]["open"].as_u64(), Some(0), "{status}");
    assert!(status["operations"]["OpenSession"].is_null(), "{status}");
}

#[test]
fn a_wrong_key_and_a_device_in_use_are_told() {
    let node = Running::start();
    let other = node.path("other");
    node.prints(&["key", "generate", text(&other)]);
    for words in [&["status"][..], &["df"], &["scrub"], &["device", "grow"]] {
        fails(&node.run_with_key("other", words), 5, &["refuses key", "copy the key file"]);
    }
    fails(&node.run_with_key("none", &["status"]), 5, &["claudefs key generate"]);
    let device = node.path("device");
    fails(
        &node.run(&["format", "--yes", "--force", text(&device)]),
        3,
        &["in use", "systemctl stop claudefsd"],
    );
    fails(&node.run(&["device", "list", "--offline", text(&device)]), 3, &["in use"]);
}

#[test]
fn a_watch_ends_quietly_when_nobody_looks() {
    use std::io::{BufRead, BufReader};
    let node = Running::start();
    let mut command = claudefs(&["status", "--watch", "1", "--json"]);
    command.env("CLAUDEFS_SERVER", node.address.to_string()).env("CLAUDEFS_KEY", node.path("key"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program runs");
    let mut lines = BufReader::new(child.stdout.take().expect("its output"));
    let mut line = String::new();
    lines.read_line(&mut line).expect("a report");
    assert_eq!(serde_json::from_str::<Value>(&line).expect("JSON in a line")["state"], "active");
    drop(lines);
    let output = child.wait_with_output().expect("it ends");
    fails(&output, 0, &[]);
    assert!(output.stderr.is_empty());
}
