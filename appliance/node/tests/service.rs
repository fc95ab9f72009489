//! The daemon as a service: what it prints, what it tells the service manager, what signals do, how it logs.
#![expect(clippy::expect_used, reason = "a test ends at the first surprise")]

mod common;

use common::{Client, Daemon, ROOT, Rig, pattern};
use node::exit;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const DEVICE: u64 = 256 << 20;
/// A message that has not come by then does not come.
const PATIENCE: Duration = Duration::from_secs(60);

fn claudefsd(args: &[&Path]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_claudefsd"));
    command.args(args).stdin(Stdio::null()).output().expect("the daemon runs")
}

fn signal(daemon: &Daemon, name: &str) {
    let sent = Command::new("kill").args(["-s", name, &daemon.0.id().to_string()]).status();
    assert!(sent.expect("kill(1) runs").success(), "{name}");
}

/// `--print-config` gives a file that is accepted and says the same, whatever it was made from.
#[test]
fn a_printed_configuration_is_one() {
    let rig = Rig::new(DEVICE, 1);
    let config = rig.config_file();
    let of = |file: &Path| {
        let out = claudefsd(&["--config".as_ref(), file, "--print-config".as_ref()]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).expect("text")
    };
    let printed = of(&config);
    let again = rig.dir.path().join("again.toml");
    std::fs::write(&again, &printed).expect("written");
    // The first line names the file that it is of.
    let settings = |text: &str| text.lines().filter(|l| !l.starts_with('#')).collect::<Vec<_>>().join("\n");
    assert_eq!(settings(&of(&again)), settings(&printed));
    let checked = claudefsd(&["--config".as_ref(), &again, "--check".as_ref()]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let missing = claudefsd(&["--config".as_ref(), &rig.dir.path().join("none"), "--print-config".as_ref()]);
    assert_eq!(missing.status.code(), Some(i32::from(exit::CONFIG)), "a file that was named must be there");
    assert!(String::from_utf8_lossy(&missing.stderr).contains("none"));
}

/// Where systemd listens: every message in order.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    fn next(&self) -> String {
        let mut message = [0; 4096];
        loop {
            match self.socket.recv(&mut message) {
                Ok(len) => return String::from_utf8_lossy(&message[..len]).into_owned(),
                // With a limit set, signal(7) lets even a stop and continue of the process end the call so.
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => panic!("no message in time: {e}"),
            }
        }
    }

    /// Skips until a message has this line.
    fn wait_for(&self, line: &str) -> String {
        loop {
            let message = self.next();
            if message.lines().any(|l| l == line) {
                return message;
            }
        }
    }
}

#[test]
fn the_service_manager_is_told_of_start_life_and_stop() {
    let rig = Rig::new(DEVICE, 1);
    let path = rig.dir.path().join("notify");
    let manager = Manager { socket: UnixDatagram::bind(&path).expect("a socket") };
    manager.socket.set_read_timeout(Some(PATIENCE)).expect("a limit");
    let mut command = Command::new(env!("CARGO_BIN_EXE_claudefsd"));
    command.arg("--config").arg(rig.config_file()).env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    let mut daemon = Daemon(command.stderr(Stdio::null()).spawn().expect("the daemon starts"));

    let ready = manager.wait_for("READY=1");
    assert!(ready.contains(&rig.address().to_string()), "its status says where it serves: {ready}");
    std::net::TcpStream::connect(rig.address()).expect("ready means that it serves");
    manager.wait_for("WATCHDOG=1");
    manager.wait_for("WATCHDOG=1");
    // A terminal that closes, or a `systemctl reload` that somebody invents, ends nothing.
    signal(&daemon, "HUP");
    manager.wait_for("WATCHDOG=1");
    manager.wait_for("WATCHDOG=1");
    assert!(daemon.0.try_wait().expect("asked").is_none(), "it lives on");
    signal(&daemon, "TERM");
    manager.wait_for("STOPPING=1");
    assert_eq!(daemon.0.wait().expect("it is reaped").code(), Some(i32::from(exit::OK)));
}

/// A second signal may find the stop at its end already; either way nothing acknowledged is lost.
#[test]
fn a_second_signal_ends_it_at_once_and_loses_nothing() {
    let rig = Rig::new(DEVICE, 1);
    let mut daemon = Daemon(rig.spawn());
    let ino = rig.with_client(1, async |c: Client| {
        let (ino, object) = c.create(ROOT, "file").await.expect("create");
        c.write(ino, object, 0, &pattern(1, 300_000)).await.expect("write");
        signal(&daemon, "TERM");
        signal(&daemon, "INT");
        let code = daemon.0.wait().expect("it is reaped").code();
        assert!([Some(i32::from(exit::OK)), Some(i32::from(exit::KILLED))].contains(&code), "{code:?}");
        ino
    });
    let node = rig.start();
    rig.with_client(2, async |c| {
        assert!(c.read(ino).await.expect("read") == pattern(1, 300_000));
    });
    node.stop();
}

/// Every line is one JSON object, from the first to the last, also where the daemon refuses to start.
#[test]
fn a_log_for_collectors_is_json_throughout() {
    let mut rig = Rig::new(DEVICE, 1);
    rig.config.log.format = node::config::LogFormat::Json;
    let lines = |log: &[u8]| -> Vec<serde_json::Value> {
        let text = String::from_utf8_lossy(log);
        text.lines().map(|l| serde_json::from_str(l).expect(l)).collect()
    };
    let log = rig.dir.path().join("log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_claudefsd"));
    command.arg("--config").arg(rig.config_file());
    let file = std::fs::File::create(&log).expect("a log");
    let mut daemon = Daemon(command.stderr(file).spawn().expect("the daemon starts"));
    rig.with_client(1, async |c| assert!(c.mkdir(ROOT, "dir").await.is_ok()));
    signal(&daemon, "INT");
    assert_eq!(daemon.0.wait().expect("it is reaped").code(), Some(i32::from(exit::OK)));
    let said = lines(&std::fs::read(&log).expect("the log"));
    let has = |what: &str| said.iter().any(|l| l["fields"]["message"] == what && l["level"] == "INFO");
    assert!(has("serving") && has("stopped cleanly"), "{said:?}");

    let nowhere = rig.dir.path().join("none");
    rig.config.devices = vec![nowhere.clone()];
    let refused = claudefsd(&["--config".as_ref(), &rig.config_file()]);
    assert_eq!(refused.status.code(), Some(i32::from(exit::DEVICE)));
    let said = lines(&refused.stderr);
    let why = said.last().and_then(|l| l["fields"]["message"].as_str()).unwrap_or_default();
    assert!(why.contains(&*nowhere.to_string_lossy()), "{said:?}");
}
