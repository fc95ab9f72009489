//! The database's end: redb's storage backend over the mailbox. Blocks its caller; never call it on a reactor.

use super::server::Request;
use hugepages::{Buf, Bytes};
use std::fmt;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};

/// Largest piece of one request; longer reads and writes are cut.
const PIECE: usize = 1 << 20;

/// A handle to the volume for the database's threads.
pub struct Volume {
    send: Box<dyn Fn(Request) -> io::Result<()> + Send + Sync>,
}

impl Volume {
    /// A volume whose requests go through `send`.
    pub fn new(send: impl Fn(Request) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self { send: Box::new(send) }
    }

    /// Sends a request and waits for its answer.
    fn ask<T>(&self, request: impl FnOnce(SyncSender<io::Result<T>>) -> Request) -> io::Result<T> {
        let (answer, wait) = sync_channel(1);
        (self.send)(request(answer))?;
        wait.recv().map_err(|_| gone())?
    }
}

/// The node is stopping: the database's work since its last commit is in the namespace log.
pub(super) fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the namespace volume is closed")
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Volume")
    }
}

impl redb::StorageBackend for Volume {
    fn len(&self) -> io::Result<u64> {
        self.ask(Request::Len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut at = offset;
        for piece in out.chunks_mut(PIECE) {
            let data = self.ask(|answer| Request::Read { offset: at, len: piece.len(), answer })?;
            // The server answers with as many bytes as were asked for; a short one must not pass for a read.
            if data.len() != piece.len() {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the volume ends before the read does",
                ));
            }
            piece.copy_from_slice(&data);
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.ask(|answer| Request::SetLen { len, answer })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.ask(Request::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut at = offset;
        for piece in data.chunks(PIECE) {
            // The copy frees the database to go on while the device works.
            let data: Bytes = Buf::copy_of(piece).freeze();
            (self.send)(Request::Write { offset: at, data })?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}
