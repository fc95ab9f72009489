//! Rules of Cargo.toml files: one list of versions, a reason for each, one set of lints.

use super::tree::Tree;
use anyhow::{Context as _, Result};
use toml::{Table, Value};

/// Every complaint about the manifests.
pub(super) fn check(tree: &Tree) -> Result<Vec<String>> {
    let mut out = reasons(&tree.text("Cargo.toml")?);
    for path in tree.files.iter().filter(|f| f.ends_with("/Cargo.toml")) {
        let table: Table = tree.text(path)?.parse().with_context(|| format!("{path} is not TOML"))?;
        out.extend(member(path, &table));
    }
    Ok(out)
}

/// Each outside dependency says on its line why it is there.
fn reasons(root: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut within = false;
    for (n, line) in root.lines().enumerate() {
        if line.starts_with('[') {
            within = line.trim() == "[workspace.dependencies]";
        } else if within && line.contains('=') && !line.contains("path =") && !line.contains(" # ") {
            out.push(format!("Cargo.toml:{}: say why behind the dependency: `# reason`", n + 1));
        }
    }
    out
}

fn member(path: &str, table: &Table) -> Vec<String> {
    let mut out = Vec::new();
    let is_inherited =
        |v: &Value| v.as_table().is_some_and(|t| t.get("workspace").and_then(Value::as_bool) == Some(true));
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let Some(list) = table.get(section).and_then(Value::as_table) else { continue };
        for (name, value) in list {
            if !is_inherited(value) {
                out.push(format!(
                    "{path}: take {name} from the workspace (`{name}.workspace = true`), with its version and reason there"
                ));
            }
        }
    }
    if !table.get("lints").is_some_and(is_inherited) {
        out.push(format!("{path}: take the workspace's lints: `[lints]` with `workspace = true`"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_have_reasons_and_one_home() {
        let root = "[workspace.dependencies]\nours = { path = \"ours\" }\ngood = \"1\" # why\nbad = \"1\"\n[profile.dev]\na = 1\n";
        assert_eq!(reasons(root).len(), 1);
        let member_of = |text: &str| member("a/Cargo.toml", &text.parse().expect("TOML"));
        assert_eq!(member_of("[lints]\nworkspace = true\n[dependencies]\nours.workspace = true\n"), [""; 0]);
        assert_eq!(member_of("[dependencies]\ngood = \"1\"\n").len(), 2);
    }
}
