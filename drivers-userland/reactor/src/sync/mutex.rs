//! A value that one task at a time may use across awaits.

use super::semaphore::{Permit, Semaphore};
use std::cell::{RefCell, RefMut};
use std::ops::{Deref, DerefMut};

/// Exclusive use of a value, in the order in which tasks asked.
pub struct Mutex<T> {
    turn: Semaphore,
    value: RefCell<T>,
}

impl<T> Mutex<T> {
    /// Holds `value`.
    pub fn new(value: T) -> Mutex<T> {
        Mutex { turn: Semaphore::new(1), value: RefCell::new(value) }
    }

    /// Waits for the value.
    pub async fn lock(&self) -> MutexGuard<'_, T> {
        let Ok(turn) = self.turn.acquire().await else { unreachable!("the turn is never closed") };
        MutexGuard { value: self.value.borrow_mut(), _turn: turn }
    }

    /// The value, where nobody has it or waits for it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let turn = self.turn.try_acquire()?;
        Some(MutexGuard { value: self.value.borrow_mut(), _turn: turn })
    }

    /// The value itself.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

/// The value, until this is dropped. Unlike a bare `RefMut` it may be held across an await: who else wants the
/// value waits for its turn.
#[must_use = "gives the value back at once unless kept"]
pub struct MutexGuard<'a, T> {
    // Declared before the turn, hence released before the next in line is called.
    value: RefMut<'a, T>,
    _turn: Permit,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}
