//! The real daemon, killed again and again under load: nothing acknowledged is missing, nothing happens twice, and no
//! request fails. The session repeats what was not answered, as a mount does.
#![expect(clippy::expect_used, reason = "a test ends at the first surprise")]

mod common;

use common::{Client, Daemon, ROOT, Rig, pattern};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use wire::{Ino, Status};

const KILLS: usize = 10;
/// Far longer than a start takes anywhere; a daemon that hangs must not hang the test.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one worker had acknowledged.
struct Recorded {
    dir: Ino,
    /// Names that must be there, with the inode.
    names: Vec<(String, Ino)>,
    /// Bytes appended to the log.
    log: Ino,
    appended: Vec<u8>,
}

async fn worker(c: Client, id: u64, stop: Rc<Cell<bool>>, done: Rc<Cell<usize>>) -> Recorded {
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

async fn verify(c: &Client, r: &mut Recorded) -> Result<(), Status> {
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
async fn acknowledged(done: &Cell<usize>, more: usize) {
    let want = done.get() + more;
    let served = async {
        while done.get() < want {
            reactor::sleep(Duration::from_millis(5)).await;
        }
    };
    reactor::timeout(PATIENCE, served).await.expect("the daemon serves again");
}

#[test]
fn ten_kills_lose_nothing() {
    let rig = Rig::new(1 << 30, 1);
    let mut daemon = Daemon(rig.spawn());
    rig.with_client(1, async |first| {
        let second = Client::connect(rig.address(), rig.key(), 2).await;
        let (stop, done) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
        let workers: Vec<_> = [(first.clone(), 1), (first.clone(), 2), (second.clone(), 3)]
            .into_iter()
            .map(|(c, id)| reactor::spawn(worker(c, id, Rc::clone(&stop), Rc::clone(&done))))
            .collect();
        for i in 0..KILLS {
            acknowledged(&done, 20).await;
            // Somewhere in the middle of what runs, between two flushes or behind some.
            reactor::sleep(Duration::from_millis(37 + 149 * i as u64)).await;
            daemon.kill();
            daemon = Daemon(rig.spawn());
        }
        acknowledged(&done, 20).await;
        stop.set(true);
        let mut appended = 0;
        for w in workers {
            let mut r = w.await.expect("the worker ends");
            appended += r.appended.len();
            verify(&second, &mut r).await.expect("no request fails");
        }
        assert!(appended > 4 << 20, "appends went over the ends of chunks: {appended} bytes");
        daemon.kill();
        daemon = Daemon(rig.spawn());
        let names = second.names(ROOT).await;
        assert_eq!(names.len(), 3, "{names:?}");
    });
    daemon.kill();
}
