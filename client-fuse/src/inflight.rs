//! Requests under way, and what an INTERRUPT does to them.
//!
//! The kernel sends one INTERRUPT for the *first* signal that a waiting caller gets, harmless ones included, and none for later ones. So:
//! - it ends waits for locks at once ([`Interrupt::Signal`]); a lock wait is restarted by the kernel where the handler says so;
//! - no other request fails because of it. The caller is watched instead: once SIGKILL is pending for it (`/proc/PID/status`; any
//!   signal that is about to kill the process shows as that) the request is told so ([`Interrupt::Kill`]), which ends a wait for a server that does
//!   not answer.
//!
//! A caller outside our pid namespace has number 0 and can't be watched: it waits until the server answers.

use client::{CancelToken, Interrupt};
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// How often interrupted callers are looked at.
const WATCH: Duration = Duration::from_millis(200);

struct Request {
    token: CancelToken,
    pid: u32,
    interrupted: bool,
}

/// The requests of one mount that have no answer yet.
#[derive(Default)]
pub struct InFlight {
    requests: RefCell<FxHashMap<u64, Request>>,
    watching: Cell<bool>,
}

impl InFlight {
    /// Notes a request; [`InFlight::end`] takes it off again.
    pub fn begin(&self, unique: u64, pid: u32) -> CancelToken {
        let token = CancelToken::new();
        let request = Request { token: token.clone(), pid, interrupted: false };
        self.requests.borrow_mut().insert(unique, request);
        token
    }

    /// It was answered.
    pub fn end(&self, unique: u64) {
        self.requests.borrow_mut().remove(&unique);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.requests.borrow().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.requests.borrow().is_empty()
    }

    /// The caller of this request got a signal. `false` where the request is not (or no longer) known.
    pub fn interrupt(self: &Rc<Self>, unique: u64) -> bool {
        let (token, pid) = {
            let mut requests = self.requests.borrow_mut();
            let Some(request) = requests.get_mut(&unique) else { return false };
            request.interrupted = true;
            (request.token.clone(), request.pid)
        };
        token.fire(Interrupt::Signal);
        if is_dying(pid) {
            token.fire(Interrupt::Kill);
        } else if !self.watching.replace(true) {
            let this = Rc::clone(self);
            reactor::spawn(async move { this.watch().await });
        }
        true
    }

    async fn watch(self: Rc<Self>) {
        loop {
            reactor::sleep(WATCH).await;
            let watched: Vec<(CancelToken, u32)> = {
                let requests = self.requests.borrow();
                let some = requests.values().filter(|r| r.interrupted && r.token.state() < Interrupt::Kill);
                some.map(|r| (r.token.clone(), r.pid)).collect()
            };
            if watched.is_empty() {
                self.watching.set(false);
                return;
            }
            for (token, pid) in watched {
                if is_dying(pid) {
                    token.fire(Interrupt::Kill);
                }
            }
        }
    }
}

/// Whether SIGKILL is pending for a thread.
fn is_dying(pid: u32) -> bool {
    if pid == 0 {
        return false;
    }
    // Where it can't be seen (another user's under hidepid=2) it counts as alive.
    std::fs::read(format!("/proc/{pid}/status")).is_ok_and(|status| has_sigkill(&status))
}

/// Whether SIGKILL stands in `SigPnd` (the thread's) or `ShdPnd` (the process's) of a status file, proc(5).
fn has_sigkill(status: &[u8]) -> bool {
    const SIGKILL: u64 = 1 << (9 - 1);
    let fields = status.split(|&b| b == b'\n').filter_map(|line| {
        let mask = line.strip_prefix(b"SigPnd:").or_else(|| line.strip_prefix(b"ShdPnd:"))?;
        u64::from_str_radix(std::str::from_utf8(mask).ok()?.trim(), 16).ok()
    });
    fields.fold(0, |all, mask| all | mask) & SIGKILL != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_sigkill_is_seen() {
        let calm =
            b"Name:\tx\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000004000\nSigBlk:\t0000000000000100\n";
        assert!(!has_sigkill(calm));
        assert!(has_sigkill(b"SigPnd:\t0000000000000100\n"));
        assert!(has_sigkill(b"SigPnd:\t0\nShdPnd:\t0000000000000100\n"));
        assert!(!has_sigkill(b"SigPnd:\tzz\n\xff"));
        assert!(!is_dying(0) && !is_dying(std::process::id()));
    }

    #[test]
    fn unknown_requests_are_told_apart() {
        let inflight = Rc::new(InFlight::default());
        assert!(!inflight.interrupt(4));
        let _token = inflight.begin(4, 0);
        assert_eq!(inflight.len(), 1);
        inflight.end(4);
        assert!(inflight.is_empty());
    }
}
