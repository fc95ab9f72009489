//! The model's half that has to do with contents: data, xattrs, open files, locks.

use super::fs::{Body, Model, Node, Open, Outcome};
use super::ops::{Kind, Locking, Mode, Op, Reply, Space};
use crate::rng;

impl Model {
    pub(super) fn perform_on_contents(&mut self, worker: usize, op: &Op) -> Outcome<Reply> {
        match op {
            Op::Write { path, offset, seed, len } => {
                let node = self.data_file(path)?;
                self.node_mut(node).write(*offset, &rng::bytes(*seed, *len));
                self.locks.closed(worker, node);
                Ok(Reply::Count(*len as u64))
            }
            Op::Append { path, seed, len } => {
                let node = self.data_file(path)?;
                let end = self.data(node)?.len() as u64;
                self.node_mut(node).write(end, &rng::bytes(*seed, *len));
                self.locks.closed(worker, node);
                Ok(Reply::Count(*len as u64))
            }
            Op::Read { path, offset, len } => {
                let node = self.existing(path, true)?;
                let reply = read(self.data(node)?, *offset, *len);
                self.locks.closed(worker, node);
                Ok(reply)
            }
            Op::Truncate { path, len } => {
                let node = self.existing(path, true)?;
                if !self.is_dir(node) && self.data(node).is_err() {
                    return Err("EINVAL");
                }
                self.data(node)?;
                self.node_mut(node).resize(*len);
                Ok(Reply::Ok)
            }
            Op::Allocate { path, how, offset, len } => {
                let node = self.data_file(path)?;
                self.locks.closed(worker, node);
                if *len == 0 {
                    return Err("EINVAL");
                }
                self.node_mut(node).allocate(*how, *offset, *len);
                Ok(Reply::Ok)
            }
            Op::Copy { .. } => self.copy(worker, op),
            Op::SetXattr { .. } | Op::GetXattr { .. } | Op::RemoveXattr { .. } | Op::ListXattr { .. } => {
                self.xattr(op)
            }
            _ => self.perform_on_slot(worker, op),
        }
    }

    /// A regular file's data; directories say so.
    pub(super) fn data(&self, node: u64) -> Outcome<&Vec<u8>> {
        match &self.node(node).body {
            Body::File(data) => Ok(data),
            Body::Dir { .. } => Err("EISDIR"),
            Body::Link(_) | Body::Fifo => Err("ENXIO"),
        }
    }

    fn data_file(&self, path: &str) -> Outcome<u64> {
        let node = self.existing(path, true)?;
        self.data(node).map(|_| node)
    }

    fn copy(&mut self, worker: usize, op: &Op) -> Outcome<Reply> {
        let Op::Copy { from, from_offset, to, to_offset, len } = op else { return Err("ENOSYS") };
        let source = self.existing(from, true)?;
        let target = self.data_file(to);
        // The source is opened and closed also where there is no target.
        self.locks.closed(worker, source);
        let target = target?;
        self.locks.closed(worker, target);
        let data = self.data(source)?;
        let start = usize::try_from(*from_offset).unwrap_or(usize::MAX).min(data.len());
        let end = usize::try_from(from_offset + len).unwrap_or(usize::MAX).min(data.len());
        let n = (end - start) as u64;
        if source == target && n > 0 && to_offset + n > *from_offset && *to_offset < from_offset + n {
            return Err("EINVAL");
        }
        let piece = data[start..end].to_vec();
        if n > 0 {
            self.node_mut(target).write(*to_offset, &piece);
        }
        Ok(Reply::Count(n))
    }

    fn xattr(&mut self, op: &Op) -> Outcome<Reply> {
        let (Op::SetXattr { path, .. }
        | Op::GetXattr { path, .. }
        | Op::RemoveXattr { path, .. }
        | Op::ListXattr { path }) = op
        else {
            return Err("ENOSYS");
        };
        let id = self.existing(path, true)?;
        let node = self.node_mut(id);
        // xattr(7): user attributes are for files and directories only.
        let barred =
            |name: &str| name.starts_with("user.") && !matches!(node.body, Body::File(_) | Body::Dir { .. });
        match op {
            Op::SetXattr { name, seed, len, create, replace, .. } => {
                let exists = node.xattrs.contains_key(name);
                if barred(name) {
                    return Err("EPERM");
                } else if *create && exists {
                    return Err("EEXIST");
                } else if *replace && !exists {
                    return Err("ENODATA");
                }
                node.xattrs.insert(name.clone(), (*len, rng::hash(&rng::bytes(*seed, *len))));
                Ok(Reply::Ok)
            }
            Op::GetXattr { name, .. } => {
                let (len, hash) = node.xattrs.get(name).copied().ok_or("ENODATA")?;
                Ok(Reply::Data { len, hash })
            }
            Op::RemoveXattr { name, .. } => {
                if barred(name) {
                    return Err("EPERM");
                }
                node.xattrs.remove(name).map(|_| Reply::Ok).ok_or("ENODATA")
            }
            _ => Ok(Reply::Names(node.xattrs.keys().map(|k| (k.clone(), Kind::Other)).collect())),
        }
    }

    fn perform_on_slot(&mut self, worker: usize, op: &Op) -> Outcome<Reply> {
        if let Op::Open { slot, path, mode } = op {
            return self.open(worker, *slot, path, *mode);
        }
        let (Op::SlotWrite { slot, .. }
        | Op::SlotRead { slot, .. }
        | Op::SlotTruncate { slot, .. }
        | Op::SlotSync { slot }
        | Op::SlotClose { slot }
        | Op::Flock { slot, .. }
        | Op::Lock { slot, .. }) = op
        else {
            return Err("ENOSYS");
        };
        let holder = (worker, *slot);
        let open = *self.opens.get(&holder).ok_or("EBADF")?;
        match op {
            Op::SlotWrite { offset, seed, len, .. } => {
                if !open.write {
                    return Err("EBADF");
                }
                // Linux appends under O_APPEND, whatever offset pwrite(2) names.
                let at = if open.append { self.data(open.node)?.len() as u64 } else { *offset };
                self.node_mut(open.node).write(at, &rng::bytes(*seed, *len));
                Ok(Reply::Count(*len as u64))
            }
            Op::SlotRead { offset, len, .. } => {
                if !open.read {
                    return Err("EBADF");
                }
                Ok(read(self.data(open.node)?, *offset, *len))
            }
            Op::SlotTruncate { len, .. } => {
                if !open.write {
                    return Err("EINVAL");
                }
                self.node_mut(open.node).resize(*len);
                Ok(Reply::Ok)
            }
            Op::SlotClose { .. } => {
                self.opens.remove(&holder);
                self.locks.closed_slot(open.node, holder);
                self.reap(open.node);
                Ok(Reply::Ok)
            }
            Op::Flock { how, .. } => {
                if self.locks.flock(open.node, holder, *how) {
                    Ok(Reply::Ok)
                } else {
                    Err("EAGAIN")
                }
            }
            Op::Lock { how, cell, cells, .. } => {
                if (*how == Locking::Read && !open.read) || (*how == Locking::Write && !open.write) {
                    return Err("EBADF");
                }
                let start = usize::try_from(*cell).unwrap_or(0);
                let range = start..start + usize::try_from(*cells).unwrap_or(0);
                if self.locks.record(open.node, worker, *how, range) { Ok(Reply::Ok) } else { Err("EAGAIN") }
            }
            _ => Ok(Reply::Ok),
        }
    }

    fn open(&mut self, worker: usize, slot: usize, path: &str, mode: Mode) -> Outcome<Reply> {
        let found = self.find(path, true)?;
        let node = match found.node {
            Some(node) if self.is_dir(node) && (mode.write || mode.create) => return Err("EISDIR"),
            Some(node) => node,
            None if mode.create => self.add(found.dir, &found.name, Body::File(Vec::new()), 0o644),
            None => return Err("ENOENT"),
        };
        if mode.truncate && found.node.is_some() {
            self.node_mut(node).resize(0);
        }
        let open = Open { node, read: mode.read || !mode.write, write: mode.write, append: mode.append };
        // The new file is opened before the slot's old one is closed, so the order of locks is the worker's.
        if let Some(old) = self.opens.insert((worker, slot), open) {
            self.locks.closed_slot(old.node, (worker, slot));
            self.reap(old.node);
        }
        Ok(Reply::Ok)
    }
}

fn read(data: &[u8], offset: u64, len: usize) -> Reply {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
    let piece = &data[start..start.saturating_add(len).min(data.len())];
    Reply::Data { len: piece.len(), hash: rng::hash(piece) }
}

impl Node {
    fn contents(&mut self) -> &mut Vec<u8> {
        self.mtime = None;
        match &mut self.body {
            Body::File(data) => data,
            _ => unreachable!("only regular files are written"),
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let data = self.contents();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start + bytes.len();
        if data.len() < end {
            data.resize(end, 0);
        }
        data[start..end].copy_from_slice(bytes);
    }

    fn resize(&mut self, len: u64) {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.contents().resize(len, 0);
    }

    fn allocate(&mut self, how: Space, offset: u64, len: u64) {
        let data = self.contents();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = usize::try_from(offset + len).unwrap_or(usize::MAX);
        if matches!(how, Space::Grow | Space::Zero) && data.len() < end {
            data.resize(end, 0);
        }
        if matches!(how, Space::Punch | Space::Zero | Space::ZeroKeep) {
            let size = data.len();
            data[start.min(size)..end.min(size)].fill(0);
        }
    }
}
