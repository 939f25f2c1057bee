//! Unit tests of the lock and the work queue.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use super::{DISCARDS_MAX, Lane, Shared, lock_check::assert_unlocked, removed_parts::Removal};
use crate::{
    error::Error,
    limits::{PACKED_CSV_BYTES_MAX, URGENT_RUN_PARTS, WORK_QUEUE_MAX, WORKERS},
    model::part::{Checks, Part, PartFigures, PartId},
};

#[test]
fn file_operations_under_the_lock_stop_a_test_build() {
    let shared = Shared::new();
    let inside = catch_unwind(AssertUnwindSafe(|| shared.with(|_| assert_unlocked())));
    assert!(inside.is_err(), "a file operation under the lock was not detected");
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
fn a_full_queue_refuses_tasks() {
    let shared = Shared::new();
    for _ in 0..WORK_QUEUE_MAX + DISCARDS_MAX {
        assert!(shared.push_work(Lane::Upload, Box::new(|| ())).is_ok());
    }
    assert!(shared.push_work(Lane::Upload, Box::new(|| ())).is_err());
    assert!(shared.next_work(0, Duration::ZERO, || ()).is_some());
    assert!(shared.push_work(Lane::Upload, Box::new(|| ())).is_ok());
    shared.close_work();
    assert!(shared.push_work(Lane::Upload, Box::new(|| ())).is_err());
}

/// Lets workers become idle in the order of their numbers, then calls `push`, which queues a task. Returns the worker that
/// takes the task, if one does.
fn worker_that_takes(workers: usize, poll_max: Duration, push: impl FnOnce(&Shared)) -> Option<usize> {
    const TIMEOUT: Duration = Duration::from_secs(10);
    let (shared, (tx, rx)) = (Shared::new(), std::sync::mpsc::channel());
    thread::scope(|scope| {
        for worker in 0..workers {
            let (shared, tx) = (&shared, tx.clone());
            scope.spawn(move || {
                let work = shared.next_work(worker, poll_max, || ());
                assert!(work.is_none() || tx.send(worker).is_ok());
            });
            while shared.with(|state| state.idle.len()) <= worker {
                thread::yield_now();
            }
        }
        push(&shared);
        let worker = rx.recv_timeout(TIMEOUT);
        shared.close_work();
        worker.ok()
    })
}

#[test]
fn the_worker_that_became_idle_last_is_woken() {
    let push = |shared: &Shared| drop(shared.push_work(Lane::Upload, Box::new(|| ())));
    assert_eq!(worker_that_takes(3, Duration::ZERO, push), Some(2));
}

#[test]
fn the_last_of_all_workers_to_become_idle_polls() {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    // Sets the flag without notifying the condition variable, so only a worker that polls takes the task.
    let push_silently = |shared: &Shared| {
        let chosen = shared.with(|state| {
            state.queues[Lane::Upload as usize].push_back(Box::new(|| ()));
            state.idle.pop()
        });
        chosen.into_iter().for_each(|worker| shared.0.signals[worker].is_set.store(true, Ordering::Relaxed));
    };
    assert_eq!(worker_that_takes(WORKERS, DAY, push_silently), Some(WORKERS - 1));
}

#[test]
fn lanes_take_turns() {
    let shared = Shared::new();
    let (tx, rx) = std::sync::mpsc::channel();
    for (lane, name) in [
        (Lane::Job, "j1"),
        (Lane::Job, "j2"),
        (Lane::Question, "q1"),
        (Lane::Question, "q2"),
        (Lane::Question, "q3"),
        (Lane::Upload, "u1"),
    ] {
        let tx = tx.clone();
        assert!(shared.push_work(lane, Box::new(move || tx.send(name).expect("received"))).is_ok());
    }
    shared.close_work();
    while let Some(work) = shared.next_work(0, Duration::ZERO, || ()) {
        work();
    }
    assert_eq!(rx.try_iter().collect::<Vec<_>>(), ["u1", "q1", "j1", "q2", "j2", "q3"]);
}

#[test]
fn removed_parts_are_searched_step_by_step() {
    let shared = Shared::new();
    let id = |number| PartId::new(number).expect("above 0");
    let columns = PartFigures { figures: Vec::new(), has_bytes: true, names: Vec::new() };
    for number in 1..=1000_u64 {
        let part = Part {
            id: id(number),
            rows: number,
            csv_bytes: 0,
            parquet_bytes: 0,
            row_groups: 0,
            footer_bytes: 0,
            columns_count: 0,
            source_bytes: 0,
            schema: None,
            checks: None,
            key_hash: None,
            packed: None,
        };
        let since_s = 10_000 - u32::try_from(number).expect("small");
        shared.with(|state| state.parts.restore_removed(Arc::new(part), &columns, since_s));
    }
    let with_rows = |after, rows| shared.next_removed(after, |part, _removal| part.rows == rows);
    for number in [1, 256, 257, 999, 1000] {
        assert_eq!(with_rows(None, number), Some(id(number)));
        assert_eq!(with_rows(Some(id(number)), number), None);
    }
    assert_eq!(with_rows(None, 1001), None);
    // The later ones were removed earlier.
    assert_eq!(shared.next_to_delete(None, 9_000 + 50, 50), Some(id(1000)));
    assert_eq!(shared.next_to_delete(None, 9_400 + 50, 50), Some(id(600)));
    assert_eq!(shared.next_to_delete(Some(id(600)), 9_400 + 50, 50), Some(id(601)));
    shared.with(|state| state.parts.put_back(id(1000), &columns));
    assert_eq!(shared.next_to_delete(None, 9_000 + 50, 50), None);
    let mut listed = Vec::with_capacity(300);
    shared.with(|state| state.parts.removed().list(Some(id(5)), &mut listed));
    assert_eq!((listed.len(), listed[0].part, listed[0].since_s), (listed.capacity(), id(6), 9_994));
}

#[allow(clippy::expect_used, reason = "a panic fails the test")]
fn part_of(number: u64, csv_bytes: u64) -> Arc<Part> {
    Arc::new(Part {
        id: PartId::new(number).expect("above 0"),
        rows: 1,
        csv_bytes,
        parquet_bytes: 0,
        row_groups: 0,
        footer_bytes: 0,
        columns_count: 0,
        source_bytes: 0,
        schema: None,
        checks: Some(Checks { csv: 0, parquet: 0, chunks_in_sums: false }),
        key_hash: None,
        packed: None,
    })
}

#[test]
fn uploads_wait_only_for_parts_that_can_be_packed() {
    let columns = PartFigures { figures: Vec::new(), has_bytes: true, names: Vec::new() };
    let with = |csv_bytes: u64, pack_above: usize| {
        let shared = Shared::new();
        shared.with(|state| {
            state.parts.set_parts_max(100);
            state.parts.set_pack_above(pack_above);
            (1..=80).for_each(|number| state.parts.restore(part_of(number, csv_bytes), &columns));
        });
        shared
    };
    let is_crowded = |shared: &Shared| shared.with(|state| state.parts.is_crowded());
    assert!(is_crowded(&with(9, 80 - URGENT_RUN_PARTS)));
    assert!(!is_crowded(&with(9, 81 - URGENT_RUN_PARTS)), "too few parts for a segment");
    assert!(!is_crowded(&with(PACKED_CSV_BYTES_MAX + 1, 0)), "they are too large");
    let stuck = with(9, 0);
    stuck.with(|state| state.parts.set_packing_stuck(true));
    assert!(!is_crowded(&stuck), "nothing could be packed");
    stuck.with(|state| state.parts.set_packing_stuck(false));
    stuck.with(|state| state.parts.remove(PartId::FIRST, Some(&columns), Removal::Purged));
    stuck.with(|state| state.parts.end_purge(PartId::FIRST));
    assert!(!is_crowded(&stuck), "79 parts");
}

#[test]
fn purged_parts_of_segments_count_less_than_those_that_can_be_restored() {
    let shared = Shared::new();
    let columns = PartFigures { figures: Vec::new(), has_bytes: true, names: Vec::new() };
    shared.with(|state| {
        let parts = &mut state.parts;
        parts.set_parts_max(10);
        (parts.packed, parts.without_schema) = (100, 100);
        (1..=30).for_each(|number| assert!(parts.remove_packed(part_of(number, 9), Some(&columns), Removal::Purged)));
        assert_eq!((parts.taken(), parts.removed().len(), parts.is_full()), (8, 0, false));
        assert!(
            (31..=32).all(|number| {
                parts.remove_packed(part_of(number, 9), Some(&columns), Removal::Kept { since_s: 1 })
            })
        );
        assert_eq!((parts.taken(), parts.is_full()), (10, true));
        assert_eq!(parts.removal(PartId::FIRST), Some(Removal::Purged));
        assert!(!parts.remove_packed(part_of(1, 9), Some(&columns), Removal::Purged), "it is not there any more");
        let full = parts.too_many_parts();
        assert!(matches!(full, Error::TooManyParts { removed: 2, purged: 30, segments: 0, .. }), "{full}");
        assert!(full.to_string().contains("2 of them removed") && full.to_string().contains("30 purged"), "{full}");
    });
}
