//! Reserving the blocks of a file-backed device from the file system below, while the node serves.
//!
//! Owns the pace: one bounded fallocate(2) at a time, and a pause after each, since it holds the file's lock and waits for
//! the direct I/O under way. Must not change what the device reads as.

use chunkstore::BlockDevice;
use reactor::sync::Event;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::time::Duration;
use wire::{Errno, Status};

/// Bytes reserved at a time: a few milliseconds on ext4, for which foreground writes wait at most.
const STEP: u64 = 16 << 20;
/// Shortest pause between two steps.
const PAUSE: Duration = Duration::from_millis(1);

/// The last or running reservation of one device.
#[derive(Default)]
pub(crate) struct Reservation {
    running: Cell<bool>,
    stopping: Cell<bool>,
    done: Cell<u64>,
    all: Cell<u64>,
    error: RefCell<Option<String>>,
}

/// Marks a reservation as ended, also where its request is dropped.
struct Running<'a>(&'a Cell<bool>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl Reservation {
    /// The report's part of it; null where there was none since the start.
    pub(crate) fn report(&self) -> Value {
        if self.all.get() == 0 {
            return Value::Null;
        }
        json!({ "running": self.running.get(), "done": self.done.get(), "all": self.all.get(),
            "error": *self.error.borrow() })
    }

    /// Ends the running one at its next step.
    pub(crate) fn stop(&self) {
        self.stopping.set(true);
    }

    /// Reserves everything; what is reserved already costs nothing. `Busy` where another runs, `Cancelled` where it was
    /// ended before: what it had reserved stays.
    pub(crate) async fn run<D: BlockDevice>(&self, below: &D, cancelled: &Event) -> Result<Value, Status> {
        let Some(before) = below.reserved().map_err(|e| self.failed(&e))? else {
            return Ok(json!({ "capacity": below.capacity(), "needed": false }));
        };
        if self.running.replace(true) {
            return Err(Status::Busy);
        }
        let _running = Running(&self.running);
        self.done.set(0);
        self.all.set(below.capacity());
        self.error.replace(None);
        while self.done.get() < self.all.get() {
            if cancelled.is_set() || self.stopping.get() {
                self.error.replace(Some("ended before it was complete".to_owned()));
                return Err(Status::Cancelled);
            }
            let (at, begun) = (self.done.get(), reactor::now());
            let len = STEP.min(self.all.get() - at);
            below.reserve(at, len).await.map_err(|e| self.failed(&e))?;
            self.done.set(at + len);
            // As long as the step took: others get at least half of the device's time.
            reactor::sleep(reactor::now().duration_since(begun).max(PAUSE)).await;
        }
        below.flush().await.map_err(|e| self.failed(&e))?;
        let after = below.reserved().map_err(|e| self.failed(&e))?;
        tracing::info!(before, after, "the device's blocks are reserved");
        Ok(
            json!({ "capacity": self.all.get(), "needed": true, "reserved_before": before, "reserved": after }),
        )
    }

    fn failed(&self, e: &std::io::Error) -> Status {
        tracing::warn!(error = %e, done = self.done.get(), "reserving the device's blocks failed");
        self.error.replace(Some(e.to_string()));
        let code = e.raw_os_error().and_then(|n| u16::try_from(n).ok());
        Status::Errno(code.map_or(Errno::EIO, Errno))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chunkstore::{MemDevice, MemOptions};
    use hugepages::{Buf, Bytes};
    use std::io;
    use std::rc::Rc;

    /// A device above a file system that has room for `room` bytes.
    #[derive(Clone)]
    struct Sparse {
        device: MemDevice,
        room: u64,
        given: Rc<Cell<u64>>,
        cancel: Rc<Event>,
        /// Bytes after which whoever waits goes away.
        patience: u64,
    }

    impl BlockDevice for Sparse {
        fn capacity(&self) -> u64 {
            self.device.capacity()
        }
        async fn read(&self, offset: u64, buf: Buf) -> (io::Result<()>, Buf) {
            self.device.read(offset, buf).await
        }
        async fn write(&self, offset: u64, data: Bytes) -> io::Result<()> {
            self.device.write(offset, data).await
        }
        async fn flush(&self) -> io::Result<()> {
            self.device.flush().await
        }
        async fn trim(&self, offset: u64, len: u64) -> io::Result<()> {
            self.device.trim(offset, len).await
        }
        async fn reserve(&self, offset: u64, len: u64) -> io::Result<bool> {
            assert!(len <= STEP && offset + len <= self.capacity(), "{offset} {len}");
            if offset + len > self.room {
                return Err(io::Error::from_raw_os_error(i32::from(Errno::ENOSPC.0)));
            }
            self.given.set(self.given.get().max(offset + len));
            if self.given.get() >= self.patience {
                self.cancel.set();
            }
            Ok(true)
        }
        fn reserved(&self) -> io::Result<Option<u64>> {
            Ok(Some(self.given.get()))
        }
    }

    const SIZE: u64 = 5 * STEP + (1 << 20);

    fn run(room: u64, patience: u64) -> (Result<Value, Status>, Value, u64) {
        let below = Sparse {
            device: MemDevice::new(SIZE, MemOptions::default()),
            room,
            given: Rc::default(),
            cancel: Rc::new(Event::new()),
            patience,
        };
        let ran = reactor::run(reactor::Config::default(), async move {
            let reservation = Reservation::default();
            assert_eq!(reservation.report(), Value::Null);
            let cancel = Rc::clone(&below.cancel);
            let result = reservation.run(&below, &cancel).await;
            (result, reservation.report(), below.given.get())
        });
        ran.expect("a reactor")
    }

    #[test]
    fn everything_is_reserved_in_steps() {
        let (result, report, given) = run(SIZE, u64::MAX);
        let answer = result.expect("there is room");
        assert_eq!(
            (given, answer["reserved"].as_u64(), answer["needed"].as_bool()),
            (SIZE, Some(SIZE), Some(true))
        );
        assert_eq!((report["running"].as_bool(), report["error"].is_null()), (Some(false), true), "{report}");
    }

    #[test]
    fn where_the_file_system_below_is_full_it_stops_and_keeps_what_it_has() {
        let (result, report, given) = run(3 * STEP, u64::MAX);
        assert_eq!((result, given), (Err(Status::Errno(Errno::ENOSPC)), 3 * STEP));
        assert_eq!((report["running"].as_bool(), report["done"].as_u64()), (Some(false), Some(3 * STEP)));
        assert!(report["error"].is_string(), "{report}");
    }

    #[test]
    fn it_ends_at_the_next_step_when_nobody_waits_for_it() {
        let (result, report, given) = run(SIZE, 2 * STEP);
        assert_eq!((result, given), (Err(Status::Cancelled), 2 * STEP));
        assert_eq!(report["running"].as_bool(), Some(false), "{report}");
    }
}
