//! The real daemon, killed again and again under load: nothing acknowledged is missing, nothing happens twice, and no
//! request fails. The session repeats what was not answered, as a mount does.
#![expect(clippy::expect_used, reason = "a test ends at the first surprise")]

mod common;

use common::load::{acknowledged, verify, worker};
use common::{Client, Daemon, ROOT, Rig};
use node::fsck::{self, Options, Report};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

const KILLS: usize = 10;

#[test]
fn ten_kills_lose_nothing() {
    let rig = Rig::new(1 << 30, 1).patient();
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
    assert!(!sound(&rig).clean_stop);
    daemon = Daemon(rig.spawn());
    rig.with_client(3, async |c| assert_eq!(c.names(ROOT).await.len(), 3));
    assert_eq!(daemon.terminate(), Some(0));
    assert!(sound(&rig).clean_stop);
}

#[track_caller]
fn sound(rig: &Rig) -> Report {
    let handle = fsck::open(&rig.config.devices[0], false).expect("nobody has it");
    let report = fsck::check(&handle, Options { data: true }, Box::new(|_, _, _| {}));
    let report = report.expect("it can be checked");
    assert!(report.is_clean(), "{report:#?}");
    report
}
