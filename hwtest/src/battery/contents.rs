//! File contents: offsets, holes, direct and synchronous I/O, maps.

use super::{fails, program};
use crate::rng;
use anyhow::{Result, ensure};
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

const MIB: u64 = 1 << 20;

fn read_write(path: &Path) -> Result<File> {
    Ok(File::options().create(true).truncate(false).read(true).write(true).open(path)?)
}

fn piece(file: &File, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut data = vec![0xAA; len];
    file.read_exact_at(&mut data, offset)?;
    Ok(data)
}

/// Pieces of all sizes at all offsets, also across the ends of chunks, against a copy in memory; read through another
/// descriptor and again after a sync.
pub(super) fn write_and_read(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    let file = read_write(&path)?;
    let mut copy: Vec<u8> = Vec::new();
    let mut rng = rng::Rng::new(7);
    for n in 0..200 {
        let offset = if n % 5 == 0 { (1 + rng.below(3)) * MIB - rng.below(5000) } else { rng.below(3 * MIB) };
        let data = rng::bytes(rng.draw(), usize::try_from(1 + rng.below(60_000))?);
        let start = usize::try_from(offset)?;
        file.write_all_at(&data, offset)?;
        copy.resize(copy.len().max(start + data.len()), 0);
        copy[start..start + data.len()].copy_from_slice(&data);
    }
    ensure!(fs::read(&path)? == copy, "contents differ from what was written");
    file.sync_all()?;
    ensure!(fs::read(&path)? == copy, "contents differ after fsync");
    ensure!(file.metadata()?.len() == copy.len() as u64, "size is the end of the last byte");
    ensure!(file.read_at(&mut [0; 10], copy.len() as u64 + 5)? == 0, "nothing is read behind the end");
    Ok(())
}

pub(super) fn append_and_truncate(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    let mut first = File::options().create(true).append(true).open(&path)?;
    let mut second = File::options().append(true).open(&path)?;
    for n in 0..50 {
        write!(if n % 2 == 0 { &mut first } else { &mut second }, "{n:04}")?;
    }
    let expected: String = (0..50).map(|n| format!("{n:04}")).collect();
    ensure!(fs::read_to_string(&path)? == expected, "appends follow each other");
    first.set_len(10)?;
    first.set_len(20)?;
    let data = fs::read(&path)?;
    ensure!(data[..10] == expected.as_bytes()[..10] && data[10..] == [0; 10], "grown space reads as zeros");
    first.set_len(MIB * 2 + 17)?;
    first.write_all(b"end")?;
    let file = File::open(&path)?;
    ensure!(piece(&file, MIB * 2 + 17, 3)? == b"end" && piece(&file, MIB, 4096)? == [0; 4096], "far end");
    first.set_len(0)?;
    ensure!(fs::read(&path)?.is_empty(), "truncated to nothing");
    fails("truncate of a directory", Errno::ISDIR, File::options().write(true).open(dir))?;
    Ok(())
}

pub(super) fn sparse(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    let file = read_write(&path)?;
    file.write_all_at(b"far", 10 << 30)?;
    let meta = file.metadata()?;
    ensure!(meta.len() == (10 << 30) + 3, "10 GiB and three bytes");
    ensure!(meta.blocks() * 512 < 16 * MIB, "a hole takes no space ({} blocks)", meta.blocks());
    ensure!(piece(&file, 5 << 30, 100)? == [0; 100], "a hole reads as zeros");
    file.write_all_at(&[1; 4096], 8 * MIB)?;
    file.sync_all()?;
    let data = rustix::fs::seek(&file, SeekFrom::Data(0))?;
    ensure!(data > 4 * MIB && data <= 8 * MIB, "the first data is found at {data}");
    let hole = rustix::fs::seek(&file, SeekFrom::Hole(8 * MIB))?;
    ensure!((8 * MIB + 4096..=10 << 30).contains(&hole), "a hole is found at {hole}");
    let end = rustix::fs::seek(&file, SeekFrom::Hole(10 << 30))?;
    ensure!(end == (10 << 30) + 3, "the end counts as a hole");
    ensure!(rustix::fs::seek(&file, SeekFrom::Data(11 << 30)) == Err(Errno::NXIO), "no data behind the end");
    Ok(())
}

pub(super) fn allocate(dir: &Path) -> Result<()> {
    let file = read_write(&dir.join("file"))?;
    file.write_all_at(&vec![7; 3 << 20], 0)?;
    let keep = FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | keep, 100, 2 * MIB)?;
    ensure!(
        piece(&file, 99, 2)? == [7, 0] && piece(&file, 2 * MIB + 99, 2)? == [0, 7],
        "a hole has exact ends"
    );
    ensure!(file.metadata()?.len() == 3 * MIB, "a hole leaves the size alone");
    rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, 3 * MIB - 10, 100)?;
    ensure!(file.metadata()?.len() == 3 * MIB + 90, "zeroing past the end grows");
    rustix::fs::fallocate(&file, keep, 0, 8 * MIB)?;
    ensure!(file.metadata()?.len() == 3 * MIB + 90, "KEEP_SIZE keeps it");
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 4 * MIB)?;
    ensure!(
        file.metadata()?.len() == 4 * MIB && piece(&file, 3 * MIB + 90, 10)? == [0; 10],
        "allocation grows"
    );
    Ok(())
}

/// Direct I/O wants aligned memory: the aligned part of a larger vector.
fn aligned(space: &mut [u8], len: usize) -> &mut [u8] {
    let skip = space.as_ptr().align_offset(4096);
    &mut space[skip..skip + len]
}

pub(super) fn direct(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    let direct = i32::try_from(OFlags::DIRECT.bits())?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .custom_flags(direct)
        .open(&path)?;
    let len = 1 << 20;
    let mut space = vec![0; len + 4096];
    let buffer = aligned(&mut space, len);
    buffer.copy_from_slice(&rng::bytes(3, len));
    file.write_all_at(buffer, 0)?;
    file.write_all_at(&buffer[..4096], MIB + 8192)?;
    let expected = buffer.to_vec();
    ensure!(fs::read(&path)?[..len] == expected, "buffered reads see direct writes");
    File::options().write(true).open(&path)?.write_all_at(b"buffered", 4096)?;
    let buffer = aligned(&mut space, len);
    file.read_exact_at(buffer, 0)?;
    ensure!(&buffer[4096..4104] == b"buffered", "direct reads see buffered writes");
    ensure!(buffer[..4096] == expected[..4096], "direct reads see direct writes");
    Ok(())
}

pub(super) fn synchronous(dir: &Path) -> Result<()> {
    for (name, flag) in [("sync", OFlags::SYNC), ("dsync", OFlags::DSYNC)] {
        let path = dir.join(name);
        let mut file = File::options()
            .create(true)
            .append(true)
            .custom_flags(i32::try_from(flag.bits())?)
            .open(&path)?;
        for n in 0..20 {
            writeln!(file, "{n}")?;
        }
        ensure!(fs::read_to_string(&path)?.lines().count() == 20, "all lines are there");
    }
    File::open(dir)?.sync_all()?;
    Ok(())
}

pub(super) fn copy_range(dir: &Path) -> Result<()> {
    let data = rng::bytes(11, 3 << 20);
    fs::write(dir.join("from"), &data)?;
    let (from, to) = (File::open(dir.join("from"))?, read_write(&dir.join("to"))?);
    let (mut source, mut target) = (1000_u64, 77_u64);
    let mut left = data.len() - 1000;
    while left > 0 {
        let n = rustix::fs::copy_file_range(&from, Some(&mut source), &to, Some(&mut target), left)?;
        ensure!(n > 0, "the copy ends early, {left} bytes before the end");
        left -= n;
    }
    let copy = fs::read(dir.join("to"))?;
    ensure!(copy[..77] == [0; 77] && copy[77..] == data[1000..], "the copy equals its source");
    Ok(())
}

/// Shared maps through a program that has them in its standard library: what one process stores, another loads.
pub(super) fn maps(dir: &Path) -> Result<()> {
    const SCRIPT: &str = r#"
import mmap, os, sys
with open("file", "w+b") as f:
    f.truncate(3 * 1024 * 1024)
    m = mmap.mmap(f.fileno(), 0)
    m[0:5] = b"start"
    m[1048574:1048579] = b"chunk"
    m.flush()
    assert os.pread(f.fileno(), 5, 1048574) == b"chunk"
    pid = os.fork()
    if pid == 0:
        m[2000000:2000005] = b"child"
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert m[2000000:2000005] == b"child"
    os.pwrite(f.fileno(), b"write", 100)
    assert m[100:105] == b"write"
"#;
    program(dir, "python3", &["-c", SCRIPT])?;
    let data = fs::read(dir.join("file"))?;
    ensure!(&data[..5] == b"start" && &data[1_048_574..1_048_579] == b"chunk", "stores reach the file");
    ensure!(&data[2_000_000..2_000_005] == b"child", "another process's stores reach the file");
    Ok(())
}
