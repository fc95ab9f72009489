//! A node on any block device, within `reactor::sim`: what `run` and `format` are to a machine.

use crate::base::Base;
use crate::config::Config;
use crate::database;
use crate::error::NodeError;
use crate::format::Formatted;
use crate::meta::wall;
use crate::node::{Control, Ended, Hardware, Node, listen};
use chunkstore::{BlockDevice, FormatOptions};
use reactor::mail;
use std::net::SocketAddr;
use transport::Key;

/// Makes a store and an empty file system on a device.
///
/// # Errors
/// As [`crate::format`].
pub async fn format<D: BlockDevice>(device: D, options: FormatOptions) -> Result<Formatted, NodeError> {
    let config = Config::default();
    let made = chunkstore::format(&device, &options, |_, _| {}).await?;
    let base = Base::open(&config, device, None, None).await?;
    database::format(&base, namespace::mkfs(made.uuid, wall())).await?;
    base.stop().await?;
    Ok(Formatted { uuid: made.uuid, capacity: made.layout.capacity, shards: made.layout.shards })
}

/// Serves until told to stop; `ready` learns the addresses once clients are served.
///
/// # Errors
/// As [`crate::run`].
pub async fn serve<D: BlockDevice>(
    config: Config,
    key: Key,
    device: D,
    control: mail::Receiver<Control>,
    ready: impl FnOnce(&[SocketAddr]),
) -> Result<Ended, NodeError> {
    let listeners = listen(&config)?;
    let hardware = Hardware { device, path: "simulated".to_owned(), others: None, arena: None };
    let node = Node::start(&config, key, hardware).await?;
    node.serve(listeners, control, ready).await
}
