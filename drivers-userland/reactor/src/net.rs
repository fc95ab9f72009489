//! TCP: listeners that accept by one armed operation, streams that send and receive from two tasks.

use crate::core::Core;
use crate::fs::Handle;
use crate::op::{MultiOp, Op, outcome};
use crate::pool::Provided;
use crate::request::{Parts, Request};
use crate::sync;
use hugepages::{Buf, Bytes};
use rustix::net::{self, AddressFamily, Shutdown, SocketFlags, SocketType, sockopt};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::Poll;

/// Bytes from which a send goes without a copy, unless [`TcpStream::set_zc_threshold`] says otherwise: never.
///
/// Below some size, pinning pages and waiting for the notification cost more than the copy; on loopback the
/// kernel copies in any case, so there SEND_ZC only adds work: `examples/zc_threshold.rs` saw 0.13 to 0.72 of
/// the copying rate from 1 KiB to 1 MiB over loopback (Linux 6.18, 2 cores, 2026-11-22). Run it on links of a
/// real NIC and set the size that it prints.
pub const ZC_THRESHOLD: usize = usize::MAX;

/// Connections that the kernel completes ahead of `accept`, capped by net.core.somaxconn.
const BACKLOG: i32 = 1024;

fn socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

fn io_address(address: net::SocketAddrAny) -> io::Result<SocketAddr> {
    Ok(SocketAddr::try_from(address)?)
}

/// What connections come through.
enum Door {
    Kernel(Rc<Handle>),
    #[cfg(feature = "sim")]
    Simulated(crate::sim::net::Listener),
}

impl Door {
    fn handle(&self) -> &Rc<Handle> {
        match self {
            Door::Kernel(handle) => handle,
            #[cfg(feature = "sim")]
            Door::Simulated(_) => panic!("the simulated network has no such call"),
        }
    }
}

/// Listens for connections.
pub struct TcpListener {
    door: Door,
    local: SocketAddr,
    armed: RefCell<Option<MultiOp>>,
    /// One task at a time waits on the armed operation.
    turn: sync::Mutex<()>,
}

impl TcpListener {
    /// Listens on `address`, with SO_REUSEADDR; port 0 picks a free one.
    ///
    /// # Errors
    /// As bind(2); the message names the address.
    pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
        TcpListener::bind_with(address, false)
    }

    /// As [`TcpListener::bind`]; with `share_port`, several listeners (one per core) share the port and the
    /// kernel spreads connections over them.
    ///
    /// # Errors
    /// As bind(2); the message names the address.
    pub fn bind_with(address: SocketAddr, share_port: bool) -> io::Result<TcpListener> {
        let bound = || {
            let fd = socket(address)?;
            sockopt::set_socket_reuseaddr(&fd, true)?;
            if share_port {
                sockopt::set_socket_reuseport(&fd, true)?;
            }
            net::bind(&fd, &address)?;
            net::listen(&fd, BACKLOG)?;
            let local = io_address(net::getsockname(&fd)?)?;
            Ok((fd, local))
        };
        let named = |error: io::Error| {
            let advice = match error.kind() {
                io::ErrorKind::AddrInUse => "; stop the process that listens there or choose another port",
                io::ErrorKind::AddrNotAvailable => "; choose an address of this machine",
                _ => "",
            };
            io::Error::new(error.kind(), format!("cannot listen on {address}: {error}{advice}"))
        };
        let listener =
            |door, local| TcpListener { door, local, armed: RefCell::new(None), turn: sync::Mutex::new(()) };
        #[cfg(feature = "sim")]
        if let Some(sim) = crate::sim::current() {
            let (door, local) = crate::sim::net::Listener::bind(&sim, address).map_err(named)?;
            return Ok(listener(Door::Simulated(door), local));
        }
        let (fd, local) = bound().map_err(named)?;
        Ok(listener(Door::Kernel(Handle::new(fd)), local))
    }

    /// The address that it listens on, with the port that was picked.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The next connection. Connections that came meanwhile wait in order; dropping the future loses none.
    ///
    /// # Errors
    /// As accept(2). After EMFILE or ENFILE, wait a little before the next call.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let _turn = self.turn.lock().await;
        #[cfg(feature = "sim")]
        if let Door::Simulated(listener) = &self.door {
            let (end, peer) = listener.accept().await;
            return Ok((TcpStream::wrap(Socket::Simulated(end), peer), peer));
        }
        let handle = self.door.handle();
        loop {
            let core = Core::current();
            let next = poll_fn(|cx| {
                let mut armed = self.armed.borrow_mut();
                if armed.is_none() {
                    match MultiOp::arm(&core, Request::accept_multi(&core, handle)) {
                        Ok(op) => *armed = Some(op),
                        Err(_) => {
                            core.wait_for_room(cx.waker());
                            return Poll::Pending;
                        }
                    }
                }
                armed.as_mut().map_or(Poll::Ready(None), |op| op.poll_next(cx))
            })
            .await;
            let Some(cqe) = next else {
                self.armed.take();
                continue;
            };
            match outcome(cqe.result) {
                Ok(fd) => {
                    let fd = crate::ring::own_fd(fd as i32);
                    // A peer that is gone already has no name; the next one may.
                    if let Ok(Some(peer)) = net::getpeername(&fd)
                        && let Ok(peer) = io_address(peer)
                    {
                        return Ok((TcpStream::wrap(Socket::Kernel(Handle::new(fd)), peer), peer));
                    }
                }
                // The operation was stopped because too many connections waited; it is armed again.
                Err(error) if error.raw_os_error() == Some(libc::ECANCELED) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// What carries the bytes.
enum Socket {
    Kernel(Rc<Handle>),
    #[cfg(feature = "sim")]
    Simulated(crate::sim::net::End),
}

impl Socket {
    fn handle(&self) -> &Rc<Handle> {
        match self {
            Socket::Kernel(handle) => handle,
            #[cfg(feature = "sim")]
            Socket::Simulated(_) => panic!("the simulated network has no such call"),
        }
    }
}

struct Stream {
    socket: Socket,
    peer: SocketAddr,
    zc_threshold: Cell<usize>,
    /// Sends run one after the other, in the order of the calls.
    sending: sync::Mutex<()>,
    /// A send was given up in its middle: what follows would be taken for its rest.
    torn: Cell<bool>,
}

/// A connection; clones name the same one. All methods take `&self`, so that one task can receive while
/// another sends. At most one task receives at a time.
#[derive(Clone)]
pub struct TcpStream {
    stream: Rc<Stream>,
}

impl std::fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpStream").field("peer", &self.stream.peer).finish()
    }
}

impl TcpStream {
    fn wrap(socket: Socket, peer: SocketAddr) -> TcpStream {
        let zc_threshold = Cell::new(ZC_THRESHOLD);
        let sending = sync::Mutex::new(());
        TcpStream { stream: Rc::new(Stream { socket, peer, zc_threshold, sending, torn: Cell::new(false) }) }
    }

    /// Connects; bound it with [`crate::timeout`].
    ///
    /// # Errors
    /// As connect(2); the message names the address.
    pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("cannot connect to {address}: {error}"));
        #[cfg(feature = "sim")]
        if let Some(sim) = crate::sim::current() {
            let end = crate::sim::net::connect(&sim, address).await.map_err(named)?;
            return Ok(TcpStream::wrap(Socket::Simulated(end), address));
        }
        let handle = Handle::new(socket(address).map_err(named)?);
        let core = Core::current();
        let request = Request::connect(&core, &handle, address);
        Op::new(core, request).await.count().map_err(named)?;
        Ok(TcpStream::wrap(Socket::Kernel(handle), address))
    }

    /// Two halves for two tasks; the connection closes when both are dropped.
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        (ReadHalf { stream: self.clone() }, WriteHalf { stream: self })
    }

    /// The peer's address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.stream.peer
    }

    /// Our own address on this connection.
    ///
    /// # Errors
    /// As getsockname(2).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.stream.socket {
            Socket::Kernel(handle) => io_address(net::getsockname(handle.fd())?),
            #[cfg(feature = "sim")]
            Socket::Simulated(end) => Ok(end.local),
        }
    }

    /// Sends small segments at once (TCP_NODELAY).
    ///
    /// # Errors
    /// As setsockopt(2).
    pub fn set_nodelay(&self, on: bool) -> io::Result<()> {
        match &self.stream.socket {
            Socket::Kernel(handle) => Ok(sockopt::set_tcp_nodelay(handle.fd(), on)?),
            #[cfg(feature = "sim")]
            Socket::Simulated(_) => Ok(()),
        }
    }

    /// Bytes from which a send goes without a copy; see [`ZC_THRESHOLD`].
    pub fn set_zc_threshold(&self, bytes: usize) {
        self.stream.zc_threshold.set(bytes);
    }

    /// Ends one or both directions. A receive that waits sees the end of the stream.
    ///
    /// # Errors
    /// As shutdown(2).
    pub fn shutdown(&self, how: std::net::Shutdown) -> io::Result<()> {
        #[cfg(feature = "sim")]
        if let Socket::Simulated(end) = &self.stream.socket {
            use std::net::Shutdown::{Read, Write};
            end.shutdown(how != Write, how != Read);
            return Ok(());
        }
        let handle = self.stream.socket.handle();
        let how = match how {
            std::net::Shutdown::Read => Shutdown::Read,
            std::net::Shutdown::Write => Shutdown::Write,
            std::net::Shutdown::Both => Shutdown::Both,
        };
        Ok(net::shutdown(handle.fd(), how)?)
    }

    /// Receives whatever comes, in buffers of the reactor's ring, by one armed operation. Dropping the stream
    /// loses what it received and nobody read: do that only at the end of the connection.
    ///
    /// # Panics
    /// In a simulation, which has no ring of buffers.
    pub fn recv_multishot(&self) -> RecvStream {
        let handle = Rc::clone(self.stream.socket.handle());
        RecvStream { handle, armed: None, over: false }
    }

    /// Receives some bytes into the whole buffer; 0 is the end of the stream.
    pub async fn read(&self, buf: Buf) -> (io::Result<usize>, Buf) {
        let all = 0..buf.len();
        self.recv(buf, all, false).await
    }

    /// One receive into `range`; with `all`, the kernel goes on until it is full where it can.
    async fn recv(&self, buf: Buf, range: Range<usize>, all: bool) -> (io::Result<usize>, Buf) {
        #[cfg(feature = "sim")]
        if let Socket::Simulated(end) = &self.stream.socket {
            return end.recv(buf, range).await;
        }
        let handle = self.stream.socket.handle();
        let core = Core::current();
        let request = Request::recv(&core, handle, buf, range, all);
        let done = Op::new(core, request).await;
        (done.count(), done.hold.into_buf())
    }

    /// Fills `range` of the buffer exactly, straight from the socket. Dropping the future may lose bytes that
    /// were received already: the connection is then of no more use.
    ///
    /// The error is `UnexpectedEof` where the stream ends before, `InvalidInput` where the range does not lie
    /// within the buffer.
    pub async fn read_exact(&self, mut buf: Buf, range: Range<usize>) -> (io::Result<()>, Buf) {
        if range.start > range.end || range.end > buf.len() {
            let message = format!("range {range:?} of a buffer of {} bytes", buf.len());
            return (Err(io::Error::new(io::ErrorKind::InvalidInput, message)), buf);
        }
        let mut at = range.start;
        while at < range.end {
            let count;
            (count, buf) = self.recv(buf, at..range.end, true).await;
            match count {
                Ok(0) => return (Err(io::ErrorKind::UnexpectedEof.into()), buf),
                Ok(count) => at += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(()), buf)
    }

    /// Sends all parts in order. Calls from several tasks do not mix: each sends all of its parts before the
    /// next begins. A future that is dropped after its first byte leaves the stream unusable for sending:
    /// later calls answer `BrokenPipe`.
    ///
    /// # Errors
    /// As sendmsg(2).
    pub async fn send_all(&self, parts: impl Into<Parts>) -> io::Result<()> {
        let parts = parts.into();
        let total: usize = parts.iter().map(Bytes::len).sum();
        let _turn = self.stream.sending.lock().await;
        if self.stream.torn.get() {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "an earlier send was given up half-way"));
        }
        let zero_copy = total >= self.stream.zc_threshold.get();
        let mut sent = 0;
        let torn = Torn { flag: &self.stream.torn };
        while sent < total {
            match self.send(&parts, sent, zero_copy).await {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        torn.mended();
        Ok(())
    }

    /// One send of `parts` from byte `skip` on.
    async fn send(&self, parts: &Parts, skip: usize, zero_copy: bool) -> io::Result<usize> {
        #[cfg(feature = "sim")]
        if let Socket::Simulated(end) = &self.stream.socket {
            return end.send(parts, skip).await;
        }
        let handle = self.stream.socket.handle();
        let core = Core::current();
        let request = Request::send(&core, handle, parts, skip, zero_copy);
        let done = Op::new(Rc::clone(&core), request).await;
        let count = done.count();
        core.reuse(done.hold);
        count
    }
}

/// Marks the stream as torn unless the send comes to its end.
struct Torn<'a> {
    flag: &'a Cell<bool>,
}

impl Torn<'_> {
    fn mended(self) {
        std::mem::forget(self);
    }
}

impl Drop for Torn<'_> {
    fn drop(&mut self) {
        self.flag.set(true);
    }
}

/// The receiving half of a connection.
#[derive(Debug)]
pub struct ReadHalf {
    stream: TcpStream,
}

impl ReadHalf {
    /// See [`TcpStream::recv_multishot`].
    pub fn recv_multishot(&self) -> RecvStream {
        self.stream.recv_multishot()
    }

    /// See [`TcpStream::read`].
    pub async fn read(&self, buf: Buf) -> (io::Result<usize>, Buf) {
        self.stream.read(buf).await
    }

    /// See [`TcpStream::read_exact`].
    pub async fn read_exact(&self, buf: Buf, range: Range<usize>) -> (io::Result<()>, Buf) {
        self.stream.read_exact(buf, range).await
    }

    /// The whole connection.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

/// The sending half of a connection.
#[derive(Debug)]
pub struct WriteHalf {
    stream: TcpStream,
}

impl WriteHalf {
    /// See [`TcpStream::send_all`].
    ///
    /// # Errors
    /// As [`TcpStream::send_all`].
    pub async fn send_all(&self, parts: impl Into<Parts>) -> io::Result<()> {
        self.stream.send_all(parts).await
    }

    /// See [`TcpStream::shutdown`].
    ///
    /// # Errors
    /// As [`TcpStream::shutdown`].
    pub fn shutdown(&self, how: std::net::Shutdown) -> io::Result<()> {
        self.stream.shutdown(how)
    }

    /// The whole connection.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

/// Received bytes of a connection, piece by piece and in order.
///
/// Where the ring of buffers runs empty, or this stream has many pieces unread, the kernel stops by itself or is
/// asked to; the operation is armed again once there is room. No byte is lost: TCP holds back the peer meanwhile.
pub struct RecvStream {
    handle: Rc<Handle>,
    armed: Option<MultiOp>,
    over: bool,
}

impl RecvStream {
    /// The next piece; `None` at the end of the stream, and after an error.
    pub async fn next(&mut self) -> Option<io::Result<Provided>> {
        let core = Core::current();
        loop {
            if self.over {
                return None;
            }
            let next = poll_fn(|cx| {
                if self.armed.is_none() {
                    if !core.pool.ready_or_wait(cx.waker()) {
                        return Poll::Pending;
                    }
                    match MultiOp::arm(&core, Request::recv_multi(&core, &self.handle)) {
                        Ok(op) => self.armed = Some(op),
                        Err(_) => {
                            core.wait_for_room(cx.waker());
                            return Poll::Pending;
                        }
                    }
                }
                self.armed.as_mut().map_or(Poll::Ready(None), |op| op.poll_next(cx))
            })
            .await;
            let Some(cqe) = next else {
                self.armed = None;
                continue;
            };
            let piece = cqe.buffer();
            match (outcome(cqe.result), piece) {
                (Ok(0), _) => {
                    self.over = true;
                    if let Some(id) = piece {
                        core.pool.recycle(id);
                    }
                }
                (Ok(len), Some(id)) => return Some(Ok(Provided::new(Rc::clone(&core.pool), id, len))),
                (Ok(_), None) => {}
                (Err(error), _) => match error.raw_os_error() {
                    // No buffer was left, or we asked to stop: armed again above.
                    Some(libc::ENOBUFS | libc::ECANCELED) => {}
                    _ => {
                        self.over = true;
                        return Some(Err(error));
                    }
                },
            }
        }
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        // Explicit: unread pieces go back to the ring before the connection may close.
        self.armed = None;
    }
}
