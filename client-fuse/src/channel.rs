//! The FUSE device: requests in, replies out.
//!
//! The device is read without blocking once the reactor says that it is ready, many requests to one awakening: a read that waits inside
//! the kernel could be left alone with nothing to read (a killed caller takes its request back), and would stop the whole thread. Each request is
//! read into the same large, warm buffer. Small ones are copied out; the payload of a large WRITE keeps the buffer and travels on as a slice of it.
//!
//! Replies are written at once, by one writev(2) that never waits: so a reply has left before its task does anything else, which is what
//! the order of replies and invalidations rests on (see [`crate::notify`]).
//!
//! Owns the device and the bound on payloads in flight. Must not know what requests mean.

use crate::abi::reply::OutHeader;
use crate::abi::{DecodeError, InHeader, READ_BUFFER, WRITE_PREFIX, opcode};
use hugepages::{Arena, Buf, Bytes};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno as OsErrno;
use std::cell::Cell;
use std::io::{self, IoSlice};
use wire::types::Errno;
use zerocopy::IntoBytes;

/// WRITE payloads up to this are copied into a buffer of their own size: that takes a few microseconds, while a slice would keep a whole MiB
/// for 4 KiB.
const COPY_MAX: usize = 64 << 10;
/// Pieces that a reply may have besides its header.
const PARTS_MAX: usize = 15;

/// Why no request can be read.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The mount has ended: stop.
    #[error("unmounted")]
    Unmounted,
    /// Somebody aborted the connection (`/sys/fs/fuse/connections`): stop.
    #[error("the FUSE connection was aborted")]
    Aborted,
    /// The device failed: stop.
    #[error("the FUSE device failed: {0}")]
    Device(#[source] io::Error),
}

/// A request as read, its parts owned.
#[derive(Debug)]
pub struct Message {
    /// Header.
    pub header: InHeader,
    /// What follows it; of a WRITE only the fixed part.
    pub body: Vec<u8>,
    /// Payload of a WRITE.
    pub payload: Bytes,
}

/// What one look at the device gave.
#[derive(Debug)]
pub enum Received {
    /// A request.
    Request(Message),
    /// Bytes that are no request; with the number to answer to where there is one.
    Bad(u64, DecodeError),
    /// Nothing more for now.
    Nothing,
}

/// The reading side.
#[derive(Debug)]
pub struct Reader {
    arena: Option<Arena>,
    buf: Option<Buf>,
}

impl Reader {
    /// Takes buffers from `arena` while it has room, then from the heap.
    #[must_use]
    pub fn new(arena: Option<Arena>) -> Self {
        Self { arena, buf: None }
    }

    fn buffer(&self, len: usize) -> Buf {
        let found = self.arena.as_ref().and_then(|arena| arena.alloc(len));
        found.unwrap_or_else(|| Buf::heap(len))
    }

    /// Reads one request if there is one.
    ///
    /// # Errors
    /// Where no further request will come.
    pub fn read(&mut self, device: impl AsFd) -> Result<Received, ChannelError> {
        let mut buf = match self.buf.take() {
            Some(buf) => buf,
            None => self.buffer(READ_BUFFER),
        };
        buf.set_len(READ_BUFFER);
        let got = loop {
            match rustix::io::read(&device, &mut buf[..]) {
                // ENOENT: the caller took the request back while it was being copied.
                Err(OsErrno::INTR | OsErrno::NOENT) => {}
                other => break other,
            }
        };
        let len = match got {
            Ok(len) => len,
            Err(OsErrno::AGAIN) => {
                self.buf = Some(buf);
                return Ok(Received::Nothing);
            }
            Err(OsErrno::NODEV) => return Err(ChannelError::Unmounted),
            Err(OsErrno::CONNABORTED) => return Err(ChannelError::Aborted),
            Err(e) => return Err(ChannelError::Device(e.into())),
        };
        Ok(match InHeader::decode(&buf[..len]) {
            Ok(header) => Received::Request(self.take(header, buf, len)),
            Err(error) => {
                // The number stands at 8, if that far was read.
                let unique =
                    buf[..len].get(8..16).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
                self.buf = Some(buf);
                Received::Bad(unique, error)
            }
        })
    }

    fn take(&mut self, header: InHeader, mut buf: Buf, len: usize) -> Message {
        let head = size_of::<InHeader>();
        if header.opcode != opcode::WRITE || len <= WRITE_PREFIX {
            let body = buf[head..len].to_vec();
            self.buf = Some(buf);
            return Message { header, body, payload: Bytes::new() };
        }
        let body = buf[head..WRITE_PREFIX].to_vec();
        let size = len - WRITE_PREFIX;
        let payload = if size > COPY_MAX {
            buf.set_len(len);
            buf.freeze().slice(WRITE_PREFIX..)
        } else {
            let mut own = self.buffer(size);
            own.set_len(size);
            own.copy_from_slice(&buf[WRITE_PREFIX..len]);
            self.buf = Some(buf);
            own.freeze()
        };
        Message { header, body, payload }
    }
}

/// The device as replies and notifications see it.
#[derive(Debug)]
pub struct Device {
    file: reactor::File,
    /// Replies that the kernel did not take, other than of requests that were taken back.
    refused: Cell<u64>,
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Device {
    /// Takes the descriptor of a mount.
    ///
    /// # Errors
    /// As fcntl(2).
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // A character device: the reactor makes it non-blocking.
        Ok(Self { file: reactor::File::from_fd(fd)?, refused: Cell::new(0) })
    }

    /// Waits until a request, or the end, can be read.
    ///
    /// # Errors
    /// As poll(2).
    pub async fn readable(&self) -> io::Result<()> {
        self.file.readable().await
    }

    /// Replies that the kernel refused.
    pub fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// Answers with an error.
    pub fn error(&self, unique: u64, errno: Errno) {
        let header = OutHeader { len: size_of::<OutHeader>() as u32, error: -i32::from(errno.0), unique };
        self.write(unique, &[IoSlice::new(header.as_bytes())]);
    }

    /// Answers with these bytes.
    pub fn reply(&self, unique: u64, parts: &[&[u8]]) {
        if parts.len() > PARTS_MAX {
            let whole = parts.concat();
            return self.reply(unique, &[&whole]);
        }
        let total: usize = size_of::<OutHeader>() + parts.iter().map(|p| p.len()).sum::<usize>();
        let header = OutHeader { len: total as u32, error: 0, unique };
        let mut slices = [IoSlice::new(&[]); PARTS_MAX + 1];
        slices[0] = IoSlice::new(header.as_bytes());
        let mut count = 1;
        for part in parts.iter().filter(|p| !p.is_empty()) {
            slices[count] = IoSlice::new(part);
            count += 1;
        }
        if !self.write(unique, &slices[..count]) {
            // The caller must not be left waiting for ever.
            self.error(unique, Errno::EIO);
        }
    }

    /// Whether the matter is settled: taken, or of no interest to the kernel any more.
    fn write(&self, unique: u64, slices: &[IoSlice<'_>]) -> bool {
        let wrote = rustix::io::retry_on_intr(|| rustix::io::writev(&self.file, slices));
        match wrote {
            // ENOENT: the request is not waited for any more. ENODEV and EPERM: the mount is gone.
            Ok(_)
            | Err(
                OsErrno::NOENT | OsErrno::NODEV | OsErrno::PERM | OsErrno::NOTCONN | OsErrno::CONNABORTED,
            ) => true,
            Err(error) => {
                self.refused.set(self.refused.get() + 1);
                tracing::error!(unique, %error, "the kernel refused a FUSE reply");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::request::WriteIn;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    /// A sequenced-packet socket keeps message boundaries as the device does.
    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None)
            .expect("a socket pair")
    }

    fn message(opcode: u32, body: &[u8]) -> Vec<u8> {
        let header = InHeader { len: (40 + body.len()) as u32, opcode, unique: 8, ..InHeader::default() };
        [header.as_bytes(), body].concat()
    }

    #[test]
    fn requests_are_taken_apart_and_the_buffer_is_reused() {
        let (device, kernel) = pair();
        let mut reader = Reader::new(None);
        assert!(matches!(reader.read(&device), Ok(Received::Nothing)));
        rustix::io::write(&kernel, &message(opcode::LOOKUP, b"name\0")).expect("sent");
        let Ok(Received::Request(lookup)) = reader.read(&device) else { panic!("a request") };
        assert_eq!((lookup.header.opcode, &lookup.body[..]), (opcode::LOOKUP, &b"name\0"[..]));
        for size in [1, COPY_MAX, COPY_MAX + 1, 100_000] {
            let mut body = WriteIn { size: size as u32, ..WriteIn::default() }.as_bytes().to_vec();
            body.resize(40 + size, 9);
            rustix::io::write(&kernel, &message(opcode::WRITE, &body)).expect("sent");
            let Ok(Received::Request(write)) = reader.read(&device) else { panic!("a request") };
            assert_eq!((write.body.len(), write.payload.len()), (40, size));
            assert!(write.payload.iter().all(|&b| b == 9));
            assert_eq!(reader.buf.is_none(), size > COPY_MAX, "a large payload keeps the buffer");
        }
    }

    #[test]
    fn what_is_no_request_is_told() {
        let (device, kernel) = pair();
        let mut reader = Reader::new(None);
        rustix::io::write(&kernel, &[1, 2, 3]).expect("sent");
        assert!(matches!(reader.read(&device), Ok(Received::Bad(0, DecodeError::Short { .. }))));
        let mut liar = message(opcode::LOOKUP, b"a\0");
        liar[0] += 1;
        rustix::io::write(&kernel, &liar).expect("sent");
        assert!(matches!(reader.read(&device), Ok(Received::Bad(8, DecodeError::Length { .. }))));
    }
}
