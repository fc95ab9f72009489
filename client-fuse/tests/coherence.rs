//! The mount on the real kernel: locks, signals, recalls, and the end of a mount.

mod lab;

use client::FileService;
use client::service::{Found, Ino, ROOT_INO, Recall, Stale};
use client_fuse::{MountError, Options, Unmount, UnmountError};
use lab::{Lab, Mounted, mounted, mounted_with};
use rustix::fs::FlockOperation;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Runs a script of python3, whose standard library has the lock calls.
fn python(script: &str, file: &std::path::Path) -> Child {
    Command::new("python3")
        .arg("-c")
        .arg(script)
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 runs")
}

fn line(child: &mut Child) -> String {
    use std::io::{BufRead, BufReader};
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("a line");
    line.trim().to_owned()
}

fn say(child: &mut Child) {
    child.stdin.as_mut().expect("piped").write_all(b"\n").expect("told");
}

const LOCK: &str = "import fcntl,sys\nf=open(sys.argv[1],'r+b')\nfcntl.lockf(f,fcntl.LOCK_EX)\nprint('locked',flush=True)\nsys.stdin.readline()\n";
const FLOCK: &str = "import fcntl,sys\nf=open(sys.argv[1],'r+b')\nfcntl.flock(f,fcntl.LOCK_EX)\nprint('locked',flush=True)\nsys.stdin.readline()\n";

#[test]
fn flock_and_fcntl_locks_are_two_spaces() {
    let Some(m) = mounted() else { return };
    let path = m.path("f");
    fs::write(&path, b"x").expect("written");
    let mut fcntl = python(LOCK, &path);
    assert_eq!(line(&mut fcntl), "locked");
    let mine = File::open(&path).expect("open");
    rustix::fs::flock(&mine, FlockOperation::NonBlockingLockExclusive)
        .expect("flock does not see fcntl's lock");
    let other = File::open(&path).expect("open");
    let taken = rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(taken, Err(rustix::io::Errno::WOULDBLOCK));
    assert_eq!(m.lab(Lab::locks_held), 2);
    say(&mut fcntl);
    fcntl.wait().expect("ends");
    drop((mine, other));
    m.until("all locks are gone with their files", |m| m.lab(Lab::locks_held) == 0);
}

#[test]
fn a_close_releases_the_locks_of_its_process_alone() {
    let Some(m) = mounted() else { return };
    let path = m.path("f");
    fs::write(&path, b"x").expect("written");
    let mut holder = python(LOCK, &path);
    assert_eq!(line(&mut holder), "locked");
    // Another process closes the same file.
    drop(File::open(&path).expect("open"));
    assert_eq!(m.lab(Lab::locks_held), 1);
    let script = "import fcntl,os,sys\nf=open(sys.argv[1],'r+b')\ntry:\n  fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB)\n  print('got it')\nexcept OSError as e:\n  print(e.errno)\n";
    let mut second = python(script, &path);
    assert_eq!(line(&mut second), "11", "EAGAIN");
    second.wait().expect("ends");
    holder.kill().expect("killed");
    holder.wait().expect("ends");
    m.until("a killed process holds nothing", |m| m.lab(Lab::locks_held) == 0);
}

#[test]
fn locks_of_open_file_descriptions_end_with_them() {
    let Some(m) = mounted() else { return };
    let path = m.path("f");
    fs::write(&path, b"x").expect("written");
    // F_OFD_SETLK is 37; struct flock: type, whence, start, len, pid.
    let script = "import fcntl,os,struct,sys\nf=os.open(sys.argv[1],os.O_RDWR)\nfcntl.fcntl(f,37,struct.pack('hhqqi4x',fcntl.F_WRLCK,0,0,0,0))\nos.close(os.open(sys.argv[1],os.O_RDONLY))\nprint('locked',flush=True)\nsys.stdin.readline()\nos.close(f)\nprint('closed',flush=True)\nsys.stdin.readline()\n";
    let mut child = python(script, &path);
    assert_eq!(line(&mut child), "locked");
    assert_eq!(m.lab(Lab::locks_held), 1, "closing another descriptor keeps it");
    say(&mut child);
    assert_eq!(line(&mut child), "closed");
    m.until("the lock ended with its file", |m| m.lab(Lab::locks_held) == 0);
    say(&mut child);
    child.wait().expect("ends");
}

#[test]
fn a_wait_for_a_lock_is_killed_at_once() {
    let Some(m) = mounted() else { return };
    let path = m.path("f");
    fs::write(&path, b"x").expect("written");
    for script in [LOCK, FLOCK] {
        let mut holder = python(script, &path);
        assert_eq!(line(&mut holder), "locked");
        let waits = m.calls("lock_wait");
        let mut waiter = python(script, &path);
        m.until("it waits", |m| m.calls("lock_wait") > waits);
        waiter.kill().expect("killed");
        assert_eq!(waiter.wait().expect("ends").signal(), Some(9));
        assert_eq!(m.lab(Lab::locks_held), 1);
        say(&mut holder);
        holder.wait().expect("ends");
        m.until("the holder's lock is gone", |m| m.lab(Lab::locks_held) == 0);
    }
    assert!(m.stats().interrupts >= 2);
}

#[test]
fn a_signal_handler_interrupts_a_lock_wait_and_nothing_else() {
    let Some(m) = mounted() else { return };
    let path = m.path("f");
    fs::write(&path, b"x").expect("written");
    let mut holder = python(LOCK, &path);
    assert_eq!(line(&mut holder), "locked");
    let script = "import fcntl,signal,sys\nclass Alarm(Exception): pass\ndef h(*a): raise Alarm()\nsignal.signal(signal.SIGUSR1,h)\nf=open(sys.argv[1],'r+b')\nprint('ready',flush=True)\ntry:\n  fcntl.lockf(f,fcntl.LOCK_EX)\nexcept Alarm:\n  print('interrupted',flush=True)\n";
    let mut waiter = python(script, &path);
    assert_eq!(line(&mut waiter), "ready");
    m.until("it waits", |m| m.calls("lock_wait") > 0);
    signal(&waiter, rustix::process::Signal::USR1);
    assert_eq!(line(&mut waiter), "interrupted");
    waiter.wait().expect("ends");
    say(&mut holder);
    holder.wait().expect("ends");
    // The same signal during a write that the server is slow about: no EINTR.
    let script = "import os,signal,sys\nsignal.signal(signal.SIGUSR1,lambda *a: None)\nf=os.open(sys.argv[1],os.O_WRONLY)\nprint('ready',flush=True)\nsys.stdin.readline()\nprint(os.write(f,b'abc'),flush=True)\n";
    let mut writer = python(script, &path);
    assert_eq!(line(&mut writer), "ready");
    m.lab(|lab| lab.hang(true));
    say(&mut writer);
    m.until("it writes", |m| m.stats().in_flight > 0);
    signal(&writer, rustix::process::Signal::USR1);
    m.until("the signal was noticed", |m| m.stats().interrupts > 1);
    m.lab(|lab| lab.hang(false));
    assert_eq!(line(&mut writer), "3");
    writer.wait().expect("ends");
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(child.id() as i32).expect("a pid");
    rustix::process::kill_process(pid, signal).expect("sent");
}

#[test]
fn sigkill_ends_a_wait_for_a_server_that_hangs() {
    let Some(m) = mounted() else { return };
    let path = m.path("f");
    fs::write(&path, b"x").expect("written");
    m.lab(|lab| lab.hang(true));
    let mut cat = Command::new("cat").arg(&path).stdout(Stdio::null()).spawn().expect("runs");
    m.until("it waits", |m| m.stats().in_flight > 0);
    cat.kill().expect("killed");
    assert_eq!(cat.wait().expect("ends").signal(), Some(9));
    // A harmless signal first: the kernel sends no second INTERRUPT.
    let script = "import os,signal,sys\nsignal.signal(signal.SIGUSR1,lambda *a: None)\nprint('ready',flush=True)\nos.stat(sys.argv[1])\n";
    let mut stat = python(script, &path);
    assert_eq!(line(&mut stat), "ready");
    m.until("it waits", |m| m.stats().in_flight > 0);
    let before = m.stats().interrupts;
    signal(&stat, rustix::process::Signal::USR1);
    m.until("the signal was noticed", |m| m.stats().interrupts > before);
    stat.kill().expect("killed");
    assert_eq!(stat.wait().expect("ends").signal(), Some(9));
    m.lab(|lab| lab.hang(false));
    assert_eq!(fs::read(&path).expect("read"), b"x");
}

fn ino_of(m: &Mounted, name: &'static str) -> Ino {
    m.on_server(move |lab, _| async move {
        match lab.memory.lookup(&client::Ctx::default(), ROOT_INO, name.as_bytes()).await {
            Ok(Found::Entry(e)) => e.attr.ino(),
            other => panic!("{name}: {other:?}"),
        }
    })
}

/// What another mount does: a write that this kernel is not told of.
fn write_behind(m: &Mounted, name: &'static str, offset: u64, data: &'static [u8]) {
    let ino = ino_of(m, name);
    m.on_server(move |lab, _| async move {
        let (handle, flags) = Default::default();
        let data = hugepages::Bytes::from_static(data);
        lab.memory.write(&client::Ctx::default(), ino, handle, offset, data, flags).await.expect("written");
    });
}

fn recall(m: &Mounted, recall: Recall) {
    m.on_server(move |lab, _| async move { lab.recall(recall).await });
}

const LONG: Duration = Duration::from_secs(24 * 3600);

#[test]
fn what_a_lease_covers_is_cached_until_its_recall() {
    let Some(m) = mounted_with("", "/", |lab| lab.ttl.set(LONG)) else { return };
    let path = m.path("f");
    fs::write(&path, b"old contents").expect("written");
    assert_eq!(fs::read(&path).expect("read"), b"old contents");
    // A read that reached the server may have moved the access time: the kernel asks once more.
    assert_eq!(fs::metadata(&path).expect("there").len(), 12);
    let (stats, reads) = (m.calls("getattr"), m.calls("read"));
    for _ in 0..10 {
        assert_eq!(fs::metadata(&path).expect("there").len(), 12);
        assert_eq!(fs::read(&path).expect("read"), b"old contents");
    }
    assert_eq!((m.calls("getattr"), m.calls("read")), (stats, reads), "all from the kernel's caches");
    let ino = ino_of(&m, "f");
    write_behind(&m, "f", 0, b"new contents, longer");
    recall(&m, Recall { ino, attrs: true, data: Stale::All, ..Recall::default() });
    assert_eq!(fs::metadata(&path).expect("there").len(), 20);
    assert_eq!(fs::read(&path).expect("read"), b"new contents, longer");
    // A range alone.
    let big = vec![b'a'; 16 << 10];
    fs::write(m.path("big"), &big).expect("written");
    assert!(fs::read(m.path("big")).expect("read") == big);
    write_behind(&m, "big", 4096, &[b'b'; 4096]);
    let data = Stale::Ranges(std::iter::once(4096..8192).collect());
    recall(&m, Recall { ino: ino_of(&m, "big"), attrs: true, data, ..Recall::default() });
    let now = fs::read(m.path("big")).expect("read");
    assert!(now[4096..8192].iter().all(|&b| b == b'b') && now[..4096] == big[..4096]);
}

#[test]
fn names_are_cached_present_or_not_until_their_recall() {
    let Some(m) = mounted_with("", "/", |lab| lab.ttl.set(LONG)) else { return };
    fs::write(m.path("here"), b"x").expect("written");
    assert!(m.path("here").exists() && !m.path("absent").exists());
    let before = m.calls("lookup");
    for _ in 0..10 {
        assert!(m.path("here").exists() && !m.path("absent").exists());
    }
    assert_eq!(m.calls("lookup"), before);
    m.on_server(|lab, _| async move {
        let (ctx, mode) = Default::default();
        lab.memory.rename(&ctx, ROOT_INO, b"here", ROOT_INO, b"absent", mode).await.expect("renamed");
    });
    let names = vec![b"here".as_slice().into(), b"absent".as_slice().into()];
    recall(&m, Recall { ino: ROOT_INO, attrs: true, names, ..Recall::default() });
    assert!(!m.path("here").exists() && m.path("absent").exists());
}

#[test]
fn a_recalled_name_keeps_what_is_mounted_below_it() {
    let Some(m) = mounted_with("", "/", |lab| lab.ttl.set(LONG)) else { return };
    let below = m.path("below");
    fs::create_dir(&below).expect("made");
    rustix::mount::mount("none", &below, "tmpfs", rustix::mount::MountFlags::empty(), None).expect("mounted");
    fs::write(below.join("f"), b"tmp").expect("written");
    let names = vec![b"below".as_slice().into()];
    recall(&m, Recall { ino: ROOT_INO, attrs: true, names, ..Recall::default() });
    assert_eq!(fs::read(below.join("f")).expect("still there"), b"tmp");
    rustix::mount::unmount(&below, rustix::mount::UnmountFlags::empty()).expect("unmounted");
}

#[test]
fn a_recall_writes_dirty_mappings_back_first() {
    let Some(m) = mounted_with("", "/", |lab| lab.ttl.set(LONG)) else { return };
    let path = m.path("mapped");
    fs::write(&path, [b'.'; 8192]).expect("written");
    let script = "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\nm[0:5]=b'dirty'\nprint('written',flush=True)\nsys.stdin.readline()\nprint(m[0:5].decode(),flush=True)\n";
    let mut child = python(script, &path);
    assert_eq!(line(&mut child), "written");
    let ino = ino_of(&m, "mapped");
    recall(&m, Recall { ino, attrs: true, data: Stale::All, ..Recall::default() });
    let start = m.on_server(move |lab, _| async move {
        let read = lab.memory.read(&client::Ctx::default(), ino, Default::default(), 0, 5).await;
        read.expect("read").to_vec()
    });
    assert_eq!(start, b"dirty", "the server has it when the recall ends");
    write_behind(&m, "mapped", 0, b"their");
    recall(&m, Recall { ino, attrs: true, data: Stale::All, ..Recall::default() });
    say(&mut child);
    assert_eq!(line(&mut child), "their", "the mapping shows the other's write");
    child.wait().expect("ends");
}

#[test]
fn a_recall_waits_for_a_create_in_its_directory_and_not_for_others() {
    let Some(m) = mounted_with("", "/", |lab| lab.ttl.set(LONG)) else { return };
    fs::create_dir(m.path("d")).expect("made");
    m.lab(|lab| lab.hang(true));
    let path = m.path("d/new");
    let creator = std::thread::spawn(move || fs::write(path, b"x"));
    m.until("it creates", |m| m.stats().in_flight > 0);
    let names = vec![b"d".as_slice().into()];
    recall(&m, Recall { ino: ROOT_INO, attrs: true, names, ..Recall::default() });
    m.lab(|lab| lab.hang(false));
    creator.join().expect("ends").expect("created");
    let names = vec![b"new".as_slice().into()];
    recall(&m, Recall { ino: ino_of(&m, "d"), attrs: true, names, ..Recall::default() });
    assert!(m.path("d/new").exists());
}

#[test]
fn direct_files_cache_nothing_and_can_be_mapped() {
    let Some(m) = mounted_with("", "/", |lab| lab.direct.set(true)) else { return };
    let path = m.path("f");
    fs::write(&path, b"12345").expect("written");
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
    let mut buf = [0; 5];
    file.read_exact_at(&mut buf, 0).expect("read");
    write_behind(&m, "f", 0, b"54321");
    file.read_exact_at(&mut buf, 0).expect("read");
    assert_eq!(&buf, b"54321");
    let script =
        "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\nm[0:1]=b'x'\nm.flush()\n";
    assert!(python(script, &path).wait().expect("ends").success());
    file.read_exact_at(&mut buf, 0).expect("read");
    assert_eq!(&buf, b"x4321");
}

#[test]
fn a_mount_in_use_is_not_unmounted_unless_lazily() {
    let Some(m) = mounted() else { return };
    let file = File::create(m.path("f")).expect("created");
    let busy = client_fuse::unmount(m.dir(), Unmount::Plain);
    assert!(matches!(&busy, Err(UnmountError::Busy(_))), "{busy:?}");
    client_fuse::unmount(m.dir(), Unmount::Lazy).expect("detached");
    file.write_all_at(b"still served", 0).expect("written");
    let again = client_fuse::unmount(m.dir(), Unmount::Plain);
    assert!(matches!(again, Err(UnmountError::NotMounted(_))), "{again:?}");
    drop(file);
}

#[test]
fn a_second_mount_on_the_same_place_is_refused_by_name() {
    let Some(m) = mounted() else { return };
    let refused = client_fuse::mount::mount("x:/", m.dir(), &Options::default());
    let Err(MountError::Busy { source_name, kind, .. }) = &refused else { panic!("{refused:?}") };
    assert_eq!((source_name.as_str(), kind.as_str()), ("lab:/", "fuse.claudefs"));
}

#[test]
fn a_mount_whose_client_died_is_told_and_cleared() {
    let Some(m) = mounted() else { return };
    let dead = tempfile::tempdir().expect("a directory");
    let made = client_fuse::mount::mount("gone:/", dead.path(), &Options::default()).expect("mounted");
    drop(made.device);
    let error = fs::metadata(dead.path()).expect_err("nobody answers");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NOTCONN.raw_os_error()));
    let told = client_fuse::mount::mount("x:/", dead.path(), &Options::default());
    assert!(matches!(&told, Err(MountError::Dead { .. })), "{told:?}");
    client_fuse::unmount(dead.path(), Unmount::Plain).expect("cleared");
    assert!(fs::metadata(dead.path()).expect("the directory below").is_dir());
    drop(m);
}

#[test]
fn syncfs_and_fsync_of_a_directory_succeed() {
    let Some(m) = mounted() else { return };
    fs::write(m.path("f"), b"x").expect("written");
    let dir = File::open(m.dir()).expect("open");
    rustix::fs::syncfs(&dir).expect("synced");
    assert_eq!(m.calls("sync"), 0, "syncfs(2) does not reach a FUSE server");
    dir.sync_all().expect("synced");
    assert_eq!(m.calls("fsync"), 1);
    assert_eq!(dir.metadata().expect("there").ino(), 1);
}
