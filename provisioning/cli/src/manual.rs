//! `completions` and `man`: both are made of the same definitions as the command line itself.

use crate::args::Cli;
use crate::failure::Failure;
use crate::print;
use clap::CommandFactory;
use std::path::Path;

pub(crate) fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "claudefs", &mut script);
    print::out(&String::from_utf8_lossy(&script))
}

pub(crate) fn man(dir: &Path) -> Result<(), Failure> {
    if !dir.is_dir() {
        return Err(Failure::Usage(format!(
            "{} is not a directory; make it with `mkdir -p {0}`",
            dir.display()
        )));
    }
    let written = clap_mangen::generate_to(Cli::command(), dir);
    written.map_err(Failure::other(&format!("can't write manual pages into {}", dir.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::tempdir().expect("a folder");
        man(dir.path()).expect("written");
        for page in ["claudefs.1", "claudefs-mount.1", "claudefs-key-generate.1"] {
            let text = std::fs::read_to_string(dir.path().join(page)).expect(page);
            assert!(text.contains(".SH"), "{page}: {text}");
        }
        assert_eq!(man(&dir.path().join("none")).expect_err("no folder").exit_code(), 2);
    }
}
