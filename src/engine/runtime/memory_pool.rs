//! A pool of memory from which conversions and statistics reserve what they may take, before they take it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{error::Error, limits::KIB};

/// Memory that uploads share: each takes what it may need and gives it back when it is done.
pub struct Pool {
    kib: Arc<Semaphore>,
    kib_max: u32,
    /// Claims that wait, at some time just now.
    waits: AtomicUsize,
}

impl Pool {
    /// Room for so many bytes.
    pub fn new(bytes: usize) -> Self {
        let kib_max = u32::try_from(bytes / KIB).unwrap_or(u32::MAX);
        Self { kib: Arc::new(Semaphore::new(kib_max as usize)), kib_max, waits: AtomicUsize::new(0) }
    }

    /// Waits until there is room. What asks for more than there is gets all of it, and so runs alone.
    pub async fn claim(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        let kib = u32::try_from(bytes.div_ceil(KIB)).unwrap_or(u32::MAX).min(self.kib_max);
        if let Ok(claim) = Arc::clone(&self.kib).try_acquire_many_owned(kib) {
            return Ok(claim);
        }
        let _waits = Waits::new(&self.waits);
        Arc::clone(&self.kib).acquire_many_owned(kib).await.ok().ok_or(Error::Draining)
    }

    /// Whether somebody waits for room.
    pub fn is_waited_for(&self) -> bool {
        self.waits.load(Ordering::Relaxed) > 0
    }

    /// The same if there is room now.
    pub fn try_claim(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.div_ceil(KIB)).ok()?;
        Arc::clone(&self.kib).try_acquire_many_owned(kib).ok()
    }
}

/// One who waits for a claim, even if it stops waiting.
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
