//! A gate that tasks wait at until it opens.

use super::notify::Notify;
use std::cell::Cell;

/// Open or shut. Tasks that wait go on once it is open.
#[derive(Default)]
pub struct Event {
    open: Cell<bool>,
    changed: Notify,
}

impl Event {
    /// Shut.
    pub fn new() -> Event {
        Event::default()
    }

    /// Opens it and lets everybody through.
    pub fn set(&self) {
        self.open.set(true);
        self.changed.notify_all();
    }

    /// Shuts it again.
    pub fn reset(&self) {
        self.open.set(false);
    }

    /// Whether it is open.
    pub fn is_set(&self) -> bool {
        self.open.get()
    }

    /// Waits until it is open. Who was let through and finds it shut again waits again.
    pub async fn wait(&self) {
        while !self.open.get() {
            self.changed.notified().await;
        }
    }
}
