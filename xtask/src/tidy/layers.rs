//! Dependencies point downwards, and chains of them are short.

use crate::workspace::Package;
use std::collections::BTreeMap;

/// Folders from the ground up. A crate may use crates of its own level's folder and of lower levels.
const LEVELS: &[(&str, u32)] = &[
    ("drivers-userland/", 0),
    ("appliance/", 1),
    ("nfs-frontend/", 2),
    ("client-fuse", 2),
    ("image", 3),
    ("provisioning/", 3),
    ("hwtest", 4),
    ("xtask", 5),
];

/// Steps down from a library to the ground.
const DEEPEST: usize = 4;

/// Cores that no runtime may reach, and what they must not depend on, at any distance.
const SANS_IO: &[&str] = &["wire", "namespace"];
const RUNTIMES: &[&str] = &["reactor", "transport", "hugepages", "io-uring", "tokio", "mio"];

/// Where tokio may be: the control plane.
const TOKIO_IN: &str = "provisioning/";

/// Every complaint about who depends on whom.
pub(super) fn check(packages: &[Package]) -> Vec<String> {
    let by_name: BTreeMap<&str, &Package> = packages.iter().map(|p| (p.name.as_str(), p)).collect();
    let mut out = Vec::new();
    for p in packages {
        let Some((home, level)) = level(&p.folder()) else {
            out.push(format!("{}: no level is known for this folder (xtask/src/tidy/layers.rs)", p.folder()));
            continue;
        };
        for d in p.dependencies.iter().filter_map(|d| by_name.get(d.name.as_str())) {
            let Some((below, other)) = self::level(&d.folder()) else { continue };
            if other > level || (other == level && home != below) {
                out.push(format!(
                    "{}: must not depend on {}: dependencies point downwards",
                    p.folder(),
                    d.folder()
                ));
            }
        }
        if p.dependencies.iter().any(|d| d.name == "tokio") && !p.folder().starts_with(TOKIO_IN) {
            out.push(format!(
                "{}: tokio is for the control plane ({TOKIO_IN}), never for a data path",
                p.folder()
            ));
        }
        let chain = longest_chain(p, &by_name, &mut Vec::new());
        if p.is_library() && !is_outermost(p) && chain.len() > DEEPEST + 1 {
            out.push(format!(
                "{}: more than {DEEPEST} steps to the ground: {}",
                p.folder(),
                chain.join(" > ")
            ));
        }
        if SANS_IO.contains(&p.name.as_str()) {
            for runtime in RUNTIMES {
                if reaches(p, runtime, &by_name, 0) {
                    out.push(format!("{}: a sans-I/O core must not reach {runtime}", p.folder()));
                }
            }
        }
    }
    out
}

/// Programs of developers and operators: nothing builds on their libraries.
fn is_outermost(p: &Package) -> bool {
    ["provisioning/cli", "hwtest", "xtask"].contains(&p.folder().as_str())
}

fn level(folder: &str) -> Option<(&'static str, u32)> {
    LEVELS.iter().find(|(prefix, _)| folder.starts_with(prefix)).copied()
}

/// Ordinary dependencies within the workspace; dev-dependencies don't ship.
fn shipped<'a>(
    p: &'a Package,
    by_name: &'a BTreeMap<&str, &'a Package>,
) -> impl Iterator<Item = &'a Package> + 'a {
    p.dependencies.iter().filter(|d| d.kind.is_none()).filter_map(|d| by_name.get(d.name.as_str()).copied())
}

fn longest_chain(p: &Package, by_name: &BTreeMap<&str, &Package>, path: &mut Vec<String>) -> Vec<String> {
    // Cargo refuses circles; the bound is for the tests' hand-made packages.
    if path.len() > by_name.len() {
        return path.clone();
    }
    path.push(p.name.clone());
    let mut longest = path.clone();
    for d in shipped(p, by_name) {
        let chain = longest_chain(d, by_name, path);
        if chain.len() > longest.len() {
            longest = chain;
        }
    }
    path.pop();
    longest
}

fn reaches(p: &Package, name: &str, by_name: &BTreeMap<&str, &Package>, depth: usize) -> bool {
    depth <= by_name.len()
        && (p.dependencies.iter().any(|d| d.kind.is_none() && d.name == name)
            || shipped(p, by_name).any(|d| reaches(d, name, by_name, depth + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::{Dependency, Target};

    fn package(folder: &str, uses: &[&str]) -> Package {
        let name = folder.rsplit('/').next().unwrap_or(folder).to_owned();
        Package {
            manifest_path: crate::workspace::root().join(folder).join("Cargo.toml"),
            dependencies: uses
                .iter()
                .map(|d| Dependency { name: (*d).to_owned(), kind: None, path: None })
                .collect(),
            targets: vec![Target { kind: vec!["lib".to_owned()], name: name.clone() }],
            name,
        }
    }

    #[test]
    fn downwards_is_right_upwards_and_sideways_is_not() {
        let fine = [
            package("drivers-userland/reactor", &[]),
            package("appliance/transport", &["reactor"]),
            package("client-fuse", &["transport"]),
        ];
        assert_eq!(check(&fine), [""; 0]);
        let up = [package("drivers-userland/reactor", &["transport"]), package("appliance/transport", &[])];
        assert_eq!(check(&up).len(), 1);
        let sideways = [package("client-fuse", &["server"]), package("nfs-frontend/server", &[])];
        assert_eq!(check(&sideways).len(), 1);
    }

    #[test]
    fn chains_are_short() {
        let names = ["a", "b", "c", "d", "e", "f"];
        let packages: Vec<Package> = (0..names.len())
            .map(|i| package(&format!("appliance/{}", names[i]), names.get(i + 1..i + 2).unwrap_or_default()))
            .collect();
        let complaints = check(&packages);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(complaints[0].contains("a > b > c > d > e > f"));
    }

    #[test]
    fn cores_know_no_runtime_and_data_paths_no_tokio() {
        let far = [
            package("appliance/namespace", &["helper"]),
            package("appliance/helper", &["reactor"]),
            package("drivers-userland/reactor", &[]),
        ];
        assert_eq!(check(&far).len(), 1);
        assert_eq!(check(&[package("appliance/node", &["tokio"])]).len(), 1);
        assert_eq!(check(&[package("provisioning/server", &["tokio"])]), [""; 0]);
    }
}
