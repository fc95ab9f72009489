//! Work whose every acknowledged effect is recorded, to be looked for after whatever happened to the daemon.

use super::{Client, ROOT, pattern};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use wire::{Ino, Status};

/// Far longer than a start takes anywhere; a daemon that hangs must not hang the test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What one worker had acknowledged.
pub(crate) struct Recorded {
    dir: Ino,
    /// Names that must be there, with the inode.
    names: Vec<(String, Ino)>,
    /// Bytes appended to the log.
    log: Ino,
    pub(crate) appended: Vec<u8>,
}

pub(crate) async fn worker(c: Client, id: u64, stop: Rc<Cell<bool>>, done: Rc<Cell<usize>>) -> Recorded {
    let dir = c.mkdir(ROOT, &format!("worker-{id}")).await.expect("mkdir");
    let (log, _) = c.create(dir, "log").await.expect("create");
    let mut r = Recorded { dir, names: vec![("log".into(), log)], log, appended: Vec::new() };
    for n in 0_u64.. {
        if stop.get() {
            break;
        }
        let name = format!("a{n}");
        // EXCL: a create that ran twice would say EEXIST.
        let (ino, object) = c.create(dir, &name).await.expect("create");
        c.write(ino, object, 0, &pattern(ino.0, 5000)).await.expect("write");
        let data = pattern(n, 1000 + (n as usize * 37_003) % 120_000);
        assert_eq!(c.append(log, &data).await.expect("append"), r.appended.len() as u64, "appended once");
        r.appended.extend_from_slice(&data);
        match n % 3 {
            0 => {
                let new = format!("b{n}");
                // A rename or unlink that ran twice would say ENOENT.
                c.rename(dir, &name, dir, &new).await.expect("rename");
                r.names.push((new, ino));
            }
            1 => c.unlink(dir, &name).await.expect("unlink"),
            _ => r.names.push((name, ino)),
        }
        done.set(done.get() + 4);
    }
    r
}

pub(crate) async fn verify(c: &Client, r: &mut Recorded) -> Result<(), Status> {
    let mut found = c.names(r.dir).await;
    found.sort();
    r.names.sort();
    let expect: Vec<String> = r.names.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(found, expect);
    for (name, ino) in r.names.iter().filter(|(name, _)| name != "log") {
        assert_eq!(c.lookup(r.dir, name).await?.ino(), *ino);
        assert!(c.read(*ino).await? == pattern(ino.0, 5000), "{name} holds what was written");
    }
    assert!(c.read(r.log).await? == r.appended, "the log holds what was appended, once");
    Ok(())
}

/// Waits until so many more operations were acknowledged: by the daemon that runs now.
pub(crate) async fn acknowledged(done: &Cell<usize>, more: usize) {
    let want = done.get() + more;
    let served = async {
        while done.get() < want {
            reactor::sleep(Duration::from_millis(5)).await;
        }
    };
    reactor::timeout(PATIENCE, served).await.expect("the daemon serves again");
}
