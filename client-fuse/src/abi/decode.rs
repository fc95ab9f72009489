//! From the bytes of a message to a typed request.
//!
//! A request's structure comes first, then names, each ended by a NUL, then a payload. Extra bytes at the end are ignored: newer kernels append
//! fields, and extensions stand there. What is too short, unterminated or lies about its length is refused, never read beyond.

use super::request::*;
use super::{NAME_MAX, opcode};
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// Why a message is none. The caller answers `EIO`, or, where not even a header is there, drops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than its structure.
    #[error("FUSE request {} of {have} bytes is shorter than its {need} bytes", opcode::name(*.opcode))]
    Short {
        /// The request.
        opcode: u32,
        /// Bytes there.
        have: usize,
        /// Bytes that should be.
        need: usize,
    },
    /// The header's length is not that of the message.
    #[error("FUSE message says {says} bytes and has {have}")]
    Length {
        /// What the header says.
        says: usize,
        /// What was read.
        have: usize,
    },
    /// A name is empty, unterminated, too long or has a slash.
    #[error("FUSE request {} has a bad name", opcode::name(*.opcode))]
    Name {
        /// The request.
        opcode: u32,
    },
}

/// A request's contents, borrowing names and payload from the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "each variant is the protocol's request of that name, its parts are the kernel's"
)]
pub enum Op<'a> {
    Init {
        init: InitIn,
        flags2: u32,
    },
    Lookup {
        name: &'a [u8],
    },
    Forget {
        nlookup: u64,
    },
    BatchForget {
        list: Forgets<'a>,
    },
    Getattr(GetattrIn),
    Statx(StatxIn),
    Setattr(SetattrIn),
    Readlink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    Mknod {
        arg: MknodIn,
        name: &'a [u8],
    },
    Mkdir {
        arg: MkdirIn,
        name: &'a [u8],
    },
    Unlink {
        name: &'a [u8],
    },
    Rmdir {
        name: &'a [u8],
    },
    /// RENAME and RENAME2.
    Rename {
        newdir: u64,
        flags: u32,
        name: &'a [u8],
        new_name: &'a [u8],
    },
    Link {
        oldnodeid: u64,
        name: &'a [u8],
    },
    Open(OpenIn),
    Create {
        arg: CreateIn,
        name: &'a [u8],
    },
    Tmpfile(CreateIn),
    Read(ReadIn),
    /// The payload is apart: see [`crate::channel::Message`].
    Write(WriteIn),
    Statfs,
    Release(ReleaseIn),
    Fsync(FsyncIn),
    Flush(FlushIn),
    Setxattr {
        arg: SetxattrIn,
        ext: SetxattrInExt,
        name: &'a [u8],
        value: &'a [u8],
    },
    Getxattr {
        size: u32,
        name: &'a [u8],
    },
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: &'a [u8],
    },
    Opendir(OpenIn),
    Readdir(ReadIn),
    Readdirplus(ReadIn),
    Releasedir(ReleaseIn),
    Fsyncdir(FsyncIn),
    Getlk(LkIn),
    Setlk(LkIn),
    Setlkw(LkIn),
    Access(AccessIn),
    Interrupt {
        unique: u64,
    },
    Bmap(BmapIn),
    Destroy,
    Ioctl(IoctlIn),
    Poll(PollIn),
    Fallocate(FallocateIn),
    Lseek(LseekIn),
    CopyFileRange(CopyFileRangeIn),
    CopyFileRange64(CopyFileRangeIn),
    Syncfs(SyncfsIn),
    /// Anything else: answered ENOSYS.
    Unknown,
}

/// The list of a BATCH_FORGET, whole records only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forgets<'a>(&'a [u8]);

impl Iterator for Forgets<'_> {
    type Item = ForgetOne;

    fn next(&mut self) -> Option<ForgetOne> {
        let (one, rest) = ForgetOne::read_from_prefix(self.0).ok()?;
        self.0 = rest;
        Some(one)
    }
}

impl InHeader {
    /// The header of a message, which must be as long as it says.
    pub fn decode(message: &[u8]) -> Result<Self, DecodeError> {
        let need = size_of::<Self>();
        let Ok((header, _)) = Self::read_from_prefix(message) else {
            return Err(DecodeError::Short { opcode: 0, have: message.len(), need });
        };
        if header.len as usize != message.len() {
            return Err(DecodeError::Length { says: header.len as usize, have: message.len() });
        }
        Ok(header)
    }
}

/// Reads parts off the front of a body.
struct Cursor<'a> {
    opcode: u32,
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Result<T, DecodeError> {
        let (value, rest) = T::read_from_prefix(self.rest).map_err(|_| self.short(size_of::<T>()))?;
        self.rest = rest;
        Ok(value)
    }

    fn short(&self, need: usize) -> DecodeError {
        DecodeError::Short { opcode: self.opcode, have: self.rest.len(), need }
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or_else(|| self.short(len))?;
        self.rest = rest;
        Ok(taken)
    }

    /// Bytes up to a NUL, of any kind but empty.
    fn string(&mut self, max: usize) -> Result<&'a [u8], DecodeError> {
        let bad = DecodeError::Name { opcode: self.opcode };
        let len = self.rest.iter().take(max + 1).position(|&b| b == 0).ok_or(bad)?;
        let (name, rest) = self.rest.split_at(len);
        if name.is_empty() {
            return Err(bad);
        }
        self.rest = &rest[1..];
        Ok(name)
    }

    /// A name within a directory.
    fn name(&mut self) -> Result<&'a [u8], DecodeError> {
        let name = self.string(NAME_MAX)?;
        if name.contains(&b'/') { Err(DecodeError::Name { opcode: self.opcode }) } else { Ok(name) }
    }
}

/// Longest link target: PATH_MAX, NUL included.
const TARGET_MAX: usize = 4095;

impl<'a> Op<'a> {
    /// Decodes what follows the header. `setxattr_ext` says whether SETXATTR_EXT was negotiated.
    pub fn decode(code: u32, body: &'a [u8], setxattr_ext: bool) -> Result<Self, DecodeError> {
        let mut at = Cursor { opcode: code, rest: body };
        Ok(match code {
            opcode::INIT => {
                let init = at.take::<InitIn>()?;
                let flags2 = at.take::<InitInExt>().map_or(0, |ext| ext.flags2);
                Op::Init { init, flags2 }
            }
            opcode::FORGET => Op::Forget { nlookup: at.take::<ForgetIn>()?.nlookup },
            opcode::BATCH_FORGET => Self::batch_forget(&mut at)?,
            opcode::INTERRUPT => Op::Interrupt { unique: at.take::<InterruptIn>()?.unique },
            opcode::DESTROY => Op::Destroy,
            opcode::STATFS => Op::Statfs,
            opcode::SYNCFS => Op::Syncfs(at.take()?),
            opcode::GETATTR => Op::Getattr(at.take()?),
            opcode::STATX => Op::Statx(at.take()?),
            opcode::SETATTR => Op::Setattr(at.take()?),
            opcode::ACCESS => Op::Access(at.take()?),
            opcode::GETLK => Op::Getlk(at.take()?),
            opcode::SETLK => Op::Setlk(at.take()?),
            opcode::SETLKW => Op::Setlkw(at.take()?),
            _ => match Self::decode_named(code, &mut at, setxattr_ext)? {
                Some(op) => op,
                None => Self::decode_file(code, &mut at)?,
            },
        })
    }

    fn batch_forget(at: &mut Cursor<'a>) -> Result<Self, DecodeError> {
        let count = at.take::<BatchForgetIn>()?.count as usize;
        let have = at.rest.len();
        let need = count.saturating_mul(size_of::<ForgetOne>());
        let list = at.rest.get(..need).ok_or(DecodeError::Short { opcode: at.opcode, have, need })?;
        Ok(Op::BatchForget { list: Forgets(list) })
    }

    /// Requests about names.
    fn decode_named(code: u32, at: &mut Cursor<'a>, setxattr_ext: bool) -> Result<Option<Self>, DecodeError> {
        Ok(Some(match code {
            opcode::LOOKUP => Op::Lookup { name: at.name()? },
            opcode::READLINK => Op::Readlink,
            opcode::SYMLINK => Op::Symlink { name: at.name()?, target: at.string(TARGET_MAX)? },
            opcode::MKNOD => Op::Mknod { arg: at.take()?, name: at.name()? },
            opcode::MKDIR => Op::Mkdir { arg: at.take()?, name: at.name()? },
            opcode::UNLINK => Op::Unlink { name: at.name()? },
            opcode::RMDIR => Op::Rmdir { name: at.name()? },
            opcode::RENAME => {
                let arg = at.take::<RenameIn>()?;
                Op::Rename { newdir: arg.newdir, flags: 0, name: at.name()?, new_name: at.name()? }
            }
            opcode::RENAME2 => {
                let arg = at.take::<Rename2In>()?;
                Op::Rename { newdir: arg.newdir, flags: arg.flags, name: at.name()?, new_name: at.name()? }
            }
            opcode::LINK => Op::Link { oldnodeid: at.take::<LinkIn>()?.oldnodeid, name: at.name()? },
            opcode::CREATE => Op::Create { arg: at.take()?, name: at.name()? },
            // A name follows, of the kernel's own making and of no meaning.
            opcode::TMPFILE => Op::Tmpfile(at.take()?),
            opcode::SETXATTR => {
                let arg = at.take::<SetxattrIn>()?;
                let ext = if setxattr_ext { at.take()? } else { SetxattrInExt::default() };
                let name = at.string(NAME_MAX)?;
                Op::Setxattr { arg, ext, name, value: at.bytes(arg.size as usize)? }
            }
            opcode::GETXATTR => {
                Op::Getxattr { size: at.take::<GetxattrIn>()?.size, name: at.string(NAME_MAX)? }
            }
            opcode::LISTXATTR => Op::Listxattr { size: at.take::<GetxattrIn>()?.size },
            opcode::REMOVEXATTR => Op::Removexattr { name: at.string(NAME_MAX)? },
            _ => return Ok(None),
        }))
    }

    /// Requests about open files and directories.
    fn decode_file(code: u32, at: &mut Cursor<'a>) -> Result<Self, DecodeError> {
        Ok(match code {
            opcode::OPEN => Op::Open(at.take()?),
            opcode::READ => Op::Read(at.take()?),
            opcode::WRITE => Op::Write(at.take()?),
            opcode::RELEASE => Op::Release(at.take()?),
            opcode::FSYNC => Op::Fsync(at.take()?),
            opcode::FLUSH => Op::Flush(at.take()?),
            opcode::OPENDIR => Op::Opendir(at.take()?),
            opcode::READDIR => Op::Readdir(at.take()?),
            opcode::READDIRPLUS => Op::Readdirplus(at.take()?),
            opcode::RELEASEDIR => Op::Releasedir(at.take()?),
            opcode::FSYNCDIR => Op::Fsyncdir(at.take()?),
            opcode::BMAP => Op::Bmap(at.take()?),
            opcode::IOCTL => Op::Ioctl(at.take()?),
            opcode::POLL => Op::Poll(at.take()?),
            opcode::FALLOCATE => Op::Fallocate(at.take()?),
            opcode::LSEEK => Op::Lseek(at.take()?),
            opcode::COPY_FILE_RANGE => Op::CopyFileRange(at.take()?),
            opcode::COPY_FILE_RANGE_64 => Op::CopyFileRange64(at.take()?),
            _ => Op::Unknown,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn arbitrary_bytes_never_panic(
            code in prop_oneof![0u32..60, any::<u32>()],
            body in prop::collection::vec(any::<u8>(), 0..300),
            ext in any::<bool>(),
        ) {
            let _ = InHeader::decode(&body);
            if let Ok(Op::BatchForget { list }) = Op::decode(code, &body, ext) {
                prop_assert!(list.count() <= body.len() / 16);
            }
        }

        #[test]
        fn every_truncation_of_a_good_request_is_refused(cut in 0usize..55) {
            let mut body = SetxattrIn { size: 33, flags: 0 }.as_bytes().to_vec();
            body.extend_from_slice(SetxattrInExt::default().as_bytes());
            body.extend_from_slice(b"user.x\0");
            body.extend_from_slice(&[7; 33]);
            prop_assert!(Op::decode(opcode::SETXATTR, &body[..cut], true).is_err());
            let whole = Op::decode(opcode::SETXATTR, &body, true).expect("whole");
            let Op::Setxattr { value, .. } = whole else { panic!("{whole:?}") };
            prop_assert_eq!(value, [7; 33]);
        }
    }

    #[test]
    fn names_are_taken_apart() {
        let mut body = Rename2In { newdir: 9, flags: 1, padding: 0 }.as_bytes().to_vec();
        body.extend_from_slice(b"old\0new\0");
        let op = Op::decode(opcode::RENAME2, &body, true);
        assert_eq!(op, Ok(Op::Rename { newdir: 9, flags: 1, name: b"old", new_name: b"new" }));
        assert_eq!(
            Op::decode(opcode::LOOKUP, b"a/b\0", true),
            Err(DecodeError::Name { opcode: opcode::LOOKUP })
        );
        assert_eq!(
            Op::decode(opcode::LOOKUP, b"\0", true),
            Err(DecodeError::Name { opcode: opcode::LOOKUP })
        );
        assert_eq!(
            Op::decode(opcode::LOOKUP, b"endless", true),
            Err(DecodeError::Name { opcode: opcode::LOOKUP })
        );
        let target = Op::decode(opcode::SYMLINK, b"l\0../t\0", true);
        assert_eq!(target, Ok(Op::Symlink { name: b"l", target: b"../t" }));
    }

    #[test]
    fn both_forms_of_setxattr_are_read() {
        let mut short = SetxattrIn { size: 3, flags: 0 }.as_bytes().to_vec();
        let mut long = short.clone();
        long.extend_from_slice(SetxattrInExt { setxattr_flags: 1, padding: 0 }.as_bytes());
        for body in [&mut short, &mut long] {
            body.extend_from_slice(b"user.a\0val");
        }
        for (body, ext) in [(&short, false), (&long, true)] {
            let op = Op::decode(opcode::SETXATTR, body, ext);
            assert!(matches!(op, Ok(Op::Setxattr { name: b"user.a", value: b"val", .. })), "{op:?}");
        }
    }

    #[test]
    fn a_header_must_be_as_long_as_it_says() {
        let header = InHeader { len: 40, opcode: opcode::STATFS, ..InHeader::default() };
        assert_eq!(InHeader::decode(header.as_bytes()), Ok(header));
        let liar = InHeader { len: 41, ..header };
        assert_eq!(InHeader::decode(liar.as_bytes()), Err(DecodeError::Length { says: 41, have: 40 }));
        assert!(InHeader::decode(&[0; 39]).is_err());
    }
}
