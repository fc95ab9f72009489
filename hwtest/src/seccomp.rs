//! Programs under a kernel that refuses parts of io_uring: what an older kernel, a container's filter or a sysctl does,
//! done to one process by seccomp(2).

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// What is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Refusal {
    /// Every ring, as the sysctl `kernel.io_uring_disabled` does.
    Disabled,
    /// Every ring, as a kernel without io_uring does.
    Unknown,
    /// Rings of provided buffers, as kernels before 5.19 do.
    ProvidedBuffers,
}

// System calls added since Linux 5.0 have the same numbers everywhere (include/uapi/asm-generic/unistd.h).
const IO_URING_SETUP: i64 = 425;
const IO_URING_REGISTER: i64 = 427;
/// `IORING_REGISTER_PBUF_RING` of io_uring_register(2).
const REGISTER_PBUF_RING: u64 = 22;

/// Becomes `words`, which then lives with the refusal. Returns only with the reason why not.
///
/// # Errors
/// The filter can't be set, or the program not be started.
pub fn exec(refusal: Refusal, words: &[String]) -> Result<std::convert::Infallible> {
    let errno = |e: rustix::io::Errno| SeccompAction::Errno(e.raw_os_error().unsigned_abs());
    let (call, rules, answer) = match refusal {
        Refusal::Disabled => (IO_URING_SETUP, Vec::new(), errno(rustix::io::Errno::PERM)),
        Refusal::Unknown => (IO_URING_SETUP, Vec::new(), errno(rustix::io::Errno::NOSYS)),
        Refusal::ProvidedBuffers => {
            let (len, op) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
            let condition = SeccompCondition::new(1, len, op, REGISTER_PBUF_RING)?;
            (IO_URING_REGISTER, vec![SeccompRule::new(vec![condition])?], errno(rustix::io::Errno::INVAL))
        }
    };
    let rules = std::iter::once((call, rules)).collect();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, answer, std::env::consts::ARCH.try_into()?)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program).context("the kernel takes no seccomp filter")?;
    let (name, arguments) = words.split_first().context("no program is named")?;
    Err(Command::new(name).args(arguments).exec()).with_context(|| format!("can't run {name}"))
}
