//! A fixed batch of seeds; `cargo xtask sim` plays as many as one likes.

use sim::{Plan, run};

fn play(seeds: std::ops::Range<u64>) {
    let mut kills = 0;
    for seed in seeds {
        match run(Plan::of(seed)) {
            Ok(outcome) => kills += outcome.faults.kills,
            Err(e) => panic!("{e:#}\nplay it again: cargo xtask sim --from {seed} --seeds 1"),
        }
    }
    assert!(kills > 0, "nothing was killed: the seeds show nothing");
}

macro_rules! batches {
    ($($name:ident: $seeds:expr;)*) => {
        $(#[test]
        fn $name() {
            play($seeds);
        })*
    };
}

batches! {
    seeds_1_to_10_lose_nothing: 1..11;
    seeds_11_to_20_lose_nothing: 11..21;
    seeds_21_to_30_lose_nothing: 21..31;
    seeds_31_to_40_lose_nothing: 31..41;
    seeds_41_to_50_lose_nothing: 41..51;
}

#[test]
fn a_seed_plays_the_same_twice() {
    for seed in [51, 52] {
        assert_eq!(run(Plan::of(seed)).expect("it holds"), run(Plan::of(seed)).expect("it holds"));
    }
}
