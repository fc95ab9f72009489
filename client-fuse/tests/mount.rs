//! The mount on the real kernel: what programs do with files.

mod lab;

use lab::{mounted, mounted_with};
use rustix::fs::{FallocateFlags, Mode, OFlags, RenameFlags, SeekFrom, XattrFlags};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::process::Command;
use std::time::Duration;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 4096) as u8).collect()
}

#[test]
fn files_are_created_written_read_and_removed() {
    let Some(m) = mounted() else { return };
    let path = m.path("file");
    let data = pattern(3 << 20 | 12_345);
    fs::write(&path, &data).expect("written");
    assert!(fs::read(&path).expect("read") == data);
    assert_eq!(fs::metadata(&path).expect("there").len(), data.len() as u64);
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
    file.write_all_at(b"patch", 4094).expect("written");
    let mut back = [0; 9];
    file.read_exact_at(&mut back, 4092).expect("read");
    assert_eq!((&back[2..7], back[0]), (&b"patch"[..], data[4092]));
    file.set_len(10).expect("truncated");
    assert_eq!(fs::read(&path).expect("read"), data[..10]);
    file.set_len(20).expect("extended");
    assert_eq!(fs::read(&path).expect("read")[10..], [0; 10]);
    fs::remove_file(&path).expect("removed");
    assert!(!path.exists());
    file.write_all_at(b"still", 0).expect("an unlinked file lives while it is open");
    drop(file);
    m.until("all handles are closed", |m| m.lab(|lab| lab.memory.open_handles()) == 0);
    m.finish().expect("unmounted");
}

#[test]
fn large_writes_arrive_as_one_mebibyte() {
    let Some(m) = mounted() else { return };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(m.path("big"))
        .expect("open");
    let buf = hugepages::Buf::heap(8 << 20);
    file.write_all_at(&buf, 0).expect("written");
    assert_eq!(m.calls("write"), 8);
    let stats = m.stats();
    assert_eq!((stats.written, stats.refused), (8 << 20, 0));
}

#[test]
fn appends_go_to_the_end_wherever_that_is() {
    let Some(m) = mounted() else { return };
    let path = m.path("log");
    fs::write(&path, b"one\n").expect("written");
    let mut log = OpenOptions::new().append(true).open(&path).expect("open");
    log.write_all(b"two\n").expect("appended");
    assert_eq!(fs::read(&path).expect("read"), b"one\ntwo\n");
    // Another mount appends; this kernel does not know.
    m.on_server(|lab, _| async move {
        use client::FileService;
        let ctx = client::Ctx::default();
        let found = lab.memory.lookup(&ctx, client::service::ROOT_INO, b"log").await.expect("there");
        let ino = found.entry().expect("there").attr.ino();
        let data = hugepages::Bytes::from_static(b"theirs\n");
        let (handle, flags) = Default::default();
        lab.memory.append(&ctx, ino, handle, data, flags).await.expect("appended");
    });
    log.write_all(b"three\n").expect("appended");
    assert_eq!(fs::read(&path).expect("read"), b"one\ntwo\ntheirs\nthree\n");
    assert_eq!(m.calls("append"), 2);
}

#[test]
fn an_append_flag_set_later_appends_too() {
    let Some(m) = mounted() else { return };
    let path = m.path("log");
    let mut file = File::create(&path).expect("created");
    file.write_all(b"start ").expect("written");
    let flags = rustix::fs::fcntl_getfl(&file).expect("flags");
    rustix::fs::fcntl_setfl(&file, flags | OFlags::APPEND).expect("set");
    file.seek(std::io::SeekFrom::Start(0)).expect("sought");
    file.write_all(b"end").expect("appended");
    assert_eq!(fs::read(&path).expect("read"), b"start end");
    assert_eq!(m.calls("append"), 1);
}

#[test]
fn shared_mappings_read_and_write() {
    let Some(m) = mounted() else { return };
    let path = m.path("mapped");
    fs::write(&path, pattern(10_000)).expect("written");
    // A mapping without unsafe code of our own: python3's.
    let script = "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\nm[5000:5005]=b'dirty'\nm.flush()\nassert m[0:3]==bytes([0,7,14])\n";
    let status = Command::new("python3").arg("-c").arg(script).arg(&path).status().expect("python3 runs");
    assert!(status.success());
    let mut want = pattern(10_000);
    want[5000..5005].copy_from_slice(b"dirty");
    assert!(fs::read(&path).expect("read") == want);
}

#[test]
fn directories_of_ten_thousand_list_completely() {
    let Some(m) = mounted() else { return };
    let dir = m.path("many");
    fs::create_dir(&dir).expect("made");
    for i in 0..10_000 {
        File::create(dir.join(format!("file-{i:05}"))).expect("created");
    }
    for _ in 0..2 {
        let mut names: Vec<String> = fs::read_dir(&dir)
            .expect("open")
            .map(|e| e.expect("an entry").file_name().into_string().expect("text"))
            .collect();
        names.sort();
        assert_eq!(names.len(), 10_000);
        assert_eq!((names[0].as_str(), names[9_999].as_str()), ("file-00000", "file-09999"));
    }
    // `ls -l` makes the kernel ask for attributes with the names.
    let listed = Command::new("ls").arg("-la").arg(&dir).output().expect("ls runs");
    assert_eq!(String::from_utf8_lossy(&listed.stdout).lines().count(), 10_000 + 3);
    assert!(m.calls("readdirplus") > 0);
    fs::remove_dir_all(&dir).expect("removed");
    m.finish().expect("unmounted");
}

#[test]
fn names_move_and_links_link() {
    let Some(m) = mounted() else { return };
    let (a, b) = (m.path("a"), m.path("b"));
    fs::write(&a, b"A").expect("written");
    fs::write(&b, b"B").expect("written");
    let cwd = rustix::fs::CWD;
    let refused = rustix::fs::renameat_with(cwd, &a, cwd, &b, RenameFlags::NOREPLACE);
    assert_eq!(refused, Err(rustix::io::Errno::EXIST));
    rustix::fs::renameat_with(cwd, &a, cwd, &b, RenameFlags::EXCHANGE).expect("exchanged");
    assert_eq!((fs::read(&a).expect("read"), fs::read(&b).expect("read")), (b"B".to_vec(), b"A".to_vec()));
    fs::rename(&a, &b).expect("renamed");
    assert_eq!(fs::read(&b).expect("read"), b"B");
    assert!(!a.exists());
    let hard = m.path("hard");
    fs::hard_link(&b, &hard).expect("linked");
    let (x, y) = (fs::metadata(&b).expect("there"), fs::metadata(&hard).expect("there"));
    assert_eq!((x.ino(), x.nlink()), (y.ino(), 2));
    let soft = m.path("soft");
    std::os::unix::fs::symlink("b", &soft).expect("linked");
    assert_eq!(
        (fs::read(&soft).expect("read"), fs::read_link(&soft).expect("a link")),
        (b"B".to_vec(), "b".into())
    );
    rustix::fs::mknodat(cwd, m.path("pipe"), rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0)
        .expect("made");
    let device = rustix::fs::makedev(260, 300);
    rustix::fs::mknodat(
        cwd,
        m.path("dev"),
        rustix::fs::FileType::CharacterDevice,
        Mode::from_raw_mode(0o600),
        device,
    )
    .expect("made");
    assert_eq!(fs::metadata(m.path("dev")).expect("there").rdev(), device);
}

#[test]
fn modes_times_and_xattrs_are_kept() {
    let Some(m) = mounted() else { return };
    let path = m.path("f");
    fs::write(&path, b"").expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4751)).expect("set");
    assert_eq!(fs::metadata(&path).expect("there").mode() & 0o7777, 0o4751);
    let time = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    File::open(&path)
        .expect("open")
        .set_times(fs::FileTimes::new().set_modified(time).set_accessed(time))
        .expect("set");
    assert_eq!(fs::metadata(&path).expect("there").modified().expect("a time"), time);
    let statx =
        rustix::fs::statx(rustix::fs::CWD, &path, rustix::fs::AtFlags::empty(), rustix::fs::StatxFlags::ALL)
            .expect("statx");
    assert!(statx.stx_mask & rustix::fs::StatxFlags::BTIME.bits() != 0);
    rustix::fs::setxattr(&path, "user.k", b"value", XattrFlags::CREATE).expect("set");
    let again = rustix::fs::setxattr(&path, "user.k", b"value", XattrFlags::CREATE);
    assert_eq!(again, Err(rustix::io::Errno::EXIST));
    let mut buf = [0; 64];
    assert_eq!(rustix::fs::getxattr(&path, "user.k", &mut buf), Ok(5));
    assert_eq!(rustix::fs::getxattr(&path, "user.k", &mut buf[..3]), Err(rustix::io::Errno::RANGE));
    let len = rustix::fs::listxattr(&path, &mut buf).expect("listed");
    assert_eq!(&buf[..len], b"user.k\0");
    rustix::fs::removexattr(&path, "user.k").expect("removed");
    assert_eq!(rustix::fs::getxattr(&path, "user.k", &mut buf), Err(rustix::io::Errno::NODATA));
}

#[test]
fn space_is_allocated_punched_and_sought() {
    let Some(m) = mounted() else { return };
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(m.path("f")).expect("open");
    file.write_all(&pattern(20_000)).expect("written");
    rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 100_000).expect("allocated");
    assert_eq!(file.metadata().expect("there").len(), 20_000);
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 30_000).expect("extended");
    assert_eq!(file.metadata().expect("there").len(), 30_000);
    rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 4096, 4096)
        .expect("punched");
    rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, 12_000, 100).expect("zeroed");
    let mut data = Vec::new();
    file.rewind().expect("sought");
    file.read_to_end(&mut data).expect("read");
    assert!(data[4096..8192].iter().all(|&b| b == 0) && data[12_000..12_100].iter().all(|&b| b == 0));
    assert_eq!(data[8192], pattern(8193)[8192]);
    let odd = rustix::fs::fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096);
    assert_eq!(odd, Err(rustix::io::Errno::OPNOTSUPP));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(5)), Ok(5));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(5)), Ok(30_000));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(40_000)), Err(rustix::io::Errno::NXIO));
}

#[test]
fn ranges_are_copied_on_the_server() {
    let Some(m) = mounted() else { return };
    let data = pattern(2_000_000);
    fs::write(m.path("from"), &data).expect("written");
    let from = File::open(m.path("from")).expect("open");
    let to = File::create(m.path("to")).expect("created");
    let (mut at, mut put) = (1000, 0);
    let mut left = 1_500_000;
    while left > 0 {
        let n = rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut put), left).expect("copied");
        assert!(n > 0);
        left -= n;
    }
    assert!(m.calls("copy_range") > 0);
    assert!(fs::read(m.path("to")).expect("read") == data[1000..1_501_000]);
}

#[test]
fn direct_io_and_sync_writes_pass_through() {
    let Some(m) = mounted() else { return };
    let direct = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(m.path("direct"))
        .expect("open");
    let mut buf = hugepages::Buf::heap(8192);
    buf.fill(7);
    direct.write_all_at(&buf, 0).expect("written");
    buf.fill(0);
    let before = m.calls("read");
    direct.read_exact_at(&mut buf, 0).expect("read");
    direct.read_exact_at(&mut buf, 0).expect("read");
    assert!(buf.iter().all(|&b| b == 7));
    assert_eq!(m.calls("read"), before + 2, "nothing is cached");
    let sync = OFlags::SYNC.bits() as i32;
    let file =
        OpenOptions::new().write(true).create(true).custom_flags(sync).open(m.path("sync")).expect("open");
    file.write_all_at(b"durable", 0).expect("written");
    assert_eq!(m.calls("write_sync"), 1);
    fs::write(m.path("plain"), b"x").expect("written");
    let plain = File::open(m.path("plain")).expect("open");
    plain.sync_data().expect("synced");
    plain.sync_all().expect("synced");
    assert!(m.calls("fdatasync") > 0 && m.calls("fsync") > 0);
}

#[test]
fn programs_run_from_the_mount() {
    let Some(m) = mounted() else { return };
    let program = m.path("true");
    // By another process: a writable descriptor of this one could live on in a child that another test starts.
    assert!(Command::new("cp").arg("/bin/true").arg(&program).status().expect("runs").success());
    for _ in 0..2 {
        assert!(Command::new(&program).status().expect("runs").success());
    }
    let busy = OpenOptions::new().write(true).open(&program);
    assert!(busy.is_ok(), "nobody runs it now");
}

#[test]
fn temporary_files_have_no_name_until_linked() {
    let Some(m) = mounted() else { return };
    let fd =
        rustix::fs::open(m.dir(), OFlags::TMPFILE | OFlags::RDWR, Mode::from_raw_mode(0o600)).expect("open");
    rustix::io::write(&fd, b"hidden").expect("written");
    assert_eq!(fs::read_dir(m.dir()).expect("open").count(), 0);
    let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
    rustix::fs::linkat(rustix::fs::CWD, name, rustix::fs::CWD, m.path("seen"), follow).expect("linked");
    assert_eq!(fs::read(m.path("seen")).expect("read"), b"hidden");
}

#[test]
fn a_directory_below_the_root_can_be_mounted() {
    let Some(m) = mounted_with("", "/deep/down", |_| {}) else { return };
    fs::write(m.path("f"), b"x").expect("written");
    fs::create_dir(m.path("d")).expect("made");
    assert_eq!(fs::read(m.path("d/../f")).expect("read"), b"x");
    let above = m.on_server(|lab, _| async move {
        use client::FileService;
        let ctx = client::Ctx::default();
        let found = lab.memory.lookup(&ctx, client::service::ROOT_INO, b"f").await.expect("an answer");
        found.entry().is_ok()
    });
    assert!(!above, "it lies below, not in the root");
    m.finish().expect("unmounted");
}

#[test]
fn others_get_in_and_are_checked() {
    let Some(m) = mounted_with("", "/", |_| {}) else { return };
    fs::write(m.path("mine"), b"secret").expect("written");
    fs::set_permissions(m.path("mine"), fs::Permissions::from_mode(0o600)).expect("set");
    fs::write(m.path("ours"), b"public").expect("written");
    fs::set_permissions(m.path("ours"), fs::Permissions::from_mode(0o644)).expect("set");
    // The directory above the mount is root's alone in some set-ups.
    let mut above = Some(m.dir().parent().expect("a parent"));
    while let Some(dir) = above.filter(|d| d.starts_with(std::env::temp_dir())) {
        assert!(fs::metadata(dir).expect("there").mode() & 0o001 != 0, "others reach {}", dir.display());
        above = dir.parent();
    }
    let cat = |name: &str| {
        use std::os::unix::process::CommandExt;
        let output =
            Command::new("cat").arg(m.path(name)).uid(65_534).gid(65_534).output().expect("cat runs");
        (output.status.success(), output.stdout)
    };
    assert_eq!(cat("ours"), (true, b"public".to_vec()));
    assert!(!cat("mine").0);
}

#[test]
fn mount_options_and_read_ahead_take_effect() {
    let Some(m) = mounted_with("ro,noatime,nodev,nosuid", "/", |_| {}) else { return };
    let refused = fs::write(m.path("f"), b"x").expect_err("read-only");
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let table = fs::read_to_string("/proc/self/mountinfo").expect("a table");
    let line = table.lines().find(|l| l.contains(m.dir().to_str().expect("text"))).expect("our mount");
    for part in ["ro,nosuid,nodev,noatime", "fuse.claudefs", "lab:/", "default_permissions", "allow_other"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    let device = line.split(' ').nth(2).expect("a device");
    let read_ahead = fs::read_to_string(format!("/sys/class/bdi/{device}/read_ahead_kb")).expect("a setting");
    assert_eq!(read_ahead.trim(), "1024");
}

#[test]
fn the_kernel_forgets_and_says_so() {
    let Some(m) = mounted() else { return };
    fs::write(m.path("f"), b"x").expect("written");
    fs::remove_file(m.path("f")).expect("removed");
    m.until("the kernel forgot the file", |m| m.lab(|lab| lab.memory.forgotten()) > 0);
    m.until("the inode is gone", |m| m.lab(|lab| lab.memory.inodes()) == 1);
}
