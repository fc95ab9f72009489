//! The repository keeps its own rules: `cargo xtask tidy` as a test.

#[test]
fn the_repository_is_tidy() {
    let complaints = xtask::tidy::complaints(xtask::workspace::root()).expect("the tree can be read");
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}
