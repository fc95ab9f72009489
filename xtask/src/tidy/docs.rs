//! Paths that the documents name exist.

use super::tree::Tree;
use anyhow::Result;

/// Top folders whose mention within backticks is a path of the repository.
const FOLDERS: &[&str] = &[
    "appliance/",
    "client-fuse/",
    "docs/",
    "drivers-userland/",
    "hwtest/",
    "image/",
    "nfs-frontend/",
    "provisioning/",
    "xtask/",
];

/// Every complaint about paths in documents.
pub(super) fn check(tree: &Tree) -> Result<Vec<String>> {
    let mut out = Vec::new();
    for path in tree.files.iter().filter(|f| super::tree::has_extension(f, "md") && !f.contains("CHANGELOG"))
    {
        for (line, name) in paths(&tree.text(path)?) {
            if !tree.root.join(&name).exists() {
                out.push(format!("{path}:{line}: `{name}` does not exist"));
            }
        }
    }
    Ok(out)
}

/// The paths of the repository that a text has within backticks, with their lines.
fn paths(text: &str) -> Vec<(usize, String)> {
    let mut out = Vec::new();
    let mut fenced = false;
    for (n, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        for span in line.split('`').skip(1).step_by(2) {
            let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
            if FOLDERS.iter().any(|f| span.starts_with(f)) && span.chars().all(plain) {
                out.push((n + 1, span.to_owned()));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_of_the_repository_are_looked_at() {
        let text = "See `appliance/wire/src/lib.rs`, `cargo xtask up`, `docs/*.md` and `/etc/fstab`.\n```\n`docs/x.md`\n```\n";
        assert_eq!(paths(text), [(1, "appliance/wire/src/lib.rs".to_owned())]);
    }
}
