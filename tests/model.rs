//! A model check of the lock, the registry and the worker queue: shuttle runs the real code of `state.rs` and
//! `workers.rs` under thousands of schedules. Built with `--features model` only.
#![allow(clippy::expect_used, reason = "a panic fails the test")]
#![cfg(feature = "model")]

use std::{
    collections::BTreeSet,
    sync::Arc,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use shuttle::thread;
use tally::{
    engine::{
        runtime::workers::Workers,
        state::{Lane, Shared},
    },
    model::part::{Part, PartFigures, PartId},
};

const SCHEDULES: usize = 2000;

fn columns() -> PartFigures {
    PartFigures { figures: Vec::new(), has_bytes: false, names: Vec::new() }
}

fn part(id: PartId) -> Arc<Part> {
    Arc::new(Part {
        id,
        rows: id.get(),
        csv_bytes: 1,
        parquet_bytes: 1,
        row_groups: 1,
        footer_bytes: 1,
        columns_count: 1,
        source_bytes: 0,
        schema: None,
        key_hash: None,
        packed: None,
        checks: None,
    })
}

/// Uploads insert parts while sums take snapshots: no id is used twice, a snapshot never changes, and it has every part
/// that was inserted before it was taken.
#[test]
fn registry() {
    let check = || {
        let shared = Shared::new();
        let writers: Vec<_> = (0..3)
            .map(|_| {
                let shared = shared.clone();
                thread::spawn(move || {
                    let id = shared.with(|state| state.parts.reserve()).expect("room");
                    thread::yield_now(); // file I/O happens here, without the lock
                    shared.with(|state| state.parts.insert(part(id), &columns()));
                    let seen = shared.with(|state| state.parts.snapshot());
                    assert!(seen.parts.contains_key(&id), "an acknowledged part is in every later sum");
                    id
                })
            })
            .collect();
        let reader = {
            let shared = shared.clone();
            thread::spawn(move || {
                let before = shared.with(|state| state.parts.snapshot());
                let ids: Vec<_> = before.parts.keys().copied().collect();
                thread::yield_now();
                assert_eq!(before.parts.keys().copied().collect::<Vec<_>>(), ids, "a snapshot changed");
                let after = shared.with(|state| state.parts.snapshot());
                assert!(ids.iter().all(|id| after.parts.contains_key(id)), "a part was lost");
            })
        };
        let ids: BTreeSet<_> = writers.into_iter().map(|writer| writer.join().expect("no panic")).collect();
        reader.join().expect("no panic");
        assert_eq!(ids.len(), 3, "an id was given out twice");
        assert_eq!(shared.with(|state| state.parts.len()), 3);
    };
    shuttle::check_random(check, SCHEDULES);
}

/// An upload that fails frees its slot in the registry, and its id is not used again.
#[test]
fn failed_uploads() {
    let check = || {
        let shared = Shared::new();
        let uploads: Vec<_> = (0..3)
            .map(|index| {
                let shared = shared.clone();
                thread::spawn(move || {
                    let id = shared.with(|state| state.parts.reserve()).expect("room");
                    if index == 0 {
                        shared.with(|state| state.parts.release());
                        return None;
                    }
                    shared.with(|state| state.parts.insert(part(id), &columns()));
                    Some(id)
                })
            })
            .collect();
        let kept: BTreeSet<_> = uploads.into_iter().filter_map(|upload| upload.join().expect("no panic")).collect();
        let parts = shared.with(|state| state.parts.snapshot());
        assert_eq!(parts.parts.keys().copied().collect::<BTreeSet<_>>(), kept);
    };
    shuttle::check_random(check, SCHEDULES);
}

/// All work that was accepted is done exactly once, even if it comes while the queue is being closed, and the workers end.
/// A worker that sleeps for ever would be a deadlock, which shuttle reports.
#[test]
fn worker_queue() {
    let check = || {
        let shared = Shared::new();
        let _workers = Workers::start(shared.clone()).expect("threads");
        let done = Arc::new(AtomicUsize::new(0));
        let producers: Vec<_> = (0..2)
            .map(|_| {
                let (shared, done) = (shared.clone(), Arc::clone(&done));
                thread::spawn(move || {
                    let mut taken = 0;
                    for lane in [Lane::Upload, Lane::Question, Lane::Upload] {
                        let done = Arc::clone(&done);
                        taken += usize::from(
                            shared
                                .push_work(
                                    lane,
                                    Box::new(move || {
                                        done.fetch_add(1, Ordering::SeqCst);
                                    }),
                                )
                                .is_ok(),
                        );
                    }
                    taken
                })
            })
            .collect();
        let closer = {
            let shared = shared.clone();
            thread::spawn(move || shared.close_work())
        };
        let taken: usize = producers.into_iter().map(|producer| producer.join().expect("no panic")).sum();
        closer.join().expect("no panic");
        // The queue is closed: this thread does what no worker has taken yet.
        while let Some(work) = shared.next_work(0, Duration::ZERO, || ()) {
            work();
        }
        while done.load(Ordering::SeqCst) < taken {
            thread::yield_now(); // a worker is still doing it; a lost task would loop here for ever
        }
        assert_eq!(done.load(Ordering::SeqCst), taken);
    };
    shuttle::check_random(check, SCHEDULES / 4);
}

/// Work that is put in the queue wakes a worker, whatever the workers are doing. The test waits for it before it puts the
/// next there, so nothing else wakes them.
#[test]
fn work_in_the_queue_wakes_a_worker() {
    let check = || {
        let shared = Shared::new();
        let workers = Workers::start(shared.clone()).expect("threads");
        for _ in 0..3 {
            let done = Arc::new(AtomicUsize::new(0));
            let set = Arc::clone(&done);
            let work = Box::new(move || set.store(1, Ordering::SeqCst));
            assert!(shared.push_work(Lane::Upload, work).is_ok());
            while done.load(Ordering::SeqCst) == 0 {
                thread::yield_now(); // for ever if no worker comes, which ends at the limit of steps of shuttle
            }
        }
        workers.close();
    };
    shuttle::check_random(check, SCHEDULES / 4);
}
