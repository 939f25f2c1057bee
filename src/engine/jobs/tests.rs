//! A test that accesses the queue of jobs: a job is cancelled after it has left the queue and before it runs.
#![allow(clippy::expect_used, reason = "a panic fails the test")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::stream;

use crate::{
    engine::{
        Engine,
        group_by::spec::GroupBy,
        state::{
            Lane,
            jobs::{JobId, JobState},
            transfers::Origin,
        },
    },
    limits::{Limits, WORKERS},
    model::durability::Durability,
};

/// Keeps workers busy until it is dropped.
#[derive(Default)]
struct BusyWorkers {
    released: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
}

impl BusyWorkers {
    /// Keeps one more worker busy, as soon as one is free.
    async fn add(&self, engine: &Engine) {
        let (released, count) = (Arc::clone(&self.released), Arc::clone(&self.count));
        let work = move || {
            count.fetch_add(1, Ordering::SeqCst);
            while !released.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
        };
        engine.context.workers.enqueue(Lane::Upload, work).await.expect("the queue has room");
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

impl Drop for BusyWorkers {
    fn drop(&mut self) {
        self.released.store(true, Ordering::SeqCst);
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn task(engine: &Engine) -> JobId {
    let group = GroupBy::new(vec!["a".to_owned()], vec!["b".to_owned()]).expect("different columns");
    let body = stream::iter([Ok(Bytes::from_static(b"a,b\nx,1\n"))]);
    engine.submit_task(Origin::SERVER, body, group, vec!["a".to_owned(), "total".to_owned()]).await.expect("accepted")
}

fn state_of(engine: &Engine, id: JobId) -> JobState {
    engine.job(id).expect("it is known").state
}

#[tokio::test]
async fn a_job_that_has_left_the_queue_can_be_cancelled_before_it_runs() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let (engine, _) = Engine::open(folder.path(), Durability::None, Limits::default()).await.expect("a data folder");
    let group_permit = Arc::clone(&engine.context.group_memory).acquire_owned().await.expect("it is free");
    let first = task(&engine).await;
    until("the first runs", || matches!(state_of(&engine, first), JobState::Running { .. })).await;
    let second = task(&engine).await;

    let (others, last) = (BusyWorkers::default(), BusyWorkers::default());
    last.add(&engine).await;
    until("a worker is busy", || last.count() == 1).await;
    for _ in 1..WORKERS {
        others.add(&engine).await;
    }
    until("all workers are busy", || others.count() == WORKERS - 1).await;
    let waiting = || engine.context.state.waiting_work()[Lane::Job as usize].1;
    assert!(engine.cancel_job(first).await.expect("nothing to write"), "it waits for its permit");
    until("writing its end is queued", || waiting() == 1).await;
    // The released worker writes it, and is then kept busy again.
    others.add(&engine).await;
    drop(last);
    until("all workers are busy again", || others.count() == WORKERS).await;
    until("reading the second job's record is queued", || waiting() == 1).await;

    assert_eq!(state_of(&engine, first), JobState::Failed { reason: "cancelled".into() });
    let is_queued = engine.context.state.with(|state| state.jobs.is_waiting(second));
    assert_eq!((is_queued, state_of(&engine, second)), (false, JobState::Queued));
    assert!(engine.cancel_job(second).await.expect("nothing to write"), "it is about to run");
    drop(others);
    until("it ends", || !state_of(&engine, second).is_undone()).await;
    assert_eq!(state_of(&engine, second), JobState::Failed { reason: "cancelled".into() });

    drop(group_permit);
    let next = task(&engine).await;
    until("the queue goes on", || matches!(state_of(&engine, next), JobState::Done { .. })).await;
    engine.close();
}
