//! The 8 workers: named threads that run slices of work from the queue in `state.rs`, one after another.
//!
//! All file I/O and all scanning happen here. An async thread hands a slice over with [`Workers::run`] and awaits its
//! answer; it never blocks. A slice that panics is an error of the call that brought it, and the worker goes on.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, oneshot};

use crate::{
    engine::state::{Lane, Refused, Shared},
    error::Error,
    limits::{WORK_QUEUE_MAX, WORKERS},
};

#[cfg(feature = "model")]
use shuttle::thread;
#[cfg(not(feature = "model"))]
use std::thread;

/// A worker whose slice took less may wait for the next one awake: to be woken takes some 30 µs on a virtual machine.
const SHORT_SLICE: Duration = Duration::from_micros(500);
/// How long it does, if all others are idle: a client that sends small files one after the other sends the next in less.
const AWAKE_MAX: Duration = Duration::from_micros(400);

/// A handle on the workers. They end when [`Workers::close`] was called and the queue is empty.
#[derive(Clone)]
pub struct Workers {
    shared: Shared,
    /// Places in each lane's queue, so that one who finds it full waits without a thread.
    places: [Arc<Semaphore>; Lane::COUNT],
}

impl Workers {
    /// Starts the threads. Errors: the system gives no thread.
    pub fn start(shared: Shared) -> io::Result<Self> {
        for index in 0..WORKERS {
            let shared = shared.clone();
            let work_on = move || {
                let mut awake_max = Duration::ZERO;
                while let Some(work) = shared.next_work(index, awake_max) {
                    let started = Instant::now();
                    // `run` reports a panic to the one who waits; this keeps the thread for the next slice.
                    let _reported = catch_unwind(AssertUnwindSafe(work));
                    let is_short = cfg!(feature = "model") || started.elapsed() < SHORT_SLICE;
                    awake_max = if is_short { AWAKE_MAX } else { Duration::ZERO };
                }
            };
            thread::Builder::new().name(format!("tally-worker-{index}")).spawn(work_on)?;
        }
        Ok(Self { shared, places: [(); Lane::COUNT].map(|()| Arc::new(Semaphore::new(WORK_QUEUE_MAX))) })
    }

    /// Runs `slice` on a worker. If the caller is gone before its turn, the slice is dropped without being run.
    ///
    /// Errors: [`Error::Draining`] when the workers are closed, [`Error::Internal`] when the slice panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        slice: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let work = move || {
            if !answer.is_closed() {
                // The one who waited may have gone meanwhile: then nobody wants the result.
                let _unwanted = answer.send(caught(slice));
            }
        };
        self.hand_over(lane, work).await?;
        answered.await.unwrap_or(Err(Error::Draining))
    }

    /// Runs `work` on a worker, and waits only until it is in the queue. It reports what comes of it itself.
    ///
    /// Errors: [`Error::Draining`] when the workers are closed.
    pub async fn hand_over(&self, lane: Lane, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let Ok(place) = Arc::clone(&self.places[lane as usize]).acquire_owned().await else {
            return Err(Error::Draining);
        };
        let work = Box::new(move || {
            let _place = place;
            work();
        });
        self.shared.push_work(lane, work).map_err(|Refused(_work)| Error::Draining)
    }

    /// Drops a value on a worker, because dropping it removes a file. It is not waited for.
    pub fn discard<T: Send + 'static>(&self, value: T) {
        // A full or closed queue gives the work back, and then it is dropped here.
        let _dropped = self.shared.push_work(Lane::Upload, Box::new(move || drop(value)));
    }

    /// No more slices; those in the queue are still run.
    pub fn close(&self) {
        self.shared.close_work();
    }
}

/// What `work` returns. Errors: [`Error::Internal`] when it panicked.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|panic| Error::Internal(format!("a worker panicked: {}", panic_text(&*panic))))
}

/// What a panic said.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    use std::{collections::BTreeSet, sync::Barrier};

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn eight_slices_run_side_by_side_on_named_threads() {
        let workers = Workers::start(Shared::new()).expect("threads");
        let barrier = Arc::new(Barrier::new(WORKERS));
        let names = join_all((0..WORKERS).map(|_| {
            let barrier = Arc::clone(&barrier);
            workers.run(Lane::Question, move || {
                barrier.wait(); // passes only if all eight are here at once
                thread::current().name().map(str::to_owned)
            })
        }));
        let names: BTreeSet<_> = names.await.into_iter().map(|name| name.expect("ran").expect("named")).collect();
        assert_eq!(names, (0..WORKERS).map(|index| format!("tally-worker-{index}")).collect());
        workers.close();
    }

    #[tokio::test]
    async fn a_panic_is_the_callers_error_and_the_worker_goes_on() {
        let workers = Workers::start(Shared::new()).expect("threads");
        for _ in 0..3 * WORKERS {
            let error = workers.run(Lane::Upload, || panic!("on purpose")).await.expect_err("panicked");
            assert_eq!(error.to_string(), "internal error: a worker panicked: on purpose");
        }
        assert_eq!(workers.run(Lane::Upload, || 7).await.expect("still there"), 7);
        workers.close();
    }

    #[tokio::test]
    async fn closed_workers_refuse() {
        let workers = Workers::start(Shared::new()).expect("threads");
        workers.close();
        assert!(matches!(workers.run(Lane::Upload, || 7).await, Err(Error::Draining)));
    }

    #[tokio::test]
    async fn a_slice_whose_caller_is_gone_is_not_run() {
        let workers = Workers::start(Shared::new()).expect("threads");
        let barrier = Arc::new(Barrier::new(WORKERS + 1));
        let mut held = Vec::new();
        for _ in 0..WORKERS {
            let barrier = Arc::clone(&barrier);
            let mut slice = Box::pin(workers.run(Lane::Question, move || barrier.wait()));
            // Polled, so that it is in the queue before the one that is cancelled.
            assert!(futures_util::poll!(&mut slice).is_pending(), "it waits for the others");
            held.push(slice);
        }
        let ran = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let set = Arc::clone(&ran);
        let mut cancelled =
            Box::pin(workers.run(Lane::Question, move || set.store(true, std::sync::atomic::Ordering::SeqCst)));
        assert!(futures_util::poll!(&mut cancelled).is_pending(), "every worker is held");
        drop(cancelled);
        tokio::task::spawn_blocking(move || barrier.wait()).await.expect("no panic");
        for slice in held {
            slice.await.expect("ran");
        }
        workers.run(Lane::Question, || ()).await.expect("the queue goes on");
        assert!(!ran.load(std::sync::atomic::Ordering::SeqCst), "a slice ran for nobody");
        workers.close();
    }
}
