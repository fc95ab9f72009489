//! Each kind of damage is found, and what can be corrected is, so that the next check finds nothing.

use super::*;
use crate::applier::{self, AllRows};
use crate::dirty::ChunkFact;
use crate::layout::encode_entry;
use crate::paths;
use crate::record::Record;
use wire::{ClientId, Ino, ObjectId, Slot, Timestamp};
use zerocopy::IntoBytes;

type Rows = BTreeMap<Key, Box<[u8]>>;

const DIR: Ino = Ino(10);
const FILE: Ino = Ino(11);
const LINK: Ino = Ino(12);
const OBJECT: ObjectId = ObjectId(5);

fn inode(rows: &mut Rows, ino: Ino, mode: u32, change: impl FnOnce(&mut InodeRow)) {
    let mut row = match rows.get(&Key::inode(ino)) {
        Some(v) => layout::inode(v).expect("a good row"),
        None => InodeRow::new(mode, 0, 0, Timestamp::new(1, 0)),
    };
    change(&mut row);
    rows.insert(Key::inode(ino), row.as_bytes().into());
}

fn name(rows: &mut Rows, dir: Ino, name: &[u8], ino: Ino, kind: FileKind, cookie: u64) {
    let (entry, position) = encode_entry(ino, kind, cookie, name);
    rows.insert(Key::dentry(dir, name), entry.as_bytes().into());
    rows.insert(Key::cookie(dir, cookie), position.into());
}

/// `/dir/file`, also called `/also`, of two chunks; `/dir/link`.
fn sound() -> Rows {
    let mut rows = Rows::new();
    for record in crate::mkfs([7; 16], Timestamp::new(1, 0)) {
        rows.extend(record.rows().filter_map(|(k, v)| Some((Key::raw(k), v?.into()))));
    }
    inode(&mut rows, ROOT_INO, 0, |r| {
        (r.nlink, r.entries, r.next_cookie) = (3.into(), 2.into(), 5.into());
    });
    inode(&mut rows, DIR, 0o040_755, |r| {
        (r.nlink, r.entries, r.next_cookie, r.parent) = (2.into(), 2.into(), 5.into(), ROOT_INO.0.into());
    });
    inode(&mut rows, FILE, 0o100_644, |r| {
        (r.nlink, r.object, r.chunks, r.size) = (2.into(), OBJECT.0.into(), 3.into(), (2 << 20).into());
        r.blocks = 4096.into();
    });
    inode(&mut rows, LINK, 0o120_777, |r| r.size = 4.into());
    rows.insert(Key::symlink(LINK), b"file"[..].into());
    name(&mut rows, ROOT_INO, b"dir", DIR, FileKind::Directory, 3);
    name(&mut rows, ROOT_INO, b"also", FILE, FileKind::Regular, 4);
    name(&mut rows, DIR, b"file", FILE, FileKind::Regular, 3);
    name(&mut rows, DIR, b"link", LINK, FileKind::Symlink, 4);
    for (counter, n) in [(Counter::Ino, 20_u64), (Counter::Object, 20), (Counter::Inodes, 4)] {
        rows.insert(Key::counter(counter), n.to_le_bytes().into());
    }
    rows
}

fn chunks() -> Vec<(ObjectId, ChunkFact)> {
    let fact = |index| ChunkFact { index, len: 1 << 20, mtime: Timestamp::default(), blocks: 2048 };
    vec![(OBJECT, fact(0)), (OBJECT, fact(1))]
}

fn check_rows(rows: &AllRows, chunks: &[(ObjectId, ChunkFact)]) -> Report {
    let mut check = Check::default();
    rows.all(|k, v| {
        check.row(k, v);
        true
    })
    .expect("read");
    check.rows_done();
    chunks.iter().for_each(|(object, fact)| check.chunk(*object, fact));
    check.chunks_done(true);
    check.finish()
}

fn look<T>(records: &[Record], look: impl FnOnce(&AllRows) -> T) -> T {
    let volume = Box::new(redb::backends::InMemoryBackend::new());
    applier::look(volume, records, |rows, last| {
        assert_eq!(last, records.len() as u64);
        Ok(look(rows))
    })
    .expect("looked")
}

fn records(rows: &Rows) -> Vec<Record> {
    vec![Record::encode(1, rows.iter().map(|(k, v)| (k, Some(&v[..]))))]
}

/// The classes of what is found, worst first, and of what is left after the corrections.
fn found(rows: &Rows, chunks: &[(ObjectId, ChunkFact)]) -> (Vec<(Class, bool)>, Vec<Class>) {
    let mut all = records(rows);
    let (report, more) = look(&all, |rows| {
        let report = check_rows(rows, chunks);
        let more = corrections(rows, &report, 1).expect("read");
        (report, more)
    });
    all.extend(more);
    let mut chunks = chunks.to_vec();
    chunks.retain(|(object, fact)| !report.orphans.contains(&(*object, fact.index)));
    let left = look(&all, |rows| check_rows(rows, &chunks));
    let seen = report.problems.iter().map(|p| (p.class, p.fixable)).collect();
    (seen, left.problems.iter().map(|p| p.class).collect())
}

#[track_caller]
fn corrected(rows: &Rows, class: Class) {
    let (seen, left) = found(rows, &chunks());
    assert!(seen.contains(&(class, true)), "{seen:?}");
    assert_eq!(left, [], "{seen:?}");
}

#[test]
fn a_sound_namespace_is_clean() {
    assert_eq!(found(&sound(), &chunks()), (vec![], vec![]));
}

#[test]
fn wrong_counts_are_corrected() {
    for change in [
        |r: &mut InodeRow| r.nlink = 9.into(),
        |r: &mut InodeRow| r.xattr_list = 9.into(),
        |r: &mut InodeRow| r.blocks = 1.into(),
    ] {
        let mut rows = sound();
        inode(&mut rows, FILE, 0, change);
        corrected(&rows, Class::Count);
    }
    let mut rows = sound();
    inode(&mut rows, DIR, 0, |r| r.entries = 7.into());
    corrected(&rows, Class::Count);
    for counter in [Counter::Ino, Counter::Object, Counter::Inodes] {
        let mut rows = sound();
        rows.insert(Key::counter(counter), 2_u64.to_le_bytes().into());
        corrected(&rows, Class::Count);
    }
}

#[test]
fn rows_that_belong_to_nothing_are_removed() {
    let replay = layout::ReplayRow { layout: layout::LAYOUT.into(), zero: [0; 6], sequence: 3.into() };
    let mut reply = replay.as_bytes().to_vec();
    crate::reply::encode(Ok(&crate::Reply::Done), &mut reply);
    for (key, value) in [
        (Key::xattr(Ino(15), b"user.x"), &b"1"[..]),
        (Key::symlink(Ino(15)), b"x"),
        (Key::orphan(Ino(15)), b""),
        (Key::orphan(FILE), b""),
        (Key::chunk_map(ObjectId(9), 1), &[1; layout::PAGE_BYTES]),
        (Key::replay(ClientId(4), Slot(1)), &reply),
    ] {
        let mut rows = sound();
        rows.insert(key.clone(), value.into());
        corrected(&rows, Class::Leftover);
    }
    // Deleted, but its mark was lost: the next start frees it.
    let mut rows = sound();
    inode(&mut rows, Ino(14), 0o100_644, |r| (r.nlink, r.object) = (0.into(), 6.into()));
    rows.insert(Key::counter(Counter::Inodes), 5_u64.to_le_bytes().into());
    corrected(&rows, Class::Leftover);
}

#[test]
fn listings_follow_names() {
    let mut rows = sound();
    rows.remove(&Key::cookie(DIR, 3));
    corrected(&rows, Class::Name);
    let mut rows = sound();
    rows.insert(Key::dentry(DIR, b"link"), encode_entry(LINK, FileKind::Fifo, 4, b"").0.as_bytes().into());
    corrected(&rows, Class::Name);
    let mut rows = sound();
    rows.insert(Key::dentry(DIR, b"link"), encode_entry(LINK, FileKind::Symlink, 3, b"").0.as_bytes().into());
    rows.remove(&Key::cookie(DIR, 4));
    corrected(&rows, Class::Name);
    let mut rows = sound();
    inode(&mut rows, DIR, 0, |r| r.parent = DIR.0.into());
    corrected(&rows, Class::Name);
}

#[test]
fn what_would_have_to_be_guessed_is_left() {
    // A name that leads nowhere.
    let mut rows = sound();
    rows.remove(&Key::inode(LINK));
    rows.remove(&Key::symlink(LINK));
    let (seen, left) = found(&rows, &chunks());
    assert!(seen.contains(&(Class::Name, false)) && left == [Class::Name], "{seen:?} {left:?}");
    // A file without a name.
    let mut rows = sound();
    inode(&mut rows, Ino(14), 0o100_644, |r| r.object = 6.into());
    rows.insert(Key::counter(Counter::Inodes), 5_u64.to_le_bytes().into());
    assert_eq!(found(&rows, &chunks()), (vec![(Class::Name, false)], vec![Class::Name]));
    // While a row can't be used, nothing that is derived from rows is corrected.
    let mut rows = sound();
    inode(&mut rows, FILE, 0, |r| r.nlink = 9.into());
    rows.insert(Key::inode(LINK), b"short"[..].into());
    let mut more = chunks();
    more.push((ObjectId(9), more[0].1));
    let (seen, left) = found(&rows, &more);
    assert!(seen.iter().all(|(_, fixable)| !fixable) && seen.len() == left.len(), "{seen:?}");
    assert!(seen.contains(&(Class::Row, false)));
}

#[test]
fn chunks_are_held_against_maps() {
    let mut more = chunks();
    more.push((ObjectId(9), more[0].1));
    assert_eq!(found(&sound(), &more), (vec![(Class::OrphanChunk, true)], vec![]));
    let (seen, left) = found(&sound(), &chunks()[..1]);
    assert_eq!(seen[0], (Class::LostChunk, false));
    assert_eq!(left, [Class::LostChunk], "and the count of blocks is corrected");
    // What the next start works off or works out is no damage.
    let free = |kind: u16, object: ObjectId, keep: u64| FreeRow {
        layout: layout::LAYOUT.into(),
        kind: kind.into(),
        map_pages: 0.into(),
        object: object.0.into(),
        chunks: 3.into(),
        keep: keep.into(),
        from: (2 << 20).into(),
        ino: FILE.0.into(),
    };
    let mut rows = sound();
    rows.insert(Key::free(1), free(FreeRow::WHOLE, ObjectId(9), 0).as_bytes().into());
    assert_eq!(found(&rows, &more), (vec![], vec![]));
    let mut rows = sound();
    rows.insert(Key::free(1), free(FreeRow::CUT, OBJECT, 1 << 20).as_bytes().into());
    for n in 1..3 {
        assert_eq!(found(&rows, &chunks()[..n]), (vec![], vec![]));
    }
    let mut rows = sound();
    rows.insert(Key::dirty(FILE), Box::default());
    for n in 0..3 {
        assert_eq!(found(&rows, &chunks()[..n]), (vec![], vec![]));
    }
}

#[test]
fn inodes_have_paths() {
    let rows = sound();
    let all = records(&rows);
    look(&all, |rows| {
        let owners = paths::owners(rows, &HashSet::from([OBJECT.0, 77])).expect("read");
        assert_eq!(owners, HashMap::from([(OBJECT.0, FILE.0)]));
        let wanted = HashSet::from([FILE.0, LINK.0, ROOT_INO.0, 99]);
        let found = paths::find(rows, &wanted).expect("read");
        assert_eq!(found[&LINK.0].shown(), "/dir/link");
        assert_eq!(found[&ROOT_INO.0].shown(), "/");
        assert_eq!(found[&99].shown(), "(no name)");
        assert_eq!(found[&FILE.0].shown(), "/also (one of 2 names)");
    });
    assert_eq!(paths::shown(b"a\nb\xff"), "a\\nb\u{fffd}");
}
