//! `status` and `df`: a node's report for people.
//!
//! Reports of other versions may lack fields or have more: what is missing shows as 0 or `?`, nothing fails on it.

use crate::admin::{self, Node, Target};
use crate::args::{Df, Status};
use crate::device::{free, health, number, text};
use crate::failure::Failure;
use crate::print::{self, Align, Table, bytes, count, micros, span};
use serde_json::{Value, json};
use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};
use wire::message;

/// Home, and clear from there on (ECMA-48): a report is painted over the one before.
const REPAINT: &str = "\x1b[H\x1b[2J";

/// An earlier report and how long ago it was.
type Earlier<'a> = Option<(&'a Value, Duration)>;

pub(crate) fn status(args: &Status) -> Result<(), Failure> {
    let target = Target::new(&args.remote)?;
    admin::run(async {
        let node = target.connect().await?;
        let report = node.ask(message::Status {}).await?;
        match args.watch {
            Some(seconds) => {
                let interval = Duration::from_secs(u64::from(seconds));
                watch(&target, node, report, interval, args.json).await
            }
            None => {
                if args.json {
                    print::json(&report)?;
                } else {
                    print::out(&render(&report, target.name(), None))?;
                }
                verdict(&report)
            }
        }
    })
}

/// Shows reports until interrupted. A node that goes away is waited for.
async fn watch(
    target: &Target,
    node: Node<'_>,
    mut report: Value,
    interval: Duration,
    json: bool,
) -> Result<(), Failure> {
    let repaint = if stdout().is_terminal() { REPAINT } else { "" };
    let (mut node, mut before) = (Some(node), None::<(Value, Instant)>);
    loop {
        if json {
            print::out(&format!("{report}\n"))?;
        } else {
            let earlier = before.as_ref().map(|(report, at)| (report, at.elapsed()));
            print::out(&format!("{repaint}{}\n", render(&report, target.name(), earlier)))?;
        }
        before = Some((report, Instant::now()));
        report = loop {
            reactor::sleep(interval).await;
            match again(target, &mut node).await {
                Ok(report) => break report,
                Err(e @ (Failure::Server(_) | Failure::Refused(_))) => {
                    node = None;
                    before = None;
                    print::say(&format!("claudefs: {e}; trying again"));
                }
                Err(e) => return Err(e),
            }
        };
    }
}

async fn again<'a>(target: &'a Target, node: &mut Option<Node<'a>>) -> Result<Value, Failure> {
    if node.is_none() {
        *node = Some(target.connect().await?);
    }
    match node {
        Some(node) => node.ask(message::Status {}).await,
        None => Err(Failure::Server("no connection".to_owned())),
    }
}

/// Scripts learn from the exit code whether the node is well.
fn verdict(report: &Value) -> Result<(), Failure> {
    match text(report, "state") {
        "read-only" => Err(Failure::Unwell(String::new())),
        _ => Ok(()),
    }
}

fn render(r: &Value, node: &str, earlier: Earlier<'_>) -> String {
    let uptime = span(Duration::from_secs(number(r, "uptime_s") as u64));
    let mut out = format!("{node}: {}", text(r, "state"));
    if let Some(why) = r["reason"].as_str() {
        out += &format!(" ({why})");
    }
    out += &format!(", claudefsd {}, up {uptime}, start {}\n", text(r, "version"), number(r, "boot_epoch"));
    for d in r["device"].as_array().into_iter().flatten() {
        out += &format!(
            "device      {}: {} of {} free, {} not flushed, health: {}\n",
            text(d, "path"),
            bytes(free(d)),
            bytes(number(d, "capacity")),
            bytes(number(d, "unflushed_bytes")),
            health(d)
        );
        out += &format!("space       {}\n", parts(&d["space"]));
    }
    out += &clients(r);
    out += &inside(r, earlier);
    out += &errors(r);
    out + &operations(r, earlier)
}

/// Where the bytes of a device are. In the reserve are logs' and checkpoints' room to work, and what deleting needs.
fn parts(space: &Value) -> String {
    let names = [
        ("data", "data"),
        ("namespace", "namespace database"),
        ("metadata", "maps and checkpoints"),
        ("log", "logs"),
        ("reclaiming", "freed but not yet reclaimed"),
        ("reserve", "reserve"),
        ("free", "free"),
    ];
    let told: Vec<String> =
        names.iter().map(|(key, name)| format!("{} {name}", bytes(number(space, key)))).collect();
    told.join(", ")
}

fn clients(r: &Value) -> String {
    let (sessions, leases, locks) = (&r["sessions"], &r["leases"], &r["locks"]);
    let connections: Vec<&str> =
        r["connections"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    format!(
        "connections {}{}\nsessions    {} with {} open files, {} fenced{}\n\
         leases      {} held, {} being recalled, {} requests wait; {} granted, {} recalled, {} evicted\n\
         locks       {} held, {} requests wait\n",
        connections.len(),
        if connections.is_empty() { String::new() } else { format!(": {}", connections.join(", ")) },
        number(sessions, "open"),
        number(sessions, "opens"),
        number(sessions, "fenced"),
        if sessions["in_grace"] == Value::Bool(true) { ", waiting for clients to come back" } else { "" },
        number(leases, "held"),
        number(leases, "recalling"),
        number(leases, "waiting"),
        count(number(leases, "granted")),
        count(number(leases, "recalled")),
        count(number(leases, "evicted")),
        number(locks, "held"),
        number(locks, "waiting"),
    )
}

/// Cores, caches and logs.
fn inside(r: &Value, earlier: Earlier<'_>) -> String {
    let (cores, names, log) = (&r["cores"], &r["namespace"], &r["log"]);
    let sum = |key| {
        let devices = r["device"].as_array().into_iter().flatten();
        devices
            .flat_map(|d| d["shards"].as_array().into_iter().flatten())
            .map(|s| number(s, key))
            .sum::<f64>()
    };
    let (hits, loads) = (sum("leaf_hits"), sum("leaf_loads"));
    let rate = |key| match earlier {
        Some((before, time)) => {
            let new = number(&cores["core0"], key) - number(&before["cores"]["core0"], key);
            format!("{}/s", count(new.max(0.0) / time.as_secs_f64().max(0.001)))
        }
        None => count(number(&cores["core0"], key)),
    };
    format!(
        "cores       {}; core 0: {} turns, {} submissions, {} sleeps\n\
         cache       names {} for {} inodes ({} dirty), {} fetched; chunk maps {:.0} % of {} hit\n\
         log         {} of {} blocks in use; {} records ({}) not yet in the checkpoint; {} requests running\n",
        number(cores, "count"),
        rate("iterations"),
        rate("submissions"),
        rate("sleeps"),
        bytes(number(names, "cache_bytes")),
        count(number(names, "inodes")),
        count(number(names, "dirty")),
        count(number(names, "fetches")),
        if hits + loads > 0.0 { hits / (hits + loads) * 100.0 } else { 100.0 },
        count(hits + loads),
        number(log, "used_blocks"),
        number(log, "ring_blocks"),
        count(number(names, "unapplied_records")),
        bytes(number(names, "unapplied_bytes")),
        number(r, "requests_running"),
    )
}

fn errors(r: &Value) -> String {
    let operations = r["operations"].as_object().into_iter().flatten();
    let failed: f64 = operations.map(|(_, op)| number(op, "errors")).sum();
    let counts = [
        (failed, "answers that were no success"),
        (number(&r["namespace"], "damaged_rows"), "damaged rows of the namespace"),
        (number(r, "applier_failures"), "failures to write the checkpoint"),
        (number(&r["leases"], "fenced"), "clients fenced for a lease"),
    ];
    let told: Vec<String> =
        counts.iter().filter(|c| c.0 > 0.0).map(|(n, what)| format!("{n} {what}")).collect();
    format!("errors      {}\n", if told.is_empty() { "none".to_owned() } else { told.join(", ") })
}

fn operations(r: &Value, earlier: Earlier<'_>) -> String {
    use Align::{Left, Right};
    // Without an earlier report, the mean since the start.
    let rate = if earlier.is_some() { "PER SECOND" } else { "PER SECOND (MEAN)" };
    let columns = [
        ("OPERATION", Left),
        ("COUNT", Right),
        (rate, Right),
        ("P50", Right),
        ("P99", Right),
        ("P99.9", Right),
        ("MAX", Right),
        ("ERRORS", Right),
    ];
    let mut table = Table::new(&columns);
    for (name, op) in r["operations"].as_object().into_iter().flatten() {
        let total = number(op, "count");
        let (new, time) = match earlier {
            Some((before, time)) => {
                (total - number(&before["operations"][name], "count"), time.as_secs_f64())
            }
            None => (total, number(r, "uptime_s").max(1.0)),
        };
        if total == 0.0 {
            continue;
        }
        table.row(vec![
            name.clone(),
            format!("{total}"),
            count(new.max(0.0) / time.max(0.001)),
            micros(number(op, "p50_us")),
            micros(number(op, "p99_us")),
            micros(number(op, "p999_us")),
            micros(number(op, "max_us")),
            format!("{}", number(op, "errors")),
        ]);
    }
    if table.is_empty() { String::new() } else { format!("\n{}", table.text()) }
}

pub(crate) fn df(args: &Df) -> Result<(), Failure> {
    let target = Target::new(&args.remote)?;
    let (stat, devices) = admin::run(async {
        let node = target.connect().await?;
        Ok((node.stat_fs().await?, node.ask(message::Devices {}).await?))
    })?;
    let block = u64::from(stat.block_size.get());
    let report = json!({
        "server": target.name(), "size": stat.blocks.get() * block,
        "used": stat.blocks.get().saturating_sub(stat.free.get()) * block, "free": stat.free.get() * block,
        "available": stat.available.get() * block, "inodes": stat.files.get(),
        "inodes_used": stat.files.get().saturating_sub(stat.files_free.get()), "inodes_free": stat.files_free.get(),
        "space": devices[0]["space"],
    });
    if args.json { print::json(&report) } else { print::out(&space(&report)) }
}

fn space(r: &Value) -> String {
    use Align::{Left, Right};
    let columns = [
        ("FILE SYSTEM", Left),
        ("SIZE", Right),
        ("USED", Right),
        ("AVAILABLE", Right),
        ("USE", Right),
        ("INODES", Right),
        ("INODES FREE", Right),
    ];
    let mut table = Table::new(&columns);
    let (used, available) = (number(r, "used"), number(r, "available"));
    // As df(1): of what users may have, rounded up, so that 100 % means full.
    let share = if used + available > 0.0 { (used / (used + available) * 100.0).ceil() } else { 0.0 };
    table.row(vec![
        text(r, "server").to_owned(),
        bytes(number(r, "size")),
        bytes(used),
        bytes(available),
        format!("{share} %"),
        count(number(r, "inodes_used")),
        count(number(r, "inodes_free")),
    ]);
    format!("{}\nof the device: {}\n", table.text().trim_end(), parts(&r["space"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lookups: u64) -> Value {
        json!({ "state": "read-only", "reason": "both copies bad", "version": "0.1.0", "uptime_s": 100,
            "connections": ["127.0.0.1:9 (Client)"],
            "device": [{ "path": "/dev/x", "capacity": 1 << 30, "user_free_bytes": 1 << 29 }],
            "operations": { "Lookup": { "count": lookups, "errors": 1, "p50_us": 12.0, "p99_us": 1500.0 },
                "Rmdir": { "count": 0 } } })
    }

    #[test]
    fn a_report_shows_state_devices_and_rates() {
        let (now, before) = (report(300), report(100));
        let text = render(&now, "n1", Some((&before, Duration::from_secs(2))));
        assert!(text.starts_with("n1: read-only (both copies bad), claudefsd 0.1.0, up 1m 40s"), "{text}");
        assert!(text.contains("/dev/x: 512 MiB of 1.00 GiB free"), "{text}");
        assert!(text.contains("connections 1: 127.0.0.1:9 (Client)"), "{text}");
        let line = text.lines().find(|l| l.starts_with("Lookup")).expect("a line for Lookup");
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(cells[..7], ["Lookup", "300", "100", "12.0", "us", "1.50", "ms"], "{line}");
        assert!(!text.contains("Rmdir"), "what never ran is left out");
        assert!(render(&now, "n1", None).contains("(MEAN)"));
        assert_eq!(verdict(&now).expect_err("read-only").exit_code(), 7);
    }

    #[test]
    fn an_empty_report_is_no_accident() {
        assert!(render(&json!({}), "n1", None).contains('?'));
        assert!(verdict(&json!({ "state": "active" })).is_ok());
    }

    #[test]
    fn space_is_of_what_users_may_have() {
        let text =
            space(&json!({ "server": "n1", "size": 1000 << 20, "used": 100 << 20, "available": 800 << 20 }));
        assert!(text.contains("12 %"), "{text}");
        let text = space(&json!({ "space": { "namespace": 3 << 20, "reclaiming": 4096 } }));
        assert!(text.contains("3.00 MiB namespace database") && text.contains("4.00 KiB freed"), "{text}");
        assert!(space(&json!({})).contains("0 %"));
    }
}
