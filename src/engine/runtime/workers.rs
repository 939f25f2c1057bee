//! The 8 workers: named threads that run tasks from the queue in `engine/state`, one after another.
//!
//! All file I/O and all scanning happen on them. Async code queues a task with [`Workers::run`] and awaits its result, so an
//! async thread never blocks. A task that panics is an error of the call that queued it; its worker goes on.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, oneshot, watch};

use crate::{
    engine::{
        kernels::free_memory,
        state::{Lane, Refused, Shared},
    },
    error::Error,
    limits::{WORK_QUEUE_MAX, WORKERS},
};

#[cfg(feature = "model")]
use shuttle::thread;
#[cfg(not(feature = "model"))]
use std::thread;

/// After a task shorter than this, a worker may poll for the next one before it sleeps, because waking a thread takes about
/// 30 µs on a virtual machine.
const SHORT_TASK: Duration = Duration::from_micros(500);
/// How long a worker polls if all others are idle. A client that sends small files one after another sends the next one
/// within this time.
const POLL_MAX: Duration = Duration::from_micros(400);

/// A handle to the workers. The threads end when [`Workers::close`] was called and the queue is empty.
#[derive(Clone)]
pub struct Workers {
    shared: Shared,
    /// Permits for the queue of each lane, so that async callers wait while it is full.
    permits: [Arc<Semaphore>; Lane::COUNT],
    /// Each thread holds a receiver, and drops it when it ends.
    threads: Arc<watch::Sender<()>>,
}

impl Workers {
    /// Starts the threads.
    ///
    /// Errors: the system cannot start a thread.
    pub fn start(shared: Shared) -> io::Result<Self> {
        let threads = Arc::new(watch::Sender::new(()));
        for index in 0..WORKERS {
            let (shared, until_end) = (shared.clone(), threads.subscribe());
            let run_tasks = move || {
                let _until_end = until_end;
                let mut poll_max = Duration::ZERO;
                while let Some(work) = shared.next_work(index, poll_max, free_memory::give_back) {
                    let started = Instant::now();
                    // `run` reports a panic to its caller; this one keeps the thread alive for the next task.
                    let _reported = catch_unwind(AssertUnwindSafe(work));
                    let is_short = cfg!(feature = "model") || started.elapsed() < SHORT_TASK;
                    poll_max = if is_short { POLL_MAX } else { Duration::ZERO };
                }
            };
            thread::Builder::new().name(format!("tally-worker-{index}")).spawn(run_tasks)?;
        }
        let permits = [(); Lane::COUNT].map(|()| Arc::new(Semaphore::new(WORK_QUEUE_MAX)));
        Ok(Self { shared, permits, threads })
    }

    /// Runs `task` on a worker and waits for its result. If the caller goes away before the task begins, the task is dropped.
    ///
    /// Errors: [`Error::Draining`] when the workers are closed, [`Error::Internal`] when the task panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        task: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (tx, rx) = oneshot::channel();
        let work = move || {
            if !tx.is_closed() {
                // The caller may have gone away while the task ran.
                let _receiver_gone = tx.send(caught(task));
            }
        };
        self.enqueue(lane, work).await?;
        rx.await.unwrap_or(Err(Error::Draining))
    }

    /// Queues a task, and waits only until it is in the queue. The task itself has to report its result.
    ///
    /// Errors: [`Error::Draining`] when the workers are closed.
    pub async fn enqueue(&self, lane: Lane, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let Ok(permit) = Arc::clone(&self.permits[lane as usize]).acquire_owned().await else {
            return Err(Error::Draining);
        };
        let work = Box::new(move || {
            let _permit = permit;
            work();
        });
        self.shared.push_work(lane, work).map_err(|Refused(_work)| Error::Draining)
    }

    /// Drops a value on a worker, because dropping it may close or remove a file. Does not wait for that.
    pub fn discard<T: Send + 'static>(&self, value: T) {
        // If the queue is full or closed, it returns the task, and the value is dropped here.
        let _dropped = self.shared.push_work(Lane::Upload, Box::new(move || drop(value)));
    }

    /// Refuses new tasks. Those in the queue are still run.
    pub fn close(&self) {
        self.shared.close_work();
    }

    /// Waits until the threads have ended, after [`Self::close`].
    pub async fn ended(&self) {
        self.threads.closed().await;
    }
}

/// Runs `work`.
///
/// Errors: [`Error::Internal`] when it panicked.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|panic| Error::Internal(format!("a worker panicked: {}", panic_text(&*panic))))
}

/// The message of a panic.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    use std::{
        collections::BTreeSet,
        sync::{
            Barrier,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn the_threads_end_after_the_last_task() {
        let workers = Workers::start(Shared::new()).expect("threads");
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..2 * WORKERS {
            let done = Arc::clone(&done);
            let task = move || {
                thread::sleep(Duration::from_millis(5));
                done.fetch_add(1, Ordering::SeqCst);
            };
            workers.enqueue(Lane::Job, task).await.expect("room");
        }
        workers.close();
        workers.ended().await;
        assert_eq!(done.load(Ordering::SeqCst), 2 * WORKERS);
    }

    #[tokio::test]
    async fn eight_tasks_run_in_parallel_on_named_threads() {
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
    async fn a_panic_is_an_error_of_the_caller_and_the_worker_continues() {
        let workers = Workers::start(Shared::new()).expect("threads");
        for _ in 0..3 * WORKERS {
            let error = workers.run(Lane::Upload, || panic!("on purpose")).await.expect_err("panicked");
            assert_eq!(error.to_string(), "internal error: a worker panicked: on purpose");
        }
        assert_eq!(workers.run(Lane::Upload, || 7).await.expect("still there"), 7);
        workers.close();
    }

    #[tokio::test]
    async fn closed_workers_refuse_tasks() {
        let workers = Workers::start(Shared::new()).expect("threads");
        workers.close();
        assert!(matches!(workers.run(Lane::Upload, || 7).await, Err(Error::Draining)));
    }

    #[tokio::test]
    async fn a_task_whose_caller_is_gone_is_not_run() {
        let workers = Workers::start(Shared::new()).expect("threads");
        let barrier = Arc::new(Barrier::new(WORKERS + 1));
        let mut running = Vec::new();
        for _ in 0..WORKERS {
            let barrier = Arc::clone(&barrier);
            let mut task = Box::pin(workers.run(Lane::Question, move || barrier.wait()));
            // Polled, so that it is in the queue before the one that is cancelled.
            assert!(futures_util::poll!(&mut task).is_pending(), "it waits for the others");
            running.push(task);
        }
        let ran = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let set = Arc::clone(&ran);
        let mut cancelled =
            Box::pin(workers.run(Lane::Question, move || set.store(true, std::sync::atomic::Ordering::SeqCst)));
        assert!(futures_util::poll!(&mut cancelled).is_pending(), "every worker is busy");
        drop(cancelled);
        tokio::task::spawn_blocking(move || barrier.wait()).await.expect("no panic");
        for task in running {
            task.await.expect("ran");
        }
        workers.run(Lane::Question, || ()).await.expect("the queue goes on");
        assert!(!ran.load(std::sync::atomic::Ordering::SeqCst), "a task ran whose caller is gone");
        workers.close();
    }
}
