//! Unit tests of the lock and the work queue.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::Ordering,
    thread,
    time::Duration,
};

use super::{DISCARDS_MAX, Lane, Shared, lock_check::assert_unlocked};
use crate::{
    limits::{WORK_QUEUE_MAX, WORKERS},
    model::part::PartId,
};

#[test]
fn file_operations_under_the_lock_stop_a_test_build() {
    let shared = Shared::new();
    let inside = catch_unwind(AssertUnwindSafe(|| shared.with(|_| assert_unlocked())));
    assert!(inside.is_err(), "a file operation under the lock went unnoticed");
    assert_unlocked();
}

#[test]
fn a_panic_under_the_lock_leaves_it_usable() {
    let shared = Shared::new();
    let panicked = catch_unwind(AssertUnwindSafe(|| shared.with(|_| panic!("on purpose"))));
    assert!(panicked.is_err());
    assert_eq!(shared.with(|state| state.parts.reserve()), Some(PartId::FIRST));
    assert_unlocked();
}

#[test]
fn a_full_queue_gives_the_work_back() {
    let shared = Shared::new();
    for _ in 0..WORK_QUEUE_MAX + DISCARDS_MAX {
        assert!(shared.push_work(Lane::Upload, Box::new(|| ())).is_ok());
    }
    assert!(shared.push_work(Lane::Upload, Box::new(|| ())).is_err());
    assert!(shared.next_work(0, Duration::ZERO).is_some());
    assert!(shared.push_work(Lane::Upload, Box::new(|| ())).is_ok());
    shared.close_work();
    assert!(shared.push_work(Lane::Upload, Box::new(|| ())).is_err());
}

/// Workers become idle in the order of their numbers, then `put` puts work in the queue: who comes for it, if anybody.
fn who_comes(workers: usize, awake_max: Duration, put: impl FnOnce(&Shared)) -> Option<usize> {
    /// Longer than anybody takes who comes at all.
    const NOBODY_COMES: Duration = Duration::from_secs(10);
    let (shared, (told, came)) = (Shared::new(), std::sync::mpsc::channel());
    thread::scope(|scope| {
        for worker in 0..workers {
            let (shared, told) = (&shared, told.clone());
            scope.spawn(move || {
                let work = shared.next_work(worker, awake_max);
                assert!(work.is_none() || told.send(worker).is_ok());
            });
            while shared.with(|state| state.idle.len()) <= worker {
                thread::yield_now();
            }
        }
        put(&shared);
        let worker = came.recv_timeout(NOBODY_COMES);
        shared.close_work();
        worker.ok()
    })
}

#[test]
fn the_last_to_become_idle_is_called_first() {
    let push = |shared: &Shared| drop(shared.push_work(Lane::Upload, Box::new(|| ())));
    assert_eq!(who_comes(3, Duration::ZERO, push), Some(2));
}

#[test]
fn the_last_of_all_to_become_idle_waits_awake() {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    // Nobody is woken: only one that is awake sees the hint.
    let hint = |shared: &Shared| {
        let called = shared.with(|state| {
            state.queues[Lane::Upload as usize].push_back(Box::new(|| ()));
            state.idle.pop()
        });
        called.into_iter().for_each(|worker| shared.0.calls[worker].came.store(true, Ordering::Relaxed));
    };
    assert_eq!(who_comes(WORKERS, DAY, hint), Some(WORKERS - 1));
}

#[test]
fn lanes_take_turns() {
    let shared = Shared::new();
    let (told, order) = std::sync::mpsc::channel();
    for (lane, name) in [
        (Lane::Job, "j1"),
        (Lane::Job, "j2"),
        (Lane::Question, "q1"),
        (Lane::Question, "q2"),
        (Lane::Question, "q3"),
        (Lane::Upload, "u1"),
    ] {
        let told = told.clone();
        assert!(shared.push_work(lane, Box::new(move || told.send(name).expect("heard"))).is_ok());
    }
    shared.close_work();
    while let Some(work) = shared.next_work(0, Duration::ZERO) {
        work();
    }
    assert_eq!(order.try_iter().collect::<Vec<_>>(), ["u1", "q1", "j1", "q2", "j2", "q3"]);
}
