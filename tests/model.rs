//! A model check of the lock, the registry and the worker queue: shuttle runs the real code of `state.rs` and
//! `workers.rs` under thousands of schedules. Built with `--features model` only.
#![allow(clippy::expect_used, reason = "a panic fails the test")]
#![cfg(feature = "model")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use shuttle::{sync::Mutex, thread};
use tally::{
    engine::{
        runtime::workers::Workers,
        state::{
            Lane, Shared,
            registry::{Located, Snapshot},
            removed_parts::Removal,
            upload_keys::KeyClaim,
        },
    },
    model::{
        idempotency_key::IdempotencyKey,
        packed::{Segment, SegmentId, SegmentParquet},
        part::{Checks, Part, PartFigures, PartId},
    },
};

/// Of each check; `make torture` asks for more.
fn schedules() -> usize {
    std::env::var("TALLY_SCHEDULES").ok().and_then(|count| count.parse().ok()).unwrap_or(2000)
}

/// Runs a check under random schedules, and says under how many, which `make torture` counts.
fn run(name: &str, check: impl Fn() + Send + Sync + 'static, schedules: usize) {
    shuttle::check_random(check, schedules);
    println!("{name}: {schedules} schedules");
}

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
        checks: Some(Checks { csv: 0, parquet: 0, chunks_in_sums: false }),
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
    run("registry", check, schedules());
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
    run("failed_uploads", check, schedules());
}

/// Uploads with the same key, in the steps of `ingest/keyed.rs`: one of them is added, and one that fails leaves the key to
/// another.
#[test]
fn idempotency_keys() {
    let check = || {
        let shared = Shared::new();
        let uploads: Vec<_> = (0..3)
            .map(|index| {
                let shared = shared.clone();
                let key = IdempotencyKey::parse(b"k").expect("a key");
                thread::spawn(move || {
                    while !shared.with(|state| matches!(state.claimed_keys.claim(&key), KeyClaim::Claimed)) {
                        thread::yield_now(); // the engine waits for the release
                    }
                    let is_new = !shared.with(|state| state.parts.keys().may_contain(key.hash()));
                    if is_new && index > 0 {
                        let id = shared.with(|state| state.parts.reserve()).expect("room");
                        thread::yield_now(); // file I/O happens here
                        let with_key = Part { key_hash: Some(key.hash()), ..Part::clone(&part(id)) };
                        shared.with(|state| state.parts.insert(Arc::new(with_key), &columns()));
                    }
                    assert!(shared.with(|state| state.claimed_keys.release(&key)).is_some(), "another one released it");
                })
            })
            .collect();
        uploads.into_iter().for_each(|upload| upload.join().expect("no panic"));
        assert_eq!(shared.with(|state| state.parts.len()), 1, "the uploads with one key are one part");
    };
    run("idempotency_keys", check, schedules());
}

/// A segment of these parts, as packing writes it.
fn segment(parts: &[PartId], version: u32) -> Arc<Segment> {
    let (first, last) = (parts[0], parts[parts.len() - 1]);
    let file = SegmentParquet {
        parts: parts.len() as u64,
        rows: parts.iter().map(|id| id.get()).sum(),
        parts_parquet_bytes: 1,
        bytes: 1,
        row_groups: 1,
        footer_bytes: 1,
        check: 0,
        columns_count: 1,
        text_bytes: 1,
        schema_hash: 0,
        schema: None,
    };
    Arc::new(Segment {
        id: SegmentId { first, last, version },
        parts: parts.len() as u64,
        csv_bytes: 1,
        csv_check: 0,
        index_bytes: 1,
        index_check: 0,
        index_blocks: 1,
        fences_check: 0,
        keys: (0, 0),
        files: Box::new([file]),
    })
}

/// The parts that each segment was written with.
type Members = Arc<Mutex<BTreeMap<SegmentId, Vec<PartId>>>>;

/// The parts that a question reads.
fn parts_of(snapshot: &Snapshot, members: &Members) -> Vec<PartId> {
    let members = members.lock().expect("no panic");
    let packed = snapshot.segments.values().flat_map(|segment| members[&segment.id].clone());
    let packed = packed.filter(|id| !snapshot.removed.contains(id));
    snapshot.parts.keys().copied().chain(packed).collect()
}

/// Packs all that there is, three times.
fn pack(shared: &Shared, members: &Members, part_changes: &Mutex<()>) {
    for version in 1..=3 {
        let table = shared.with(|state| state.parts.snapshot());
        let parts: Vec<_> = table.parts.values().cloned().collect();
        let segments: Vec<_> = table.segments.values().cloned().collect();
        let mut ids: Vec<_> = parts.iter().map(|part| part.id).collect();
        ids.extend(segments.iter().flat_map(|of| members.lock().expect("no panic")[&of.id].clone()));
        ids.sort_unstable();
        if ids.is_empty() {
            continue;
        }
        let new = segment(&ids, version);
        members.lock().expect("no panic").insert(new.id, ids);
        thread::yield_now(); // it is written here
        let _permit = part_changes.lock().expect("no panic");
        if shared.with(|state| state.parts.has_all(&parts, &segments)) {
            thread::yield_now(); // its receipt is renamed here
            shared.with(|state| state.parts.replace_by_segment(new, &parts, &segments, &[]));
        }
    }
}

/// Packing replaces parts and segments while parts come, are removed, and are read: a question reads each part once, and none that
/// was removed before. Removal and the commit of a segment exclude each other, as in the engine (`part_changes`).
#[test]
fn packing() {
    let check = || {
        let shared = Shared::new();
        let members = Members::default();
        let part_changes = Arc::new(Mutex::new(()));
        let upload = |shared: &Shared| {
            let id = shared.with(|state| state.parts.reserve()).expect("room");
            shared.with(|state| state.parts.insert(part(id), &columns()));
            id
        };
        let first = upload(&shared);
        let uploads = {
            let shared = shared.clone();
            thread::spawn(move || (0..3).map(|_| upload(&shared)).collect::<Vec<_>>())
        };
        let packer = {
            let (shared, members, part_changes) = (shared.clone(), Arc::clone(&members), Arc::clone(&part_changes));
            thread::spawn(move || pack(&shared, &members, &part_changes))
        };
        let remover = {
            let (shared, part_changes) = (shared.clone(), Arc::clone(&part_changes));
            thread::spawn(move || {
                let _permit = part_changes.lock().expect("no panic");
                let located = shared.with(|state| state.parts.locate(first)).expect("it is in the table");
                thread::yield_now();
                let removal = Removal::Kept { since_s: 0 };
                shared.with(|state| match located {
                    Located::Part(_) => state.parts.remove(first, None, removal),
                    Located::Segment(_) => state.parts.remove_packed(part(first), None, removal),
                });
                let table = shared.with(|state| state.parts.snapshot());
                assert!(!table.parts.contains_key(&first), "a part that was removed is read");
            })
        };
        let reader = {
            let (shared, members) = (shared.clone(), Arc::clone(&members));
            thread::spawn(move || {
                for _ in 0..3 {
                    let table = shared.with(|state| state.parts.snapshot());
                    let parts = parts_of(&table, &members);
                    assert_eq!(parts.iter().collect::<BTreeSet<_>>().len(), parts.len(), "a part is read twice");
                    assert_eq!(parts.len(), table.len());
                    thread::yield_now();
                }
            })
        };
        let uploaded: BTreeSet<_> = uploads.join().expect("no panic").into_iter().collect();
        for thread in [packer, remover, reader] {
            thread.join().expect("no panic");
        }
        let table = shared.with(|state| state.parts.snapshot());
        let parts: BTreeSet<_> = parts_of(&table, &members).into_iter().collect();
        assert_eq!(parts, uploaded, "all that was uploaded, without the part that was removed");
        assert_eq!(table.len(), uploaded.len());
    };
    run("packing", check, schedules());
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
    run("worker_queue", check, schedules() / 4);
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
    run("work_in_the_queue_wakes_a_worker", check, schedules() / 4);
}
