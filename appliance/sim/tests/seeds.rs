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
    seeds_2_to_8_lose_nothing: 2..9;
    seeds_9_to_14_lose_nothing: 9..15;
}

#[test]
fn a_seed_plays_the_same_twice() {
    for seed in [51, 52] {
        assert_eq!(run(Plan::of(seed)).expect("it holds"), run(Plan::of(seed)).expect("it holds"));
    }
}
