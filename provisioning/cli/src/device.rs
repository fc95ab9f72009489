//! `device`: what a node serves from, and what a device says of itself.

use crate::admin::{self, Node, Target};
use crate::args::{DeviceGrow, DeviceList, DevicePreallocate};
use crate::failure::Failure;
use crate::format::device_failure;
use crate::print::{self, Align, Table, bytes, uuid};
use crate::progress::Progress;
use chunkstore::{BlockDevice, DeviceError, FileHandle, FileOptions, Superblock};
use hugepages::Buf;
use serde_json::{Value, json};
use std::fmt;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;
use wire::message::{Devices, Grow, Preallocate};

/// Bytes at the start of a device that tell whether anything was ever written there.
const HEAD: u64 = 1 << 20;

/// Between two looks at a preallocation.
const LOOK: Duration = Duration::from_millis(200);

/// What is on a device, as far as it can be told.
#[derive(Debug)]
pub(crate) enum Content {
    /// One of our stores.
    Store(Box<Superblock>),
    /// One of our stores that this release can't open.
    Broken(String),
    /// Something else that is known.
    Known(&'static str),
    /// Something, but nobody knows what.
    Unknown,
    /// Zeros at its beginning.
    Blank,
}

impl Content {
    /// Whether it must not be destroyed without a word.
    pub(crate) fn is_something(&self) -> bool {
        matches!(self, Self::Store(_) | Self::Broken(_) | Self::Known(_))
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(s) => {
                write!(f, "the ClaudeFS store {} of {}", uuid(&s.uuid), bytes(s.layout.capacity as f64))
            }
            Self::Broken(why) => write!(f, "a ClaudeFS store that can't be opened ({why})"),
            Self::Known(what) => f.write_str(what),
            Self::Unknown => f.write_str("data that is not recognised"),
            Self::Blank => f.write_str("nothing"),
        }
    }
}

/// Looks at a device.
pub(crate) fn content(handle: &FileHandle) -> Result<Content, Failure> {
    let path = handle.path().to_owned();
    admin::run(async {
        let failed = |e: std::io::Error| Failure::Device(format!("{}: {e}", path.display()));
        let device = handle.attach().map_err(failed)?;
        Ok(match chunkstore::inspect(&device).await {
            Ok(superblock) => Content::Store(Box::new(superblock)),
            Err(DeviceError::NotOurs { found: Some(what) }) => Content::Known(what),
            Err(DeviceError::NotOurs { found: None } | DeviceError::TooSmall { .. }) => {
                let head = device.capacity().min(HEAD) / chunkstore::BLOCK_BYTES * chunkstore::BLOCK_BYTES;
                let (read, buf) = device.read(0, Buf::heap(head as usize)).await;
                read.map_err(failed)?;
                if buf.iter().all(|b| *b == 0) { Content::Blank } else { Content::Unknown }
            }
            Err(e @ DeviceError::Io { .. }) => return Err(device_failure(&path, &e)),
            Err(e) => Content::Broken(e.to_string()),
        })
    })
}

pub(crate) fn list(args: &DeviceList) -> Result<(), Failure> {
    let list = match args.offline.as_slice() {
        [] => admin::ask(&args.remote, Devices {})?,
        paths => Value::Array(paths.iter().map(|p| offline(p)).collect::<Result<_, _>>()?),
    };
    match (args.json, args.offline.is_empty()) {
        (true, _) => print::json(&list),
        (false, true) => print::out(&render(&list)),
        (false, false) => print::out(&render_offline(&list)),
    }
}

/// What the superblocks of a device say.
fn offline(path: &Path) -> Result<Value, Failure> {
    let options = FileOptions { write: false, ..FileOptions::default() };
    let handle = FileHandle::open(path, options).map_err(|e| device_failure(path, &e))?;
    let superblock = admin::run(async {
        let device = handle.attach().map_err(|e| Failure::Device(format!("{}: {e}", path.display())))?;
        chunkstore::inspect(&device).await.map_err(|e| device_failure(path, &e))
    })?;
    let Superblock { version, uuid: id, generation, incarnation, clean, layout } = superblock;
    Ok(json!({
        "path": path.to_string_lossy(), "uuid": uuid(&id), "format_version": version, "capacity": layout.capacity,
        "shards": layout.shards, "chunk_size": layout.chunk_size, "generation": generation,
        "opened": incarnation, "clean": clean,
    }))
}

/// A number of a report; 0 where another version does not tell it.
pub(crate) fn number(value: &Value, key: &str) -> f64 {
    value.get(key).and_then(Value::as_f64).unwrap_or(0.0)
}

/// A text of a report.
pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("?")
}

/// Bytes of a device that user data may still take: zones that nobody has, and free blocks in the shards' own.
pub(crate) fn free(device: &Value) -> f64 {
    let shards = device["shards"].as_array().into_iter().flatten();
    let blocks: f64 = shards.map(|s| number(s, "free_blocks")).sum();
    number(device, "user_free_bytes") + blocks * chunkstore::BLOCK_BYTES as f64
}

/// The health of a device in a few words.
pub(crate) fn health(device: &Value) -> String {
    let mut all = Vec::new();
    if device["failed"] == Value::Bool(true) {
        all.push("FAILED: a flush failed, nothing is written any more".to_owned());
    }
    let counts = [
        ("bad_blocks", "bad blocks"),
        ("metadata_repaired", "metadata copies repaired"),
        ("volume_lost", "namespace chunks lost"),
        ("volume_resynced", "namespace copies renewed"),
    ];
    let count = |(key, what)| (number(device, key) > 0.0).then(|| format!("{} {what}", number(device, key)));
    all.extend(counts.into_iter().filter_map(count));
    if all.is_empty() { "good".to_owned() } else { all.join(", ") }
}

fn render(list: &Value) -> String {
    use Align::{Left, Right};
    let mut out = String::new();
    for d in list.as_array().into_iter().flatten() {
        // Only a file has something below that may have given it less than its length.
        let reserved = d["reserved_bytes"].as_f64();
        out += &format!(
            "{}: {}, {} free, health: {}{}\n",
            text(d, "path"),
            bytes(number(d, "capacity")),
            bytes(free(d)),
            health(d),
            reserved.map(|r| format!(", {} reserved below", bytes(r))).unwrap_or_default(),
        );
        let columns = ["SHARD", "CHUNKS", "USED", "READS", "WRITES", "CHECKPOINTS"];
        let mut table =
            Table::new(&columns.map(|c| (c, Right)).into_iter().chain([("", Left)]).collect::<Vec<_>>());
        for s in d["shards"].as_array().into_iter().flatten() {
            table.row(vec![
                number(s, "shard").to_string(),
                number(s, "chunks").to_string(),
                bytes(number(s, "used_blocks") * chunkstore::BLOCK_BYTES as f64),
                number(s, "reads").to_string(),
                number(s, "writes").to_string(),
                number(s, "checkpoints").to_string(),
                s["read_only"].as_str().map(|why| format!("read-only: {why}")).unwrap_or_default(),
            ]);
        }
        if !table.is_empty() {
            out += &table.text();
        }
    }
    out
}

fn render_offline(list: &Value) -> String {
    use Align::{Left, Right};
    let columns = [
        ("DEVICE", Left),
        ("SIZE", Right),
        ("SHARDS", Right),
        ("FORMAT", Right),
        ("STOPPED", Left),
        ("UUID", Left),
    ];
    let mut table = Table::new(&columns);
    for d in list.as_array().into_iter().flatten() {
        table.row(vec![
            text(d, "path").to_owned(),
            bytes(number(d, "capacity")),
            number(d, "shards").to_string(),
            number(d, "format_version").to_string(),
            if d["clean"] == Value::Bool(true) { "clean" } else { "not clean" }.to_owned(),
            text(d, "uuid").to_owned(),
        ]);
    }
    table.text()
}

/// The device that is meant: the one named, or the only one.
fn choose(list: &Value, named: Option<&Path>) -> Result<String, Failure> {
    let known: Vec<&str> = list.as_array().into_iter().flatten().map(|d| text(d, "path")).collect();
    let Some(named) = named else {
        return match known.as_slice() {
            [one] => Ok((*one).to_owned()),
            _ => Err(Failure::Usage(format!("name one of the node's devices: {}", known.join(", ")))),
        };
    };
    let given = named.to_string_lossy().into_owned();
    if known.contains(&given.as_str()) {
        return Ok(given);
    }
    Err(Failure::Device(format!("{given} is no device of this node; it has: {}", known.join(", "))))
}

pub(crate) fn grow(args: &DeviceGrow) -> Result<(), Failure> {
    let target = Target::new(&args.remote)?;
    let (device, before, answer) = admin::run(async {
        let node = target.connect().await?;
        let list = node.ask(Devices {}).await?;
        let device = choose(&list, args.device.as_deref())?;
        let before = found(&list, &device).map_or(0.0, |d| number(d, "capacity"));
        let answer = node.order(Grow { device: device.as_bytes() }).await?;
        Ok((device, before, answer))
    })?;
    let now = number(&answer, "capacity");
    if args.json {
        return print::json(
            &json!({ "device": device, "capacity": now as u64, "capacity_before": before as u64 }),
        );
    }
    print::out(&if now > before {
        format!("{device}: grew from {} to {}\n", bytes(before), bytes(now))
    } else {
        format!("{device}: still {}; make the disk or file larger first\n", bytes(now))
    })
}

pub(crate) fn preallocate(args: &DevicePreallocate) -> Result<(), Failure> {
    let target = Target::new(&args.remote)?;
    let (device, mut answer) = admin::run(async {
        let node = target.connect().await?;
        let device = choose(&node.ask(Devices {}).await?, args.device.as_deref())?;
        let answer = preallocated(&node, &device).await?;
        Ok((device, answer))
    })?;
    if args.json {
        answer["device"] = json!(device);
        return print::json(&answer);
    }
    print::out(&if answer["needed"] == Value::Bool(false) {
        format!("{device}: a disk has all its blocks, nothing is to be reserved\n")
    } else {
        let (before, now) = (number(&answer, "reserved_before"), number(&answer, "reserved"));
        format!("{device}: {} reserved, {} of them now\n", bytes(now), bytes((now - before).max(0.0)))
    })
}

/// Gives the order and shows how far it is until it is done. Leaving ends it: the node sees the connection go.
async fn preallocated(node: &Node<'_>, device: &str) -> Result<Value, Failure> {
    let mut progress = Progress::new("preallocating");
    let mut order = pin!(node.order(Preallocate { device: device.as_bytes() }));
    loop {
        if let Ok(answer) = reactor::timeout(LOOK, order.as_mut()).await {
            return answer;
        }
        let list = node.ask(Devices {}).await?;
        let Some(d) = found(&list, device) else { continue };
        let (done, all) =
            (number(&d["preallocation"], "done") as u64, number(&d["preallocation"], "all") as u64);
        progress.at(done, all, || format!("{} of {}", bytes(done as f64), bytes(all as f64)));
    }
}

/// A device of a list by its path.
fn found<'a>(list: &'a Value, path: &str) -> Option<&'a Value> {
    list.as_array().into_iter().flatten().find(|d| text(d, "path") == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> Value {
        json!([{ "path": "/dev/x", "capacity": 1 << 30, "user_free_bytes": 1 << 29, "failed": false, "bad_blocks": 2,
            "shards": [{ "shard": 0, "chunks": 7, "used_blocks": 256, "free_blocks": 256, "read_only": null },
                { "shard": 1, "read_only": "its log is damaged" }] }])
    }

    #[test]
    fn a_list_shows_space_health_and_shards() {
        let text = render(&list());
        assert!(text.starts_with("/dev/x: 1.00 GiB, 513 MiB free, health: 2 bad blocks\n"), "{text}");
        assert!(text.contains("1.00 MiB") && text.contains("read-only: its log is damaged"), "{text}");
        assert_eq!(render(&json!([])), "");
        assert!(render(&json!([{}])).contains('?'), "another version's report is no accident");
    }

    #[test]
    fn the_only_device_needs_no_name() {
        assert_eq!(choose(&list(), None).expect("one"), "/dev/x");
        assert_eq!(choose(&list(), Some(Path::new("/dev/x"))).expect("named"), "/dev/x");
        assert_eq!(choose(&list(), Some(Path::new("/dev/y"))).expect_err("other").exit_code(), 3);
        assert_eq!(choose(&json!([{ "path": "a" }, { "path": "b" }]), None).expect_err("two").exit_code(), 2);
    }
}
