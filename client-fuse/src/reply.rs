//! What an operation answers, and its way to the kernel.

use crate::abi::reply::*;
use crate::channel::Device;
use client::Hold;
use client::service::Data;
use hugepages::Bytes;
use zerocopy::IntoBytes;

/// A successful reply's contents.
#[derive(Debug)]
#[allow(missing_docs, reason = "the variants are the protocol's replies")]
pub(crate) enum Reply {
    Empty,
    Entry(EntryOut),
    Attr(AttrOut),
    Statx(StatxOut),
    Create(CreateOut),
    Open(OpenOut),
    Write(WriteOut),
    Copied(CopyFileRangeOut),
    Statfs(StatfsOut),
    XattrSize(GetxattrOut),
    Lock(LkOut),
    Seek(LseekOut),
    Bytes(Bytes),
    Data(Data),
    Page(Vec<u8>),
}

/// A reply, and the hold that lasts until it is written.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Contents.
    pub(crate) reply: Reply,
    /// Kept until then.
    pub(crate) hold: Hold,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self { reply, hold: Hold::none() }
    }
}

impl Reply {
    /// With a hold.
    #[must_use]
    pub(crate) fn held(self, hold: Hold) -> Answer {
        Answer { reply: self, hold }
    }

    /// Writes it.
    pub(crate) fn send(&self, device: &Device, unique: u64) {
        let one = |bytes: &[u8]| device.reply(unique, &[bytes]);
        match self {
            Reply::Empty => device.reply(unique, &[]),
            Reply::Entry(out) => one(out.as_bytes()),
            Reply::Attr(out) => one(out.as_bytes()),
            Reply::Statx(out) => one(out.as_bytes()),
            Reply::Create(out) => one(out.as_bytes()),
            Reply::Open(out) => one(out.as_bytes()),
            Reply::Write(out) => one(out.as_bytes()),
            Reply::Copied(out) => one(out.as_bytes()),
            Reply::Statfs(out) => one(out.as_bytes()),
            Reply::XattrSize(out) => one(out.as_bytes()),
            Reply::Lock(out) => one(out.as_bytes()),
            Reply::Seek(out) => one(out.as_bytes()),
            Reply::Bytes(bytes) => one(bytes),
            Reply::Page(page) => one(page),
            Reply::Data(data) => match &data[..] {
                [only] => one(only),
                [a, b] => device.reply(unique, &[a, b]),
                many => {
                    let parts: Vec<&[u8]> = many.iter().map(|b| &b[..]).collect();
                    device.reply(unique, &parts);
                }
            },
        }
    }
}
