//! Receives an upload's stream into a draft, for `upload.rs` and the jobs. A worker writes each block and, during an attempt
//! on integers, converts it; meanwhile the next block is read. If uploads are synced, a large draft is synced step by step
//! while it arrives.
//!
//! Memory: one block, and the HTTP/2 frame with the rest of its bytes, for a stream of any length. An attempt on integers
//! reserves memory for two longer blocks from the pool for large conversions.

use std::{io::Write, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, future::try_join};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    blocks::{Block, Incoming, TargetSize},
    early_sync::{EarlySyncs, PartialFiles, run_sync},
    integer_attempt::{ATTEMPT_IDLE_MAX, AttemptResult, IntegerAttempt},
};
use crate::{
    engine::{
        runtime::context::Context,
        runtime::transfers::Paced,
        state::Lane,
        storage::{Store, draft::Draft},
    },
    error::Error,
    limits::{CsvLimits, READ_AHEAD_BLOCK_BYTES, READ_AHEAD_BLOCK_BYTES_MIN, RECEIVE_BLOCK_BYTES, SMALL_UPLOAD_BYTES},
};

/// The name of the draft in errors.
pub(super) const DRAFT_NAME: &str = "the draft of an upload";

/// Receives a whole stream into a draft, and then runs `finish` on a worker.
pub(crate) async fn receive<S, T, F>(
    context: &Arc<Context>,
    cancel: &CancellationToken,
    body: Paced<S>,
    finish: F,
) -> Result<T, Error>
where
    S: Stream<Item = Result<Bytes, Error>> + Unpin,
    T: Send + 'static,
    F: FnOnce(Draft) -> Result<T, Error> + Send + 'static,
{
    let mut incoming = Incoming::new(context, cancel, body);
    let first = incoming.first_block().await?;
    let (mut draft, _not_tried) = receive_blocks(incoming, first, IntegerAttempt::Off).await?;
    if context.store.is_synced() && draft.bytes() > SMALL_UPLOAD_BYTES {
        draft = run_sync(context, move || draft.sync().map(|()| draft).map_err(Error::io(DRAFT_NAME))).await?;
    }
    run_unless_cancelled(context, cancel, move || finish(draft)).await
}

/// Writes `block` and the rest of the stream to a draft. Also returns the result of the attempt on integers.
pub(super) async fn receive_blocks<S>(
    mut incoming: Incoming<'_, S>,
    mut block: Block,
    mut attempt: IntegerAttempt,
) -> Result<(Draft, AttemptResult), Error>
where
    S: Stream<Item = Result<Bytes, Error>> + Unpin,
{
    let Incoming { context, cancel, .. } = incoming;
    let mut draft: Option<Draft> = None;
    let mut reservation: Option<Arc<OwnedSemaphorePermit>> = None; // for the block, if it was read ahead
    let mut spare = Vec::new(); // the buffer of an earlier block, used again because it may be in the CPU's cache
    let mut syncs = EarlySyncs::default();
    loop {
        if let Err(error) = syncs.check() {
            context.workers.discard((draft, attempt));
            return Err(error);
        }
        // During an attempt, the next block is read while the worker converts this one.
        let ahead = if block.at_end { None } else { attempt.blocks_reservation() };
        let sync_permit = if block.at_end { None } else { syncs.permit_if_due(context, incoming.bytes) };
        let (store, limits) = (Arc::clone(&context.store), context.limits.csv);
        let task = WriteTask { draft, attempt, block, reservation, sync_permit };
        let write = run_unless_cancelled(context, cancel, move || task.run(&store, limits));
        let (written, next) = if ahead.is_some() {
            let (written, next) = while_reading_ahead(write, &mut incoming, spare).await?;
            (written, Some(next))
        } else {
            drop(spare);
            (write.await?, None)
        };
        syncs.start(context, written.to_sync);
        if let Some(result) = written.result {
            return match syncs.end().await {
                Ok(()) => Ok((written.draft, result)),
                Err(error) => {
                    context.workers.discard((written.draft, result));
                    Err(error)
                }
            };
        }
        (draft, attempt, reservation, spare) = (Some(written.draft), written.attempt, ahead, written.buffer);
        let next = match next {
            Some(next) => next,
            None => incoming.next_block(&TargetSize::new(RECEIVE_BLOCK_BYTES), std::mem::take(&mut spare)).await,
        };
        block = match next {
            Ok(next) => next,
            Err(error) => {
                context.workers.discard((draft, attempt));
                return Err(error);
            }
        };
    }
}

/// Reads the next block while a worker writes the current one.
async fn while_reading_ahead<S>(
    write: impl Future<Output = Result<Written, Error>>,
    incoming: &mut Incoming<'_, S>,
    spare: Vec<u8>,
) -> Result<(Written, Result<Block, Error>), Error>
where
    S: Stream<Item = Result<Bytes, Error>> + Unpin,
{
    let context = incoming.context;
    let (target, arrived) = (TargetSize::new(READ_AHEAD_BLOCK_BYTES), Notify::new());
    let next = async {
        let next = incoming.next_block(&target, spare).await;
        arrived.notify_one();
        // `Ok`, so that an error here does not drop `write`: the caller drops what was written on a worker.
        Ok::<_, Error>(next)
    };
    let write = async {
        let mut written = write.await?;
        target.lower(READ_AHEAD_BLOCK_BYTES_MIN); // the worker has nothing to do until the block arrives
        // A slow client keeps the memory of its attempt from other uploads no longer than this.
        let may_wait = !context.large_conversions.is_waited_for();
        let in_time = may_wait && timeout(ATTEMPT_IDLE_MAX, arrived.notified()).await.is_ok();
        if !in_time {
            target.lower(0);
            written.end_attempt(context);
        }
        Ok(written)
    };
    // If the block cannot be written, the next one is not waited for.
    try_join(write, next).await
}

/// The task of a worker: to write a block to the draft, and to convert it.
struct WriteTask {
    draft: Option<Draft>,
    attempt: IntegerAttempt,
    block: Block,
    reservation: Option<Arc<OwnedSemaphorePermit>>,
    /// If set, the files are synced after this task.
    sync_permit: Option<OwnedSemaphorePermit>,
}

impl WriteTask {
    fn run(self, store: &Store, limits: CsvLimits) -> Result<Written, Error> {
        let Self { draft, attempt, block: Block { bytes, at_end }, reservation, sync_permit } = self;
        let (_reservation, mut bytes) = (reservation, bytes); // dropped in reverse order: the block before its reservation
        let mut draft = draft.map_or_else(|| store.draft_with_block_checksums(), Ok)?;
        draft.write_all(&bytes).map_err(Error::io(DRAFT_NAME))?;
        if !at_end {
            draft.release_buffer().map_err(Error::io(DRAFT_NAME))?; // a client that stops sending keeps no memory from others
        }
        let attempt = attempt.push(store, limits, &bytes)?;
        if at_end {
            let result = Some(attempt.finish()?);
            return Ok(Written { draft, attempt: IntegerAttempt::Off, result, buffer: Vec::new(), to_sync: None });
        }
        let to_sync = sync_permit.map(|permit| ([draft.sync_handle(DRAFT_NAME), attempt.partial_file()], permit));
        bytes.clear();
        let buffer = if attempt.is_active() || bytes.capacity() <= RECEIVE_BLOCK_BYTES { bytes } else { Vec::new() };
        Ok(Written { draft, attempt, result: None, buffer, to_sync })
    }
}

/// What a [`WriteTask`] returns.
struct Written {
    draft: Draft,
    attempt: IntegerAttempt,
    /// The result of the attempt, if this was the last block.
    result: Option<AttemptResult>,
    /// The block's buffer, emptied.
    buffer: Vec<u8>,
    /// The files to sync now, and the permit for it.
    to_sync: Option<(PartialFiles, OwnedSemaphorePermit)>,
}

impl Written {
    /// Ends the attempt, so that others can use its memory.
    fn end_attempt(&mut self, context: &Arc<Context>) {
        if self.attempt.is_active() {
            context.workers.discard(std::mem::replace(&mut self.attempt, IntegerAttempt::Off));
            self.buffer = Vec::new();
        }
    }
}

/// Runs `work` on a worker, unless the call was cancelled.
pub(super) async fn run_unless_cancelled<T: Send + 'static>(
    context: &Arc<Context>,
    cancel: &CancellationToken,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let workers = &context.workers;
    if cancel.is_cancelled() {
        workers.discard(work); // it may own a draft
        return Err(Error::Cancelled);
    }
    workers.run(Lane::Upload, work).await?
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    use crate::engine::Engine;
    use futures_util::StreamExt as _;
    use std::{
        sync::{
            Barrier,
            atomic::{AtomicUsize, Ordering},
        },
        time::Duration,
    };

    use futures_util::stream;
    use tokio::task::JoinSet;

    use crate::{
        engine::{state::transfers::Pace, storage::draft::SyncHandle},
        limits::{DRAFT_BUFFER_BYTES, KIB, Limits, SYNC_STEP_BYTES, SYNCS_MAX},
        model::durability::Durability,
    };

    use super::*;

    async fn open(durability: Durability) -> Option<(tempfile::TempDir, Engine)> {
        let folder = tempfile::TempDir::new().ok()?;
        let (engine, _) = Engine::open(folder.path(), durability, Limits::default()).await.ok()?;
        Some((folder, engine))
    }

    fn paced<S>(body: S) -> (Paced<S>, Arc<Pace>) {
        let pace = Arc::new(Pace::new(CancellationToken::new()));
        (Paced::new(body, Arc::clone(&pace), Duration::from_secs(60)), pace)
    }

    #[tokio::test]
    async fn a_client_is_not_waited_for_once_its_block_is_long_enough() {
        let (_folder, engine) = open(Durability::None).await.expect("a data folder");
        let (body, pace) = paced(stream::iter([Ok(Bytes::from_static(b"1\n"))]).chain(stream::pending()));
        let cancel = CancellationToken::new();
        let mut incoming = Incoming::new(&engine.context, &cancel, body);
        let target = TargetSize::new(RECEIVE_BLOCK_BYTES);
        {
            let mut block = std::pin::pin!(incoming.next_block(&target, Vec::new()));
            assert!(futures_util::FutureExt::now_or_never(block.as_mut()).is_none() && pace.is_waiting());
            target.lower(1);
            assert!(block.await.is_ok());
        }
        assert!(!pace.is_waiting(), "the block is complete");
        engine.close();
    }

    #[tokio::test]
    async fn blocks_have_the_target_size_however_the_stream_is_cut() {
        let (_folder, engine) = open(Durability::None).await.expect("a data folder");
        let all: Vec<u8> = (0..1_000_003_u32).map(|number| number.to_le_bytes()[0]).collect();
        for piece_bytes in [1, 1000, 16 * KIB, 300 * KIB, all.len()] {
            let pieces: Vec<_> = all.chunks(piece_bytes).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            let cancel = CancellationToken::new();
            let mut incoming = Incoming::new(&engine.context, &cancel, paced(stream::iter(pieces)).0);
            let (mut seen, mut spare) = (Vec::new(), Vec::new());
            let target = TargetSize::new(RECEIVE_BLOCK_BYTES);
            loop {
                let memory = (spare.capacity() > 0).then_some(spare.as_ptr());
                let Block { bytes, at_end } = incoming.next_block(&target, spare).await.expect("a block");
                assert!(bytes.capacity() <= RECEIVE_BLOCK_BYTES, "no more memory than the target size");
                assert!(memory.is_none_or(|memory| bytes.as_ptr() == memory), "the same memory again");
                seen.extend_from_slice(&bytes);
                assert_eq!(incoming.bytes, seen.len() as u64);
                if at_end {
                    break;
                }
                assert_eq!(bytes.len(), RECEIVE_BLOCK_BYTES);
                spare = bytes;
                spare.clear();
            }
            assert!(seen == all, "pieces of {piece_bytes} bytes");
        }
        engine.close();
    }

    #[tokio::test]
    async fn a_long_file_is_synced_step_by_step() {
        let (folder, engine) = open(Durability::Fsync).await.expect("a data folder");
        let mut draft = engine.context.store.draft().expect("a draft");
        draft.write_all(&vec![b'7'; 2 * DRAFT_BUFFER_BYTES]).expect("written");
        let mut syncs = EarlySyncs::default();
        assert!(syncs.permit_if_due(&engine.context, SYNC_STEP_BYTES - 1).is_none());
        let permits: Vec<_> = (0..SYNCS_MAX).map(|_| engine.context.syncs.try_acquire()).collect();
        assert!(syncs.permit_if_due(&engine.context, SYNC_STEP_BYTES).is_none(), "others have all permits");
        drop(permits);
        let permit = syncs.permit_if_due(&engine.context, SYNC_STEP_BYTES + 5).expect("it is due");
        syncs.start(&engine.context, Some(([draft.sync_handle("a file"), None], permit)));
        assert!(syncs.permit_if_due(&engine.context, 3 * SYNC_STEP_BYTES).is_none(), "one is running");
        while engine.context.syncs.available_permits() < SYNCS_MAX || !syncs.running.is_empty() {
            syncs.check().expect("synced");
            tokio::task::yield_now().await;
        }
        assert!(syncs.permit_if_due(&engine.context, 2 * SYNC_STEP_BYTES + 4).is_none());
        assert!(syncs.permit_if_due(&engine.context, 2 * SYNC_STEP_BYTES + 5).is_some());
        syncs.end().await.expect("nothing runs");

        // A failed sync is reported, by the next check or at the end.
        let start = || {
            let mut syncs = EarlySyncs::default();
            let permit = syncs.permit_if_due(&engine.context, SYNC_STEP_BYTES)?;
            syncs.start(&engine.context, Some(([None, Some(SyncHandle::unsyncable(folder.path()))], permit)));
            Some(syncs)
        };
        assert!(matches!(start().expect("a permit").end().await, Err(Error::Io { .. })));
        let mut syncs = start().expect("a permit");
        while syncs.check().is_ok() {
            tokio::task::yield_now().await;
        }
        engine.close();
    }

    #[tokio::test]
    async fn without_durability_nothing_is_synced_early() {
        let (_folder, engine) = open(Durability::None).await.expect("a data folder");
        assert!(EarlySyncs::default().permit_if_due(&engine.context, 10 * SYNC_STEP_BYTES).is_none());
        engine.close();
    }

    #[tokio::test]
    async fn a_sync_keeps_its_permit_when_its_caller_has_gone() {
        let (_folder, engine) = open(Durability::Fsync).await.expect("a data folder");
        let disk = Arc::new(Barrier::new(2));
        let sync = tokio::spawn({
            let (engine, disk) = (engine.clone(), Arc::clone(&disk));
            async move {
                let work = move || {
                    disk.wait(); // it has begun
                    disk.wait(); // and ends
                    Ok(())
                };
                run_sync(&engine.context, work).await
            }
        });
        let begun = Arc::clone(&disk);
        tokio::task::spawn_blocking(move || begun.wait()).await.expect("no panic");
        sync.abort();
        assert!(sync.await.is_err_and(|error| error.is_cancelled()));
        assert_eq!(engine.context.syncs.available_permits(), SYNCS_MAX - 1);
        tokio::task::spawn_blocking(move || disk.wait()).await.expect("no panic");
        while engine.context.syncs.available_permits() < SYNCS_MAX {
            tokio::task::yield_now().await;
        }
        engine.close();
    }

    #[tokio::test]
    async fn most_workers_go_on_while_some_wait_for_the_disk() {
        let (_folder, engine) = open(Durability::Fsync).await.expect("a data folder");
        let (disk, begun) = (Arc::new(Barrier::new(SYNCS_MAX + 1)), Arc::new(AtomicUsize::new(0)));
        let mut syncs = JoinSet::new();
        for _ in 0..2 * SYNCS_MAX {
            let (engine, disk, begun) = (engine.clone(), Arc::clone(&disk), Arc::clone(&begun));
            let sync = move || {
                begun.fetch_add(1, Ordering::SeqCst);
                disk.wait();
                Ok(())
            };
            syncs.spawn(async move { run_sync(&engine.context, sync).await });
        }
        for round in 1..=2 {
            while begun.load(Ordering::SeqCst) < round * SYNCS_MAX {
                tokio::task::yield_now().await;
            }
            let other = run_unless_cancelled(&engine.context, &CancellationToken::new(), || Ok(7)).await;
            assert_eq!(other.expect("a worker is there"), 7);
            assert_eq!(begun.load(Ordering::SeqCst), round * SYNCS_MAX, "no more than these");
            let disk = Arc::clone(&disk);
            tokio::task::spawn_blocking(move || disk.wait()).await.expect("no panic");
        }
        for synced in syncs.join_all().await {
            synced.expect("it ran");
        }
        engine.close();
    }
}
