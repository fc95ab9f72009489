//! SEEK_DATA and SEEK_HOLE (lseek(2)): which chunks exist, and which blocks of them.

use super::*;

impl<D: BlockDevice> Data<D> {
    /// lseek(2) for data and holes.
    pub(crate) async fn seek(&self, header: &Header, r: &m::Seek) -> Result<DataReply, Status> {
        let part = Part { ino: r.ino, access: Access::Read, object: None, alone: false, cache: false };
        let (admitted, _inside) = self.admit(header, smallvec![part]).await?;
        let (attr, _) = one(&admitted)?;
        if r.offset >= attr.size.get() {
            return Err(Status::Errno(Errno::ENXIO));
        }
        let offset = match r.whence {
            m::Whence::Data => self.next_data(r.ino, &attr, r.offset).await?,
            m::Whence::Hole => self.next_hole(r.ino, &attr, r.offset).await?,
        };
        self.durable(admitted.depends_on).await?;
        Ok(DataReply::new(&m::SeekReply { offset }))
    }

    /// Ranges of a chunk that have data.
    async fn written(&self, ino: Ino, key: ChunkKey) -> Result<Vec<(u64, u64)>, Status> {
        let base = u64::from(key.index) * CHUNK_SIZE;
        let extents = self.meta().store.extents(key).await.map_err(|e| self.bad(ino, key, &e))?;
        let written = extents.iter().filter(|e| !e.unwritten);
        Ok(written
            .map(|e| (base + u64::from(e.offset), base + u64::from(e.offset) + u64::from(e.len)))
            .collect())
    }

    async fn next_data(&self, ino: Ino, attr: &Attr, offset: u64) -> Result<u64, Status> {
        let mut from = split(offset).0;
        loop {
            let next = self.next_chunk(ino, from).await?;
            let Some(index) = next else { return Err(Status::Errno(Errno::ENXIO)) };
            let key = ChunkKey { object: attr.object(), index };
            let found = self.written(ino, key).await?.into_iter().find(|(_, end)| *end > offset);
            if let Some((start, _)) = found {
                let at = start.max(offset);
                return if at < attr.size.get() { Ok(at) } else { Err(Status::Errno(Errno::ENXIO)) };
            }
            from = index.checked_add(1).ok_or(Status::Errno(Errno::ENXIO))?;
        }
    }

    async fn next_hole(&self, ino: Ino, attr: &Attr, offset: u64) -> Result<u64, Status> {
        let (mut at, size) = (offset, attr.size.get());
        while at < size {
            let index = split(at).0;
            if !self.has_chunk(ino, index).await? {
                return Ok(at);
            }
            let key = ChunkKey { object: attr.object(), index };
            let extents = self.written(ino, key).await?;
            let Some((_, end)) = extents.into_iter().find(|(s, e)| *s <= at && at < *e) else {
                return Ok(at);
            };
            at = end;
        }
        Ok(size)
    }
}
