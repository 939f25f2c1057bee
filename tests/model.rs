//! A model check of the lock, the registry, P2's numbers and the worker queue: shuttle runs the real code of `state.rs`,
//! `numbers.rs` and `workers.rs` under thousands of schedules. Built with `--features model` only.
#![allow(clippy::expect_used, reason = "a panic fails the test")]
#![cfg(feature = "model")]

use std::{
    collections::BTreeSet,
    sync::Arc,
    sync::atomic::{AtomicUsize, Ordering},
};

use shuttle::thread;
use tally::engine::{
    Key,
    part::{Part, PartId},
    state::{Lane, Shared},
    workers::Workers,
};

const SCHEDULES: usize = 2000;

fn part(id: PartId) -> Arc<Part> {
    Arc::new(Part {
        id,
        rows: id.get(),
        csv_bytes: 1,
        parquet_bytes: 1,
        row_groups: 1,
        footer_bytes: 1,
        columns_count: 1,
        schema: None,
    })
}

/// Uploads publish while sums take snapshots: ids are never given out twice, a snapshot never changes, and what was
/// inserted before a snapshot is in it.
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
                    shared.with(|state| state.parts.insert(part(id)));
                    let seen = shared.with(|state| state.parts.snapshot());
                    assert!(seen.contains_key(&id), "an acknowledged part is in every later sum");
                    id
                })
            })
            .collect();
        let reader = {
            let shared = shared.clone();
            thread::spawn(move || {
                let before = shared.with(|state| state.parts.snapshot());
                let ids: Vec<_> = before.keys().copied().collect();
                thread::yield_now();
                assert_eq!(before.keys().copied().collect::<Vec<_>>(), ids, "a snapshot changed");
                let after = shared.with(|state| state.parts.snapshot());
                assert!(ids.iter().all(|id| after.contains_key(id)), "a part was lost");
            })
        };
        let ids: BTreeSet<_> = writers.into_iter().map(|writer| writer.join().expect("no panic")).collect();
        reader.join().expect("no panic");
        assert_eq!(ids.len(), 3, "an id was given out twice");
        assert_eq!(shared.with(|state| state.parts.len()), 3);
    };
    shuttle::check_random(check, SCHEDULES);
}

/// An upload that fails gives its place back, and its number is not used again.
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
                    shared.with(|state| state.parts.insert(part(id)));
                    Some(id)
                })
            })
            .collect();
        let kept: BTreeSet<_> = uploads.into_iter().filter_map(|upload| upload.join().expect("no panic")).collect();
        let parts = shared.with(|state| state.parts.snapshot());
        assert_eq!(parts.keys().copied().collect::<BTreeSet<_>>(), kept);
    };
    shuttle::check_random(check, SCHEDULES);
}

/// Numbers that are set at once: every total that is told is the sum of some values that stood together, and the last
/// one is the sum of all. A set that reads the total in one turn of the lock and writes it in another would lose some.
#[test]
fn numbers() {
    let check = || {
        let shared = Shared::new();
        let setters: Vec<_> = (1..=3_i64)
            .map(|value| {
                let shared = shared.clone();
                thread::spawn(move || {
                    let key = |name: &str| Key::try_from(name.to_owned()).expect("short");
                    let own = shared.with(|state| state.numbers.set(key(&value.to_string()), value)).expect("fits");
                    let both = shared.with(|state| state.numbers.set(key("shared"), 10 * value)).expect("fits");
                    assert!((1..=6 + 30).contains(&own) && (11..=6 + 30).contains(&both), "{own}, {both}");
                })
            })
            .collect();
        setters.into_iter().for_each(|setter| setter.join().expect("no panic"));
        let end = Key::try_from("end".to_owned()).expect("short");
        let total = shared.with(|state| state.numbers.set(end, 0)).expect("fits");
        assert!([16, 26, 36].contains(&total), "{total} is no sum of 1, 2, 3 and one of 10, 20, 30");
    };
    shuttle::check_random(check, SCHEDULES / 4);
}

/// All work that was taken is done exactly once, also work that comes while the queue is being closed, and the workers
/// end: a worker that slept for ever would be a deadlock, which shuttle reports.
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
        // The queue is closed: what this thread finds there is what no worker has taken yet.
        while let Some(work) = shared.next_work() {
            work();
        }
        while done.load(Ordering::SeqCst) < taken {
            thread::yield_now(); // a worker still has it in hands; a lost slice would stay here for ever
        }
        assert_eq!(done.load(Ordering::SeqCst), taken);
    };
    shuttle::check_random(check, SCHEDULES / 4);
}
