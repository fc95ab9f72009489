//! Bytes to frames, without I/O.
//!
//! Owns the buffers that bytes are received into, and lends them. Header and body are read in a small staging buffer; what a
//! payload still lacks then goes straight into its own aligned buffer. Must not know a socket, nor what a frame means.

use crate::error::CloseReason;
use hugepages::{Buf, Bytes};
use std::ops::Range;
use wire::{HANDSHAKE_VERSION, HEADER_LEN, Header, limits::MAX_BODY};

/// Bytes received at a time without knowing what they are: at most this much of a payload is copied. One page, so that a
/// few small requests come with one system call and a 4 KiB write costs one small copy.
const GREEDY: usize = 4096;

/// A frame as it came, checksums verified.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) header: Header,
    pub(crate) body: Bytes,
    pub(crate) payload: Option<Bytes>,
}

/// What is needed to go on.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing: here is a frame.
    Frame(Frame),
    /// Bytes into `range` of `buf`, from its start on: any number of them where `any` is set, which is the case between two
    /// frames, and otherwise all. To be given back by [`Cutter::filled`].
    Read { buf: Buf, range: Range<usize>, any: bool },
    /// A buffer for so many bytes of payload, by [`Cutter::memory`].
    Memory(usize),
}

enum State {
    Head,
    Body(Header),
    /// Needs memory for its payload.
    Bare(Header, Bytes),
    /// Filled so far.
    Payload(Header, Bytes, Option<Buf>, usize),
}

/// See the module.
pub(crate) struct Cutter {
    stage: Option<Buf>,
    from: usize,
    to: usize,
    state: State,
    /// The one that frames must have.
    pub(crate) version: u8,
}

const GIVEN_UP: CloseReason = CloseReason::Protocol("an earlier receive was given up");

impl Cutter {
    pub(crate) fn new() -> Self {
        let mut stage = Buf::heap(HEADER_LEN + MAX_BODY);
        stage.set_len(stage.capacity());
        Self { stage: Some(stage), from: 0, to: 0, state: State::Head, version: HANDSHAKE_VERSION }
    }

    /// Goes on. `admit` sees a header before anything behind it is asked for.
    pub(crate) fn step(
        &mut self,
        admit: impl FnOnce(&Header) -> Result<(), CloseReason>,
    ) -> Result<Step, CloseReason> {
        if matches!(self.state, State::Head) {
            if self.to - self.from < HEADER_LEN {
                return self.read(HEADER_LEN);
            }
            let header = Header::decode(&self.head()?)?;
            if header.version != self.version {
                return Err(CloseReason::Protocol("frame is of another version than agreed"));
            }
            admit(&header)?;
            self.state = State::Body(header);
        }
        if let State::Body(header) = self.state {
            let len = HEADER_LEN + usize::from(header.body_len);
            if self.to - self.from < len {
                return self.read(len);
            }
            let head = self.head()?;
            let body = Bytes::copy_of(&self.staged(len)?[HEADER_LEN..]);
            Header::verify(&head, &body)?;
            self.from += len;
            if header.payload_len == 0 {
                self.state = State::Head;
                return Ok(Step::Frame(Frame { header, body, payload: None }));
            }
            self.state = State::Bare(header, body);
        }
        match std::mem::replace(&mut self.state, State::Head) {
            State::Bare(header, body) => {
                self.state = State::Bare(header, body);
                Ok(Step::Memory(header.payload_len as usize))
            }
            State::Payload(header, body, Some(buf), have) if have == header.payload_len as usize => {
                header.verify_payload(&buf)?;
                Ok(Step::Frame(Frame { header, body, payload: Some(buf.freeze()) }))
            }
            State::Payload(header, body, Some(buf), have) => {
                self.state = State::Payload(header, body, None, have);
                Ok(Step::Read { buf, range: have..header.payload_len as usize, any: false })
            }
            _ => Err(GIVEN_UP),
        }
    }

    /// What was asked for by [`Step::Memory`], of exactly that length.
    pub(crate) fn memory(&mut self, mut buf: Buf) {
        let State::Bare(header, body) = std::mem::replace(&mut self.state, State::Head) else { return };
        let have = buf.len().min(self.to - self.from);
        if let Ok(staged) = self.staged(have) {
            buf[..have].copy_from_slice(staged);
        }
        self.from += have;
        self.state = State::Payload(header, body, Some(buf), have);
    }

    /// Gives a buffer back with `count` more bytes in it.
    pub(crate) fn filled(&mut self, mut buf: Buf, count: usize) {
        match &mut self.state {
            State::Payload(_, _, slot @ None, have) => {
                *have += count;
                *slot = Some(buf);
            }
            _ => {
                buf.set_len(buf.capacity());
                self.to += count;
                self.stage = Some(buf);
            }
        }
    }

    /// Asks for what makes `len` bytes stand in the staging buffer.
    fn read(&mut self, len: usize) -> Result<Step, CloseReason> {
        let mut buf = self.stage.take().ok_or(GIVEN_UP)?;
        buf.copy_within(self.from..self.to, 0);
        self.to -= self.from;
        self.from = 0;
        let any = self.to == 0;
        let range = self.to..if any { GREEDY } else { len };
        buf.set_len(range.end);
        Ok(Step::Read { buf, range, any })
    }

    fn staged(&self, len: usize) -> Result<&[u8], CloseReason> {
        self.stage.as_ref().and_then(|stage| stage.get(self.from..self.from + len)).ok_or(GIVEN_UP)
    }

    fn head(&self) -> Result<[u8; HEADER_LEN], CloseReason> {
        self.staged(HEADER_LEN)?.first_chunk().copied().ok_or(GIVEN_UP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wire::{BodyBuf, Flags, Opcode};

    /// A sound frame.
    fn frame(body: &[u8], payload: &[u8], crc: bool) -> Vec<u8> {
        let mut out = BodyBuf::new();
        out.put(body);
        let parts = [Bytes::copy_of(payload)];
        let header = Header { sequence: body.len() as u64, ..Header::request(Opcode::Append) };
        let parts = crate::link::assemble(header, out, &parts[..usize::from(!payload.is_empty())], crc);
        parts.expect("it fits").iter().flat_map(|part| part.to_vec()).collect()
    }

    /// Header, body, payload.
    type Whole = (Header, Vec<u8>, Vec<u8>);

    /// All frames of `bytes`, which come in pieces of `sizes`, and how it ended.
    fn cut(bytes: &[u8], sizes: &[usize]) -> (Vec<Whole>, Option<CloseReason>) {
        let mut cutter = Cutter { version: 1, ..Cutter::new() };
        let (mut at, mut sizes, mut frames) = (0, sizes.iter().copied().cycle(), Vec::new());
        loop {
            match cutter.step(|_| Ok(())) {
                Err(reason) => return (frames, Some(reason)),
                Ok(Step::Frame(f)) => {
                    frames.push((f.header, f.body.to_vec(), f.payload.unwrap_or_default().to_vec()));
                }
                Ok(Step::Memory(len)) => cutter.memory(Buf::heap(len)),
                Ok(Step::Read { mut buf, range, .. }) => {
                    let size = sizes.next().unwrap_or(1).clamp(1, range.len());
                    let piece = &bytes[at..bytes.len().min(at + size)];
                    if piece.is_empty() {
                        return (frames, None);
                    }
                    at += piece.len();
                    buf[range.start..range.start + piece.len()].copy_from_slice(piece);
                    cutter.filled(buf, piece.len());
                }
            }
        }
    }

    fn contents() -> impl Strategy<Value = (Vec<u8>, Vec<u8>, bool)> {
        let bytes = |most| prop::collection::vec(any::<u8>(), 0..most);
        (prop_oneof![bytes(40), bytes(MAX_BODY)], prop_oneof![bytes(1), bytes(9000)], any::<bool>())
    }

    proptest! {
        #[test]
        fn any_split_of_the_bytes_gives_the_same_frames(
            frames in prop::collection::vec(contents(), 1..6),
            sizes in prop::collection::vec(prop_oneof![1usize..4, 1usize..70, 1usize..10_000], 1..20),
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(|(b, p, crc)| frame(b, p, *crc)).collect();
            let (got, end) = cut(&bytes, &sizes);
            prop_assert!(end.is_none(), "{end:?}");
            prop_assert_eq!(got.len(), frames.len());
            for ((header, body, payload), (b, p, crc)) in got.iter().zip(&frames) {
                prop_assert_eq!((body, payload, header.sequence), (b, p, b.len() as u64));
                prop_assert_eq!(header.flags.has(Flags::PAYLOAD_CRC), *crc && !p.is_empty());
            }
        }

        #[test]
        fn a_changed_byte_ends_the_connection_and_no_frame_before_it_is_lost(
            before in contents(), hit in contents(),
            at: prop::sample::Index, bit in 0u8..8, sizes in prop::collection::vec(1usize..300, 1..9),
        ) {
            let good = frame(&before.0, &before.1, before.2);
            // Without a checksum of its own a payload is TCP's to keep.
            let mut bad = frame(&hit.0, &hit.1, true);
            let at = at.index(bad.len());
            bad[at] ^= 1 << bit;
            let (got, end) = cut(&[good, bad].concat(), &sizes);
            prop_assert_eq!(got.len(), 1);
            // A length that grew waits for bytes that never come; everything else is found out.
            prop_assert!(end.is_some() || (38..40).contains(&at), "byte {}", at);
        }

        #[test]
        fn garbage_ends_the_connection_or_waits_but_never_panics(
            garbage in prop::collection::vec(any::<u8>(), 0..9000), fix: bool,
            sizes in prop::collection::vec(1usize..5000, 1..9),
        ) {
            let mut bytes = garbage;
            if fix && bytes.len() >= HEADER_LEN {
                // A header that is sound but for its lengths.
                let head = frame(&[], &[], false);
                bytes[..HEADER_LEN].copy_from_slice(&head);
                bytes[38..44].copy_from_slice(&[0x11, 0x22, 0x33, 0x44, 0x55, 0x66]);
            }
            let (frames, end) = cut(&bytes, &sizes);
            prop_assert!(frames.is_empty());
            prop_assert!(end.is_some() || bytes.len() < HEADER_LEN || fix);
        }
    }
}
