//! End-to-end: a daemon, its mounts, and what applications see. One test at a time runs (see `Rig`).

use hwtest::battery::{self, pairs};
use hwtest::linear;
use hwtest::model;
use hwtest::rig::{Rig, Setup};
use hwtest::scale::{Meter, names, restart};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// An answer that takes longer is a hang. A recall of a lease, a restart and a grace window fit in.
const PATIENCE: Duration = Duration::from_secs(60);

/// One that stands still for so long waits for the other, and for a lease of [`Setup::patient`] to run out.
const STANDSTILL: Duration = Duration::from_secs(45);

fn plan(dirs: Vec<PathBuf>, ops: u64, seed: u64) -> model::Plan {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_hwtest"));
    model::Plan { program, dirs, workers: 4, ops, seed, patience: PATIENCE, progress: false }
}

#[test]
fn mount_passes_the_smoke_battery() {
    let mut rig = Rig::start(&Setup::default()).expect("a daemon");
    let mnt = rig.mount("mnt").expect("a mount");
    battery::run(&mnt, battery::QUICK).expect("every check passes");
    rig.unmount(&mnt).expect("unmounted");
    rig.stop_daemon().expect("a clean stop");
}

#[test]
fn mount_does_real_work() {
    let mut rig = Rig::start(&Setup { size: 16 << 30, ..Setup::default() }).expect("a daemon");
    let mnt = rig.mount("mnt").expect("a mount");
    battery::run(&mnt, battery::WORK).expect("every check passes");
}

#[test]
fn mount_agrees_with_another_mount() {
    let mut rig = Rig::start(&Setup::patient()).expect("a daemon");
    let (a, b) = (rig.mount("one").expect("a mount"), rig.mount("two").expect("a second mount"));
    pairs::run(&a, &b).expect("both agree");
    let plan = linear::Plan {
        dirs: vec![a.clone(), b.clone()],
        workers: 6,
        ops: 8,
        seed: 1,
        end: linear::End::Rounds(18),
    };
    assert!(linear::run(&plan).expect("an order explains every history").ops > 0);
    fs::create_dir(a.join("contended")).expect("a folder");
    let rounds =
        pairs::contend(&a.join("contended"), &b.join("contended"), Duration::from_secs(15), STANDSTILL);
    assert!(rounds.expect("nobody stands still") > 0);
    let said = fs::read_to_string(rig.log()).expect("the daemon's log");
    assert!(!said.contains("fenced"), "neither had to be thrown out:\n{said}");
}

#[test]
fn mounts_list_many_names_right_while_others_come_and_go() {
    let mut rig = Rig::start(&Setup::default()).expect("a daemon");
    let dirs = vec![rig.mount("one").expect("a mount"), rig.mount("two").expect("a second mount")];
    let plan = names::Plan { dirs, entries: 1500, workers: 1, listings: 4, seed: 1 };
    names::run(&plan, Meter::new(Vec::new(), false)).expect("every answer is right");
}

#[test]
fn starts_with_many_files_and_chunks_answer() {
    let dir = tempfile::tempdir().expect("a folder");
    let plan = restart::Plan {
        dir: dir.path().to_path_buf(),
        device: 2 << 30,
        files: 700,
        file_bytes: 4096,
        chunks: 600,
        dirty: 30,
        rounds: 1,
        workers: 2,
        progress: false,
    };
    let figures = restart::run(&plan).expect("nothing is lost");
    assert_eq!(figures.starts.len(), 2);
    assert!(figures.all_chunks >= 1300, "{figures:?}");
    for start in &figures.starts {
        assert!(
            start.parts.contains_key("database_ms"),
            "the daemon tells the parts of its start: {start:?}"
        );
    }
}

#[test]
fn mount_agrees_with_the_model() {
    let mut rig = Rig::start(&Setup::patient()).expect("a daemon");
    let (a, b) = (rig.mount("one").expect("a mount"), rig.mount("two").expect("a second mount"));
    for seed in [1, 2] {
        model::run(&plan(vec![a.clone(), b.clone()], 6000, seed)).expect("every answer is the model's");
    }
}

/// Three independent loads, each checked exactly, while the daemon is killed ten times: an error that reached an
/// application or an acknowledged change that was lost would be an answer that differs. Then fsck has its say.
///
/// Other seeds: `hwtest kills --seed 1 --runs 30`.
#[test]
fn mount_survives_ten_kills_of_the_daemon() {
    let campaign = hwtest::kills::Plan {
        program: PathBuf::from(env!("CARGO_BIN_EXE_hwtest")),
        seed: 1,
        kills: 10,
        loads: 3,
        ops: 400,
        commands: Vec::new(),
        size: 2 << 30,
        keep: None,
    };
    let done = hwtest::kills::run(&campaign).expect("every answer is the model's, and the device is sound");
    assert!(done.ops > 0);
}

#[test]
fn mount_keeps_its_data_over_stop_and_start() {
    let mut rig = Rig::start(&Setup::default()).expect("a daemon");
    let mnt = rig.mount("mnt").expect("a mount");
    let data = hwtest::rng::bytes(9, 5 << 20);
    fs::create_dir_all(mnt.join("a/b")).expect("folders");
    fs::write(mnt.join("a/b/file"), &data).expect("written");
    rig.unmount(&mnt).expect("unmounted");
    rig.stop_daemon().expect("a clean stop");
    rig.start_daemon().expect("started");
    let mnt = rig.mount("mnt").expect("a mount");
    assert!(fs::read(mnt.join("a/b/file")).expect("read") == data, "the data is another");
}

/// Everything but writing works on a full device, and deleting brings the space back.
#[test]
fn mount_recovers_from_a_full_device() {
    let mut rig = Rig::start(&Setup { size: 512 << 20, ..Setup::default() }).expect("a daemon");
    let mnt = rig.mount("mnt").expect("a mount");
    fs::write(mnt.join("small"), "before").expect("written");
    let full = fill(&mnt.join("large"), 1 << 30);
    assert_eq!(full.raw_os_error(), Some(rustix::io::Errno::NOSPC.raw_os_error()), "{full}");
    assert_eq!(fs::read_to_string(mnt.join("small")).expect("read"), "before");
    fs::rename(mnt.join("small"), mnt.join("renamed")).expect("renamed");
    fs::create_dir(mnt.join("folder")).expect("a folder");
    fs::read_dir(&mnt).expect("listed").count();
    fs::remove_file(mnt.join("large")).expect("removed");
    let end = Instant::now() + PATIENCE;
    loop {
        match fs::write(mnt.join("again"), vec![1; 100 << 20]) {
            Ok(()) => break,
            Err(e) => assert!(Instant::now() < end, "space does not come back: {e}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(fs::read(mnt.join("again")).expect("read") == vec![1; 100 << 20]);
}

/// Writes until that fails, at most `limit` bytes.
fn fill(path: &Path, limit: u64) -> std::io::Error {
    use std::io::Write as _;
    let mut file = fs::File::create(path).expect("created");
    let piece = hwtest::rng::bytes(4, 1 << 20);
    for _ in 0..limit >> 20 {
        if let Err(e) = file.write_all(&piece) {
            return e;
        }
    }
    panic!("{limit} bytes fit on a smaller device");
}

#[test]
fn mount_of_a_dead_client_is_cleared() {
    let mut rig = Rig::start(&Setup::default()).expect("a daemon");
    let mnt = rig.mount("mnt").expect("a mount");
    fs::write(mnt.join("file"), "x").expect("written");
    rig.kill_client(&mnt).expect("a client to kill");
    let end = Instant::now() + PATIENCE;
    while fs::metadata(mnt.join("file")).is_ok() {
        assert!(Instant::now() < end, "the mount outlives its client");
        std::thread::sleep(Duration::from_millis(10));
    }
    rig.unmount(&mnt).expect("cleared");
    let mnt = rig.mount("mnt").expect("mounted again");
    assert_eq!(fs::read_to_string(mnt.join("file")).expect("read"), "x");
}

#[test]
fn mount_options_are_kept() {
    let mut rig = Rig::start(&Setup::default()).expect("a daemon");
    let mnt = rig.mount_with("mnt", "ro,noatime,nodev,nosuid,noexec,_netdev").expect("a mount");
    let table = fs::read_to_string("/proc/self/mountinfo").expect("read");
    let line = table.lines().find(|l| l.contains(&*mnt.to_string_lossy())).expect("a line");
    for option in ["ro", "noatime", "nodev", "nosuid", "noexec"] {
        assert!(line.contains(option), "{option} is missing in {line}");
    }
    let e = fs::write(mnt.join("file"), "x").expect_err("it is read-only");
    assert_eq!(e.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
}

/// `cargo xtask up`, again, kill, down, up: the data is there.
#[test]
fn mount_goes_up_and_down_by_xtask() {
    let programs = hwtest::rig::Programs::find().expect("built");
    let _turn = programs.turn().expect("our turn");
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().to_string_lossy().into_owned();
    let port = hwtest::rig::free_port().expect("a port").to_string();
    let xtask = |args: &[&str]| {
        let out = hwtest::rig::bounded_by(
            std::process::Command::new(&programs.xtask).args(args),
            Duration::from_secs(600),
        );
        let out = out.expect("it ends");
        let said = hwtest::rig::said(&out);
        assert!(out.status.success(), "{args:?}: {said}");
        said
    };
    let _down = Down(programs.xtask.clone(), dir.clone());
    let built = programs.dir.to_string_lossy().into_owned();
    let up = ["up", "--programs", &built, "--dir", &dir, "--port", &port, "--size", "1GiB"];
    assert!(xtask(&up).contains("mounted at"));
    let file = folder.path().join("mnt/file");
    fs::write(&file, "kept").expect("written");
    assert!(xtask(&up).contains("runs already"));
    let pid: i32 = fs::read_to_string(folder.path().join("run/claudefsd.pid"))
        .expect("a pid file")
        .trim()
        .parse()
        .expect("a number");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).expect("a pid"),
        rustix::process::Signal::KILL,
    )
    .expect("killed");
    assert_eq!(fs::read_to_string(&file).expect("read after the restart"), "kept");
    xtask(&["down", "--dir", &dir]);
    assert!(!file.exists());
    xtask(&up);
    assert_eq!(fs::read_to_string(&file).expect("read"), "kept");
    xtask(&["down", "--dir", &dir]);
}

/// Stops the demo also when the test fails.
struct Down(PathBuf, String);

impl Drop for Down {
    fn drop(&mut self) {
        hwtest::rig::bounded(std::process::Command::new(&self.0).args(["down", "--dir", &self.1])).ok();
    }
}
