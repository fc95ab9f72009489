//! What this kernel's io_uring can do, found out by trying.

use io_uring::squeue::Entry;
use io_uring::{IoUring, Probe, opcode};
use std::io;

/// A feature that is missing, and the first kernel that has it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{feature} is missing ({detail}): it needs Linux {kernel} or newer{advice}")]
pub struct Missing {
    /// Name of the feature.
    pub feature: &'static str,
    /// First kernel that has it.
    pub kernel: &'static str,
    /// What was tried, and the answer.
    pub detail: String,
    /// What else may be the cause.
    pub advice: &'static str,
}

/// What was found. Everything that a reactor needs is there, or `probe` would have failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Send and receive of several buffers at once (6.10).
    pub bundles: bool,
    /// Waiting for several completions with a shorter limit for the first (6.12).
    pub min_wait: bool,
    /// A ring without the submission index array (6.6).
    pub no_sqarray: bool,
}

impl Features {
    /// Checks what only the daemon asks for: Linux 6.12.
    ///
    /// # Errors
    /// Names what is missing.
    pub fn for_daemon(self) -> Result<Features, Missing> {
        if !self.min_wait {
            let detail = "IORING_FEAT_MIN_TIMEOUT is not offered".to_owned();
            return Err(Missing { feature: "a minimum wait", kernel: "6.12", detail, advice: "" });
        }
        Ok(self)
    }
}

const FORBIDDEN: &str =
    ", and the right to use it: see /proc/sys/kernel/io_uring_disabled and the container's seccomp profile";

fn need<T>(feature: &'static str, kernel: &'static str, tried: io::Result<T>) -> Result<T, Missing> {
    tried.map_err(|error| {
        let advice = match error.raw_os_error() {
            Some(libc::EPERM | libc::ENOSYS) => FORBIDDEN,
            _ => "",
        };
        Missing { feature, kernel, detail: error.to_string(), advice }
    })
}

/// Operations that a reactor uses, with the kernels that brought them.
const OPERATIONS: &[(u8, &str, &str)] = &[
    (opcode::ReadFixed::CODE, "READ_FIXED", "5.1"),
    (opcode::WriteFixed::CODE, "WRITE_FIXED", "5.1"),
    (opcode::Writev::CODE, "WRITEV", "5.1"),
    (opcode::Fsync::CODE, "FSYNC", "5.1"),
    (opcode::PollAdd::CODE, "POLL_ADD", "5.1"),
    (opcode::SendMsg::CODE, "SENDMSG", "5.3"),
    (opcode::AcceptMulti::CODE, "ACCEPT", "5.5"),
    (opcode::Connect::CODE, "CONNECT", "5.5"),
    (opcode::AsyncCancel::CODE, "ASYNC_CANCEL", "5.5"),
    (opcode::Read::CODE, "READ", "5.6"),
    (opcode::Write::CODE, "WRITE", "5.6"),
    (opcode::Send::CODE, "SEND", "5.6"),
    (opcode::Recv::CODE, "RECV", "5.6"),
    (opcode::OpenAt::CODE, "OPENAT", "5.6"),
    (opcode::Fallocate::CODE, "FALLOCATE", "5.6"),
    (opcode::MsgRingData::CODE, "MSG_RING", "5.18"),
    (opcode::SendZc::CODE, "SEND_ZC", "6.0"),
    (opcode::SendMsgZc::CODE, "SENDMSG_ZC", "6.1"),
];

/// Checks that a reactor can run here: Linux 6.1.
///
/// # Errors
/// Names the first feature that is missing and the kernel that has it.
pub fn probe() -> Result<Features, Missing> {
    need("io_uring", "5.1", IoUring::new(4))?;
    let ring = need(
        "a ring with SINGLE_ISSUER and DEFER_TASKRUN",
        "6.1",
        IoUring::<Entry>::builder()
            .setup_submit_all()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(4),
    )?;
    let mut table = Probe::new();
    need("IORING_REGISTER_PROBE", "5.6", ring.submitter().register_probe(&mut table))?;
    for &(code, feature, kernel) in OPERATIONS {
        if !table.is_supported(code) {
            let detail = format!("operation {code} is unknown to the kernel");
            return Err(Missing { feature, kernel, detail, advice: "" });
        }
    }
    let params = ring.params();
    let flags = [
        (params.is_feature_nodrop(), "completions that are never dropped (FEAT_NODROP)", "5.5"),
        (params.is_feature_ext_arg(), "waiting with a limit (FEAT_EXT_ARG)", "5.11"),
    ];
    for (offered, feature, kernel) in flags {
        if !offered {
            return Err(Missing { feature, kernel, detail: "it is not offered".to_owned(), advice: "" });
        }
    }
    need("a sparse table of files", "5.19", ring.submitter().register_files_sparse(1))?;
    let pool = crate::pool::BufferRing::new();
    let probe = crate::ring::Ring::new(4).and_then(|ring| ring.register_pool(&pool));
    need("rings of provided buffers", "5.19", probe)?;
    Ok(Features {
        bundles: params.is_feature_recvsend_bundle(),
        min_wait: params.is_feature_min_timeout(),
        no_sqarray: IoUring::<Entry>::builder().setup_no_sqarray().build(4).is_ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_feature_kernel_and_cause() {
        let refused: io::Result<()> = Err(io::Error::from_raw_os_error(libc::EPERM));
        let missing = need("io_uring", "5.1", refused).expect_err("it was refused");
        let text = missing.to_string();
        assert!(text.contains("io_uring is missing"), "{text}");
        assert!(text.contains("Linux 5.1 or newer"), "{text}");
        assert!(text.contains("io_uring_disabled"), "{text}");
    }

    #[test]
    fn an_old_kernel_is_refused_for_the_daemon() {
        let old = Features { bundles: false, min_wait: false, no_sqarray: true };
        let missing = old.for_daemon().expect_err("min_wait is missing");
        assert_eq!(missing.kernel, "6.12");
    }
}
