//! (cli)
fn main() {}
