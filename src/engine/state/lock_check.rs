//! Knows whether this thread holds the lock, so that debug and test builds stop where a file operation would run under it.

use std::cell::Cell;

thread_local! {
    static LOCKED: Cell<bool> = const { Cell::new(false) };
}

/// Stops a test or debug build when this thread holds the lock. Every file operation begins with it, and so does the
/// computing of a factorial.
#[inline]
pub fn assert_unlocked() {
    debug_assert!(!LOCKED.get(), "work or file I/O while the lock is held");
}

/// Sets the thread's flag for as long as the guard that it stands beside.
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
