//! The path of an upload: its bytes are received into a draft (`receive.rs`), the column types are found, the rows are
//! converted to Parquet, both files are staged and committed, and the part is registered.
//!
//! Everything that touches a file or a cell is a task on a worker; this file is the order of those tasks. An upload runs as a
//! detached task, so that it cleans up after itself (on a worker) even if its client goes away.
//!
//! A file of another dialect is rewritten first (`rewrite.rs`); the rest sees plain CSV. There are four cases:
//! - A small file is complete with its first block: one task does all the work (`small_files.rs`).
//! - A large file of integers is converted while it arrives, if there is memory for that (`integer_attempt.rs`).
//! - If there was no memory for that, the same code reads the file again once it is complete (`reread.rs`).
//! - Any other file is read twice from its draft: once to find the types, once to convert it (`convert.rs`).
//!
//! Memory: receiving takes one block for an upload of any size. Reading ahead, typing and conversion reserve memory from two
//! pools. Only typing and conversion wait for a reservation, and an upload that waits holds no other one: its bytes are in
//! its draft, or it is small.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, future::join};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    blocks::Incoming,
    commit::{StagedPart, check_room, share_schema, stage},
    commit_queue::WaitingCommit,
    convert::Conversion,
    early_sync::run_sync,
    empty_columns::type_empty_columns,
    integer_attempt::{AttemptResult, IntegerAttempt},
    integers,
    keyed::{self, Claim, Uploaded},
    memory_plan::{Plan, typing_bytes},
    queues::Queues,
    receive::{DRAFT_NAME, receive_blocks, run_unless_cancelled},
    reread::{Reread, Step},
    rewrite::{DialectFrom, as_csv, options},
    small_files::SmallFile,
};
use crate::{
    engine::{
        csv::{
            file_scan::FileScan,
            header::read_header,
            infer::Typer,
            lines::{LineSearch, with_line},
            rows::{Resume, Rows, Wanted},
        },
        parquet::writer::Converted,
        runtime::{context::Context, transfers::Paced},
        state::Lane,
        storage::{draft::Draft, reader::Reader},
    },
    error::{Error, foreign_file::Use},
    limits::{CONVERT_TASK_BYTES, RECEIVE_BLOCK_BYTES, SMALL_UPLOAD_BYTES},
    model::{
        dialect::Source,
        idempotency_key::IdempotencyKey,
        part::{Part, PartFigures, Receipt},
    },
};

/// Runs one upload from its first byte to its receipt. With a key that was used, nothing is added. `key`: the one in the head
/// of the call.
pub(crate) async fn run<S>(
    context: Arc<Context>,
    queues: Queues,
    key: Option<IdempotencyKey>,
    body: Paced<S>,
    dialect: DialectFrom,
    cancel: CancellationToken,
) -> Result<Uploaded, Error>
where
    S: Stream<Item = Result<Bytes, Error>> + Send + Unpin + 'static,
{
    let mut incoming = Incoming::new(&context, &cancel, body);
    let (dialect, key) = options(&mut incoming, key, dialect).await?;
    let upload = Upload { context: Arc::clone(&context), queues, key, cancel: cancel.clone() };
    let (mut incoming, original) = as_csv(incoming, dialect).await?;
    if let Some(key) = &upload.key
        && let Some(receipt) = keyed::find(&upload.context, &upload.cancel, key).await?
    {
        return keyed::replay(incoming, key, receipt).await;
    }
    check_room(&upload.context.state)?;
    let first = incoming.first_block().await?;
    original.foreign().check(&first.bytes, Use::Upload)?;
    let received = if first.at_end {
        Received::Small(first.bytes)
    } else {
        Received::Large(Box::new(receive_blocks(incoming, first, IntegerAttempt::begin(&upload.context)).await?))
    };
    let source = original.source()?;
    let Some(key) = &upload.key else { return upload.add(received, source).await };
    match keyed::claim(&upload.context, &upload.cancel, key).await {
        Ok(Claim::New(_claimed)) => upload.add(received, source).await, // claimed until then
        Ok(Claim::Used(receipt)) => upload.replay(key, *receipt, received).await,
        Err(error) => {
            upload.context.workers.discard(received);
            Err(error)
        }
    }
}

/// A file that was received.
enum Received {
    /// It is in memory.
    Small(Vec<u8>),
    /// It is a draft, which may have been converted already.
    Large(Box<(Draft, AttemptResult)>),
}

struct Upload {
    context: Arc<Context>,
    queues: Queues,
    /// To be written into the receipt.
    key: Option<IdempotencyKey>,
    cancel: CancellationToken,
}

impl Upload {
    /// Converts and commits a file that was received.
    async fn add(&self, received: Received, source: Option<Box<Source>>) -> Result<Uploaded, Error> {
        let staged = match received {
            Received::Small(csv) => self.stage_small(csv, source).await?,
            Received::Large(draft) => match *draft {
                (csv, AttemptResult::Converted(converted)) => self.stage(csv, converted, source).await?,
                (csv, result) => self.convert_draft(csv, matches!(result, AttemptResult::NotTried), source).await?,
            },
        };
        let receipt = self.commit(staged).await?;
        Ok(Uploaded { receipt, replayed: false })
    }

    /// Compares a file that was received with the part that has its key.
    async fn replay(&self, key: &IdempotencyKey, receipt: Receipt, received: Received) -> Result<Uploaded, Error> {
        let info = match received {
            Received::Small(csv) => keyed::info_of(&self.context, &self.cancel, csv).await?,
            Received::Large(draft) => {
                let info = draft.0.info();
                self.context.workers.discard(draft);
                info
            }
        };
        keyed::replayed(key, receipt, &info)
    }

    /// Types, converts and stages a file that is in memory.
    async fn stage_small(&self, csv: Vec<u8>, source: Option<Box<Source>>) -> Result<StagedPart, Error> {
        let context = &self.context;
        let memory_bytes = SmallFile::memory_bytes(&csv, context.limits.csv)?;
        let reservation = self.reserve(csv.len() as u64, memory_bytes).await?;
        let (file, rx) = SmallFile::new(csv, self.key.clone(), source, reservation, self.cancel.clone());
        self.queues.small_files.send(file).await.ok().ok_or(Error::Draining)?;
        rx.await.unwrap_or(Err(Error::Draining))
    }

    /// Converts and stages a file that is complete on disk.
    async fn convert_draft(
        &self,
        mut csv: Draft,
        may_be_integers: bool,
        source: Option<Box<Source>>,
    ) -> Result<StagedPart, Error> {
        let (csv, file) = run_unless_cancelled(&self.context, &self.cancel, move || {
            let file = csv.reader()?;
            Ok((csv, file))
        })
        .await?;
        match self.convert_file(file.clone(), may_be_integers).await {
            Ok(converted) => self.stage(csv, converted, source).await,
            Err(error) => {
                let run = |search: LineSearch| run_unless_cancelled(&self.context, &self.cancel, move || search.step());
                let error = with_line(error, &file, run).await;
                self.context.workers.discard(csv);
                Err(error)
            }
        }
    }

    async fn convert_file(&self, file: Reader, may_be_integers: bool) -> Result<Converted, Error> {
        if may_be_integers && let Some(converted) = self.convert_integers(file.clone()).await? {
            return Ok(converted);
        }
        self.type_and_convert(file).await
    }

    /// Converts a draft by the path for integers. `None` if that path cannot convert it.
    async fn convert_integers(&self, file: Reader) -> Result<Option<Converted>, Error> {
        let context = &self.context;
        let reservation = self.reserve(file.bytes(), integers::MEMORY_BYTES + RECEIVE_BLOCK_BYTES).await?;
        let mut reread = Reread { file, offset: 0, integers: None, _reservation: reservation };
        loop {
            let (store, limits) = (Arc::clone(&context.store), context.limits.csv);
            match run_unless_cancelled(&self.context, &self.cancel, move || reread.step(&store, limits)).await? {
                Step::More(more) => reread = more,
                Step::Done(converted) => return Ok(converted),
            }
        }
    }

    /// Types and then converts a file that is complete on disk. Each step first reserves the memory that it may need.
    async fn type_and_convert(&self, file: Reader) -> Result<Converted, Error> {
        let context = &self.context;
        let (bytes, limits, header) = (file.bytes(), context.limits.csv, file.clone());
        let columns_count =
            run_unless_cancelled(&self.context, &self.cancel, move || read_header(&header, limits)).await?.len();
        let reservation = self.reserve(bytes, typing_bytes(bytes, columns_count, context.limits.csv)).await?;
        let (mut columns, rows, longest_row_bytes) = self
            .scan_to_end(self.scan(&file, Typer::default()), |scan| {
                let (rows, longest_row_bytes) = (scan.rows_count(), scan.longest_row_bytes());
                Ok((scan.rows.into_columns(), rows, longest_row_bytes))
            })
            .await?;
        drop(reservation);
        type_empty_columns(&context.state, &mut columns, rows);

        let plan = Plan::for_file(bytes, columns_count, longest_row_bytes)?;
        let reservation = self.reserve(bytes, plan.memory_bytes).await?;
        let mut conversion = Conversion::new(&context.store, columns, plan.layout);
        conversion.reservation = Some(reservation);
        let finish = move |scan: FileScan<Conversion>| scan.rows.finish(rows);
        self.scan_to_end(self.scan(&file, conversion), finish).await
    }

    fn scan<R: Rows<Error = Error>>(&self, file: &Reader, rows: R) -> FileScan<R> {
        FileScan::new(file.clone(), self.context.limits.csv, Wanted::All, Resume::default(), rows)
    }

    /// Reserves memory from the pool for files of this size.
    async fn reserve(&self, file_bytes: u64, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        let context = &self.context;
        let pool =
            if file_bytes <= SMALL_UPLOAD_BYTES { &context.small_conversions } else { &context.large_conversions };
        tokio::select! {
            () = self.cancel.cancelled() => Err(Error::Cancelled),
            reservation = pool.reserve(bytes) => reservation,
        }
    }

    /// Moves both files of the part to `parts/`. From here on the upload is completed even if its call is cancelled. If uploads
    /// are synced, large files are synced here, in parallel, so that the commit, which may delay other uploads, is short.
    async fn stage(
        &self,
        mut csv: Draft,
        mut converted: Converted,
        source: Option<Box<Source>>,
    ) -> Result<StagedPart, Error> {
        let context = &self.context;
        let (store, state, key) = (Arc::clone(&context.store), context.state.clone(), self.key.clone());
        if !context.store.is_synced() || csv.bytes() <= SMALL_UPLOAD_BYTES {
            return context
                .workers
                .run(Lane::Upload, move || stage(&store, &state, csv, converted, key, source))
                .await
                .flatten();
        }
        let sync_csv = move || csv.sync().map(|()| csv).map_err(Error::io(DRAFT_NAME));
        let sync_parquet =
            move || converted.parquet.draft.sync().map(|()| converted).map_err(Error::io("the parquet file"));
        match join(run_sync(&self.context, sync_csv), run_sync(&self.context, sync_parquet)).await {
            (Ok(csv), Ok(converted)) => {
                let stage = move || stage(&store, &state, csv, converted, key, source);
                context.workers.run(Lane::Upload, stage).await.flatten()
            }
            (Err(error), other) => {
                context.workers.discard(other);
                Err(error)
            }
            (Ok(csv), Err(error)) => {
                context.workers.discard(csv);
                Err(error)
            }
        }
    }

    /// Commits a staged part and adds it to the table.
    async fn commit(&self, staged: StagedPart) -> Result<Receipt, Error> {
        let context = &self.context;
        let StagedPart { files, receipt, schema, reservation } = staged;
        if let Some(files) = files {
            let (tx, rx) = oneshot::channel();
            if let Err(refused) = self.queues.commits.send(WaitingCommit { files, tx }).await {
                context.workers.discard(refused);
                return Err(Error::Draining);
            }
            rx.await.unwrap_or(Err(Error::Draining))?;
        }
        let schema = share_schema(&context.state, schema);
        let columns = PartFigures::of(&receipt, schema.as_ref());
        reservation.insert(Arc::new(Part::of(&receipt, schema)), &columns);
        Ok(receipt)
    }

    /// Scans a file to its end, one task after another; `finish` runs in the last one.
    async fn scan_to_end<R, T, F>(&self, mut scan: FileScan<R>, mut finish: F) -> Result<T, Error>
    where
        R: Rows<Error = Error> + Send + 'static,
        T: Send + 'static,
        F: FnOnce(FileScan<R>) -> Result<T, Error> + Send + 'static,
    {
        loop {
            let step = run_unless_cancelled(&self.context, &self.cancel, move || {
                let at_end = scan.step(CONVERT_TASK_BYTES)?;
                if at_end { finish(scan).map(Step::Done) } else { Ok(Step::More((scan, finish))) }
            });
            match step.await? {
                Step::More((next_scan, next_finish)) => (scan, finish) = (next_scan, next_finish),
                Step::Done(value) => return Ok(value),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::Engine;
    use futures_util::stream;
    use tokio::sync::mpsc;

    use crate::{
        engine::engine_tests::in_time,
        limits::{KIB, LARGE_CONVERSION_BYTES, Limits},
        model::{durability::Durability, format::Format},
    };

    use super::*;

    #[tokio::test]
    async fn a_client_that_stops_sending_keeps_no_memory_from_others() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let opened = Engine::open(folder.path(), Durability::None, Limits::default()).await;
        let (engine, _) = opened.expect("a data folder");
        let (client, body) = mpsc::channel::<Bytes>(1);
        let body = stream::unfold(body, |mut body| async { body.recv().await.map(|bytes| (Ok(bytes), body)) });
        let uploading = tokio::spawn({
            let engine = engine.clone();
            async move { engine.upload(Box::pin(body)).await }
        });
        let rows = Bytes::from("1,2\n".repeat(RECEIVE_BLOCK_BYTES / 4));
        client.send(Bytes::from_static(b"a,b\n")).await.expect("it is received");
        client.send(rows.clone()).await.expect("it is received");
        // Less than a block, with an incomplete row at its end. Once the second piece is taken, the first was read ahead.
        client.send(Bytes::from_static(b"3,4\n")).await.expect("it is received");
        client.send(Bytes::from_static(b"5,")).await.expect("it is received");

        let all = in_time(
            "all of the memory, during the upload",
            engine.context.large_conversions.reserve(LARGE_CONVERSION_BYTES),
        )
        .await;
        let all = all.expect("it is open");
        assert!(!uploading.is_finished());
        drop(all);

        client.send(Bytes::from_static(b"6\n")).await.expect("it is received");
        client.send(rows.clone()).await.expect("it is received");
        drop(client);
        let receipt = uploading.await.expect("no panic").expect("it is kept");
        assert_eq!(receipt.rows, 2 * (rows.len() as u64 / 4) + 2);
        let sum = engine.column_sum("b", Format::Parquet).await.expect("integers").total;
        assert_eq!(sum, 2 * 2 * (rows.len() as i64 / 4) + 4 + 6);
        engine.close();
    }

    #[tokio::test]
    async fn a_file_converted_after_its_arrival_equals_one_converted_during_it() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let opened = Engine::open(folder.path(), Durability::None, Limits::default()).await;
        let (engine, _) = opened.expect("a data folder");
        let rows = 2 * CONVERT_TASK_BYTES / 4;
        let upload = |last: &'static str| {
            let (engine, csv) = (engine.clone(), format!("a,b\n{}{last}", "1,2\n".repeat(rows)).into_bytes());
            let pieces: Vec<_> = csv.chunks(64 * KIB).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            tokio::spawn(async move { engine.upload(stream::iter(pieces)).await })
        };
        for last in ["3,4", "3,x", "3,4,5"] {
            let read_ahead = upload(last).await.expect("no panic");
            let all = in_time("all of the memory", engine.context.large_conversions.reserve(LARGE_CONVERSION_BYTES))
                .await
                .expect("it is open");
            let reread = upload(last);
            in_time("the next upload asks for memory", async {
                while !engine.context.large_conversions.is_waited_for() {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            drop(all);
            match (read_ahead, reread.await.expect("no panic")) {
                (Ok(expected), Ok(kept)) => {
                    assert_eq!((kept.rows, kept.columns), (expected.rows, expected.columns), "{last}");
                    assert_eq!((kept.csv, kept.parquet), (expected.csv, expected.parquet), "{last}");
                }
                (Err(expected), Err(error)) => assert_eq!(error.to_string(), expected.to_string()),
                (read_ahead, reread) => panic!("{last}: {read_ahead:?}, {reread:?}"),
            }
        }
        let sum = engine.column_sum("a", Format::Parquet).await.expect("integers").total;
        assert_eq!(sum, 4 * (rows as i64 + 3));
        assert_eq!(engine.parts_count(), 4);
        engine.close();
    }
}
