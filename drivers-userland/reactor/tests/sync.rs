//! The primitives between tasks, polled by hand: they need no ring.

use reactor::sync::{Event, Mutex, Notify, Semaphore, mpsc, oneshot};
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

fn poll<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match poll(pin!(future)) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it should be ready"),
    }
}

#[test]
fn permits_go_to_the_first_in_line() {
    let semaphore = Semaphore::new(2);
    let one = now(semaphore.acquire()).expect("open");
    let mut big = pin!(semaphore.acquire_many(2));
    assert!(poll(big.as_mut()).is_pending());
    let mut small = pin!(semaphore.acquire());
    assert!(poll(small.as_mut()).is_pending(), "no overtaking");
    assert!(semaphore.try_acquire().is_none(), "no overtaking");
    drop(one);
    let Poll::Ready(Ok(both)) = poll(big.as_mut()) else { panic!("two are free") };
    assert!(poll(small.as_mut()).is_pending());
    drop(both);
    assert!(poll(small.as_mut()).is_ready());
    assert_eq!(semaphore.available(), 2, "the permit was dropped with the result");
}

#[test]
fn a_waiter_that_leaves_passes_its_grant_on() {
    let semaphore = Semaphore::new(1);
    let held = now(semaphore.acquire()).expect("open");
    let mut leaves = Box::pin(semaphore.acquire());
    let mut stays = pin!(semaphore.acquire());
    assert!(poll(leaves.as_mut()).is_pending() && poll(stays.as_mut()).is_pending());
    drop(held);
    drop(leaves);
    assert!(poll(stays.as_mut()).is_ready());
    // One that blocks the line and leaves lets the others through.
    let held = now(semaphore.acquire()).expect("open");
    let mut huge = Box::pin(semaphore.acquire_many(5));
    let mut small = pin!(semaphore.acquire());
    assert!(poll(huge.as_mut()).is_pending() && poll(small.as_mut()).is_pending());
    drop(held);
    assert!(poll(small.as_mut()).is_pending());
    drop(huge);
    assert!(poll(small.as_mut()).is_ready());
}

#[test]
fn closing_ends_the_wait() {
    let semaphore = Semaphore::new(0);
    let mut waits = pin!(semaphore.acquire());
    assert!(poll(waits.as_mut()).is_pending());
    semaphore.close();
    assert!(matches!(poll(waits.as_mut()), Poll::Ready(Err(_))));
}

#[test]
fn a_mutex_gives_turns() {
    let mutex = Mutex::new(0);
    let mut held = now(mutex.lock());
    *held += 1;
    let mut next = pin!(mutex.lock());
    assert!(poll(next.as_mut()).is_pending() && mutex.try_lock().is_none());
    drop(held);
    let Poll::Ready(value) = poll(next.as_mut()) else { panic!("it is free") };
    assert_eq!(*value, 1);
}

#[test]
fn one_notification_is_kept_and_none_is_lost() {
    let notify = Notify::new();
    notify.notify_one();
    notify.notify_one();
    now(notify.notified());
    let mut one = Box::pin(notify.notified());
    let mut two = pin!(notify.notified());
    assert!(poll(one.as_mut()).is_pending() && poll(two.as_mut()).is_pending());
    notify.notify_one();
    drop(one);
    assert!(poll(two.as_mut()).is_ready(), "it passed from the one that left");
    let (mut a, mut b) = (pin!(notify.notified()), pin!(notify.notified()));
    assert!(poll(a.as_mut()).is_pending() && poll(b.as_mut()).is_pending());
    notify.notify_all();
    assert!(poll(a.as_mut()).is_ready() && poll(b.as_mut()).is_ready());
}

#[test]
fn an_event_lets_through_while_it_is_set() {
    let event = Event::new();
    let mut waits = pin!(event.wait());
    assert!(poll(waits.as_mut()).is_pending());
    event.set();
    assert!(poll(waits.as_mut()).is_ready());
    now(event.wait());
    event.reset();
    assert!(poll(pin!(event.wait())).is_pending());
}

#[test]
fn a_oneshot_carries_one_value_or_the_end() {
    let (sender, receiver) = oneshot::channel();
    let mut receiver = pin!(receiver);
    assert!(poll(receiver.as_mut()).is_pending());
    sender.send(5).expect("it listens");
    assert_eq!(poll(receiver.as_mut()), Poll::Ready(Ok(5)));
    let (sender, receiver) = oneshot::channel::<()>();
    drop(sender);
    assert!(now(receiver).is_err());
    let (sender, receiver) = oneshot::channel();
    drop(receiver);
    assert_eq!(sender.send(1), Err(1));
}

#[test]
fn a_queue_is_bounded_ordered_and_ends() {
    let (sender, mut receiver) = mpsc::channel(2);
    now(sender.send(1)).expect("open");
    sender.try_send(2).expect("room");
    assert_eq!(sender.try_send(3), Err(mpsc::TrySendError::Full(3)));
    {
        let mut third = pin!(sender.send(3));
        assert!(poll(third.as_mut()).is_pending());
        assert_eq!(receiver.try_recv(), Some(1));
        assert!(poll(third.as_mut()).is_ready());
    }
    let twin = sender.clone();
    drop(sender);
    assert_eq!((receiver.len(), now(receiver.recv()), now(receiver.recv())), (2, Some(2), Some(3)));
    assert!(poll(pin!(receiver.recv())).is_pending());
    drop(twin);
    assert_eq!(now(receiver.recv()), None);
}

#[test]
fn a_queue_without_a_reader_refuses_and_frees() {
    let (sender, receiver) = mpsc::channel(1);
    let token = Rc::new(());
    now(sender.send(Rc::clone(&token))).expect("open");
    {
        let mut waits = pin!(sender.send(Rc::clone(&token)));
        assert!(poll(waits.as_mut()).is_pending());
        drop(receiver);
        assert!(matches!(poll(waits.as_mut()), Poll::Ready(Err(_))));
    }
    assert!(sender.clone().try_send(Rc::clone(&token)).is_err());
    drop(sender);
    assert_eq!(Rc::strong_count(&token), 1);
}
