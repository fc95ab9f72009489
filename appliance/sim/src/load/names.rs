//! The same few names made and removed by all: every answer must fit one order of the operations, name by name.
//!
//! A symbolic link carries a token that no other has, so making, removing and reading are operations of a register that is
//! either empty or holds a token. The search for an order is that of Wing and Gong (1993), with visited states remembered
//! (Lowe 2017).

use anyhow::{Result, bail};
use client::service::FileService;
use client::{Client, Ctx};
use reactor::sim;
use std::collections::HashSet;
use std::time::Duration;
use wire::{Errno, Ino};

/// Where the names are.
pub(super) const FOLDER: &[u8] = b"names";
const NAMES: u64 = 3;

/// What was asked, with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// Made with this token; false: EEXIST.
    Make(u64, bool),
    /// Removed; false: ENOENT.
    Remove(bool),
    /// Read: the token, or ENOENT.
    Read(Option<u64>),
}

/// One operation with its time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    name: u64,
    act: Act,
    from: Duration,
    to: Duration,
}

/// Does one operation on one name.
pub(super) async fn step(client: &Client, dir: Ino, n: usize, calls: &mut Vec<Call>) -> Result<()> {
    let name = sim::below(NAMES);
    let path = format!("name{name}");
    let token = (n as u64) << 32 | calls.len() as u64;
    let from = sim::elapsed();
    let act = match sim::below(4) {
        0 | 1 => {
            match super::make(client, dir, path.as_bytes(), 0o120_777, token.to_string().as_bytes()).await {
                Ok(_) => Act::Make(token, true),
                Err(Errno::EEXIST) => Act::Make(token, false),
                Err(e) => bail!("making {path}: {e}"),
            }
        }
        2 => match client.unlink(&Ctx::default(), dir, path.as_bytes()).await {
            Ok(()) => Act::Remove(true),
            Err(Errno::ENOENT) => Act::Remove(false),
            Err(e) => bail!("removing {path}: {e}"),
        },
        _ => Act::Read(read(client, dir, path.as_bytes()).await?),
    };
    calls.push(Call { name, act, from, to: sim::elapsed() });
    Ok(())
}

async fn read(client: &Client, dir: Ino, name: &[u8]) -> Result<Option<u64>> {
    let ino = match super::find(client, dir, name).await {
        Ok(ino) => ino,
        Err(Errno::ENOENT) => return Ok(None),
        Err(e) => bail!("looking up: {e}"),
    };
    match client.readlink(&Ctx::default(), ino).await {
        Ok(target) => Ok(Some(std::str::from_utf8(&target)?.parse()?)),
        // Removed between the two: the name was absent at some moment in between.
        Err(Errno::ESTALE | Errno::ENOENT) => Ok(None),
        Err(e) => bail!("reading a link: {e}"),
    }
}

/// Looks for an order of the calls on each name.
pub(super) fn check(calls: &[Call]) -> Result<()> {
    for name in 0..NAMES {
        let mut history: Vec<Call> = calls.iter().copied().filter(|c| c.name == name).collect();
        history.sort_by_key(|c| c.from);
        if !has_order(&history) {
            bail!("no order of these calls gives their answers: {history:#?}");
        }
    }
    Ok(())
}

/// The register after `act`; `None` where the answer does not fit.
fn after(state: Option<u64>, act: Act) -> Option<Option<u64>> {
    match (act, state) {
        (Act::Make(token, true), None) => Some(Some(token)),
        (Act::Make(_, false), Some(_)) | (Act::Remove(false), None) => Some(state),
        (Act::Remove(true), Some(_)) => Some(None),
        (Act::Read(seen), _) if seen == state => Some(state),
        _ => None,
    }
}

/// Depth first; `done` are the calls taken so far, of which all before `first` are.
fn has_order(history: &[Call]) -> bool {
    let mut seen: HashSet<(Vec<bool>, Option<u64>)> = HashSet::new();
    let mut stack = vec![(vec![false; history.len()], None)];
    while let Some((done, state)) = stack.pop() {
        if !seen.insert((done.clone(), state)) {
            continue;
        }
        let open = || history.iter().zip(&done).filter(|(_, done)| !**done).map(|(call, _)| call);
        // A call may go next only if none that is left ended before it began.
        let Some(limit) = open().map(|c| c.to).min() else { return true };
        for (i, call) in history.iter().enumerate() {
            if done[i] || call.from > limit {
                continue;
            }
            if let Some(next) = after(state, call.act) {
                let mut taken = done.clone();
                taken[i] = true;
                stack.push((taken, next));
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(act: Act, from: u64, to: u64) -> Call {
        Call { name: 0, act, from: Duration::from_secs(from), to: Duration::from_secs(to) }
    }

    #[test]
    fn overlapping_calls_may_run_in_either_order() {
        let ok =
            [call(Act::Make(1, true), 0, 5), call(Act::Read(None), 1, 2), call(Act::Read(Some(1)), 3, 4)];
        assert!(has_order(&ok));
    }

    #[test]
    fn an_answer_from_the_past_is_found() {
        let stale = [call(Act::Make(1, true), 0, 1), call(Act::Read(None), 2, 3)];
        assert!(!has_order(&stale));
        let twice = [call(Act::Make(1, true), 0, 5), call(Act::Make(2, true), 0, 5)];
        assert!(!has_order(&twice));
        let back =
            [call(Act::Make(1, true), 0, 9), call(Act::Read(Some(1)), 1, 2), call(Act::Read(None), 3, 4)];
        assert!(!has_order(&back));
    }
}
