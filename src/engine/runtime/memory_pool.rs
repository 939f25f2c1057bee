//! Memory pools: conversions and statistics reserve the memory that they may need before they allocate it.
//!
//! A pool allocates nothing. It counts the bytes that are reserved, and a reservation ends when its permit is dropped.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{error::Error, limits::KIB};

/// A bounded amount of memory, counted in KiB.
pub struct Pool {
    kib: Arc<Semaphore>,
    kib_max: u32,
    /// How many callers of [`Pool::reserve`] are waiting.
    waits: AtomicUsize,
}

impl Pool {
    /// A pool of `bytes`.
    pub fn new(bytes: usize) -> Self {
        let kib_max = u32::try_from(bytes / KIB).unwrap_or(u32::MAX);
        Self { kib: Arc::new(Semaphore::new(kib_max as usize)), kib_max, waits: AtomicUsize::new(0) }
    }

    /// Reserves `bytes`, and waits until that many are free. A caller that asks for more than the pool has gets all of it,
    /// and so runs alone.
    ///
    /// Errors: the server is shutting down.
    pub async fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        let kib = u32::try_from(bytes.div_ceil(KIB)).unwrap_or(u32::MAX).min(self.kib_max);
        if let Ok(reservation) = Arc::clone(&self.kib).try_acquire_many_owned(kib) {
            return Ok(reservation);
        }
        let _waits = Waits::new(&self.waits);
        Arc::clone(&self.kib).acquire_many_owned(kib).await.ok().ok_or(Error::Draining)
    }

    /// How many bytes are free now.
    pub fn available(&self) -> usize {
        self.kib.available_permits() * KIB
    }

    /// Whether a caller of [`Pool::reserve`] is waiting.
    pub fn is_waited_for(&self) -> bool {
        self.waits.load(Ordering::Relaxed) > 0
    }

    /// Reserves `bytes` if that many are free now.
    pub fn try_reserve(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.div_ceil(KIB)).ok()?;
        Arc::clone(&self.kib).try_acquire_many_owned(kib).ok()
    }
}

/// Counts a waiting caller until this is dropped, also when the call is cancelled.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn new(waits: &'a AtomicUsize) -> Self {
        waits.fetch_add(1, Ordering::Relaxed);
        Self(waits)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
