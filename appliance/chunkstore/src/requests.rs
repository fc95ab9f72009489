//! The exactly-once table: the last request of each (client, channel) and its answer.
//!
//! Pure. It is bounded by the clients' sessions: one entry per slot that a session has used, dropped when the
//! session ends.

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

/// Longest stored answer, bytes.
pub const OUTCOME: usize = 32;
/// Pages that the table is cut into for checkpoints.
pub(crate) const REQUEST_PAGES: usize = 64;

/// Names a request: a channel has one at a time, sequences rise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// The client's session.
    pub client: u64,
    /// Its slot.
    pub channel: u16,
    /// Number within the slot.
    pub sequence: u64,
}

type Last = (u64, SmallVec<[u8; OUTCOME]>);

/// Last requests of one shard.
#[derive(Debug)]
pub(crate) struct Requests {
    pages: Vec<FxHashMap<(u64, u16), Last>>,
}

/// The page of a slot.
pub(crate) fn page_of(client: u64, channel: u16) -> usize {
    let mix = crate::index::mix(client ^ u64::from(channel).rotate_left(48));
    (mix >> 32) as usize % REQUEST_PAGES
}

impl Requests {
    pub(crate) fn new() -> Requests {
        Requests { pages: (0..REQUEST_PAGES).map(|_| FxHashMap::default()).collect() }
    }

    /// The last request of a slot.
    pub(crate) fn last(&self, client: u64, channel: u16) -> Option<(u64, &[u8])> {
        let (sequence, outcome) = self.pages[page_of(client, channel)].get(&(client, channel))?;
        Some((*sequence, outcome))
    }

    pub(crate) fn set(&mut self, id: RequestId, outcome: &[u8]) {
        let last = (id.sequence, SmallVec::from_slice(outcome));
        self.pages[page_of(id.client, id.channel)].insert((id.client, id.channel), last);
    }

    /// Drops a client's slots within one page; true if there were any.
    pub(crate) fn forget(&mut self, client: u64, page: usize) -> bool {
        let before = self.pages[page].len();
        self.pages[page].retain(|(c, _), _| *c != client);
        self.pages[page].len() != before
    }

    pub(crate) fn page(&self, page: usize) -> impl Iterator<Item = (RequestId, &[u8])> {
        self.pages[page].iter().map(|(&(client, channel), (sequence, outcome))| {
            (RequestId { client, channel, sequence: *sequence }, outcome.as_slice())
        })
    }

    /// Everyone who has a slot here, each once.
    pub(crate) fn clients(&self) -> Vec<u64> {
        let mut all: Vec<u64> = self.pages.iter().flat_map(FxHashMap::keys).map(|(c, _)| *c).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    pub(crate) fn len(&self) -> usize {
        self.pages.iter().map(FxHashMap::len).sum()
    }
}
