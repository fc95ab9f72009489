//! The command line as types: help, completions and manual pages are made of them.
//!
//! Owns names, defaults and help texts. Must not do anything, nor look at the system.

use clap::{Args, Parser, Subcommand, ValueHint};
use node::units::ByteSize;
use std::path::PathBuf;

/// Key file looked for where neither `--key` nor CLAUDEFS_KEY names one; on a node.
pub const CLUSTER_KEY: &str = "/etc/claudefs/cluster.key";
/// The same on a client, looked at first.
pub const CLIENT_KEY: &str = "/etc/claudefs/client.key";
/// Server asked where neither `--server` nor CLAUDEFS_SERVER names one.
pub const SERVER: &str = "127.0.0.1:7420";

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed for another reason
  2  the command line is wrong
  3  the device can't be used: missing, not ours, in use, too small, damaged
  4  the server can't be reached, or did not answer
  5  the key is missing, wrong or refused
  6  refused: it needs confirmation, or the server can't do it now
  7  something is wrong with the file system: scrub found damage, status is not \"active\"
`claudefs fsck` has the exit codes of fsck(8), see `claudefs fsck --help`.";

/// Makes, mounts, watches and checks ClaudeFS.
#[derive(Debug, Parser)]
#[command(name = "claudefs", version, max_term_width = 100, after_help = EXIT_CODES, propagate_version = true)]
#[command(subcommand_required = true, arg_required_else_help = true)]
#[command(after_long_help = format!("\
Examples:
  claudefs key generate /etc/claudefs/cluster.key
  claudefs format /dev/nvme0n1
  systemctl start claudefsd
  claudefs mount 127.0.0.1:/ /mnt
  claudefs status --watch

{EXIT_CODES}"))]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an empty file system on a device or file
    Format(Format),
    /// Mount a file system
    Mount(Mount),
    /// Unmount, also where the client is gone
    Umount(Umount),
    /// Show the state of a node: device, cores, connections, operations and their latency
    Status(Status),
    /// Show how much space there is
    Df(Df),
    /// Read every block of a running node and check it
    Scrub(Scrub),
    /// Check a device that no daemon serves, and mend it
    Fsck(Fsck),
    /// List devices, grow one, preallocate one
    #[command(subcommand)]
    Device(Device),
    /// Make and show keys
    #[command(subcommand)]
    Key(Key),
    /// Print a shell's completion script
    Completions(Completions),
    /// Write the manual pages into a directory
    Man(Man),
}

/// Whom to ask, and with which key.
#[derive(Clone, Debug, Args)]
pub struct Remote {
    /// Node to ask; the port is 7420 unless given [default: $CLAUDEFS_SERVER, or 127.0.0.1:7420]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub server: Option<String>,
    /// Key file [default: $CLAUDEFS_KEY, or the first there is of /etc/claudefs/client.key, /etc/claudefs/cluster.key]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub key: Option<PathBuf>,
    /// Seconds to wait for an answer
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub timeout: u32,
}

/// Makes an empty file system on DEVICE: a block device, or a file (which --size makes where it is missing).
///
/// Everything on the device is lost. What is on it is shown, and you are asked; without a terminal to ask on, --yes is
/// needed. A device that holds something recognisable (a file system, a partition table, a store of ours) needs --force
/// as well.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  claudefs format /dev/nvme0n1
  claudefs format --size 8GiB --yes /srv/claudefs.img
  claudefs format --shards 32 --preallocate /dev/nvme0n1
  claudefs format --force --yes /srv/claudefs.img        # once more, from scratch")]
pub struct Format {
    /// Block device or file
    #[arg(value_hint = ValueHint::FilePath)]
    pub device: PathBuf,
    /// Size of the file to make, or to extend; not for block devices
    #[arg(long, value_name = "SIZE")]
    pub size: Option<ByteSize>,
    /// Number of shards, for ever: at least the cores that the store will run on
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub shards: u16,
    /// Write zeros over everything, so that first writes are as fast as later ones; takes as long as filling the device
    #[arg(long)]
    pub preallocate: bool,
    /// Destroy what is recognised on the device
    #[arg(long)]
    pub force: bool,
    /// Don't ask
    #[arg(long, short)]
    pub yes: bool,
    /// Print the result as one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Mounts directory PATH of the file system that HOST serves on MOUNTPOINT.
///
/// The same as `mount -t claudefs HOST:/PATH MOUNTPOINT`, so that /etc/fstab works. Other users see the mount too, with
/// ordinary permission checks.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  claudefs mount 127.0.0.1:/ /mnt
  claudefs mount storage1:7420:/home /home -o noatime,nosuid,nodev
  claudefs mount storage1:/ ~/files -o key=$HOME/.claudefs.key
  echo 'storage1:/ /mnt claudefs _netdev,noatime 0 0' >> /etc/fstab

A process stays behind and serves the mount; SIGTERM to it unmounts. Where the command line is good and
mounting fails, exit codes are those of mount(8): 2 system error, 32 mount failure.

Options (-o): ro, rw, noatime, relatime, nodev, nosuid, noexec, sync, dirsync, _netdev, nofail, x-*;
key=FILE, log=FILE, foreground, read_ahead=KIB.")]
pub struct Mount {
    /// What to mount: `HOST[:PORT]:/PATH`
    #[arg(value_name = "HOST[:PORT]:/PATH")]
    pub source: String,
    /// An empty directory
    #[arg(value_hint = ValueHint::DirPath)]
    pub mountpoint: PathBuf,
    /// Options, separated by commas
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// Key file; the same as -o key=FILE [default: $CLAUDEFS_KEY, or as for `claudefs status`]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub key: Option<PathBuf>,
    /// Stay in the foreground and log to the terminal; the same as -o foreground
    #[arg(long)]
    pub foreground: bool,
    /// Pass over unknown options, as mount(8) asks for
    #[arg(short = 's')]
    pub sloppy: bool,
    /// Check everything, but do not mount
    #[arg(short = 'f', long)]
    pub fake: bool,
    /// Say what is done
    #[arg(short = 'v', long)]
    pub verbose: bool,
    /// Without effect: there is no mtab; mount(8) passes it
    #[arg(short = 'n', hide = true)]
    pub no_mtab: bool,
    /// Without effect: the type, as mount(8) passes it
    #[arg(short = 't', hide = true)]
    pub kind: Option<String>,
}

/// Unmounts. A mount whose client has died ("Transport endpoint is not connected") is cleared as well.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  claudefs umount /mnt
  claudefs umount --lazy /mnt      # out of sight now, gone when its last user is")]
pub struct Umount {
    /// Where it is mounted
    #[arg(value_hint = ValueHint::DirPath)]
    pub mountpoint: PathBuf,
    /// Detach at once, also where it is in use
    #[arg(long, short)]
    pub lazy: bool,
}

/// Shows the state of a node.
///
/// Exit code 0 where the state is "active" or "grace" (clients return after a restart), 7 where it is "read-only".
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  claudefs status
  claudefs status --watch          # every 2 seconds, with operations per second
  claudefs status --json | jq .state
  claudefs status --server storage1 --key ~/cluster.key")]
pub struct Status {
    /// Whom to ask.
    #[command(flatten)]
    pub remote: Remote,
    /// Print one JSON document (with --watch: one per line)
    #[arg(long)]
    pub json: bool,
    /// Show again every SECS seconds until interrupted; rates are of the last interval
    #[arg(long, short, value_name = "SECS", num_args = 0..=1, default_missing_value = "2", require_equals = false,
        value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub watch: Option<u32>,
}

/// Shows size, used and free space of the file system, and its inodes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  claudefs df
  claudefs df --json --server storage1")]
pub struct Df {
    /// Whom to ask.
    #[command(flatten)]
    pub remote: Remote,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Has a running node read every block in use, data and metadata, and compare it with its checksum.
///
/// Without an option it starts a scrub and returns; one runs at a time. Exit code 7 where damage was found.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  claudefs scrub --wait             # with progress, until it is done
  claudefs scrub --repair --wait    # mend metadata from its second copy
  claudefs scrub --status           # of the one that runs, or of the last
  claudefs scrub --stop")]
pub struct Scrub {
    /// Whom to ask.
    #[command(flatten)]
    pub remote: Remote,
    /// Mend what has a good copy
    #[arg(long, conflicts_with_all = ["status", "stop"])]
    pub repair: bool,
    /// Show progress and wait for the end; interrupting leaves the scrub running
    #[arg(long, conflicts_with = "stop")]
    pub wait: bool,
    /// Start nothing, only report
    #[arg(long, conflicts_with = "stop")]
    pub status: bool,
    /// End the one that runs
    #[arg(long)]
    pub stop: bool,
    /// Print the report as one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Checks the store and the file system on DEVICE: superblocks, logs, checkpoints, space, the namespace, and whether files
/// and chunks fit together. Changes nothing without --repair. The daemon must be stopped.
///
/// Corrected is what needs no guess: copies of metadata from the good copy, counts, rows and chunks that belong to nothing,
/// positions in directories. Everything else is told with the path of the file and the next step.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  claudefs fsck /dev/nvme0n1
  claudefs fsck --data /dev/nvme0n1       # reads and verifies every block of data too
  claudefs fsck --json /srv/claudefs.img
  claudefs fsck --repair /dev/nvme0n1     # shows what was found, then asks

Exit codes, as fsck(8):
   0  no errors
   1  errors were found and corrected, all of them
   4  errors are left: they can't be corrected, or --repair was not given or not confirmed
   8  it could not be checked: missing, not ours, in use, unreadable
  16  the command line is wrong")]
pub struct Fsck {
    /// Block device or file
    #[arg(value_hint = ValueHint::FilePath)]
    pub device: PathBuf,
    /// Read all file data and compare it with its checksums; takes as long as reading what is used of the device
    #[arg(long)]
    pub data: bool,
    /// Correct what can be corrected without guessing
    #[arg(long)]
    pub repair: bool,
    /// Don't ask before correcting
    #[arg(long, short, requires = "repair")]
    pub yes: bool,
    /// Print the report as one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Devices of a node.
#[derive(Debug, Subcommand)]
pub enum Device {
    /// List devices
    List(DeviceList),
    /// Take the new space of a device that was made larger into use, without a stop
    Grow(DeviceGrow),
    /// Reserve all blocks of a file-backed device, so that the file system below can't run full
    Preallocate(DevicePreallocate),
}

/// Lists the devices of a node with their space and health; with --offline, what a device says of itself.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  claudefs device list
  claudefs device list --json
  claudefs device list --offline /dev/nvme0n1 /dev/nvme1n1    # no daemon needed")]
pub struct DeviceList {
    /// Whom to ask.
    #[command(flatten)]
    pub remote: Remote,
    /// Read the superblocks of these devices instead of asking a node
    #[arg(long, value_name = "DEVICE", num_args = 1.., value_hint = ValueHint::FilePath)]
    pub offline: Vec<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Takes the new space of a device that was made larger into use, while the node serves.
///
/// Make the disk, volume or file larger first. Devices never shrink.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  truncate -s 16G /srv/claudefs.img && claudefs device grow /srv/claudefs.img
  lvextend -L +1T /dev/vg/claudefs && claudefs device grow")]
pub struct DeviceGrow {
    /// Path of the device as the daemon has it; may be left out where there is one
    #[arg(value_hint = ValueHint::FilePath)]
    pub device: Option<PathBuf>,
    /// Whom to ask.
    #[command(flatten)]
    pub remote: Remote,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Reserves all blocks of a file-backed device from the file system below it, while the node serves.
///
/// A sparse file takes space as it is written: where something else fills the file system below first, writes fail. After
/// this they can't, and writes to new places are faster. It goes on in small steps beside other work; interrupting it
/// keeps what was reserved so far, and running it again goes on from there. A disk or partition needs none of this.
/// (`claudefs format --preallocate` also writes the blocks, which makes first writes as fast as later ones.)
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  claudefs device preallocate
  claudefs device preallocate --json /srv/claudefs.img")]
pub struct DevicePreallocate {
    /// Path of the device as the daemon has it; may be left out where there is one
    #[arg(value_hint = ValueHint::FilePath)]
    pub device: Option<PathBuf>,
    /// Whom to ask.
    #[command(flatten)]
    pub remote: Remote,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Keys.
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Make a cluster key
    Generate(KeyGenerate),
    /// Print a key's public fingerprint
    #[command(visible_alias = "show")]
    ShowId(KeyShowId),
}

/// Writes a new random key into FILE, readable by its owner alone. Copy it to every node and client.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  claudefs key generate /etc/claudefs/cluster.key
  scp /etc/claudefs/cluster.key client1:/etc/claudefs/client.key

A key that is replaced locks out everyone who still has the old one.")]
pub struct KeyGenerate {
    /// File to make; its directory must exist
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Replace an existing file
    #[arg(long)]
    pub force: bool,
}

/// Prints the fingerprint of a key, as logs and error messages show it. It tells nothing of the key itself.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  claudefs key show-id
  claudefs key show-id /etc/claudefs/client.key")]
pub struct KeyShowId {
    /// Key file [default: as for `claudefs status`]
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
}

/// Prints a completion script.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  claudefs completions bash > /usr/share/bash-completion/completions/claudefs
  claudefs completions zsh > /usr/share/zsh/site-functions/_claudefs
  claudefs completions fish > /usr/share/fish/vendor_completions.d/claudefs.fish")]
pub struct Completions {
    /// Which shell
    pub shell: clap_complete::Shell,
}

/// Writes claudefs.1 and a page for each command.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  claudefs man /usr/share/man/man1")]
pub struct Man {
    /// An existing directory
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_mount_passes_is_understood() {
        let words =
            ["claudefs", "mount", "h:/", "/mnt", "-s", "-n", "-v", "-o", "rw,_netdev", "-o", "key=/k"];
        let Command::Mount(args) = Cli::parse_from(words).command else { unreachable!("it is a mount") };
        assert_eq!(args.options, ["rw,_netdev", "key=/k"]);
        assert!(args.sloppy && args.verbose && !args.fake);
    }

    #[test]
    fn watch_takes_seconds_or_none() {
        for (words, want) in [
            (&["claudefs", "status"][..], None),
            (&["claudefs", "status", "--watch"], Some(2)),
            (&["claudefs", "status", "--watch", "9", "--json"], Some(9)),
        ] {
            let Command::Status(args) = Cli::parse_from(words).command else { unreachable!("it is status") };
            assert_eq!(args.watch, want);
        }
        assert!(Cli::try_parse_from(["claudefs", "status", "--watch", "0"]).is_err());
        assert!(Cli::try_parse_from(["claudefs", "scrub", "--stop", "--repair"]).is_err());
        assert!(Cli::try_parse_from(["claudefs", "format", "--shards", "257", "x"]).is_err());
        assert!(Cli::try_parse_from(["claudefs", "format", "--size", "8GB1", "x"]).is_err());
    }

    /// Every command's help shows how it is used.
    #[test]
    fn every_help_has_examples() {
        fn check(command: &clap::Command) {
            let mut all = command.get_subcommands().filter(|c| c.get_name() != "help").peekable();
            if all.peek().is_none() {
                let help = command.clone().render_long_help().to_string();
                assert!(help.contains("Examples:\n"), "{}: {help}", command.get_name());
            }
            all.for_each(check);
        }
        check(&Cli::command());
    }
}
