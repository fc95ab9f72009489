//! Lengths of Rust files, as a ratchet: a file reads in one sitting, and one that does not can only get shorter.

use super::tree::Tree;
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Lines above which a file needs an entry in the list.
const SOFT: usize = 600;
/// Lines that no file may exceed.
const HARD: usize = 1000;
/// The list of exceptions.
const LIST: &str = "xtask/lengths.toml";

const HEAD: &str = "# Rust files above the soft limit of lines, and how long each may be. The list only shrinks:\n\
                    # split a file rather than raise its number. `cargo xtask tidy --shrink` lowers what has become shorter.\n";

type Allowed = BTreeMap<String, usize>;

fn allowed(tree: &Tree) -> Result<Allowed> {
    if !tree.files.iter().any(|f| f == LIST) {
        return Ok(Allowed::new());
    }
    toml::from_str(&tree.text(LIST)?).with_context(|| format!("{LIST} is not a list of paths and lengths"))
}

fn lengths(tree: &Tree) -> impl Iterator<Item = (&str, usize)> {
    tree.sources.iter().map(|f| (f.path.as_str(), f.text.lines().count()))
}

/// Every complaint about lengths.
pub(super) fn check(tree: &Tree) -> Result<Vec<String>> {
    Ok(compare(&lengths(tree).collect(), &allowed(tree)?))
}

fn compare(lengths: &BTreeMap<&str, usize>, allowed: &Allowed) -> Vec<String> {
    let mut out = Vec::new();
    for (path, lines) in lengths {
        match allowed.get(*path) {
            _ if *lines > HARD => {
                out.push(format!("{path}: {lines} lines; none may have more than {HARD}: split it"));
            }
            None if *lines > SOFT => {
                out.push(format!("{path}: {lines} lines; a file reads in one sitting ({SOFT}): split it"));
            }
            Some(limit) if lines > limit => {
                out.push(format!(
                    "{path}: {lines} lines, {limit} allowed in {LIST}: split it rather than raise that"
                ));
            }
            Some(limit) if lines < limit => {
                out.push(format!(
                    "{path}: {lines} lines, {limit} in {LIST}: run `cargo xtask tidy --shrink`"
                ));
            }
            _ => {}
        }
    }
    for path in allowed.keys().filter(|p| !lengths.contains_key(p.as_str())) {
        out.push(format!("{LIST}: {path} is gone: run `cargo xtask tidy --shrink`"));
    }
    out
}

/// Lowers and drops entries; raises and adds none.
pub(super) fn shrink(tree: &Tree) -> Result<()> {
    let lengths: BTreeMap<&str, usize> = lengths(tree).collect();
    let mut text = HEAD.to_owned();
    for (path, limit) in allowed(tree)? {
        let Some(lines) = lengths.get(path.as_str()) else { continue };
        if *lines > SOFT {
            let _ = writeln!(text, "\"{path}\" = {}", limit.min(*lines));
        }
    }
    std::fs::write(tree.root.join(LIST), text).with_context(|| format!("can't write {LIST}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_may_only_become_shorter() {
        let list: Allowed = [("a.rs".to_owned(), 700)].into();
        let of = |n| BTreeMap::from([("a.rs", n)]);
        assert_eq!(compare(&of(700), &list), [""; 0]);
        assert_eq!(compare(&of(701), &list).len(), 1);
        assert_eq!(compare(&of(650), &list).len(), 1);
        assert_eq!(compare(&of(1001), &list).len(), 1);
        assert_eq!(compare(&of(601), &Allowed::new()).len(), 1);
        assert_eq!(compare(&of(600), &Allowed::new()), [""; 0]);
        assert_eq!(compare(&BTreeMap::new(), &list).len(), 1);
    }
}
