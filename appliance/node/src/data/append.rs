//! Appends: the offset is decided here, alone in the file.
//!
//! Owns where an append goes, also one that a restart fell into: the shards know which of its two pieces are written, the first
//! one first. Must not let a repeat touch what others wrote or cut since.

use super::once::{Begun, Kept, second_stamp_of, stamp_of};
use super::*;
use chunkstore::Written;

impl<D: BlockDevice> Data<D> {
    /// Writes at the end of the file.
    pub(crate) async fn append(
        &self,
        header: &Header,
        r: &m::Append,
        data: Bytes,
    ) -> Result<DataReply, Status> {
        if data.is_empty() {
            return Err(Status::Malformed);
        }
        let (ending, first) = match self.begin(header).await? {
            Begun::Run { ending, first } => (ending, first),
            Begun::Repeat(kept) => return self.appended(header, r.ino, kept?).await,
        };
        let before = if first { self.appended_before(header).await? } else { [None; 2] };
        let result = match complete(&before, data.len() as u64) {
            Some(kept) => self.repeated_write(header, r.ino, r.flags).await.map(|with| (kept, with)),
            None => self.append_now(header, r, data, before[0]).await,
        };
        ending.end(result.map(|(kept, _)| kept));
        let (Kept { offset, len }, (attr, grant)) = result?;
        Ok(DataReply::new(&m::Appended { offset, len, attr, grant }))
    }

    async fn appended(&self, header: &Header, ino: Ino, kept: Kept) -> Result<DataReply, Status> {
        let (attr, grant) = self.as_it_is(header, ino).await?;
        Ok(DataReply::new(&m::Appended { offset: kept.offset, len: kept.len, attr, grant }))
    }

    /// Appends, or goes on behind a first piece that an earlier life of the daemon has written.
    async fn append_now(
        &self,
        header: &Header,
        r: &m::Append,
        data: Bytes,
        before: Option<Written>,
    ) -> Result<(Kept, (Attr, Grant)), Status> {
        let part = Part { ino: r.ino, access: Access::Modify, object: None, alone: true, cache: false };
        let (admitted, _inside) = self.admit(header, smallvec![part]).await?;
        let (attr, grant) = one(&admitted)?;
        let (object, size, len) = (attr.object(), attr.size.get(), data.len() as u64);
        let (offset, there) = before.map_or((size, 0), |w| (start(&w), u64::from(w.len)));
        if before.is_some_and(|w| w.key.object != object.0 || size != offset + there) {
            // Others came in between: the rest of it would not follow. The application hears how much was written.
            self.durable(admitted.depends_on).await?;
            return Ok((Kept { offset, len: there }, (attr, grant)));
        }
        let end = offset.checked_add(len).filter(|e| *e <= FILE_MAX).ok_or(Status::Errno(Errno::EFBIG))?;
        let kill = r.flags.has(m::WriteFlags::KILL_SUIDGID);
        let (index, at) = split(offset);
        let head = data.len().min((CHUNK_SIZE - u64::from(at)) as usize);
        let mut done = (attr, 0);
        if there == 0 {
            let piece = Piece { ino: r.ino, object, index, end: offset + head as u64, kill };
            done = self.write_piece(&piece, at, data.slice(..head), stamp_of(header)).await?;
        }
        let mut kept = Kept { offset, len };
        if head < data.len() {
            let piece = Piece { ino: r.ino, object, index: index + 1, end, kill };
            match self.write_piece(&piece, 0, data.slice(head..), second_stamp_of(header)).await {
                Ok((attr, seq)) => done = (attr, seq.max(done.1)),
                Err(status) => {
                    tracing::debug!(ino = r.ino.0, ?status, "an append ends at the end of a chunk");
                    kept.len = head as u64;
                }
            }
        }
        self.settle(r.ino, done.1, r.flags.has(m::WriteFlags::SYNC)).await?;
        Ok((kept, (done.0, grant)))
    }
}

/// Where in the file a piece begins.
fn start(w: &Written) -> u64 {
    u64::from(w.key.index) * CHUNK_SIZE + u64::from(w.offset)
}

/// What an append did that is written already, all `len` bytes of it.
fn complete(before: &[Option<Written>; 2], len: u64) -> Option<Kept> {
    let written: u64 = before.iter().flatten().map(|w| u64::from(w.len)).sum();
    before[0].filter(|_| written >= len).map(|w| Kept { offset: start(&w), len })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(index: u32, offset: u32, len: u32) -> Option<Written> {
        Some(Written { key: chunkstore::Key { object: 7, index }, offset, len })
    }

    #[test]
    fn an_append_is_complete_with_all_its_pieces() {
        let edge = CHUNK_SIZE as u32 - 10;
        assert_eq!(complete(&[None, None], 5), None);
        assert_eq!(
            complete(&[piece(2, 5, 30), None], 30),
            Some(Kept { offset: 2 * CHUNK_SIZE + 5, len: 30 })
        );
        assert_eq!(complete(&[piece(0, edge, 10), None], 30), None);
        let kept = Kept { offset: u64::from(edge), len: 30 };
        assert_eq!(complete(&[piece(0, edge, 10), piece(1, 0, 20)], 30), Some(kept));
    }
}
