//! Small files, which are complete with their first block: one task of a worker types, converts and stages a file.
//!
//! Files that arrive at about the same time go to a worker as one task. Creating a file takes the kernel's lock on its folder,
//! so workers that create files at the same time wait for each other, and every task wakes a thread. With 16 clients, one task
//! for many files takes less time than one task for each.
//!
//! Memory: each file has a reservation for all steps.

use std::{io::Write, sync::Arc, thread::available_parallelism};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    commit::{StagedPart, stage},
    convert::{Conversion, unless_unsuited},
    empty_columns::type_empty_columns,
    integers::Integers,
    memory_plan::{Plan, typing_bytes},
    receive::DRAFT_NAME,
};
use crate::{
    engine::{
        csv::{
            header::header_of,
            infer::Typer,
            lines::with_line_of,
            rows::{Resume, Wanted},
            scanner::Scanner,
        },
        parquet::writer::Converted,
        runtime::{
            context::Context,
            workers::{Workers, caught},
        },
        state::{Lane, Shared},
        storage::Store,
    },
    error::Error,
    limits::{COLUMNS_MAX, CsvLimits, SMALL_FILES_PER_TASK_MAX, WORKERS},
    model::{dialect::Source, idempotency_key::IdempotencyKey},
};

/// A small file that waits for a worker, and the channel for its outcome.
pub(crate) struct SmallFile {
    csv: Vec<u8>,
    key: Option<IdempotencyKey>,
    /// The file that was sent, if it was rewritten.
    source: Option<Box<Source>>,
    reservation: OwnedSemaphorePermit,
    cancel: CancellationToken,
    tx: oneshot::Sender<Result<StagedPart, Error>>,
}

impl SmallFile {
    /// Bytes to reserve for finding the types of a file in memory and for converting it.
    ///
    /// Errors: the file has too many columns to be converted.
    pub(super) fn memory_bytes(csv: &[u8], limits: CsvLimits) -> Result<usize, Error> {
        let columns = columns_max(csv);
        let plan = Plan::for_file(csv.len() as u64, columns, csv.len())?;
        Ok(plan.memory_bytes + typing_bytes(csv.len() as u64, columns, limits))
    }

    /// A file with its reservation, and the channel for its outcome.
    pub(super) fn new(
        csv: Vec<u8>,
        key: Option<IdempotencyKey>,
        source: Option<Box<Source>>,
        reservation: OwnedSemaphorePermit,
        cancel: CancellationToken,
    ) -> (Self, oneshot::Receiver<Result<StagedPart, Error>>) {
        let (tx, rx) = oneshot::channel();
        (Self { csv, key, source, reservation, cancel, tx }, rx)
    }
}

/// Makes staged parts of small files.
pub(crate) struct SmallFileStage {
    /// The threads that do it.
    workers: Workers,
    /// The folder that the files are written to.
    store: Arc<Store>,
    /// The table in which part ids are reserved.
    state: Shared,
    /// The limits of a CSV file.
    limits: CsvLimits,
}

impl SmallFileStage {
    pub(super) fn of(context: &Context) -> Self {
        Self {
            workers: context.workers.clone(),
            store: Arc::clone(&context.store),
            state: context.state.clone(),
            limits: context.limits.csv,
        }
    }

    /// Stages the files that arrive. Ends when all senders are dropped.
    pub(super) async fn run(self, mut queue: mpsc::Receiver<SmallFile>) {
        // At least two, so that one task can parse while another creates files.
        let tasks_max = available_parallelism().map_or(1, usize::from).clamp(2, WORKERS);
        let permits = Arc::new(Semaphore::new(tasks_max));
        let this = Arc::new(self);
        while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
            let mut files = Vec::with_capacity(SMALL_FILES_PER_TASK_MAX);
            if queue.recv_many(&mut files, SMALL_FILES_PER_TASK_MAX).await == 0 {
                return;
            }
            let stage = Arc::clone(&this);
            let work = move || {
                let _permit = permit;
                files.into_iter().for_each(|file| stage.stage_one(file));
            };
            // If the workers are closed, the senders are dropped, and the waiting uploads fail.
            let _refused = this.workers.enqueue(Lane::Upload, work).await;
        }
    }

    /// Types, converts and stages a file, unless its upload was cancelled. A panic is an error of this file only.
    fn stage_one(&self, file: SmallFile) {
        let SmallFile { csv, key, source, reservation, cancel, tx } = file;
        let staged = caught(|| {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let converted = match unless_unsuited(Integers::of_file(&self.store, self.limits, &csv))? {
                Some(converted) => converted,
                None => {
                    convert(&self.store, &self.state, self.limits, &csv).map_err(|error| with_line_of(error, &csv))?
                }
            };
            drop(reservation);
            let mut draft = self.store.draft_with_block_checksums()?;
            draft.write_all(&csv).map_err(Error::io(DRAFT_NAME))?;
            stage(&self.store, &self.state, draft, converted, key, source)
        });
        // If the receiver is gone, the staged part is dropped here, on a worker.
        let _receiver_gone = tx.send(staged.flatten());
    }
}

/// Types and converts a file that is in memory.
fn convert(store: &Arc<Store>, state: &Shared, limits: CsvLimits, csv: &[u8]) -> Result<Converted, Error> {
    let new_scanner = || Scanner::new(limits, Wanted::All, Resume::default());
    let (mut scanner, mut typer) = (new_scanner(), Typer::default());
    scanner.feed(csv, &mut typer)?;
    scanner.finish(&mut typer)?;
    let (rows, mut columns) = (scanner.into_resume().rows, typer.into_columns());
    type_empty_columns(state, &mut columns, rows);
    let layout = Plan::for_file(csv.len() as u64, columns.len(), csv.len())?.layout;
    let mut conversion = Conversion::new(store, columns, layout);
    let mut scanner = new_scanner();
    scanner.feed(csv, &mut conversion)?;
    scanner.finish(&mut conversion)?;
    conversion.finish(rows)
}

/// An upper bound of the number of columns. It is exact unless a name contains a comma.
fn columns_max(csv: &[u8]) -> usize {
    (memchr::memchr_iter(b',', header_of(csv)).count() + 1).min(COLUMNS_MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    };

    use bytes::Bytes;
    use futures_util::{future::join_all, stream};

    use crate::{
        engine::Engine,
        limits::Limits,
        model::{durability::Durability, format::Format},
    };

    use super::*;

    #[tokio::test]
    async fn a_bad_file_is_refused_alone_among_others() {
        for durability in [Durability::None, Durability::Fsync] {
            let folder = tempfile::TempDir::new().expect("a folder");
            let opened = Engine::open(folder.path(), durability, Limits::default()).await;
            let (engine, _) = opened.expect("a data folder");
            let uploads = join_all((0..100).map(|number| {
                let csv = match number % 4 {
                    0 => format!("a,b\n{number},1\n2\n"),
                    1 => format!("a,b\n{number},text\n"),
                    _ => format!("a,b\n{number},1\n"),
                };
                let engine = engine.clone();
                async move { engine.upload(stream::iter([Ok::<_, Error>(Bytes::from(csv))])).await }
            }));
            let mut kept = 0;
            for (number, uploaded) in uploads.await.into_iter().enumerate() {
                match (number % 4, uploaded) {
                    (0, Err(error)) => assert_eq!(error.to_string(), "row 2 (line 3) has 1 cell, the header has 2"),
                    (0, Ok(_)) => panic!("file {number} has a short row"),
                    (_, uploaded) => kept += uploaded.expect("a valid file").rows,
                }
            }
            assert_eq!((kept, engine.parts_count()), (75, 75));
            let expected: i64 = (0..100).filter(|number| number % 4 != 0).sum();
            for format in [Format::Csv, Format::Parquet] {
                assert_eq!(engine.column_sum("a", format).await.expect("integers").total, expected);
            }
            let left = std::fs::read_dir(folder.path().join("tmp")).expect("a folder").count();
            assert_eq!(left, 0, "no draft of a refused file is left");
            engine.close();
        }
    }

    #[tokio::test]
    async fn an_upload_cancelled_before_its_task_begins_is_not_kept() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let opened = Engine::open(folder.path(), Durability::None, Limits::default()).await;
        let (engine, _) = opened.expect("a data folder");
        let upload = |csv: &'static [u8]| {
            let engine = engine.clone();
            Box::pin(async move { engine.upload(stream::iter([Ok::<_, Error>(Bytes::from(csv))])).await })
        };
        let (barrier, busy) = (Arc::new(Barrier::new(WORKERS + 1)), Arc::new(AtomicUsize::new(0)));
        let block_worker = |_| {
            let (workers, barrier, busy) = (engine.context.workers.clone(), Arc::clone(&barrier), Arc::clone(&busy));
            let wait = move || {
                busy.fetch_add(1, Ordering::SeqCst);
                barrier.wait()
            };
            tokio::spawn(async move { workers.run(Lane::Question, wait).await })
        };
        let blocking: Vec<_> = (0..WORKERS).map(block_worker).collect();
        while busy.load(Ordering::SeqCst) < WORKERS {
            tokio::task::yield_now().await;
        }
        let mut cancelled = upload(b"a\n1\n");
        for _ in 0..100 {
            assert!(futures_util::poll!(&mut cancelled).is_pending(), "every worker is busy");
            tokio::task::yield_now().await;
        }
        drop(cancelled);
        tokio::task::spawn_blocking(move || barrier.wait()).await.expect("no panic");
        for task in blocking {
            task.await.expect("no panic").expect("ran");
        }
        assert_eq!(upload(b"a\n2\n").await.expect("a valid file").rows, 1);
        assert_eq!(engine.parts_count(), 1);
        assert_eq!(engine.column_sum("a", Format::Csv).await.expect("integers").total, 2);
        engine.close();
    }

    #[test]
    fn no_small_file_has_more_columns_than_memory_is_reserved_for() {
        for (csv, columns) in [
            ("a", 1),
            ("a,b\n1,2\n", 2),
            ("\n\r\n\ra,b,c\r1,2,3\n", 3),
            ("\u{feff}\r\na,b\n1,2\n", 2),
            ("\"a\",\"b\n,\"\n1,2,3,4,5\n", 3),
            ("", 1),
        ] {
            assert_eq!(columns_max(csv.as_bytes()), columns, "{csv:?}");
        }
        assert_eq!(columns_max(&[b','; 2 * COLUMNS_MAX]), COLUMNS_MAX);
    }
}
