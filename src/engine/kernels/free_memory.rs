//! Free memory of the allocator.

/// Gives the calling thread's free memory back to the system. The allocator does this by itself only while the thread
/// allocates or frees: after 60 uploads of wide files an idle server kept 105 MiB.
pub fn give_back() {
    // SAFETY: `mi_collect` has no preconditions and may be called from any thread.
    unsafe { libmimalloc_sys::mi_collect(true) };
}
