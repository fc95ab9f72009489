//! Rules of single Rust files: heads, unsafe code, and what must not be left behind.

use super::scan::lines_with_word;
use super::tree::SourceFile;

/// Where `unsafe` may stand. Everything else goes through these, or through rustix and zerocopy.
const MAY_BE_UNSAFE: &[&str] = &[
    "drivers-userland/hugepages/",
    "drivers-userland/reactor/",
    "drivers-userland/nvme/",
    "drivers-userland/fabric/",
];

/// Cores that take events and return actions: no socket, no clock.
const SANS_IO: &[&str] = &["appliance/wire/src/", "appliance/namespace/src/"];

/// The one part with a thread of its own: it moves records into redb.
const APPLIER: &str = "appliance/namespace/src/applier";

/// What a sans-I/O core must not name.
const IO_WORDS: &[&str] = &["std::net", "SystemTime::now", "Instant::now"];

/// Lines above an `unsafe` among which its SAFETY line must be.
const SAFETY_REACH: usize = 12;

/// Every complaint about one file.
pub(super) fn check(file: &SourceFile) -> Vec<String> {
    let mut out = Vec::new();
    let path = &file.path;
    if !file.text.trim_start_matches('\u{feff}').starts_with("//!") {
        out.push(format!("{path}:1: begin with `//!`: what the module owns, what it must not do"));
    }
    let lines: Vec<&str> = file.text.lines().collect();
    for line in lines_with_word(&file.code, "unsafe") {
        if !MAY_BE_UNSAFE.iter().any(|p| path.starts_with(p)) {
            out.push(format!("{path}:{line}: unsafe code stands only in {}", MAY_BE_UNSAFE.join(", ")));
        } else if !is_justified(&lines, &file.code, line) {
            out.push(format!(
                "{path}:{line}: say above it why this is sound: `// SAFETY: …` (`# Safety` for a function)"
            ));
        }
    }
    // Put together from pieces, so that this file does not complain about itself.
    let left_behind = [
        (concat!("to", "do!("), true),
        (concat!("unimpl", "emented!("), true),
        (concat!("#[ig", "nore"), true),
        (concat!("FIX", "ME"), false),
        (concat!("XX", "X"), false),
    ];
    for (word, in_code) in left_behind {
        let text = if in_code { &file.code } else { &file.text };
        for (n, l) in text.lines().enumerate() {
            if l.contains(word) {
                out.push(format!("{path}:{}: `{word}`: finish it, or leave it out and open an issue", n + 1));
            }
        }
    }
    if SANS_IO.iter().any(|p| path.starts_with(p)) && !path.starts_with(APPLIER) {
        for word in IO_WORDS {
            for (n, l) in file.code.lines().enumerate() {
                if l.contains(word) {
                    out.push(format!(
                        "{path}:{}: `{word}` in a sans-I/O core: take it as an event's field",
                        n + 1
                    ));
                }
            }
        }
    }
    out
}

/// A SAFETY line stands above, on the same line, or it is the lint's or a type's name rather than a block.
fn is_justified(lines: &[&str], code: &str, line: usize) -> bool {
    let here = code.lines().nth(line - 1).unwrap_or_default();
    if here.contains("unsafe extern") || here.contains("unsafe fn(") || here.contains("unsafe(") {
        return true;
    }
    lines[line.saturating_sub(SAFETY_REACH + 1)..line]
        .iter()
        .any(|l| l.contains("SAFETY:") || l.contains("# Safety"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(path: &str, text: &str) -> Vec<String> {
        let code = super::super::scan::code_only(text);
        check(&SourceFile { path: path.to_owned(), text: text.to_owned(), code })
    }

    #[test]
    fn a_head_is_demanded() {
        assert_eq!(complaints("a/src/lib.rs", "//! What it owns.\nfn f() {}\n"), [""; 0]);
        assert_eq!(complaints("a/src/lib.rs", "fn f() {}\n").len(), 1);
    }

    #[test]
    fn unsafe_code_has_its_places_and_its_reasons() {
        let bare = "//! Head.\nfn f() { unsafe { g() } }\n";
        let reasoned = "//! Head.\nfn f() {\n    // SAFETY: g has no precondition.\n    unsafe { g() }\n}\n";
        assert_eq!(complaints("appliance/node/src/lib.rs", reasoned).len(), 1);
        assert_eq!(complaints("drivers-userland/reactor/src/lib.rs", bare).len(), 1);
        assert_eq!(complaints("drivers-userland/reactor/src/lib.rs", reasoned), [""; 0]);
    }

    #[test]
    fn nothing_is_left_behind() {
        let text =
            format!("//! Head.\nfn f() {{ {}) }} // {}\n", concat!("to", "do!("), concat!("FIX", "ME"));
        assert_eq!(complaints("a/src/lib.rs", &text).len(), 2);
    }

    #[test]
    fn a_sans_io_core_reads_no_clock() {
        let text = "//! Head.\nfn f() { let t = std::time::Instant::now(); }\n";
        assert_eq!(complaints("appliance/namespace/src/a.rs", text).len(), 1);
        assert_eq!(complaints("appliance/node/src/a.rs", text), [""; 0]);
    }
}
