//! `docs/wire.md` is normative: its vectors and its opcode table are compared with the code.
#![expect(clippy::expect_used, reason = "a test ends at the first surprise")]

use wire::message::{
    AttrReply, ChunkWrite, Create, CreateFlags, Cred, Hello, Lookup, OpenFlags, Recall, Role, WriteFlags,
};
use wire::{
    Attr, Body, BodyBuf, ChunkKey, ClientId, Flags, Grant, HEADER_LEN, Header, Ino, LeaseMode, ObjectId,
    Opcode, Request, Slot, Status, Timestamp,
};

const DOC: &str = include_str!("../../../docs/wire.md");

fn frame(header: Header, body: &BodyBuf) -> Vec<u8> {
    let mut out = BodyBuf::new();
    out.put(body.body());
    out.into_frame(&header).expect("short")
}

fn request(header: Header, request: Request<'_>) -> Vec<u8> {
    let mut body = BodyBuf::new();
    request.encode(&mut body);
    frame(Header { opcode: request.opcode() as u16, ..header }, &body)
}

fn attr() -> Attr {
    Attr {
        ino: 42.into(),
        object: 7.into(),
        size: 4096.into(),
        blocks: 8.into(),
        change: 3.into(),
        mtime: Timestamp::new(1_700_000_000, 5),
        mode: 0o100_644.into(),
        nlink: 1.into(),
        uid: 1000.into(),
        gid: 1000.into(),
        ..Attr::default()
    }
}

fn vectors() -> Vec<(&'static str, Vec<u8>)> {
    let base =
        Header { client: ClientId(0x1122_3344_5566_7788), epoch: 3, ..Header::request(Opcode::KeepAlive) };
    let slotted = Header { slot: Slot(4), sequence: 9, ..base };
    let hello = Hello {
        min_version: 1,
        max_version: 1,
        role: Role::Client,
        key_id: *b"key-id-8",
        client: base.client,
        nonce: [0xAB; 32],
    };
    let create = Create {
        dir: Ino(1),
        mode: 0o100_666,
        umask: 0o022,
        rdev: 0,
        cred: Cred { uid: 1000, gid: 1000 },
        flags: CreateFlags::OPEN | CreateFlags::EXCL,
        open_flags: OpenFlags::READ | OpenFlags::WRITE,
        name: b"new",
        target: b"",
    };
    let key = ChunkKey { object: ObjectId(7), index: 2 };
    let write = ChunkWrite { ino: Ino(42), key, offset: 512, flags: WriteFlags::SYNC };
    let data = b"data";
    let with_payload = Header {
        payload_len: data.len() as u32,
        payload_crc: wire::crc32c(data),
        flags: Flags::PAYLOAD_CRC,
        ..slotted
    };
    let mut written = request(with_payload, write.into());
    written.extend_from_slice(data);
    let mut reply = BodyBuf::new();
    AttrReply { attr: attr(), grant: Grant::new(Ino(42), LeaseMode::Shared, 17) }.encode(&mut reply);
    let asked = Header { sequence: 5, opcode: Opcode::GetAttr as u16, ..base };
    let recall = Recall { ino: Ino(42), serial: 17, keep: LeaseMode::None };
    vec![
        ("hello", request(Header { version: 0, epoch: 0, ..base }, hello.into())),
        ("lookup", request(Header { sequence: 5, ..base }, Lookup { dir: Ino(1), name: b"etc" }.into())),
        ("create", request(slotted, create.into())),
        ("chunk_write", written),
        ("attr_reply", frame(Header { incarnation: 6, ..asked.reply(Status::Ok) }, &reply)),
        ("enoent", frame(asked.reply(Status::Errno(wire::Errno::ENOENT)), &BodyBuf::new())),
        ("recall", request(Header { flags: Flags::NOTIFY, ..base }, recall.into())),
    ]
}

fn hex(bytes: &[u8]) -> String {
    let lines: Vec<String> =
        bytes.chunks(32).map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>()).collect();
    lines.join("\n")
}

#[test]
fn the_document_s_vectors_are_ours() {
    let mut section = String::new();
    for (name, bytes) in vectors() {
        section += &format!("```vector {name}\n{}\n```\n", hex(&bytes));
        let head = bytes.first_chunk::<HEADER_LEN>().expect("a header");
        let header = Header::decode(head).expect("valid");
        let body = &bytes[HEADER_LEN..HEADER_LEN + usize::from(header.body_len)];
        Header::verify(head, body).expect("sound");
        header.verify_payload(&bytes[HEADER_LEN + body.len()..]).expect("sound");
    }
    assert!(DOC.ends_with(&section), "the document must end with:\n{section}");
}

#[test]
fn the_document_lists_every_opcode() {
    for &opcode in Opcode::ALL {
        let row = format!("| 0x{:04X} | {} |", opcode as u16, opcode.name());
        let line = DOC.lines().find(|line| line.starts_with(&row)).unwrap_or_else(|| panic!("no row {row}"));
        assert!(line.contains(&format!("| {:?} |", opcode.class()).to_lowercase()), "class in {line}");
    }
}
