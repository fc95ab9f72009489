//! `fsck`: checks a device that no daemon serves, says what it found and what to do, and mends what can be mended.
//!
//! Its exit codes are those of fsck(8). Nothing is written without `--repair` and a yes.

use crate::args::Fsck;
use crate::confirm::{Asking, on_terminal};
use crate::failure::Failure;
use crate::format::node_failure;
use crate::print::{self, bytes, uuid};
use crate::progress::Progress;
use node::fsck::{self, Finding, Options, Report};
use serde_json::{Value, json};
use std::process::ExitCode;

/// Nothing is wrong.
const CLEAN: u8 = 0;
/// Errors were found and all of them corrected.
const CORRECTED: u8 = 1;
/// Errors are left.
const LEFT: u8 = 4;
/// It could not be checked.
const FAILED: u8 = 8;
/// The command line is wrong.
const USAGE: u8 = 16;

/// Findings of a class that are printed; all of them are in the JSON document.
const LISTED: usize = 50;

/// The exit code for a check that could not be made.
pub(crate) fn exit_code(failure: &Failure) -> u8 {
    match failure {
        Failure::Closed => CLEAN,
        Failure::Usage(_) => USAGE,
        Failure::Refused(_) | Failure::Unwell(_) => LEFT,
        _ => FAILED,
    }
}

pub(crate) fn fsck(args: &Fsck) -> Result<ExitCode, Failure> {
    let path = &args.device;
    let failed = |e: node::NodeError| node_failure(path, &e);
    let options = Options { data: args.data };
    let handle = fsck::open(path, args.repair).map_err(failed)?;
    let before = fsck::check(&handle, options, progress()).map_err(failed)?;
    let mut after = None;
    let mut refused = None;
    if args.repair && before.fixable() > 0 {
        if !args.json {
            print::out(&render(path, &before))?;
        }
        let what =
            format!("{} of the errors above on {} can be corrected.", before.fixable(), path.display());
        match Asking::new(args.yes).confirm(&what, on_terminal) {
            Ok(()) => {
                fsck::repair(&handle, options, progress()).map_err(failed)?;
                after = Some(fsck::check(&handle, options, progress()).map_err(failed)?);
            }
            Err(e) => refused = Some(e),
        }
    }
    let last = after.as_ref().unwrap_or(&before);
    if args.json {
        print::json(&document(path, &before, after.as_ref()))?;
    } else if let Some(after) = &after {
        print::out(&corrected(&before, after))?;
    } else if refused.is_none() {
        print::out(&render(path, &before))?;
    }
    match refused {
        Some(refused) => Err(refused),
        None => Ok(verdict(last, after.is_some()).into()),
    }
}

fn verdict(last: &Report, corrected: bool) -> u8 {
    match (last.is_clean(), corrected) {
        (true, false) => CLEAN,
        (true, true) => CORRECTED,
        (false, _) => LEFT,
    }
}

fn progress() -> fsck::Progress {
    let mut progress = Progress::new("checking");
    Box::new(move |what, done, all| {
        progress.rename(what);
        progress.at(done, all, String::new);
    })
}

fn render(path: &std::path::Path, r: &Report) -> String {
    let mut out = format!(
        "{}: file system {}, {} in {} shards, {}\n",
        path.display(),
        uuid(&r.uuid),
        bytes(r.capacity as f64),
        r.shards,
        if r.clean_stop { "stopped cleanly" } else { "not stopped cleanly" },
    );
    let data = match r.data {
        true => format!("{} blocks of data read", r.data_blocks),
        false => format!("{} blocks of data (not read: add --data)", r.used_blocks),
    };
    out += &format!(
        "checked   {} inodes, {} names, {} chunks, {data}, {} blocks of metadata\n",
        r.inodes, r.names, r.chunks, r.metadata_blocks
    );
    if r.unfinished + r.deleting + r.dirty > 0 {
        out += &format!(
            "pending   the next start deletes {} chunks, brings {} files up to date, completes {} copies: no errors\n",
            r.deleting, r.dirty, r.unfinished
        );
    }
    out += &list(r);
    for what in &r.skipped {
        out += &format!("not checked, for what is damaged above: {what}\n");
    }
    if r.is_clean() {
        out += "clean\n";
    } else {
        let some = match r.count {
            1 => "1 error".to_owned(),
            n => format!("{n} errors"),
        };
        out += &format!("{some}, {} can be corrected with --repair\n", r.fixable());
    }
    out
}

/// Findings by class, worst first.
fn list(r: &Report) -> String {
    let mut out = String::new();
    let mut rest = &r.findings[..];
    while let Some(first) = rest.first() {
        let same = |f: &&Finding| f.class == first.class && f.severity == first.severity;
        let n = rest.iter().take_while(same).count();
        out += &format!("{} ({}): {n}\n", first.class, first.severity);
        for f in &rest[..n.min(LISTED)] {
            let path = f.path.as_ref().map(|p| format!("{p}: ")).unwrap_or_default();
            out += &format!("    {path}{}\n", f.text);
        }
        if n > LISTED {
            out += &format!("    and {} more, see --json\n", n - LISTED);
        }
        let mut steps: Vec<&str> = rest[..n].iter().map(|f| f.next).collect();
        steps.sort_unstable();
        steps.dedup();
        for step in steps {
            out += &format!("    -> {step}\n");
        }
        rest = &rest[n..];
    }
    out
}

fn corrected(before: &Report, after: &Report) -> String {
    if after.is_clean() {
        return format!("corrected {} of {} errors; a second check found none\n", before.count, before.count);
    }
    let gone = before.count.saturating_sub(after.count);
    format!("corrected {gone} of {} errors; a second check found these:\n{}", before.count, list(after))
}

fn document(path: &std::path::Path, before: &Report, after: Option<&Report>) -> Value {
    let mut value = json!({ "device": path.to_string_lossy(), "uuid": uuid(&before.uuid),
        "capacity": before.capacity, "shards": before.shards, "found": found(before) });
    if let Some(after) = after {
        value["left"] = found(after);
    }
    value["clean"] = json!(after.unwrap_or(before).is_clean());
    value
}

fn found(r: &Report) -> Value {
    let findings = r.findings.iter().map(|f| {
        json!({ "class": f.class, "severity": f.severity.to_string(), "text": f.text, "ino": f.ino, "path": f.path,
            "fixable": f.fixable, "next": f.next })
    });
    json!({ "clean_stop": r.clean_stop, "data": r.data, "count": r.count, "inodes": r.inodes, "names": r.names,
        "chunks": r.chunks, "used_blocks": r.used_blocks, "data_blocks": r.data_blocks,
        "metadata_blocks": r.metadata_blocks, "unfinished": r.unfinished, "deleting": r.deleting,
        "dirty": r.dirty, "skipped": r.skipped, "findings": findings.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::fsck::Severity;

    fn finding(class: &str, severity: Severity, fixable: bool) -> Finding {
        let (text, next) = ("it is wrong".to_owned(), "do this");
        let path = Some("/a/b".to_owned());
        Finding { class: class.to_owned(), severity, text, ino: Some(7), path, fixable, next }
    }

    #[test]
    fn what_was_found_decides_the_exit_code() {
        let clean = Report::default();
        assert_eq!((verdict(&clean, false), verdict(&clean, true)), (0, 1));
        assert!(render("/d".as_ref(), &clean).ends_with("clean\n"));
        let skipped = Report { skipped: vec!["names".to_owned()], ..Report::default() };
        assert_eq!((verdict(&skipped, false), verdict(&skipped, true)), (4, 4));
        let bad = Report {
            findings: vec![
                finding("data", Severity::Lost, false),
                finding("space", Severity::Waste, true),
                finding("space", Severity::Waste, true),
            ],
            count: 3,
            ..Report::default()
        };
        assert_eq!((verdict(&bad, false), verdict(&bad, true)), (4, 4));
        let text = render("/d".as_ref(), &bad);
        for part in [
            "data (lost): 1\n",
            "    /a/b: it is wrong\n",
            "space (waste): 2",
            "-> do this",
            "3 errors, 2 can be",
        ] {
            assert!(text.contains(part), "`{part}` is missing in: {text}");
        }
        assert!(corrected(&bad, &clean).contains("a second check found none"));
        let json = document("/d".as_ref(), &bad, Some(&clean));
        assert_eq!(
            (&json["clean"], json["found"]["findings"][0]["path"].as_str()),
            (&json!(true), Some("/a/b"))
        );
        let code = |f: Failure| exit_code(&f);
        let text = String::new;
        assert_eq!(code(Failure::Usage(text())), 16);
        assert_eq!(code(Failure::Device(text())), 8);
        assert_eq!(code(Failure::Refused(text())), 4);
    }
}
