//! The checks themselves, on the file system that holds the build: what passes here is a fair thing to ask of a mount.

use hwtest::scale::{Meter, names};
use hwtest::{battery, linear, model};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A folder beside the build: /tmp is a tmpfs on many machines, which lacks direct I/O on older kernels.
fn folder() -> tempfile::TempDir {
    let beside = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tempfile::tempdir_in(beside).expect("a folder beside the build")
}

#[test]
fn the_smoke_battery_passes_on_a_plain_directory() {
    let dir = folder();
    if !rustix::process::geteuid().is_root() {
        println!("skipped: the battery changes owners, which takes root");
        return;
    }
    battery::run(dir.path(), battery::QUICK).expect("every check passes");
}

#[test]
fn two_ways_to_one_directory_agree() {
    let dir = folder();
    battery::pairs::run(dir.path(), dir.path()).expect("every check passes");
    let rounds =
        battery::pairs::contend(dir.path(), dir.path(), Duration::from_secs(1), Duration::from_secs(30));
    assert!(rounds.expect("nobody stands still") > 0);
}

#[test]
fn concurrent_operations_on_a_plain_directory_have_an_order() {
    let dir = folder();
    let (dirs, end) = (vec![dir.path().to_path_buf(); 2], linear::End::Rounds(30));
    let summary = linear::run(&linear::Plan { dirs, workers: 4, ops: 8, seed: 1, end });
    assert!(summary.expect("an order").ops >= 30 * 4 * 8);
}

#[test]
fn the_model_agrees_with_a_plain_directory() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: the model changes owners, which takes root");
        return;
    }
    let dir = folder();
    for seed in [1, 2] {
        let summary = model::run(&model::Plan {
            program: PathBuf::from(env!("CARGO_BIN_EXE_hwtest")),
            dirs: vec![dir.path().to_path_buf()],
            workers: 3,
            ops: 6000,
            seed,
            patience: Duration::from_secs(60),
            progress: false,
        });
        let summary = summary.expect("every answer is the model's");
        assert!(summary.ops >= 6000 && summary.refused < summary.ops * 3 / 4, "{summary:?}");
    }
}

#[test]
fn many_names_in_a_plain_directory_are_listed_right() {
    let dir = folder();
    let dirs = vec![dir.path().to_path_buf()];
    let plan = names::Plan { dirs, entries: 5000, workers: 2, listings: 3, seed: 1 };
    let phases = names::run(&plan, Meter::new(Vec::new(), false)).expect("every answer is right");
    assert_eq!((phases.len(), phases[0].count), (8, 5000));
}
