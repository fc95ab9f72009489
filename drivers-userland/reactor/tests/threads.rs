//! Mail, wakers, signals, timers and the end of `run`.
mod common;

use common::{run, run_with};
use reactor::{Config, Wait, mail, signal};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

fn ping_pong(wait: Wait) {
    let (to_far, mut at_far) = mail::channel::<u32>(4);
    let (to_near, mut at_near) = mail::channel::<u32>(4);
    let far = std::thread::spawn(move || {
        run_with(Config { wait, ..Config::default() }, async {
            while let Some(n) = at_far.recv().await {
                to_near.send(n + 1).await.expect("it listens");
            }
        });
    });
    run_with(Config { wait, ..Config::default() }, async {
        for n in 0..2000 {
            to_far.send(n).await.expect("it listens");
            assert_eq!(at_near.recv().await, Some(n + 1));
        }
        drop(to_far);
        assert_eq!(at_near.recv().await, None);
    });
    far.join().expect("it ends well");
}

#[test]
fn two_sleeping_reactors_play_ping_pong() {
    ping_pong(Wait::Sleep);
}

#[test]
fn two_adaptive_reactors_play_ping_pong() {
    ping_pong(Wait::Adaptive { spin_us: 20 });
}

#[test]
fn a_busy_pinned_reactor_hears_timers_threads_and_the_ring() {
    let (sender, mut receiver) = mail::channel::<u8>(1);
    let cfg = Config {
        cpu: Some(0),
        wait: Wait::Busy,
        name: "a-name-that-is-too-long".into(),
        ..Config::default()
    };
    let far = std::thread::spawn(move || {
        run_with(cfg, async {
            reactor::sleep(Duration::from_millis(2)).await;
            let name = std::fs::read_to_string("/proc/thread-self/comm").expect("its name");
            assert_eq!(name, "a-name-that-is-\n");
            let (near, far) = common::pair().await;
            near.send_all(vec![hugepages::Bytes::from_static(b"x")]).await.expect("sent");
            let (done, _) = far.read_exact(hugepages::Buf::heap(1), 0..1).await;
            done.expect("received");
            let got = receiver.recv().await;
            assert_eq!(reactor::stats().sleeps, 0);
            got
        })
    });
    sender.send_blocking(9).expect("it listens");
    assert_eq!(far.join().expect("it ends well"), Some(9));
}

#[test]
fn foreign_threads_send_through_a_full_queue() {
    let (sender, mut receiver) = mail::channel::<u32>(2);
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let sender = sender.clone();
            std::thread::spawn(move || (0..1000).for_each(|n| sender.send_blocking(n).expect("it listens")))
        })
        .collect();
    drop(sender);
    let sum = run(async {
        let mut sum = 0;
        while let Some(n) = receiver.recv().await {
            sum += u64::from(n);
        }
        sum
    });
    assert_eq!(sum, 3 * 999 * 1000 / 2);
    threads.into_iter().for_each(|thread| thread.join().expect("it ends well"));
}

#[test]
fn a_reactor_waits_for_room_and_hears_of_the_end() {
    let (sender, mut receiver) = mail::channel::<u32>(1);
    let far = std::thread::spawn(move || {
        run(async {
            let mut got = Vec::new();
            for _ in 0..500 {
                got.push(receiver.recv().await.expect("it sends"));
            }
            got
        })
    });
    run(async {
        let mut n = 0;
        while sender.send(n).await.is_ok() {
            n += 1;
        }
        assert!(n >= 500);
    });
    assert!(far.join().expect("it ends well").into_iter().eq(0..500));
}

#[test]
fn timers_fire_in_order() {
    run(async {
        let order = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = [30_u64, 5, 20, 10, 1]
            .into_iter()
            .map(|ms| {
                let order = Rc::clone(&order);
                reactor::spawn(async move {
                    let before = reactor::now();
                    reactor::sleep(Duration::from_millis(ms)).await;
                    assert!(before.elapsed() >= Duration::from_millis(ms));
                    order.borrow_mut().push(ms);
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("it ends");
        }
        assert_eq!(*order.borrow(), [1, 5, 10, 20, 30]);
    });
}

#[test]
fn an_aborted_task_drops_its_future() {
    run(async {
        let token = Rc::new(());
        let held = Rc::clone(&token);
        let task = reactor::spawn(async move {
            reactor::sleep(Duration::from_secs(3600)).await;
            drop(held);
        });
        reactor::yield_now().await;
        task.abort();
        assert_eq!(task.await, Err(reactor::Aborted));
        assert_eq!(Rc::strong_count(&token), 1);
    });
}

#[test]
fn a_panic_goes_on_after_the_drain() {
    let arena = common::arena(64 << 10);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let cfg = Config { arenas: vec![arena.clone()], ..Config::default() };
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        run_with(cfg, async {
            let file = reactor::File::from_fd(reader.into()).expect("open");
            let buf = arena.alloc(4096).expect("room");
            reactor::spawn(async move { file.read(buf).await.0 });
            reactor::yield_now().await;
            reactor::spawn(async { panic!("as the test wants") });
            reactor::sleep(Duration::from_secs(3600)).await;
        });
    }));
    assert!(ended.is_err());
    assert_eq!(arena.stats().in_use, 0);
    drop(writer);
    run(async {});
}

#[test]
fn one_reactor_per_thread() {
    run(async {
        let nested = reactor::run(Config::default(), async {});
        assert!(matches!(nested, Err(reactor::Error::Nested)));
    });
}

#[test]
fn a_cpu_that_is_not_there_is_refused() {
    let made = reactor::run(Config { cpu: Some(100_000), ..Config::default() }, async {});
    assert!(made.expect_err("no such CPU").to_string().contains("CPU 100000"));
}

#[test]
fn signals_are_a_stream() {
    run(async {
        let mut signals = signal::wait(&[signal::SIGTERM, signal::SIGUSR1]).expect("signals");
        let me = rustix::thread::gettid();
        for name in [rustix::process::Signal::TERM, rustix::process::Signal::USR1] {
            // To this thread alone: those of other tests do not block it.
            let pid = rustix::process::getpid();
            signal_thread(pid, me, name.as_raw());
            assert_eq!(signals.next().await.expect("a signal"), name.as_raw());
        }
    });
}

fn signal_thread(pid: rustix::process::Pid, thread: rustix::thread::Pid, signal: i32) {
    #![expect(unsafe_code, reason = "no safe call sends a signal to one thread")]
    // SAFETY: it takes three numbers.
    let sent = unsafe {
        libc::syscall(libc::SYS_tgkill, pid.as_raw_nonzero().get(), thread.as_raw_nonzero().get(), signal)
    };
    assert_eq!(sent, 0);
}

#[test]
fn this_kernel_has_what_is_needed() {
    reactor::probe().expect("clients run here").for_daemon().expect("the daemon runs here");
}
