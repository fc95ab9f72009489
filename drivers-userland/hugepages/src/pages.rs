//! The mapping beneath an arena: which pages, and what to tell the operator where they are missing.

use memmap2::{Advice, MmapMut, MmapOptions};
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// Which pages to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PageChoice {
    /// 1 GiB pages, else small ones with a warning.
    Huge1G,
    /// 2 MiB pages, else small ones with a warning.
    Huge2M,
    /// Normal pages on purpose: no warning.
    Small,
    /// 1 GiB pages where the size is a multiple of one, else 2 MiB, else small with a warning.
    #[default]
    Best,
}

/// Which pages an arena got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// 1 GiB hugetlb pages.
    Huge1G,
    /// 2 MiB hugetlb pages.
    Huge2M,
    /// Normal pages, advised to become transparent huge pages.
    Small,
}

impl PageKind {
    /// Bytes in one page.
    pub fn bytes(self) -> usize {
        match self {
            PageKind::Huge1G => 1 << 30,
            PageKind::Huge2M => 2 << 20,
            PageKind::Small => 4096,
        }
    }

    fn log2(self) -> u8 {
        self.bytes().trailing_zeros() as u8
    }
}

/// What the process will map in all arenas together; see [`announce`].
static ANNOUNCED: AtomicUsize = AtomicUsize::new(0);
static WARNED: AtomicBool = AtomicBool::new(false);

/// Tells how many bytes the process will map in all its arenas together, before the first is made, so that
/// the single warning about missing huge pages names the number of pages that cures all of them.
pub fn announce(total_bytes: usize) {
    ANNOUNCED.store(total_bytes, Relaxed);
}

/// Maps `bytes`, rounded up to whole pages of the kind obtained.
pub(crate) fn map(bytes: usize, choice: PageChoice) -> std::io::Result<(MmapMut, PageKind)> {
    let wanted: &[PageKind] = match choice {
        PageChoice::Huge1G => &[PageKind::Huge1G],
        PageChoice::Huge2M => &[PageKind::Huge2M],
        PageChoice::Best if bytes.is_multiple_of(PageKind::Huge1G.bytes()) => {
            &[PageKind::Huge1G, PageKind::Huge2M]
        }
        PageChoice::Best => &[PageKind::Huge2M],
        PageChoice::Small => &[],
    };
    for &kind in wanted {
        // A hugetlb mapping reserves its pages at once: it fails here, never later with SIGBUS.
        let len = bytes.next_multiple_of(kind.bytes());
        if let Ok(map) = MmapOptions::new().len(len).huge(Some(kind.log2())).map_anon() {
            keep_in_this_process(&map);
            return Ok((map, kind));
        }
    }
    let map = MmapOptions::new().len(bytes.next_multiple_of(PageKind::Small.bytes())).map_anon()?;
    keep_in_this_process(&map);
    if let Some(&kind) = wanted.last() {
        // A kernel without transparent huge pages refuses the advice, which costs only speed.
        let _ = map.advise(Advice::HugePage);
        warn_once(bytes, kind);
    }
    Ok((map, PageKind::Small))
}

/// A forked child must not share pages that the kernel writes to: copy-on-write would part us from them.
fn keep_in_this_process(map: &MmapMut) {
    let _ = map.advise(Advice::DontFork);
}

fn warn_once(bytes: usize, kind: PageKind) {
    if WARNED.swap(true, Relaxed) {
        return;
    }
    let shortage = Shortage::of(bytes.max(ANNOUNCED.load(Relaxed)), kind, |name| {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/{name}", kind.bytes() >> 10);
        fs::read_to_string(path).ok()?.trim().parse().ok()
    });
    tracing::warn!(
        missing = shortage.missing,
        "{} huge pages of {} MiB are missing: using normal pages, which cost speed; to cure it run `{}` and restart",
        shortage.missing,
        kind.bytes() >> 20,
        shortage.cure,
    );
}

struct Shortage {
    missing: u64,
    cure: String,
}

impl Shortage {
    /// `read` gives a counter of the page size's sysfs folder.
    fn of(bytes: usize, kind: PageKind, read: impl Fn(&str) -> Option<u64>) -> Shortage {
        let needed = bytes.div_ceil(kind.bytes()) as u64;
        let total = read("nr_hugepages").unwrap_or(0);
        let free = read("free_hugepages").unwrap_or(0).saturating_sub(read("resv_hugepages").unwrap_or(0));
        let missing = needed.saturating_sub(free).max(1);
        let file = match kind {
            PageKind::Huge1G => "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages",
            PageKind::Huge2M | PageKind::Small => "/proc/sys/vm/nr_hugepages",
        };
        Shortage { missing, cure: format!("echo {} > {file}", total + missing) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cure_counts_pages_that_others_hold() {
        let read = |name: &str| match name {
            "nr_hugepages" => Some(10),
            "free_hugepages" => Some(4),
            "resv_hugepages" => Some(1),
            _ => None,
        };
        let shortage = Shortage::of(16 << 20, PageKind::Huge2M, read);
        assert_eq!(shortage.missing, 5);
        assert_eq!(shortage.cure, "echo 15 > /proc/sys/vm/nr_hugepages");
    }

    #[test]
    fn a_kernel_without_huge_pages_still_gets_a_number() {
        let shortage = Shortage::of(3 << 30, PageKind::Huge1G, |_| None);
        assert_eq!(shortage.missing, 3);
        assert!(shortage.cure.ends_with("hugepages-1048576kB/nr_hugepages"));
    }

    #[test]
    fn any_choice_gives_memory() {
        for choice in [PageChoice::Huge1G, PageChoice::Huge2M, PageChoice::Small, PageChoice::Best] {
            let (map, kind) = map(5000, choice).expect("normal pages are always there");
            assert!(map.len() >= 5000 && map.len().is_multiple_of(kind.bytes()));
        }
    }
}
