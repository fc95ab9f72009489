//! Cutting at chunk boundaries, ends of files, holes, stale objects.

use super::caching::Quiet;
use super::fake::Fake;
use crate::service::*;
use hugepages::Bytes;
use std::rc::Rc;
use wire::Opcode;
use wire::types::CHUNK_SIZE;

pub(super) fn opened(data: &[u8], direct: bool) -> (Rc<Fake>, crate::Client, Handle) {
    let fake = Fake::new();
    fake.model.borrow_mut().add(Ino(5), FileKind::Regular, data);
    let client = fake.client();
    client.set_invalidator(Rc::new(Quiet));
    let flags = OpenFlags { read: true, write: true, direct, ..OpenFlags::default() };
    let handle = fake.run(client.open(&Ctx::default(), Ino(5), flags)).expect("opened").handle;
    (fake, client, handle)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

#[test]
fn a_read_over_a_boundary_is_two_pieces_uncopied() {
    let data = pattern(CHUNK_SIZE as usize + 5000);
    let (fake, client, h) = opened(&data, true);
    let from = CHUNK_SIZE - 100;
    let read = fake.run(client.read(&Ctx::default(), Ino(5), h, from, 300)).expect("read");
    assert_eq!(read.to_vec(), &data[from as usize..from as usize + 300]);
    assert_eq!(read.data.len(), 2);
    let chunks = &fake.model.borrow().chunks;
    let read = Opcode::ChunkRead;
    assert_eq!(chunks[..], [(read, 0, from as u32, 100, false), (read, 1, 0, 200, false)]);
}

#[test]
fn the_end_of_the_file_ends_a_read_and_holes_are_zeros() {
    let data = pattern(10_000);
    let (fake, client, h) = opened(&data, false);
    let read =
        |from, len| fake.run(client.read(&Ctx::default(), Ino(5), h, from, len)).expect("read").to_vec();
    assert_eq!(read(9_990, 4096), &data[9_990..]);
    assert!(read(10_000, 10).is_empty() && read(CHUNK_SIZE * 3, 10).is_empty());
    fake.model.borrow_mut().files.get_mut(&Ino(5)).expect("there").hole_from = Some(6_000);
    let mut expect = data[5_000..6_000].to_vec();
    expect.resize(5_000, 0);
    assert_eq!(read(5_000, 20_000), expect);
    // Cached handles ask for a lease with the data.
    assert!(fake.model.borrow().chunks.iter().all(|c| c.4));
}

#[test]
fn a_write_over_a_boundary_arrives_whole_and_the_size_is_known() {
    let (fake, client, h) = opened(b"", false);
    let data = pattern(2 * CHUNK_SIZE as usize + 17);
    let from = CHUNK_SIZE / 2;
    let ctx = Ctx::default();
    let w = fake.run(client.write(&ctx, Ino(5), h, from, Bytes::from(data.clone()), WriteFlags::default()));
    assert_eq!(w.expect("written").len as usize, data.len());
    assert_eq!(fake.model.borrow().files[&Ino(5)].data[from as usize..], data[..]);
    assert_eq!(fake.model.borrow().count(Opcode::ChunkWrite), 3);
    let size = fake.run(client.getattr(&ctx, Ino(5))).expect("attr").attr.size.get();
    assert_eq!((size, fake.model.borrow().count(Opcode::GetAttr)), (from + data.len() as u64, 0));
    let max = crate::stripe::MAX_FILE;
    let one = Bytes::from_static(b"1");
    let w = fake.run(client.write(&ctx, Ino(5), h, max, one, WriteFlags::default()));
    assert_eq!(w.map(|_| ()), Err(Errno::EFBIG));
}

#[test]
fn a_stale_object_is_asked_for_again() {
    let (fake, client, h) = opened(b"before", false);
    let ctx = Ctx::default();
    fake.model.borrow_mut().files.get_mut(&Ino(5)).expect("there").attr.object = 77.into();
    assert_eq!(fake.run(client.read(&ctx, Ino(5), h, 0, 100)).expect("read").to_vec(), b"before");
    fake.model.borrow_mut().files.get_mut(&Ino(5)).expect("there").attr.object = 78.into();
    let data = Bytes::from_static(b"after!");
    fake.run(client.write(&ctx, Ino(5), h, 0, data, WriteFlags::default())).expect("written");
    assert_eq!(fake.model.borrow().files[&Ino(5)].data, b"after!");
    assert_eq!(fake.model.borrow().count(Opcode::GetAttr), 2);
}

#[test]
fn appends_go_to_the_end_of_the_moment() {
    let (fake, client, h) = opened(b"0123", false);
    let ctx = Ctx::default();
    let append = |data: Vec<u8>| {
        fake.run(client.append(&ctx, Ino(5), h, Bytes::from(data), WriteFlags::default())).expect("appended")
    };
    let a = append(b"45".to_vec());
    assert_eq!((a.offset, a.len), (4, 2));
    let big = pattern(CHUNK_SIZE as usize + 10);
    let a = append(big.clone());
    assert_eq!((a.offset, a.len as usize), (6, big.len()));
    assert_eq!(fake.model.borrow().files[&Ino(5)].data[6..], big[..]);
}

#[test]
fn wrong_handles_are_refused() {
    let (fake, client, h) = opened(b"x", false);
    let ctx = Ctx::default();
    assert_eq!(fake.run(client.read(&ctx, Ino(6), h, 0, 1)).map(|_| ()), Err(Errno::EBADF));
    fake.run(client.close(&ctx, Ino(5), h, None)).expect("closed");
    assert_eq!(fake.run(client.read(&ctx, Ino(5), h, 0, 1)).map(|_| ()), Err(Errno::EBADF));
    assert_eq!(fake.model.borrow().count(Opcode::Close), 1);
}
