//! A flag for each thread that says whether it holds the lock. In debug and test builds, a file operation of a thread that
//! holds the lock panics.

use std::cell::Cell;

thread_local! {
    static LOCKED: Cell<bool> = const { Cell::new(false) };
}

/// Panics in test and debug builds if this thread holds the lock. Every file operation calls it first, and so does the
/// computation of a factorial.
#[inline]
pub fn assert_unlocked() {
    debug_assert!(!LOCKED.get(), "work or file I/O while the lock is held");
}

/// Sets the thread's flag until it is dropped, together with the lock's guard.
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
