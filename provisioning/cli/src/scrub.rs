//! `scrub`: has a node check every block, shows how far it is, and says what it found.

use crate::admin::{self, Node, Target};
use crate::args::Scrub;
use crate::device::number;
use crate::failure::Failure;
use crate::print;
use crate::progress::Progress;
use serde_json::Value;
use std::time::Duration;
use wire::message::{self, ScrubAction};

/// Between two looks at a running scrub.
const PAUSE: Duration = Duration::from_millis(500);

pub(crate) fn scrub(args: &Scrub) -> Result<(), Failure> {
    let target = Target::new(&args.remote)?;
    let report = admin::run(async {
        let node = target.connect().await?;
        let action = match (args.stop, args.status) {
            (true, _) => ScrubAction::Stop,
            (_, true) => ScrubAction::Status,
            _ => ScrubAction::Start,
        };
        let report = node.ask(message::Scrub { action, repair: args.repair }).await?;
        if args.wait { wait(&node, report).await } else { Ok(report) }
    })?;
    if args.json {
        print::json(&report)?;
    } else {
        print::out(&render(&report))?;
    }
    verdict(&report)
}

async fn wait(node: &Node<'_>, mut report: Value) -> Result<Value, Failure> {
    let mut progress = Progress::new("scrub");
    while is_running(&report) {
        let (done, all) = (number(&report, "done") as u64, number(&report, "steps") as u64);
        progress.at(done, all, || format!("{} blocks read", print::count(blocks(&report))));
        reactor::sleep(PAUSE).await;
        report = node.ask(message::Scrub { action: ScrubAction::Status, repair: false }).await?;
    }
    Ok(report)
}

fn is_running(report: &Value) -> bool {
    report["running"] == Value::Bool(true)
}

fn blocks(report: &Value) -> f64 {
    number(report, "data_blocks") + number(report, "metadata_blocks")
}

/// The exit code for scripts: damage that is still there, or a scrub that could not end, is no success.
fn verdict(report: &Value) -> Result<(), Failure> {
    let mended = report["repair"] == Value::Bool(true);
    let metadata = if mended { 0.0 } else { number(report, "metadata_damaged") };
    if report["error"].is_string() {
        return Err(Failure::Unwell("the scrub ended early, see above".to_owned()));
    }
    if number(report, "bad_chunks") + metadata > 0.0 {
        return Err(Failure::Unwell("damage was found, see above".to_owned()));
    }
    Ok(())
}

fn render(report: &Value) -> String {
    let (done, steps) = (number(report, "done"), number(report, "steps"));
    let mut out = match (is_running(report), done < steps) {
        (true, _) => format!(
            "running: {done} of {steps} parts checked; follow it with `claudefs scrub --status --wait`\n"
        ),
        (false, true) => format!("stopped after {done} of {steps} parts\n"),
        (false, false) if steps == 0.0 => {
            return "no scrub has run since the daemon was started\n".to_owned();
        }
        (false, false) => "complete\n".to_owned(),
    };
    out += &format!(
        "read       {} blocks of data in {} chunks, {} blocks of metadata\n",
        number(report, "data_blocks"),
        number(report, "chunks"),
        number(report, "metadata_blocks"),
    );
    let (bad, metadata) = (number(report, "bad_chunks"), number(report, "metadata_damaged"));
    let mended = match report["repair"] == Value::Bool(true) {
        true => "written anew from their second copies",
        false => "can be mended with --repair where the second copy is good",
    };
    if metadata > 0.0 {
        out += &format!("metadata   {metadata} blocks are damaged: {mended}\n");
    }
    if bad > 0.0 {
        out += &format!("data       {bad} chunks are damaged: restore their files from a copy\n");
    }
    let listed = report["bad"].as_array().map_or(&[][..], Vec::as_slice);
    for line in listed.iter().filter_map(Value::as_str) {
        out += &format!("           {line}\n");
    }
    let lost = report["lost"].as_array().map_or(&[][..], Vec::as_slice);
    for line in lost.iter().filter_map(Value::as_str) {
        out += &format!("lost       {line}\n");
    }
    if bad > listed.len() as f64 {
        out += &format!("           and {} more\n", bad - listed.len() as f64);
    }
    if let Some(error) = report["error"].as_str() {
        out += &format!("error      {error}\n");
    }
    if bad + metadata == 0.0 && report["error"].is_null() {
        out += "no damage found\n";
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_was_found_is_told_and_decides_the_exit_code() {
        let clean = json!({ "running": false, "steps": 4, "done": 4, "data_blocks": 9, "error": null });
        assert!(render(&clean).contains("no damage found"));
        assert!(verdict(&clean).is_ok());
        let bad = json!({ "steps": 4, "done": 4, "bad_chunks": 2, "bad": ["7:0: wrong CRC"], "error": null });
        let text = render(&bad);
        assert!(text.contains("2 chunks are damaged") && text.contains("7:0: wrong CRC"), "{text}");
        assert!(text.contains("and 1 more"), "{text}");
        assert_eq!(verdict(&bad).expect_err("bad").exit_code(), 7);
        let mended = json!({ "steps": 1, "done": 1, "metadata_damaged": 3, "repair": true, "error": null });
        assert!(verdict(&mended).is_ok(), "mended metadata is whole again");
        assert!(render(&mended).contains("written anew"));
        let cut = json!({ "steps": 4, "done": 1, "error": "shard 3 is read-only" });
        assert_eq!(verdict(&cut).expect_err("error").exit_code(), 7);
        assert!(render(&json!({})).contains("no scrub has run"));
    }
}
