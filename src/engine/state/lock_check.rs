//! A thread-local flag that is set while the thread holds the lock. In debug and test builds, file operations panic if it is
//! set.

use std::cell::Cell;

thread_local! {
    static LOCKED: Cell<bool> = const { Cell::new(false) };
}

/// Panics in test and debug builds if this thread holds the lock.
#[inline]
pub fn assert_unlocked() {
    debug_assert!(!LOCKED.get(), "work or file I/O while the lock is held");
}

/// Sets the thread's flag until it is dropped.
pub(super) struct Flag;

impl Flag {
    pub(super) fn set() -> Self {
        debug_assert!(!LOCKED.get(), "the lock is taken while it is held");
        LOCKED.set(true);
        Self
    }
}

impl Drop for Flag {
    fn drop(&mut self) {
        LOCKED.set(false);
    }
}
