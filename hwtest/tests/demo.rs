//! `cargo xtask up`, `down` and `ps` from every state that a machine can be left in.

use hwtest::rig::{Programs, bounded, bounded_by, free_port, said};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// Packages may have to be installed; nothing is built.
const UP_LIMIT: Duration = Duration::from_secs(240);

/// A demo in a folder of its own; it goes down with its test.
struct Demo {
    programs: Programs,
    dir: PathBuf,
    port: u16,
    _folder: tempfile::TempDir,
    _turn: File,
}

impl Demo {
    fn new() -> Self {
        let programs = Programs::find().expect("built");
        let turn = programs.turn().expect("our turn");
        let folder = tempfile::Builder::new().prefix("claudefs-").tempdir().expect("a folder");
        let dir = folder.path().join("demo");
        Self { programs, dir, port: free_port().expect("a port"), _folder: folder, _turn: turn }
    }

    fn text(&self) -> String {
        self.dir.to_string_lossy().into_owned()
    }

    fn try_up(&self) -> Output {
        let mut command = Command::new(&self.programs.xtask);
        command.arg("up").arg("--programs").arg(&self.programs.dir);
        command.args(["--size", "1GiB", "--dir", &self.text(), "--port", &self.port.to_string()]);
        bounded_by(&mut command, UP_LIMIT).expect("it ends")
    }

    #[track_caller]
    fn up(&self) -> String {
        let out = self.try_up();
        assert!(out.status.success(), "{}", said(&out));
        said(&out)
    }

    /// What stops `up`, which fails.
    #[track_caller]
    fn refused(&self) -> String {
        let out = self.try_up();
        assert_eq!(out.status.code(), Some(1), "{}", said(&out));
        said(&out)
    }

    fn run(&self, word: &str) -> Output {
        bounded(Command::new(&self.programs.xtask).args([word, "--dir", &self.text()])).expect("it ends")
    }

    #[track_caller]
    fn says(&self, word: &str) -> String {
        let out = self.run(word);
        assert!(out.status.success(), "{word}: {}", said(&out));
        said(&out)
    }

    fn pid(&self, who: &str) -> Option<i32> {
        let text = fs::read_to_string(self.dir.join(format!("run/{who}.pid"))).ok()?;
        text.trim().parse().ok()
    }

    fn kill(&self, who: &str) {
        kill(self.pid(who).expect(who));
    }

    /// The process that serves the mount.
    fn client(&self) -> i32 {
        let point = self.dir.join("mnt").to_string_lossy().into_owned();
        let found = fs::read_dir("/proc").expect("proc").flatten().find_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
            (words.contains(&b"mount".as_slice()) && words.contains(&point.as_bytes())).then_some(pid)
        });
        found.expect("a client")
    }

    #[track_caller]
    fn holds(&self, text: &str) {
        assert_eq!(fs::read_to_string(self.dir.join("mnt/file")).expect("read"), text);
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let out = self.run("down");
        if std::thread::panicking() {
            eprintln!("{}", said(&out));
        }
        if !out.status.success() {
            // Removing the folder must not meet a mount that hangs.
            rustix::mount::unmount(self.dir.join("mnt"), rustix::mount::UnmountFlags::DETACH).ok();
        }
    }
}

/// SIGKILL, and gone when this returns.
fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).expect("a pid"), Signal::KILL).expect("killed");
    let line = PathBuf::from(format!("/proc/{pid}/cmdline"));
    // A zombie has an empty command line; nobody of ours waits for those of a supervisor that is gone.
    while fs::read(&line).is_ok_and(|l| !l.is_empty()) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
fn contains_all(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is missing in: {text}");
    }
}

#[test]
fn mount_by_up_comes_back_from_every_death() {
    let demo = Demo::new();
    let text = demo.up();
    contains_all(&text, &["mounted at", "Try:", "status --watch"]);
    assert!(!text.contains("/etc/claudefs"), "the demo has its own configuration: {text}");
    fs::write(demo.dir.join("mnt/file"), "kept").expect("written");

    let again = demo.up();
    contains_all(
        &again,
        &["runs already", "mounted already", &demo.pid("claudefsd").expect("a pid").to_string()],
    );

    // What a killed client held is free after its lease; a restarted daemon waits so long for clients to come back.
    let config = demo.dir.join("claudefsd.toml");
    let short = "\n[lease]\ntime_ms = 1000\ngrace_ms = 1000\n";
    fs::write(&config, fs::read_to_string(&config).expect("read") + short).expect("written");

    // The kernel may still have the root's attributes in its cache: that must not look like life.
    fs::metadata(demo.dir.join("mnt")).expect("looked at");
    demo.kill("supervisor");
    kill(demo.client());
    contains_all(&demo.says("ps"), &["supervisor  not running", "left behind"]);
    contains_all(&demo.up(), &["lost its supervisor", "clearing"]);
    demo.holds("kept");

    // As after a power cut: pid files and a dead mount are left, processes are not.
    let client = demo.client();
    demo.kill("supervisor");
    demo.kill("claudefsd");
    kill(client);
    contains_all(&demo.says("ps"), &["not running", "left behind"]);
    demo.up();
    demo.holds("kept");

    // Everything but the client died, then it is taken down.
    demo.kill("supervisor");
    demo.kill("claudefsd");
    contains_all(&demo.says("down"), &["does not run", "detached", "stopped", "the data stays"]);
    contains_all(&demo.says("down"), &["nothing runs", "the data stays"]);
    contains_all(&demo.says("ps"), &["not running", "not mounted"]);
    demo.up();
    demo.holds("kept");
    contains_all(&demo.says("down"), &["stopped"]);
}

#[test]
fn mount_by_up_that_is_in_use_is_not_taken_down() {
    let demo = Demo::new();
    demo.up();
    let file = File::create(demo.dir.join("mnt/file")).expect("created");
    let out = demo.run("down");
    assert_eq!(out.status.code(), Some(1), "{}", said(&out));
    contains_all(&said(&out), &["busy", "fuser -vm", "run this again"]);
    contains_all(&demo.says("ps"), &["running, pid", "mounted"]);
    std::io::Write::write_all(&mut &file, b"goes on").expect("written");
    drop(file);
    demo.holds("goes on");
    contains_all(&demo.says("down"), &["stopped"]);
}

/// What can stand in the way of a first `up`: each is told, and the next `up` finds nothing half done.
#[test]
fn mount_by_up_tells_what_is_in_its_way() {
    let demo = Demo::new();
    contains_all(&demo.says("down"), &["nothing to stop"]);

    let other = TcpListener::bind(("127.0.0.1", demo.port)).expect("the port");
    contains_all(&demo.refused(), &["can't listen", &demo.port.to_string(), "--port"]);
    drop(other);

    // Pid files of a boot before: one names a process that is none of ours, one nobody.
    fs::write(demo.dir.join("run/supervisor.pid"), "1\n").expect("written");
    fs::write(demo.dir.join("run/claudefsd.pid"), "rubbish\n").expect("written");
    contains_all(&demo.says("ps"), &["supervisor  not running", "claudefsd   not running"]);
    demo.up();
    demo.says("down");

    // A configuration that was spoilt by hand: the daemon's own words are shown.
    let config = demo.dir.join("claudefsd.toml");
    let good = fs::read_to_string(&config).expect("read");
    fs::write(&config, format!("{good}\nno_such_key = 1\n")).expect("written");
    contains_all(&demo.refused(), &["does not come up", "no_such_key"]);
    contains_all(&demo.says("ps"), &["supervisor  not running"]);
    fs::write(&config, good).expect("written");

    fs::write(demo.dir.join("mnt/file"), "below").expect("written");
    let text = demo.up();
    contains_all(&text, &["mounted at"]);
    demo.says("down");
    demo.holds("below");
}

/// The disk under the folder is full: told, and nothing is left that the next `up` would take for a device.
#[test]
fn mount_by_up_on_a_full_disk_leaves_nothing_half_done() {
    let demo = Demo::new();
    fs::create_dir(&demo.dir).expect("a folder");
    let script = r#"
    mount -t tmpfs -o size=2m tmpfs "$DIR"
    "$XTASK" up --programs "$PROGRAMS" --size 1GiB --dir "$DIR" --port "$PORT" && exit 9
    ls -R "$DIR"
    "#;
    let out = bounded_by(
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-uc", script])
            .env("DIR", &demo.dir)
            .env("XTASK", &demo.programs.xtask)
            .env("PROGRAMS", &demo.programs.dir)
            .env("PORT", demo.port.to_string()),
        UP_LIMIT,
    );
    let out = out.expect("it ends");
    assert_eq!(out.status.code(), Some(0), "{}", said(&out));
    contains_all(&said(&out), &["No space left on device", "device.new"]);
    let listed = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(!listed.contains("device.img\n") && !listed.contains("device.new\n"), "{listed}");
    assert!(!Path::new(&demo.dir).join("device.img").exists());
}
