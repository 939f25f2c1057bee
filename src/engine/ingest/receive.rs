//! A stream to a draft. It is taken block by block, and each goes to a worker, which writes it and, as long as there is a
//! bet on integers, converts it; meanwhile the next one comes. Where files are to be safe, a long one is synced piece by
//! piece while it comes.
//!
//! What a draft becomes is none of this file's business; `upload.rs` and `jobs.rs` say it.
//!
//! Memory: one block and the HTTP/2 frame that it was cut from, whatever the stream's length. A bet holds a reservation on two
//! longer ones, out of the pool for large conversions.

use std::{io::Write, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, future::try_join};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    blocks::{Block, Incoming, Wish},
    early_sync::{EarlySyncs, SoFars, sync_slice},
    integer_attempt::{BET_IDLE_MAX, Bet, Outcome},
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

/// What errors call a draft that a stream goes to.
pub(super) const SPOOL_FILE: &str = "an upload's spool file";

/// Takes a stream to its end in a draft; a waiting worker never keeps it open, only the disk does. `finish` runs on a
/// worker once all of it has come.
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
    let (mut draft, _open) = spool(incoming, first, Bet::Off).await?;
    if context.store.is_synced() && draft.bytes() > SMALL_UPLOAD_BYTES {
        draft = sync_slice(context, move || draft.sync().map(|()| draft).map_err(Error::io(SPOOL_FILE))).await?;
    }
    slice(context, cancel, move || finish(draft)).await
}

/// Writes a stream to a draft, and what came of the bet on what it is.
pub(super) async fn spool<S>(
    mut incoming: Incoming<'_, S>,
    mut block: Block,
    mut bet: Bet,
) -> Result<(Draft, Outcome), Error>
where
    S: Stream<Item = Result<Bytes, Error>> + Unpin,
{
    let Incoming { context, cancel, .. } = incoming;
    let mut draft: Option<Draft> = None;
    let mut reservation: Option<Arc<OwnedSemaphorePermit>> = None; // on the block's memory, if it was read ahead
    let mut spare = Vec::new(); // what an earlier block was in: it may still be in the cache
    let mut early = EarlySyncs::default();
    loop {
        if let Err(error) = early.check() {
            context.workers.discard((draft, bet));
            return Err(error);
        }
        // While one block of a bet is worked on the next one comes.
        let ahead = if block.at_end { None } else { bet.blocks_reservation() };
        let sync = if block.at_end { None } else { early.place(context, incoming.bytes) };
        let (store, limits) = (Arc::clone(&context.store), context.limits.csv);
        let work = Work { draft, bet, block, reservation, sync };
        let write = slice(context, cancel, move || work.run(&store, limits));
        let (written, next) = if ahead.is_some() {
            let (written, next) = while_reading_ahead(write, &mut incoming, spare).await?;
            (written, Some(next))
        } else {
            drop(spare);
            (write.await?, None)
        };
        early.start(context, written.so_far);
        if let Some(outcome) = written.outcome {
            return match early.end().await {
                Ok(()) => Ok((written.draft, outcome)),
                Err(error) => {
                    context.workers.discard((written.draft, outcome));
                    Err(error)
                }
            };
        }
        (draft, bet, reservation, spare) = (Some(written.draft), written.bet, ahead, written.buffer);
        let next = match next {
            Some(next) => next,
            None => incoming.next_block(&Wish::new(RECEIVE_BLOCK_BYTES), std::mem::take(&mut spare)).await,
        };
        block = match next {
            Ok(next) => next,
            Err(error) => {
                context.workers.discard((draft, bet));
                return Err(error);
            }
        };
    }
}

/// The block after the one that is worked on, and what came of that.
async fn while_reading_ahead<S>(
    write: impl Future<Output = Result<Written, Error>>,
    incoming: &mut Incoming<'_, S>,
    spare: Vec<u8>,
) -> Result<(Written, Result<Block, Error>), Error>
where
    S: Stream<Item = Result<Bytes, Error>> + Unpin,
{
    let context = incoming.context;
    let (wish, came) = (Wish::new(READ_AHEAD_BLOCK_BYTES), Notify::new());
    let next = async {
        let next = incoming.next_block(&wish, spare).await;
        came.notify_one();
        Ok::<_, Error>(next) // an error waits until what is written can be dropped by a worker
    };
    let write = async {
        let mut written = write.await?;
        wish.lower(READ_AHEAD_BLOCK_BYTES_MIN); // the worker has nothing to do until it comes
        // Others wait for the memory of a bet no longer than this, however slow its client is.
        let patient = !context.large_conversions.is_waited_for();
        let in_time = patient && timeout(BET_IDLE_MAX, came.notified()).await.is_ok();
        if !in_time {
            wish.lower(0);
            written.call_off(context);
        }
        Ok(written)
    };
    // If it cannot be written, nobody waits for what comes.
    try_join(write, next).await
}

/// A block for a worker, and what it goes to.
struct Work {
    draft: Option<Draft>,
    bet: Bet,
    block: Block,
    reservation: Option<Arc<OwnedSemaphorePermit>>,
    /// A place to sync what is on disk then.
    sync: Option<OwnedSemaphorePermit>,
}

impl Work {
    fn run(self, store: &Store, limits: CsvLimits) -> Result<Written, Error> {
        let Self { draft, bet, block: Block { bytes, at_end }, reservation, sync } = self;
        let (_reservation, mut bytes) = (reservation, bytes); // the reservation ends last
        let mut draft = draft.map_or_else(|| store.listed_draft(), Ok)?;
        draft.write_all(&bytes).map_err(Error::io(SPOOL_FILE))?;
        if !at_end {
            draft.hold_nothing().map_err(Error::io(SPOOL_FILE))?; // who stops sending keeps no memory from others
        }
        let bet = bet.see(store, limits, &bytes)?;
        if at_end {
            let outcome = Some(bet.finish()?);
            return Ok(Written { draft, bet: Bet::Off, outcome, buffer: Vec::new(), so_far: None });
        }
        let so_far = sync.map(|place| ([draft.so_far(SPOOL_FILE), bet.so_far()], place));
        bytes.clear();
        let buffer = if bet.is_on() || bytes.capacity() <= RECEIVE_BLOCK_BYTES { bytes } else { Vec::new() };
        Ok(Written { draft, bet, outcome: None, buffer, so_far })
    }
}

/// What a worker leaves of a block.
struct Written {
    draft: Draft,
    bet: Bet,
    /// Of the bet, if this was the last block.
    outcome: Option<Outcome>,
    /// The block's memory, emptied.
    buffer: Vec<u8>,
    /// What is to be synced now, and a place for it.
    so_far: Option<(SoFars, OwnedSemaphorePermit)>,
}

impl Written {
    /// The memory of the bet goes to others.
    fn call_off(&mut self, context: &Arc<Context>) {
        if self.bet.is_on() {
            context.workers.discard(std::mem::replace(&mut self.bet, Bet::Off));
            self.buffer = Vec::new();
        }
    }
}

/// A slice on a worker, unless the call was cancelled.
pub(super) async fn slice<T: Send + 'static>(
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
        engine::{state::transfers::Pace, storage::draft::SoFar},
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
    async fn a_client_is_not_waited_for_once_there_is_enough() {
        let (_folder, engine) = open(Durability::None).await.expect("a data folder");
        let (body, pace) = paced(stream::iter([Ok(Bytes::from_static(b"1\n"))]).chain(stream::pending()));
        let cancel = CancellationToken::new();
        let mut incoming = Incoming::new(&engine.context, &cancel, body);
        let wish = Wish::new(RECEIVE_BLOCK_BYTES);
        {
            let mut block = std::pin::pin!(incoming.next_block(&wish, Vec::new()));
            assert!(futures_util::FutureExt::now_or_never(block.as_mut()).is_none() && pace.is_waiting());
            wish.lower(1);
            assert!(block.await.is_ok());
        }
        assert!(!pace.is_waiting(), "what came is written");
        engine.close();
    }

    #[tokio::test]
    async fn blocks_are_as_long_as_wished_for_however_the_stream_is_cut() {
        let (_folder, engine) = open(Durability::None).await.expect("a data folder");
        let all: Vec<u8> = (0..1_000_003_u32).map(|number| number.to_le_bytes()[0]).collect();
        for piece_bytes in [1, 1000, 16 * KIB, 300 * KIB, all.len()] {
            let pieces: Vec<_> = all.chunks(piece_bytes).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            let cancel = CancellationToken::new();
            let mut incoming = Incoming::new(&engine.context, &cancel, paced(stream::iter(pieces)).0);
            let (mut seen, mut spare) = (Vec::new(), Vec::new());
            let wish = Wish::new(RECEIVE_BLOCK_BYTES);
            loop {
                let memory = (spare.capacity() > 0).then_some(spare.as_ptr());
                let Block { bytes, at_end } = incoming.next_block(&wish, spare).await.expect("it comes");
                assert!(bytes.capacity() <= RECEIVE_BLOCK_BYTES, "no more memory than wished for");
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
        let mut early = EarlySyncs::default();
        assert!(early.place(&engine.context, SYNC_STEP_BYTES - 1).is_none());
        let places: Vec<_> = (0..SYNCS_MAX).map(|_| engine.context.syncs.try_acquire()).collect();
        assert!(early.place(&engine.context, SYNC_STEP_BYTES).is_none(), "others sync");
        drop(places);
        let place = early.place(&engine.context, SYNC_STEP_BYTES + 5).expect("it is due");
        early.start(&engine.context, Some(([draft.so_far("a file"), None], place)));
        assert!(early.place(&engine.context, 3 * SYNC_STEP_BYTES).is_none(), "one is under way");
        while engine.context.syncs.available_permits() < SYNCS_MAX || !early.running.is_empty() {
            early.check().expect("synced");
            tokio::task::yield_now().await;
        }
        assert!(early.place(&engine.context, 2 * SYNC_STEP_BYTES + 4).is_none());
        assert!(early.place(&engine.context, 2 * SYNC_STEP_BYTES + 5).is_some());
        early.end().await.expect("nothing runs");

        // What cannot be written is told, at once or at the end.
        let start = || {
            let mut early = EarlySyncs::default();
            let place = early.place(&engine.context, SYNC_STEP_BYTES)?;
            early.start(&engine.context, Some(([None, Some(SoFar::unsyncable(folder.path()))], place)));
            Some(early)
        };
        assert!(matches!(start().expect("a place").end().await, Err(Error::Io { .. })));
        let mut early = start().expect("a place");
        while early.check().is_ok() {
            tokio::task::yield_now().await;
        }
        engine.close();
    }

    #[tokio::test]
    async fn nothing_is_synced_early_where_nothing_is_synced() {
        let (_folder, engine) = open(Durability::None).await.expect("a data folder");
        assert!(EarlySyncs::default().place(&engine.context, 10 * SYNC_STEP_BYTES).is_none());
        engine.close();
    }

    #[tokio::test]
    async fn a_sync_keeps_its_place_when_its_caller_has_gone() {
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
                sync_slice(&engine.context, work).await
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
            syncs.spawn(async move { sync_slice(&engine.context, sync).await });
        }
        for round in 1..=2 {
            while begun.load(Ordering::SeqCst) < round * SYNCS_MAX {
                tokio::task::yield_now().await;
            }
            let other = slice(&engine.context, &CancellationToken::new(), || Ok(7)).await;
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
