//! Asking before something is destroyed.
//!
//! Owns the rule: with `--yes` nobody is asked; on a terminal the operator types `yes`; elsewhere it is refused.

use crate::failure::Failure;
use std::io::{self, BufRead, IsTerminal, Write};

/// Longest answer that is read.
const ANSWER: u64 = 64;

/// How an answer can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asking {
    /// It was given on the command line.
    Yes,
    /// There is somebody to ask.
    Terminal,
    /// There is nobody to ask.
    Nobody,
}

impl Asking {
    /// From `--yes` and the terminal.
    #[must_use]
    pub fn new(yes: bool) -> Self {
        match yes {
            true => Self::Yes,
            false if io::stdin().is_terminal() && io::stderr().is_terminal() => Self::Terminal,
            false => Self::Nobody,
        }
    }

    /// Shows `what` will be lost and gets the answer; `ask` shows a prompt and reads a line.
    ///
    /// # Errors
    /// [`Failure::Refused`] unless the answer is yes.
    pub fn confirm(self, what: &str, ask: impl FnOnce(&str) -> io::Result<String>) -> Result<(), Failure> {
        match self {
            Self::Yes => Ok(()),
            Self::Nobody => Err(Failure::Refused(format!(
                "{what}\nnothing was changed: add --yes to do it without a question"
            ))),
            Self::Terminal => {
                let answer = ask(&format!("{what}\nType `yes` to go on: "));
                match answer {
                    Ok(answer) if answer.trim().eq_ignore_ascii_case("yes") => Ok(()),
                    Ok(_) => Err(Failure::Refused("nothing was changed".to_owned())),
                    Err(e) => Err(Failure::Refused(format!("nothing was changed: no answer ({e})"))),
                }
            }
        }
    }
}

/// Asks on the terminal.
///
/// # Errors
/// The terminal is gone.
pub fn on_terminal(prompt: &str) -> io::Result<String> {
    use std::io::Read;
    let mut stderr = io::stderr().lock();
    stderr.write_all(prompt.as_bytes())?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().lock().take(ANSWER).read_line(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn never(_: &str) -> io::Result<String> {
        unreachable!("nobody is to be asked")
    }

    #[test]
    fn yes_on_the_command_line_asks_nobody() {
        assert!(Asking::Yes.confirm("x", never).is_ok());
    }

    #[test]
    fn without_a_terminal_it_is_refused_with_the_way_out() {
        let refused = Asking::Nobody.confirm("/dev/x will be lost", never).expect_err("refused");
        assert_eq!(refused.exit_code(), 6);
        let text = refused.to_string();
        assert!(text.contains("/dev/x will be lost") && text.contains("--yes"), "{text}");
    }

    #[test]
    fn on_a_terminal_only_yes_is_yes() {
        let answered = |answer: io::Result<String>| {
            Asking::Terminal.confirm("/dev/x", |prompt| {
                assert!(prompt.contains("/dev/x"), "{prompt}");
                answer
            })
        };
        for yes in ["yes", "YES\n", " yes \n"] {
            assert!(answered(Ok(yes.to_owned())).is_ok(), "{yes}");
        }
        for no in ["", "y\n", "no\n", "yes please\n"] {
            assert_eq!(answered(Ok(no.to_owned())).expect_err("no").exit_code(), 6, "{no}");
        }
        assert!(answered(Err(io::ErrorKind::UnexpectedEof.into())).is_err());
    }
}
