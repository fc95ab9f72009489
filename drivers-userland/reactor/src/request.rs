//! What can be asked of the kernel, each request together with everything its entry points at.
//!
//! Invariant: memory that an entry names lies on the heap or in an arena, and its owner is in the request's
//! [`Hold`]. The slab keeps the hold until the last completion; that is what makes pushing an entry sound.
#![expect(unsafe_code, reason = "the kernel's message header has private padding and starts as zeros")]

use crate::core::Core;
use crate::exec::Remote;
use crate::fs::Handle;
use hugepages::{Buf, Bytes, Fixed};
use io_uring::squeue::Entry;
use io_uring::{opcode, types};
use smallvec::SmallVec;
use std::ffi::CString;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;

/// Pieces of one send or write, in order.
pub type Parts = SmallVec<[Bytes; 4]>;

/// Pieces that one system call takes: the kernel's UIO_MAXIOV.
const PIECES_MAX: usize = 1024;

/// What the result of an operation is, for those that nobody reads any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A number.
    Plain,
    /// A descriptor that must be closed.
    Descriptor,
    /// Many descriptors.
    Descriptors,
    /// Many buffers of the reactor's ring.
    Buffers,
    /// A message to another ring; a failure is made up for with an eventfd.
    Bell,
}

impl Kind {
    pub(crate) fn is_multi(self) -> bool {
        matches!(self, Kind::Descriptors | Kind::Buffers)
    }
}

/// What the kernel may touch until the operation is over.
pub(crate) enum Hold {
    None,
    Buf(Buf),
    Bytes(Bytes),
    Message(Box<Message>),
    #[expect(dead_code, reason = "kept for the kernel to read")]
    Path(CString),
    #[expect(dead_code, reason = "kept for the kernel to read")]
    Address(Box<Address>),
    Remote(Arc<Remote>),
}

impl Hold {
    pub(crate) fn into_buf(self) -> Buf {
        match self {
            Hold::Buf(buf) => buf,
            _ => unreachable!("a read holds a buffer"),
        }
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        match self {
            Hold::Bytes(bytes) => bytes,
            _ => unreachable!("a write holds bytes"),
        }
    }
}

/// A message header with its pieces.
pub(crate) struct Message {
    header: libc::msghdr,
    pieces: Vec<libc::iovec>,
    parts: Parts,
}

impl Message {
    pub(crate) fn empty() -> Box<Message> {
        // SAFETY: a `msghdr` of zeros is a message of nothing.
        let header = unsafe { std::mem::zeroed::<libc::msghdr>() };
        Box::new(Message { header, pieces: Vec::new(), parts: Parts::new() })
    }

    /// Names `parts` from byte `skip` on.
    fn fill(&mut self, parts: &[Bytes], mut skip: usize) {
        self.clear();
        for part in parts {
            if self.pieces.len() == PIECES_MAX {
                break;
            }
            if skip >= part.len() {
                skip -= part.len();
                continue;
            }
            let rest = &part[skip..];
            self.pieces.push(libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() });
            self.parts.push(part.clone());
            skip = 0;
        }
        self.header.msg_iov = self.pieces.as_mut_ptr();
        self.header.msg_iovlen = self.pieces.len() as _;
    }

    pub(crate) fn clear(&mut self) {
        self.pieces.clear();
        self.parts.clear();
    }
}

/// A socket address as the kernel reads it.
pub(crate) enum Address {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl Address {
    fn new(address: SocketAddr) -> Box<Address> {
        Box::new(match address {
            SocketAddr::V4(v4) => Address::V4(libc::sockaddr_in {
                sin_family: libc::AF_INET as _,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(v6) => Address::V6(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as _,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            }),
        })
    }

    fn raw(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        match self {
            Address::V4(v4) => ((&raw const *v4).cast(), size_of::<libc::sockaddr_in>() as _),
            Address::V6(v6) => ((&raw const *v6).cast(), size_of::<libc::sockaddr_in6>() as _),
        }
    }
}

/// An entry and what it refers to.
pub(crate) struct Request {
    entry: Entry,
    kind: Kind,
    hold: Hold,
    handle: Option<Rc<Handle>>,
}

/// Builds an entry for a handle's fixed slot, or for its descriptor where it has none.
macro_rules! on {
    ($core:expr, $handle:expr, |$fd:ident| $build:expr) => {
        match $handle.slot($core) {
            Some(slot) => {
                let $fd = types::Fixed(slot);
                $build
            }
            None => {
                let $fd = types::Fd($handle.raw());
                $build
            }
        }
    };
}

fn clamp(len: usize) -> u32 {
    // The kernel moves at most 2 GiB less a page in one call, whatever is asked.
    len.min(1 << 30) as u32
}

impl Request {
    pub(crate) fn into_parts(self) -> (Entry, Kind, Hold, Option<Rc<Handle>>) {
        (self.entry, self.kind, self.hold, self.handle)
    }

    fn of(handle: &Rc<Handle>, entry: Entry, hold: Hold) -> Request {
        Request { entry, kind: Kind::Plain, hold, handle: Some(Rc::clone(handle)) }
    }

    /// Reads at `offset`, or at the file's own position where it is -1, into `range` of the buffer.
    pub(crate) fn read(
        core: &Core,
        handle: &Rc<Handle>,
        mut buf: Buf,
        range: Range<usize>,
        offset: u64,
        fixed: bool,
    ) -> Request {
        let index = if fixed { core.buffer_index(buf.fixed()) } else { None };
        let target = &mut buf[range];
        let (ptr, len) = (target.as_mut_ptr(), clamp(target.len()));
        let entry = on!(core, handle, |fd| match index {
            Some(index) => opcode::ReadFixed::new(fd, ptr, len, index).offset(offset).build(),
            None => opcode::Read::new(fd, ptr, len).offset(offset).build(),
        });
        Request::of(handle, entry, Hold::Buf(buf))
    }

    pub(crate) fn write(
        core: &Core,
        handle: &Rc<Handle>,
        data: Bytes,
        skip: usize,
        offset: u64,
        fixed: bool,
    ) -> Request {
        let index = if fixed { core.buffer_index(data.fixed()) } else { None };
        let source = &data[skip..];
        let (ptr, len) = (source.as_ptr(), clamp(source.len()));
        let entry = on!(core, handle, |fd| match index {
            Some(index) => opcode::WriteFixed::new(fd, ptr, len, index).offset(offset).build(),
            None => opcode::Write::new(fd, ptr, len).offset(offset).build(),
        });
        Request::of(handle, entry, Hold::Bytes(data))
    }

    pub(crate) fn write_parts(
        core: &Core,
        handle: &Rc<Handle>,
        parts: &[Bytes],
        skip: usize,
        offset: u64,
    ) -> Request {
        let mut message = core.message();
        message.fill(parts, skip);
        let (pieces, count) = (message.pieces.as_ptr(), message.pieces.len() as u32);
        let entry = on!(core, handle, |fd| opcode::Writev::new(fd, pieces, count).offset(offset).build());
        Request::of(handle, entry, Hold::Message(message))
    }

    pub(crate) fn sync(core: &Core, handle: &Rc<Handle>, data_only: bool) -> Request {
        let flags = if data_only { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
        let entry = on!(core, handle, |fd| opcode::Fsync::new(fd).flags(flags).build());
        Request::of(handle, entry, Hold::None)
    }

    pub(crate) fn fallocate(core: &Core, handle: &Rc<Handle>, mode: u32, offset: u64, len: u64) -> Request {
        let entry =
            on!(core, handle, |fd| opcode::Fallocate::new(fd, len).offset(offset).mode(mode as i32).build());
        Request::of(handle, entry, Hold::None)
    }

    pub(crate) fn open(path: CString, flags: i32, mode: u32) -> Request {
        let at = types::Fd(libc::AT_FDCWD);
        let entry = opcode::OpenAt::new(at, path.as_ptr()).flags(flags | libc::O_CLOEXEC).mode(mode).build();
        Request { entry, kind: Kind::Descriptor, hold: Hold::Path(path), handle: None }
    }

    /// Waits until one of `events` (POLLIN, POLLOUT) holds.
    pub(crate) fn poll(core: &Core, handle: &Rc<Handle>, events: u32) -> Request {
        let entry = on!(core, handle, |fd| opcode::PollAdd::new(fd, events).build());
        Request::of(handle, entry, Hold::None)
    }

    pub(crate) fn connect(core: &Core, handle: &Rc<Handle>, address: SocketAddr) -> Request {
        let address = Address::new(address);
        let (ptr, len) = address.raw();
        let entry = on!(core, handle, |fd| opcode::Connect::new(fd, ptr, len).build());
        Request::of(handle, entry, Hold::Address(address))
    }

    pub(crate) fn accept_multi(core: &Core, handle: &Rc<Handle>) -> Request {
        let flags = libc::SOCK_CLOEXEC;
        let entry = on!(core, handle, |fd| opcode::AcceptMulti::new(fd).flags(flags).build());
        Request { kind: Kind::Descriptors, ..Request::of(handle, entry, Hold::None) }
    }

    pub(crate) fn recv_multi(core: &Core, handle: &Rc<Handle>) -> Request {
        let entry = on!(core, handle, |fd| opcode::RecvMulti::new(fd, 0).build());
        Request { kind: Kind::Buffers, ..Request::of(handle, entry, Hold::None) }
    }

    /// Receives into `range` of the buffer; the kernel goes on until it is full where it can.
    pub(crate) fn recv(
        core: &Core,
        handle: &Rc<Handle>,
        mut buf: Buf,
        range: Range<usize>,
        all: bool,
    ) -> Request {
        let target = &mut buf[range];
        let (ptr, len) = (target.as_mut_ptr(), clamp(target.len()));
        let flags = if all { libc::MSG_WAITALL } else { 0 };
        let entry = on!(core, handle, |fd| opcode::Recv::new(fd, ptr, len).flags(flags).build());
        Request::of(handle, entry, Hold::Buf(buf))
    }

    /// Sends `parts` from byte `skip` on. A zero-copy send holds them until the kernel's notification.
    pub(crate) fn send(
        core: &Core,
        handle: &Rc<Handle>,
        parts: &[Bytes],
        skip: usize,
        zero_copy: bool,
    ) -> Request {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        if let [only] = parts {
            let source = &only[skip..];
            let (ptr, len) = (source.as_ptr(), clamp(source.len()));
            let index = core.buffer_index(only.fixed());
            let entry = on!(core, handle, |fd| if zero_copy {
                opcode::SendZc::new(fd, ptr, len).flags(flags).buf_index(index).build()
            } else {
                opcode::Send::new(fd, ptr, len).flags(flags).build()
            });
            return Request::of(handle, entry, Hold::Bytes(only.clone()));
        }
        let mut message = core.message();
        message.fill(parts, skip);
        let header = &raw const message.header;
        let flags = flags as u32;
        let entry = on!(core, handle, |fd| if zero_copy {
            opcode::SendMsgZc::new(fd, header).flags(flags).build()
        } else {
            opcode::SendMsg::new(fd, header).flags(flags).build()
        });
        Request::of(handle, entry, Hold::Message(message))
    }

    /// Wakes the reactor of another thread: a completion with `user_data` appears in its ring.
    pub(crate) fn bell(ring: RawFd, user_data: u64, remote: Arc<Remote>) -> Request {
        let entry = opcode::MsgRingData::new(types::Fd(ring), 0, user_data, None).build();
        Request { entry, kind: Kind::Bell, hold: Hold::Remote(remote), handle: None }
    }
}

/// Cancels the operation with this user data.
pub(crate) fn cancel(user_data: u64) -> Entry {
    opcode::AsyncCancel::new(user_data).build()
}

/// Cancels everything that the ring has in flight.
pub(crate) fn cancel_all() -> Entry {
    opcode::AsyncCancel2::new(types::CancelBuilder::any().all()).build()
}

/// Waits until `fd` is readable.
pub(crate) fn watch(fd: RawFd) -> Entry {
    opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).build()
}

/// Place of a registered buffer, found by whoever registered it.
pub(crate) fn index_of(bases: &[(u16, u16)], fixed: Option<Fixed>) -> Option<u16> {
    let fixed = fixed?;
    let (_, first) = bases.iter().find(|(arena, _)| *arena == fixed.arena)?;
    Some(first + fixed.region() as u16)
}
