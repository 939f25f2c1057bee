//! Bytes to a part: receive into a draft, type the whole file, convert it, publish it, register it.
//!
//! Everything that touches a file or a cell is a slice on a worker; this file is the order of those slices. The task
//! runs apart from the call that brought it, so that a client that goes away leaves clean-up to a worker, too.
//!
//! There are three ways. A small file is in memory with its first block, and all that is done to it is one slice. A large
//! one that is all integers so far, if there is memory for it, is converted while it comes (`integers.rs`). Any other
//! is typed, then converted, from its draft.
//!
//! Memory: receiving takes one block for an upload of any size. Typing and conversion take a claim, counted in bytes,
//! out of one of two pools, and wait for it with the upload safe in its draft, or small, and nothing else held.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use chrono::{SecondsFormat, Utc};
use futures_util::{
    Stream, StreamExt,
    future::{join, try_join},
    stream,
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::Xxh3;

use super::{
    Engine,
    convert::{BatchBuilder, Typer},
    csv::{FileScan, Resume, Row, Rows, Scanner, Wanted, header_of},
    integers::{self, Integers, Stop},
    parquet::{Layout, PartWriter, Written},
    part::{Column, FORMAT_VERSION, Part, PartId, Receipt, Schema},
    state::{Lane, Shared},
    store::{Draft, Reader, Staged, Store, checksum_text},
    workers::Workers,
};
use crate::{
    error::{CsvError, Error},
    limits::{
        BATCH_BYTES_MAX, BATCH_CELLS_MAX, COLUMN_CHUNK_ENTRY_BYTES, COLUMN_CHUNKS_MAX, COLUMNS_MAX, CsvLimits,
        DICTIONARY_COLUMNS_MAX, DRAFT_BYTES_HELD, HEADER_BYTES_MAX, KIB, MIB, PAGE_BYTES, PAGE_BYTES_MIN, PARTS_MAX,
        READ_BLOCK_BYTES, ROW_GROUP_BYTES, ROW_GROUP_BYTES_CEILING, SMALL_UPLOAD_BYTES, SPILL_PAGES_BYTES,
        SPOOL_BLOCK_BYTES, UPLOAD_FRAME_BYTES, UPLOADS_MAX,
    },
};

/// Bytes of CSV that one slice of typing or conversion reads: about 10 ms of work.
const CONVERT_SLICE_BYTES: usize = MIB;
/// What an upload that is converted while it comes reads ahead; a block may have grown by doubling.
const AHEAD_BYTES: usize = 2 * (SPOOL_BLOCK_BYTES + UPLOAD_FRAME_BYTES);
/// How long a block may be on its way before the memory of a bet on the file goes to others.
const BET_IDLE_MAX: Duration = Duration::from_secs(1);
/// What the writer and the builders hold for a column before its first value, with and without a dictionary.
const COLUMN_BYTES: usize = 10 * KIB;
const DICTIONARY_COLUMN_BYTES: usize = 64 * KIB;

/// Runs one upload from its first byte to its receipt.
pub(super) async fn run<S>(engine: Engine, mut body: S, cancel: CancellationToken) -> Result<Receipt, Error>
where
    S: Stream<Item = Result<Bytes, Error>> + Unpin,
{
    let first = next_block(&engine, &cancel, &mut body, 0).await?;
    let upload = Upload { engine, cancel };
    let staged = if first.at_end && first.bytes.len() <= DRAFT_BYTES_HELD {
        upload.keep_small(first.bytes).await?
    } else {
        let bet = Bet::on_integers(&upload.engine);
        let (csv, converted) = spool(&upload.engine, &upload.cancel, body, first, bet).await?;
        match converted {
            Some(converted) => upload.stage(csv, converted).await?,
            None => upload.convert_draft(csv).await?,
        }
    };
    upload.commit(staged).await
}

/// Takes a stream to its end in a draft; a waiting worker never keeps it open, only the disk does. `finish` runs on a
/// worker once all of it has come.
pub(super) async fn receive<S, T, F>(
    engine: &Engine,
    cancel: &CancellationToken,
    mut body: S,
    finish: F,
) -> Result<T, Error>
where
    S: Stream<Item = Result<Bytes, Error>> + Unpin,
    T: Send + 'static,
    F: FnOnce(Draft) -> Result<T, Error> + Send + 'static,
{
    let first = next_block(engine, cancel, &mut body, 0).await?;
    let (draft, _converted) = spool(engine, cancel, body, first, Bet::Off).await?;
    slice(engine, cancel, move || finish(draft)).await
}

/// Writes a stream to a draft, and what came of the bet on what it is.
async fn spool<S>(
    engine: &Engine,
    cancel: &CancellationToken,
    mut body: S,
    mut block: Block,
    mut bet: Bet,
) -> Result<(Draft, Option<Converted>), Error>
where
    S: Stream<Item = Result<Bytes, Error>> + Unpin,
{
    let mut draft: Option<Draft> = None;
    loop {
        let Block { bytes, at_end } = block;
        let received = draft.as_ref().map_or(0, Draft::bytes) + bytes.len() as u64;
        // The memory of the bet is room for a block that comes while this one is worked on.
        let reads_ahead = !at_end && !matches!(bet, Bet::Off);
        let (store, limits) = (Arc::clone(&engine.0.store), engine.0.limits.csv);
        let write = slice(engine, cancel, move || {
            let mut draft = draft.map_or_else(|| store.draft(), Ok)?;
            std::io::Write::write_all(&mut draft, &bytes).map_err(Error::io("an upload's spool file"))?;
            let bet = bet.see(&store, limits, &bytes)?;
            if !at_end {
                return Ok((draft, bet, None));
            }
            let converted = bet.finish()?;
            Ok((draft, Bet::Off, Some(converted)))
        });
        let (written, next) = if reads_ahead {
            let came = Notify::new();
            let next = async {
                let next = next_block(engine, cancel, &mut body, received).await;
                came.notify_one();
                Ok::<_, Error>(next) // an error waits until what is written can be dropped by a worker
            };
            let write = async {
                let (draft, bet, converted) = write.await?;
                // Others wait for the memory of a bet no longer than this, however slow its client is.
                let patient = !engine.0.large.is_waited_for();
                let in_time = patient && timeout(BET_IDLE_MAX, came.notified()).await.is_ok();
                Ok((draft, if in_time { bet } else { bet.call_off(engine) }, converted))
            };
            // If it cannot be written, nobody waits for what comes.
            let (written, next) = try_join(write, next).await?;
            (written, Some(next))
        } else {
            (write.await?, None)
        };
        let (written, bet_on, converted) = written;
        if let Some(converted) = converted {
            return Ok((written, converted));
        }
        (draft, bet) = (Some(written), bet_on);
        let next = match next {
            Some(next) => next,
            None => next_block(engine, cancel, &mut body, received).await,
        };
        block = match next {
            Ok(next) => next,
            Err(error) => {
                engine.0.workers.discard((draft, bet));
                return Err(error);
            }
        };
    }
}

/// Some of an upload.
struct Block {
    bytes: Vec<u8>,
    /// Whether nothing follows.
    at_end: bool,
}

/// About a block of the stream, and whether that was its end. Copied, so that small pieces pin no large buffers.
async fn next_block<S>(
    engine: &Engine,
    cancel: &CancellationToken,
    body: &mut S,
    bytes_before: u64,
) -> Result<Block, Error>
where
    S: Stream<Item = Result<Bytes, Error>> + Unpin,
{
    let limits = &engine.0.limits;
    let mut block = Vec::new();
    while block.len() < SPOOL_BLOCK_BYTES {
        let next = tokio::select! {
            () = cancel.cancelled() => return Err(Error::Cancelled),
            next = timeout(limits.upload_idle_max, body.next()) => next,
        };
        match next {
            Ok(Some(bytes)) => {
                let bytes = bytes?;
                engine.0.received_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                block.extend_from_slice(&bytes);
            }
            Ok(None) => return Ok(Block { bytes: block, at_end: true }),
            Err(_elapsed) => {
                let seconds = limits.upload_idle_max.as_secs();
                return Err(Error::Aborted(format!("nothing came for {seconds} s")));
            }
        }
        if bytes_before + block.len() as u64 > limits.upload_bytes_max {
            return Err(Error::UploadTooLarge { bytes_max: limits.upload_bytes_max });
        }
    }
    Ok(Block { bytes: block, at_end: false })
}

/// A slice on a worker, unless the call was cancelled.
async fn slice<T: Send + 'static>(
    engine: &Engine,
    cancel: &CancellationToken,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let workers = &engine.0.workers;
    if cancel.is_cancelled() {
        workers.discard(work); // it may own a draft
        return Err(Error::Cancelled);
    }
    workers.run(Lane::Upload, work).await?
}

/// A file of this machine as a stream of blocks.
pub(super) fn blocks_of(engine: &Engine, file: Reader) -> impl Stream<Item = Result<Bytes, Error>> + Unpin + use<> {
    let workers = engine.0.workers.clone();
    Box::pin(stream::try_unfold((workers, file, 0), |(workers, file, offset)| async move {
        let from = file.clone();
        let read = move || from.block(offset, SPOOL_BLOCK_BYTES).map_err(Error::io("a file to load"));
        let block = workers.run(Lane::Upload, read).await.flatten()?;
        let next = offset + block.len() as u64;
        Ok(if block.is_empty() { None } else { Some((Bytes::from(block), (workers, file, next))) })
    }))
}

/// The checksum of a file, as receipts have it, read slice by slice.
pub(super) async fn checksum(engine: &Engine, file: &Reader) -> Result<String, Error> {
    let mut hash = Box::new(Xxh3::new());
    let mut blocks = blocks_of(engine, file.clone());
    while let Some(block) = blocks.next().await {
        hash.update(&block?);
    }
    Ok(checksum_text(&hash))
}

/// The hope that a file is all integers, so that it can be converted while it comes.
enum Bet {
    /// There is none, or it is lost.
    Off,
    /// Memory for it is there, and nothing was seen.
    On(OwnedSemaphorePermit),
    /// So far it is one.
    Good(Box<Integers>, OwnedSemaphorePermit),
}

impl Bet {
    /// None if there is no memory for it now: an upload never waits for a place to be worked on while it comes.
    fn on_integers(engine: &Engine) -> Self {
        engine.0.large.try_claim(AHEAD_BYTES + integers::CLAIM_BYTES).map_or(Self::Off, Self::On)
    }

    fn see(self, store: &Store, limits: CsvLimits, block: &[u8]) -> Result<Self, Error> {
        let (seen, claim) = match self {
            Self::Off => return Ok(Self::Off),
            Self::On(claim) => (Integers::begin(store, limits, block), claim),
            Self::Good(mut integers, claim) => (integers.see(block).map(|()| *integers), claim),
        };
        Ok(unless_unsuited(seen)?.map_or(Self::Off, |integers| Self::Good(Box::new(integers), claim)))
    }

    fn call_off(self, engine: &Engine) -> Self {
        engine.0.workers.discard(self);
        Self::Off
    }

    fn finish(self) -> Result<Option<Converted>, Error> {
        match self {
            Self::Off | Self::On(_) => Ok(None),
            Self::Good(integers, _claim) => unless_unsuited(integers.finish()),
        }
    }
}

fn unless_unsuited<T>(result: Result<T, Stop>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Stop::Unsuited) => Ok(None),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// A file's rows as Parquet, and what its receipt says of them.
pub struct Converted {
    /// The file.
    pub parquet: Written,
    /// With their types.
    pub columns: Vec<Column>,
    /// Data rows.
    pub rows: u64,
}

/// A part that is in place, and not in the table yet.
struct StagedPart {
    /// None if there is nothing left to do with them.
    files: Option<Staged>,
    receipt: Receipt,
    schema: Schema,
    place: PartPlace,
}

/// A place in the table. It is free again when it is dropped, unless it was taken.
struct PartPlace {
    state: Shared,
    part: PartId,
    taken: bool,
}

impl PartPlace {
    fn reserve(state: &Shared) -> Result<Self, Error> {
        let part = state.with(|state| state.parts.reserve());
        let part = part.ok_or(Error::TooManyParts { parts_max: PARTS_MAX })?;
        Ok(Self { state: state.clone(), part, taken: false })
    }

    fn take(mut self, part: Arc<Part>) {
        self.taken = true;
        self.state.with(|state| state.parts.insert(part));
    }
}

impl Drop for PartPlace {
    fn drop(&mut self) {
        if !self.taken {
            self.state.with(|state| state.parts.release());
        }
    }
}

/// A staged part on its way to the next commit, and who is told what came of it.
pub(super) struct Waiting {
    files: Staged,
    told: oneshot::Sender<Result<(), Error>>,
}

/// Commits what waits, all that has come while the last commit was under way together, until nobody is left who could
/// bring more.
pub(super) async fn keep_committing(workers: Workers, store: Arc<Store>, mut queue: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, UPLOADS_MAX).await > 0 {
        let (files, told): (Vec<_>, Vec<_>) = batch.drain(..).map(|waiting| (waiting.files, waiting.told)).unzip();
        let store = Arc::clone(&store);
        let committed = workers.run(Lane::Upload, move || store.commit(files)).await.flatten();
        for told in told {
            let outcome = committed.as_ref().copied().map_err(Error::again);
            // Who does not wait any more has gone with the server.
            let _nobody_waits = told.send(outcome);
        }
    }
}

struct Upload {
    engine: Engine,
    cancel: CancellationToken,
}

impl Upload {
    /// Types, converts and stages a file that is in memory, in one slice.
    async fn keep_small(&self, csv: Vec<u8>) -> Result<StagedPart, Error> {
        let limits = self.engine.0.limits.csv;
        let columns = columns_max(&csv);
        let plan = Plan::for_file(csv.len() as u64, columns, csv.len())?;
        let claim = self.claim(csv.len() as u64, plan.claim_bytes + typing_bytes(csv.len() as u64, columns, limits));
        let claim = claim.await?;
        let engine = self.engine.clone();
        slice(&self.engine, &self.cancel, move || {
            let store = &engine.0.store;
            let converted = match unless_unsuited(Integers::of_file(store, limits, &csv))? {
                Some(converted) => converted,
                None => convert_block(store, limits, &csv)?,
            };
            drop(claim);
            let mut draft = store.draft()?;
            std::io::Write::write_all(&mut draft, &csv).map_err(Error::io("an upload's spool file"))?;
            stage(&engine, draft, converted)
        })
        .await
    }

    /// Types, converts and stages a file that is complete on disk.
    async fn convert_draft(&self, mut csv: Draft) -> Result<StagedPart, Error> {
        let limits = self.engine.0.limits.csv;
        let (csv, file, columns_count) = slice(&self.engine, &self.cancel, move || {
            let file = csv.reader()?;
            let columns_count = count_columns(&file, limits)?;
            Ok((csv, file, columns_count))
        })
        .await?;
        match self.type_and_convert(file, columns_count).await {
            Ok(converted) => self.stage(csv, converted).await,
            Err(error) => {
                self.engine.0.workers.discard(csv);
                Err(error)
            }
        }
    }

    /// Types and converts a file that is complete on disk, each with the memory it may need.
    async fn type_and_convert(&self, file: Reader, columns_count: usize) -> Result<Converted, Error> {
        let inner = &self.engine.0;
        let bytes = file.bytes();
        let claim = self.claim(bytes, typing_bytes(bytes, columns_count, inner.limits.csv)).await?;
        let (columns, rows, longest_row_bytes) = self
            .to_the_end(self.scan(&file, Typer::default()), |scan| {
                let (rows, longest_row_bytes) = (scan.rows_count(), scan.longest_row_bytes());
                Ok((scan.rows.into_columns(), rows, longest_row_bytes))
            })
            .await?;
        drop(claim);

        let plan = Plan::for_file(bytes, columns_count, longest_row_bytes)?;
        let claim = self.claim(bytes, plan.claim_bytes).await?;
        let conversion = Conversion {
            store: Arc::clone(&inner.store),
            columns,
            layout: plan.layout,
            output: None,
            _claim: Some(claim),
        };
        let finish = move |scan: FileScan<Conversion>| scan.rows.finish(rows);
        self.to_the_end(self.scan(&file, conversion), finish).await
    }

    fn scan<R: Rows<Error = Error>>(&self, file: &Reader, rows: R) -> FileScan<R> {
        FileScan::new(file.clone(), self.engine.0.limits.csv, Wanted::All, Resume::default(), rows)
    }

    /// Memory out of the pool for files of this size.
    async fn claim(&self, file_bytes: u64, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        let inner = &self.engine.0;
        let pool = if file_bytes <= SMALL_UPLOAD_BYTES { &inner.small } else { &inner.large };
        tokio::select! {
            () = self.cancel.cancelled() => Err(Error::Cancelled),
            claim = pool.claim(bytes) => claim,
        }
    }

    /// From here on a cancelled call no longer matters: what it sent is kept. Files that are to be synced are so side by
    /// side, so that little is left for the commit that others wait for, too.
    async fn stage(&self, mut csv: Draft, mut converted: Converted) -> Result<StagedPart, Error> {
        let Engine(inner) = &self.engine;
        if inner.store.is_synced() {
            let sync_csv = inner.workers.run(Lane::Upload, move || csv.sync().map(|()| csv));
            let sync_parquet =
                inner.workers.run(Lane::Upload, move || converted.parquet.draft.sync().map(|()| converted));
            let (csv_synced, parquet_synced) = join(sync_csv, sync_parquet).await;
            let csv_synced = csv_synced.and_then(|csv| csv.map_err(Error::io("an upload's spool file")));
            let parquet_synced = parquet_synced.and_then(|it| it.map_err(Error::io("the parquet file")));
            (csv, converted) = match (csv_synced, parquet_synced) {
                (Ok(csv), Ok(converted)) => (csv, converted),
                (Err(error), other) => {
                    inner.workers.discard(other);
                    return Err(error);
                }
                (Ok(csv), Err(error)) => {
                    inner.workers.discard(csv);
                    return Err(error);
                }
            };
        }
        let engine = self.engine.clone();
        inner.workers.run(Lane::Upload, move || stage(&engine, csv, converted)).await.flatten()
    }

    /// Makes it a part.
    async fn commit(&self, staged: StagedPart) -> Result<Receipt, Error> {
        let Engine(inner) = &self.engine;
        let StagedPart { files, receipt, schema, place } = staged;
        if let Some(files) = files {
            let (told, hears) = oneshot::channel();
            if let Err(refused) = inner.commits.send(Waiting { files, told }).await {
                inner.workers.discard(refused);
                return Err(Error::Draining);
            }
            hears.await.unwrap_or(Err(Error::Draining))?;
        }
        let schema = share_schema(&inner.state, schema);
        place.take(Arc::new(Part::of(&receipt, schema)));
        Ok(receipt)
    }

    /// Scans a file slice by slice; `finish` runs in the last one.
    async fn to_the_end<R, T, F>(&self, mut scan: FileScan<R>, mut finish: F) -> Result<T, Error>
    where
        R: Rows<Error = Error> + Send + 'static,
        T: Send + 'static,
        F: FnOnce(FileScan<R>) -> Result<T, Error> + Send + 'static,
    {
        enum Step<S, F, T> {
            More(S, F),
            Done(T),
        }
        loop {
            let step = slice(&self.engine, &self.cancel, move || {
                let at_end = scan.step(CONVERT_SLICE_BYTES)?;
                if at_end { finish(scan).map(Step::Done) } else { Ok(Step::More(scan, finish)) }
            });
            match step.await? {
                Step::More(scan_on, finish_later) => (scan, finish) = (scan_on, finish_later),
                Step::Done(value) => return Ok(value),
            }
        }
    }
}

/// Puts a part's files in place; where nothing is synced, its receipt too.
fn stage(engine: &Engine, csv: Draft, converted: Converted) -> Result<StagedPart, Error> {
    let Engine(inner) = engine;
    let place = PartPlace::reserve(&inner.state)?;
    let receipt = receipt_of(place.part, &csv, &converted);
    let staged = inner.store.stage(csv, converted.parquet.draft, &receipt)?;
    let files = if inner.store.is_synced() {
        Some(staged)
    } else {
        staged.commit_unsynced()?;
        None
    };
    let schema = Schema::of(&receipt.columns);
    Ok(StagedPart { files, receipt, schema, place })
}

/// Types and converts a file that is in memory.
fn convert_block(store: &Arc<Store>, limits: CsvLimits, csv: &[u8]) -> Result<Converted, Error> {
    let new_scanner = || Scanner::new(limits, Wanted::All, Resume::default());
    let (mut scanner, mut typer) = (new_scanner(), Typer::default());
    scanner.feed(csv, &mut typer)?;
    scanner.finish(&mut typer)?;
    let (rows, columns) = (scanner.into_resume().rows, typer.into_columns());
    let layout = Plan::for_file(csv.len() as u64, columns.len(), csv.len())?.layout;
    let mut conversion = Conversion { store: Arc::clone(store), columns, layout, output: None, _claim: None };
    let mut scanner = new_scanner();
    scanner.feed(csv, &mut conversion)?;
    scanner.finish(&mut conversion)?;
    conversion.finish(rows)
}

/// Columns that a file in memory can have: more than it has only if commas stand in their names.
fn columns_max(csv: &[u8]) -> usize {
    (memchr::memchr_iter(b',', header_of(csv)).count() + 1).min(COLUMNS_MAX)
}

/// How wide a file is, which decides what its conversion may take.
fn count_columns(file: &Reader, limits: CsvLimits) -> Result<usize, Error> {
    struct Count(usize);
    impl Rows for Count {
        type Error = Error;
        fn header(&mut self, names: &[String]) -> Result<(), Error> {
            self.0 = names.len();
            Ok(())
        }
        fn row(&mut self, _row: Row<'_>) -> Result<(), Error> {
            Ok(())
        }
    }
    const HEADER_BLOCK_BYTES: usize = 16 * KIB;
    let mut scan = FileScan::new(file.clone(), limits, Wanted::Column(0), Resume::default(), Count(0));
    let mut bytes = 0;
    while scan.rows.0 == 0 && !scan.step(HEADER_BLOCK_BYTES)? {
        // Only empty lines can come before the header.
        bytes += HEADER_BLOCK_BYTES;
        if bytes > 2 * HEADER_BYTES_MAX {
            return Err(CsvError::NoHeader.into());
        }
    }
    Ok(scan.rows.0)
}

/// Rows on their way into a Parquet file.
struct Conversion {
    store: Arc<Store>,
    columns: Vec<Column>,
    layout: Layout,
    /// Made when the scan begins, on a worker.
    output: Option<(BatchBuilder, PartWriter)>,
    /// Travels with the work: a cancelled upload's slice may still be running.
    _claim: Option<OwnedSemaphorePermit>,
}

impl Conversion {
    fn output(&mut self) -> Result<&mut (BatchBuilder, PartWriter), Error> {
        self.output.as_mut().ok_or_else(|| Error::Internal("a row before the header".to_owned()))
    }

    /// The last rows and the footer.
    fn finish(mut self, rows: u64) -> Result<Converted, Error> {
        let (batch, writer) = self.output()?;
        writer.write(&batch.take()?)?;
        let Some((_, writer)) = self.output else { return Err(Error::Internal("no header".to_owned())) };
        Ok(Converted { parquet: writer.finish()?, columns: self.columns, rows })
    }
}

impl Rows for Conversion {
    type Error = Error;

    fn header(&mut self, _names: &[String]) -> Result<(), Error> {
        let writer = PartWriter::new(&self.store, &self.columns, self.layout)?;
        self.output = Some((BatchBuilder::new(&self.columns), writer));
        Ok(())
    }

    fn row(&mut self, row: Row<'_>) -> Result<(), Error> {
        let (batch, writer) = self.output()?;
        batch.push(&row)?;
        if batch.is_full() {
            writer.write(&batch.take()?)?;
        }
        Ok(())
    }
}

/// Memory that typing a file may take: a block, a row that crosses its border and its unescaped cells, each in a buffer
/// that may have doubled beyond it, the columns' state.
fn typing_bytes(file_bytes: u64, columns: usize, limits: CsvLimits) -> usize {
    const TYPING_COLUMN_BYTES: usize = 256;
    let file_bytes = usize::try_from(file_bytes).unwrap_or(usize::MAX);
    (READ_BLOCK_BYTES + 4 * limits.row_bytes_max).min(file_bytes.saturating_mul(5)) + columns * TYPING_COLUMN_BYTES
}

/// What the conversion of a file may take.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    layout: Layout,
    claim_bytes: usize,
}

impl Plan {
    fn for_file(file_bytes: u64, columns: usize, longest_row_bytes: usize) -> Result<Self, Error> {
        // Text of one byte takes five in a page, so a file may take a few times its size before it is packed.
        let in_memory = usize::try_from(file_bytes.saturating_mul(3)).unwrap_or(usize::MAX);
        let row_groups_max = (COLUMN_CHUNKS_MAX / columns.max(1)).max(1);
        let row_group_bytes = ROW_GROUP_BYTES.max(in_memory / row_groups_max);
        if row_group_bytes > ROW_GROUP_BYTES_CEILING {
            return Err(Error::TooWideAndLong { columns, file_bytes });
        }
        // A row group too large for memory keeps one page of each column there.
        let spill = row_group_bytes > ROW_GROUP_BYTES;
        let page_bytes =
            if spill { (SPILL_PAGES_BYTES / columns).clamp(PAGE_BYTES_MIN, PAGE_BYTES) } else { PAGE_BYTES };
        let pages_bytes = if spill { columns * page_bytes } else { in_memory.min(row_group_bytes) };
        let column_bytes = if columns <= DICTIONARY_COLUMNS_MAX { DICTIONARY_COLUMN_BYTES } else { COLUMN_BYTES };
        let row_groups = in_memory / row_group_bytes + 1;
        // The cells of a batch stand in the builders, in the pages and in a compressed copy of a page; the last row of
        // each may be the longest.
        let batch_bytes = 3 * (BATCH_BYTES_MAX + 8 * BATCH_CELLS_MAX.min(in_memory)) + 6 * longest_row_bytes;
        let claim_bytes = (READ_BLOCK_BYTES + DRAFT_BYTES_HELD).min(in_memory)
            + pages_bytes
            + in_memory.min(batch_bytes)
            + columns * (column_bytes + row_groups * COLUMN_CHUNK_ENTRY_BYTES);
        Ok(Self { layout: Layout { row_group_bytes, page_bytes, spill }, claim_bytes })
    }
}

/// Memory that uploads share: each takes what it may need and gives it back when it is done.
pub(super) struct Pool {
    kib: Arc<Semaphore>,
    kib_max: u32,
    /// Claims that wait, at some time just now.
    waits: AtomicUsize,
}

impl Pool {
    pub(super) fn new(bytes: usize) -> Self {
        let kib_max = u32::try_from(bytes / KIB).unwrap_or(u32::MAX);
        Self { kib: Arc::new(Semaphore::new(kib_max as usize)), kib_max, waits: AtomicUsize::new(0) }
    }

    /// Waits until there is room. What asks for more than there is gets all of it, and so runs alone.
    pub(super) async fn claim(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        let kib = u32::try_from(bytes.div_ceil(KIB)).unwrap_or(u32::MAX).min(self.kib_max);
        if let Ok(claim) = Arc::clone(&self.kib).try_acquire_many_owned(kib) {
            return Ok(claim);
        }
        let _waits = Waits::new(&self.waits);
        Arc::clone(&self.kib).acquire_many_owned(kib).await.ok().ok_or(Error::Draining)
    }

    fn is_waited_for(&self) -> bool {
        self.waits.load(Ordering::Relaxed) > 0
    }

    /// The same if there is room now.
    fn try_claim(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.div_ceil(KIB)).ok()?;
        Arc::clone(&self.kib).try_acquire_many_owned(kib).ok()
    }
}

/// One who waits for a claim, even if it stops waiting.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn new(waits: &'a AtomicUsize) -> Self {
        waits.fetch_add(1, Ordering::Relaxed);
        Self(waits)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn receipt_of(part: PartId, csv: &Draft, converted: &Converted) -> Receipt {
    let Converted { parquet, columns, rows } = converted;
    Receipt {
        format: FORMAT_VERSION,
        part,
        rows: *rows,
        columns: columns.clone(),
        csv: csv.info(),
        parquet: parquet.draft.info(),
        row_groups: parquet.row_groups,
        footer_bytes: parquet.footer_bytes,
        uploaded_at: Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true),
    }
}

/// The same header kept once for all parts that have it; none if there is no room for another.
pub(super) fn share_schema(state: &Shared, schema: Schema) -> Option<Arc<Schema>> {
    let mut hash = Xxh3::new();
    for (name, column_type) in schema.columns() {
        hash.update(&(name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update(&[*column_type as u8]);
    }
    let hash = hash.digest128();
    if let Some(kept) = state.with(|state| state.parts.schema(hash)) {
        // Compared outside of the lock: a header can be long.
        return (*kept == schema).then_some(kept);
    }
    let schema = Arc::new(schema);
    if state.with(|state| state.parts.keep_schema(hash, &schema)) {
        return Some(schema);
    }
    // Full, or another upload kept it in between.
    state.with(|state| state.parts.schema(hash)).filter(|kept| **kept == *schema)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{COLUMNS_MAX, LARGE_CONVERSION_BYTES, MIB, SMALL_CONVERSION_BYTES};

    #[test]
    fn no_small_file_has_more_columns_than_it_claims_memory_for() {
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

    #[test]
    fn plans_keep_to_the_pools_and_the_footer_small() {
        const GIB: u64 = 1024 * MIB as u64;
        for columns in [1, 3, 34, 128, 129, 1000, COLUMNS_MAX] {
            for file_bytes in [0, 100, SMALL_UPLOAD_BYTES, 10 * MIB as u64, GIB, 10 * GIB, 40 * GIB] {
                let plan = Plan::for_file(file_bytes, columns, 64 * KIB).expect("it can be converted");
                let pool =
                    if file_bytes <= SMALL_UPLOAD_BYTES { SMALL_CONVERSION_BYTES } else { LARGE_CONVERSION_BYTES };
                // Only the widest small files ask for more than their pool has, and then run alone.
                let alone = columns == COLUMNS_MAX && file_bytes <= SMALL_UPLOAD_BYTES;
                assert!(plan.claim_bytes <= pool || alone, "{columns} columns, {file_bytes} bytes: {plan:?}");
                let row_groups = 3 * file_bytes / plan.layout.row_group_bytes as u64;
                let column_chunks = row_groups * columns as u64;
                assert!(column_chunks <= COLUMN_CHUNKS_MAX as u64, "{columns} columns, {file_bytes} bytes: {plan:?}");
            }
        }
        let too_much = Plan::for_file(100 * GIB, COLUMNS_MAX, 64 * KIB).expect_err("too wide and long");
        assert!(matches!(too_much, Error::TooWideAndLong { .. }));
    }
}
