//! Progress of long steps on stderr: one line that is rewritten on a terminal, a line every ten seconds elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often a terminal's line is rewritten.
const REDRAW: Duration = Duration::from_millis(100);
/// How often a log gets a line.
const LOG: Duration = Duration::from_secs(10);

/// See the module. Dropping it clears the line.
#[derive(Debug)]
pub struct Progress {
    what: String,
    terminal: bool,
    started: Instant,
    shown: Option<Instant>,
    drawn: bool,
}

impl Progress {
    /// Progress of `what`.
    #[must_use]
    pub fn new(what: impl Into<String>) -> Self {
        let terminal = io::stderr().is_terminal();
        Self { what: what.into(), terminal, started: Instant::now(), shown: None, drawn: false }
    }

    /// Begins something else.
    pub fn rename(&mut self, what: &str) {
        if self.what != what {
            what.clone_into(&mut self.what);
            self.started = Instant::now();
            self.shown = None;
        }
    }

    /// Shows how far it is, at its own pace. `detail` is asked for only when something is shown.
    pub fn at(&mut self, done: u64, all: u64, detail: impl FnOnce() -> String) {
        let pause = if self.terminal { REDRAW } else { LOG };
        if self.shown.unwrap_or(self.started).elapsed() < pause {
            return;
        }
        self.shown = Some(Instant::now());
        let line = line(&self.what, done, all, self.started.elapsed(), &detail());
        let mut stderr = io::stderr().lock();
        let _ = if self.terminal {
            self.drawn = true;
            write!(stderr, "\r\x1b[K{line}").and_then(|()| stderr.flush())
        } else {
            writeln!(stderr, "{line}")
        };
    }

    fn clear(&mut self) {
        if self.drawn {
            self.drawn = false;
            let mut stderr = io::stderr().lock();
            let _ = write!(stderr, "\r\x1b[K").and_then(|()| stderr.flush());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn line(what: &str, done: u64, all: u64, elapsed: Duration, detail: &str) -> String {
    let part = if all == 0 { 0.0 } else { done.min(all) as f64 / all as f64 };
    let mut line = format!("{what}: {:3.0} %", part * 100.0);
    if !detail.is_empty() {
        line.push_str(&format!(", {detail}"));
    }
    // Before a hundredth of it is done, the rest is a guess.
    if (0.01..1.0).contains(&part) {
        let left = elapsed.mul_f64((1.0 - part) / part);
        line.push_str(&format!(", {} left", crate::print::span(left)));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_how_far_and_how_long() {
        let ten = Duration::from_secs(10);
        assert_eq!(line("formatting", 0, 0, ten, ""), "formatting:   0 %");
        assert_eq!(
            line("formatting", 1, 4, ten, "1.00 GiB of 4.00 GiB"),
            "formatting:  25 %, 1.00 GiB of 4.00 GiB, 30s left"
        );
        assert_eq!(line("scrub", 9, 4, ten, ""), "scrub: 100 %");
    }
}
