//! `up`, `down` and `ps`: a node and a mount on this machine, kept running by a supervisor.
//!
//! Everything lives in one folder (`.claudefs` unless told otherwise). Starting is a list of steps, each of which looks
//! first whether its result is there already, so any half-finished state is mended by running `up` again.

mod layout;
mod mount;
mod programs;
mod steps;
mod supervise;

pub use layout::Layout;
pub use supervise::supervise;

use crate::command::{note, step};
use crate::packages;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

/// Options of `cargo xtask up`.
#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    /// Size of the device that is created (not used when there is one already)
    #[arg(long, default_value = "8GiB", value_name = "SIZE", value_parser = layout::parse_size)]
    pub size: u64,
    /// TCP port on loopback
    #[arg(long, default_value_t = 7420)]
    pub port: u16,
    /// Folder for the device, the key, logs and the mount point
    #[arg(long, default_value = ".claudefs", value_name = "DIR")]
    pub dir: PathBuf,
    /// Build without optimisation: quicker to build, slower to run
    #[arg(long)]
    pub dev: bool,
    /// Folder of built programs to run, instead of building them
    #[arg(long, value_name = "DIR", conflicts_with = "dev")]
    pub programs: Option<PathBuf>,
    /// Memory to reserve as 2 MiB hugepages, where this user may
    #[arg(long, default_value = "256MiB", value_name = "SIZE", value_parser = layout::parse_size)]
    pub hugepages: u64,
}

/// Options of `cargo xtask down` and `ps`.
#[derive(Clone, Debug, Args)]
pub struct DownArgs {
    /// The folder that `up` was given
    #[arg(long, default_value = ".claudefs", value_name = "DIR")]
    pub dir: PathBuf,
}

/// Options of the hidden `supervise`.
#[derive(Clone, Debug, Args)]
pub struct SuperviseArgs {
    /// The folder that `up` was given
    #[arg(long)]
    pub dir: PathBuf,
    /// The daemon
    #[arg(long)]
    pub claudefsd: PathBuf,
}

/// Brings the demo up, from whatever state it is in.
///
/// # Errors
/// The step that failed, with the end of its log.
pub fn up(args: &UpArgs) -> Result<()> {
    let layout = Layout::new(&args.dir)?;
    layout.create()?;
    let _lock = layout.lock()?;
    packages::ensure(&[packages::DEMO])?;
    let programs = match &args.programs {
        Some(dir) => programs::built(dir)?,
        None => programs::build(args.dev)?,
    };
    steps::hugepages(args.hugepages);
    steps::key(&layout, &programs)?;
    steps::device(&layout, &programs, args.size)?;
    steps::config(&layout, args.port)?;
    steps::daemon(&layout, &programs)?;
    mount::mount(&layout, &programs)?;
    report(&layout, &programs)
}

/// Unmounts and stops; data stays.
///
/// # Errors
/// The mount is busy, or something does not stop in time.
pub fn down(args: &DownArgs) -> Result<()> {
    let layout = Layout::new(&args.dir)?;
    if !layout.dir.exists() {
        note(format!("nothing to stop: there is no {}", layout.dir.display()));
        return Ok(());
    }
    layout.create()?;
    let _lock = layout.lock()?;
    let unmounted = mount::unmount(&layout)?;
    let stopped = steps::stop(&layout)?;
    let done = if unmounted || stopped { "stopped" } else { "nothing runs" };
    note(format!("{done}; the data stays in {}", layout.device().display()));
    Ok(())
}

/// Says what runs.
///
/// # Errors
/// The folder can't be read.
pub fn ps(args: &DownArgs) -> Result<()> {
    let layout = Layout::new(&args.dir)?;
    let state =
        |pid: Option<u32>| pid.map_or_else(|| "not running".to_owned(), |p| format!("running, pid {p}"));
    note(format!("supervisor  {}", state(layout.running(&layout.supervisor_pid(), "supervise"))));
    note(format!("claudefsd   {}", state(layout.running(&layout.daemon_pid(), "claudefsd"))));
    note(format!("mount       {}", mount::state(&layout.mount_point())));
    Ok(())
}

fn report(layout: &Layout, programs: &programs::Programs) -> Result<()> {
    let mnt = layout.mount_point();
    step("ClaudeFS is up");
    note(format!("mounted at   {}", mnt.display()));
    note(format!("device       {}", layout.device().display()));
    note(format!("server       {} (key {})", layout.address()?, layout.key().display()));
    note(format!("logs         {}", layout.log_dir().display()));
    note(format!("programs     {}", programs.claudefs.parent().unwrap_or(&programs.claudefs).display()));
    println!();
    note("Try:");
    note(format!("cp -r docs {0}/ && diff -r docs {0}/docs && df -h {0}", mnt.display()));
    note(format!(
        "{} status --watch --server {} --key {}",
        programs.claudefs.display(),
        layout.address()?,
        layout.key().display()
    ));
    note("cargo xtask down   stops it; the data stays");
    Ok(())
}
