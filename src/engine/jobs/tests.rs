//! A test that needs the inside of the queue of jobs: a job that has left the queue and has not begun to run.
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
struct Hold {
    released: Arc<AtomicBool>,
    /// How many workers are busy.
    held: Arc<AtomicUsize>,
}

impl Hold {
    /// Keeps one more worker busy, as soon as one is free.
    async fn one(&self, engine: &Engine) {
        let (released, held) = (Arc::clone(&self.released), Arc::clone(&self.held));
        let work = move || {
            held.fetch_add(1, Ordering::SeqCst);
            while !released.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
        };
        engine.context.workers.enqueue(Lane::Upload, work).await.expect("the queue has room");
    }

    fn count(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.released.store(true, Ordering::SeqCst);
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
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
async fn a_job_whose_turn_has_come_can_be_cancelled_before_it_runs() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let (engine, _) = Engine::open(folder.path(), Durability::None, Limits::default()).await.expect("a data folder");
    let room = Arc::clone(&engine.context.group_memory).acquire_owned().await.expect("nobody else has it");
    let first = task(&engine).await;
    until("the first runs", || matches!(state_of(&engine, first), JobState::Running { .. })).await;
    let second = task(&engine).await;

    let (others, last) = (Hold::default(), Hold::default());
    last.one(&engine).await;
    until("a worker is held", || last.count() == 1).await;
    for _ in 1..WORKERS {
        others.one(&engine).await;
    }
    until("all workers are", || others.count() == WORKERS - 1).await;
    let waiting = || engine.context.state.waiting_work()[Lane::Job as usize].1;
    assert!(engine.cancel_job(first).await.expect("nothing to write"), "it waits for its turn to compute");
    until("its end is about to be written", || waiting() == 1).await;
    // The one worker that goes on writes that, and is held again.
    others.one(&engine).await;
    drop(last);
    until("all workers are held", || others.count() == WORKERS).await;
    until("what the second is to do is about to be read", || waiting() == 1).await;

    assert_eq!(state_of(&engine, first), JobState::Failed { reason: "cancelled".into() });
    let is_queued = engine.context.state.with(|state| state.jobs.is_waiting(second));
    assert_eq!((is_queued, state_of(&engine, second)), (false, JobState::Queued));
    assert!(engine.cancel_job(second).await.expect("nothing to write"), "it is about to run");
    drop(others);
    until("it ends", || !state_of(&engine, second).is_undone()).await;
    assert_eq!(state_of(&engine, second), JobState::Failed { reason: "cancelled".into() });

    drop(room);
    let next = task(&engine).await;
    until("the queue goes on", || matches!(state_of(&engine, next), JobState::Done { .. })).await;
    engine.close();
}
