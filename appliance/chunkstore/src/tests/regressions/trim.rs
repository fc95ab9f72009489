//! Trimming of the namespace log.

use super::*;
use crate::device::MemOptions;
use crate::local::LocalExecutor;

#[test]
fn a_log_trimmed_to_records_of_an_earlier_life_opens_again() {
    // The root said that everything behind it was of the life that trimmed; older records there were taken for damage, and
    // the store could not be opened any more.
    let ex = LocalExecutor::new();
    let mut disk = run(&ex, formatted(MemOptions::default(), 1));
    let (mut first, mut last) = (0, 0);
    for life in 0..6u8 {
        let expect = last - first;
        (first, last, disk) = run(&ex, async {
            let store = open(&ex, &disk).await;
            let places: Vec<u64> = store.records.iter().map(|(seq, _)| *seq).collect();
            assert_eq!(places.len() as u64, expect, "life {life}: {places:?}");
            // To the middle of what earlier lives wrote, and once more to the same place.
            let trimmed = places.len() / 2;
            for _ in 0..2 {
                if let Some(place) = trimmed.checked_sub(1).and_then(|at| places.get(at)) {
                    store.log.trim(*place).await.expect("trims");
                }
            }
            for n in 0..40u8 {
                store.log.append(vec![life, n, 7]).await.expect("appends");
            }
            store.log.flush().await.expect("flushes");
            (trimmed as u64, expect + 40, disk.kill(u64::from(life), MemOptions::default()))
        });
        ex.clear();
    }
}
