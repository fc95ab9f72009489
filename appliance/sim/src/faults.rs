//! What goes wrong while clients work, and how often it did.

use crate::load::Load;
use crate::machine::Machine;
use anyhow::Result;
use reactor::sim::{self, net};
use std::fmt;
use std::time::Duration;

/// Faults that happened; each is counted where it took effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Kills of the daemon.
    pub kills: u64,
    /// Connections reset.
    pub cuts: u64,
    /// Times that a client's network stood still.
    pub stalls: u64,
    /// Changes of latency.
    pub weather: u64,
    /// Receives that gave less than there was.
    pub short: u64,
    /// Bytes lost on the way.
    pub lost: u64,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Faults { kills, cuts, stalls, weather, short, lost } = self;
        write!(
            f,
            "{kills} kills, {cuts} cuts ({lost} bytes lost), {stalls} stalls, {weather} changes of latency, {short} short receives"
        )
    }
}

/// Kills in one run.
const KILLS_MOST: u64 = 20;

fn ms(least: u64, most: u64) -> Duration {
    Duration::from_micros(least * 1000 + sim::below((most - least) * 1000))
}

/// Strikes until the clients have done their work.
pub(crate) async fn strike(machine: &Machine, load: &Load) -> Result<Faults> {
    let mut faults = Faults::default();
    loop {
        reactor::sleep(ms(0, 25)).await;
        machine.check().await?;
        if load.is_done() {
            break;
        }
        match sim::below(8) {
            // A daemon that never lives long enough to be found would keep everybody waiting for ever.
            0..3 if faults.kills >= KILLS_MOST => {}
            0..3 => {
                machine.kill().await?;
                faults.kills += 1;
                reactor::sleep(ms(0, 300)).await;
                machine.start().await?;
            }
            3..5 => {
                if let Some(server) = machine.process() {
                    faults.cuts += net::cut(server, load.draw()) as u64;
                }
            }
            5..7 => {
                if let Some(server) = machine.process() {
                    let client = load.draw();
                    net::stall(server, client, true);
                    faults.stalls += 1;
                    // Shorter than a lease: nobody is fenced.
                    reactor::sleep(ms(1, 2500)).await;
                    net::stall(server, client, false);
                }
            }
            _ => {
                let latency = ms(0, 3);
                net::set_weather(net::Weather {
                    latency,
                    latency_max: latency + ms(0, 5),
                    short_one_in: 2 + sim::below(6),
                });
                faults.weather += 1;
            }
        }
    }
    let counted = net::counters();
    (faults.short, faults.lost) = (counted.short, counted.lost);
    Ok(faults)
}
