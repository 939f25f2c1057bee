//! Bytes to a part: receive into a draft, type the whole file, convert it, publish it, register it.
//!
//! Everything that touches a file or a cell is a slice on a worker; this file is the order of those slices. The task
//! runs apart from the call that brought it, so that a client that goes away leaves clean-up to a worker, too.
//!
//! Memory: receiving takes one block for an upload of any size. Typing and conversion take a claim, counted in bytes,
//! out of one of two pools, and wait for it with the upload safe in its draft and nothing else held.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use chrono::{SecondsFormat, Utc};
use futures_util::{Stream, StreamExt, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::Xxh3;

use super::{
    Engine,
    convert::{BatchBuilder, Typer},
    csv::{FileScan, Resume, Row, Rows, Wanted},
    parquet::{Layout, PartWriter, Written},
    part::{Column, FORMAT_VERSION, Part, PartId, Receipt, Schema},
    state::{Lane, Shared},
    store::{Draft, Reader, Store, checksum_text},
};
use crate::{
    error::{CsvError, Error},
    limits::{
        BATCH_BYTES_MAX, BATCH_CELLS_MAX, COLUMN_CHUNK_ENTRY_BYTES, COLUMN_CHUNKS_MAX, CsvLimits,
        DICTIONARY_COLUMNS_MAX, HEADER_BYTES_MAX, KIB, MIB, PAGE_BYTES, PAGE_BYTES_MIN, PARTS_MAX, READ_BLOCK_BYTES,
        ROW_GROUP_BYTES, ROW_GROUP_BYTES_CEILING, SMALL_UPLOAD_BYTES, SPILL_PAGES_BYTES, SPOOL_BLOCK_BYTES,
    },
};

/// Bytes of CSV that one slice of typing or conversion reads: about 10 ms of work.
const CONVERT_SLICE_BYTES: usize = MIB;
/// What the writer and the builders hold for a column before its first value, with and without a dictionary.
const COLUMN_BYTES: usize = 10 * KIB;
const DICTIONARY_COLUMN_BYTES: usize = 64 * KIB;

/// Runs one upload from its first byte to its receipt.
pub(super) async fn run<S>(engine: Engine, body: S, cancel: CancellationToken) -> Result<Receipt, Error>
where
    S: Stream<Item = Result<Bytes, Error>> + Unpin,
{
    let upload = Upload { engine, cancel };
    let limits = upload.engine.0.limits.csv;
    let open = move |draft: Draft| {
        let file = Reader::open(draft.path())?;
        let columns_count = count_columns(&file, limits)?;
        Ok((draft, file, columns_count))
    };
    let (csv, file, columns_count) = receive(&upload.engine, &upload.cancel, body, open).await?;
    match upload.type_and_convert(file, columns_count).await {
        Ok((parquet, columns, rows)) => upload.publish(csv, parquet, columns, rows).await,
        Err(error) => {
            upload.engine.0.workers.discard(csv);
            Err(error)
        }
    }
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
    enum Step<F, T> {
        More(Draft, F),
        Done(T),
    }
    let mut draft: Option<Draft> = None;
    let mut finish = finish;
    loop {
        let bytes_before = draft.as_ref().map_or(0, Draft::bytes);
        let (block, at_end) = match next_block(engine, cancel, &mut body, bytes_before).await {
            Ok(next) => next,
            Err(error) => {
                engine.0.workers.discard(draft);
                return Err(error);
            }
        };
        let store = Arc::clone(&engine.0.store);
        let write = move || {
            let mut draft = draft.map_or_else(|| store.draft(), Ok)?;
            std::io::Write::write_all(&mut draft, &block).map_err(Error::io("an upload's spool file"))?;
            if at_end { finish(draft).map(Step::Done) } else { Ok(Step::More(draft, finish)) }
        };
        match slice(engine, cancel, write).await? {
            Step::More(written, finish_later) => (draft, finish) = (Some(written), finish_later),
            Step::Done(value) => return Ok(value),
        }
    }
}

/// About a block of the stream, and whether that was its end. Copied, so that small pieces pin no large buffers.
async fn next_block<S>(
    engine: &Engine,
    cancel: &CancellationToken,
    body: &mut S,
    bytes_before: u64,
) -> Result<(Vec<u8>, bool), Error>
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
            Ok(None) => return Ok((block, true)),
            Err(_elapsed) => {
                let seconds = limits.upload_idle_max.as_secs();
                return Err(Error::Aborted(format!("nothing came for {seconds} s")));
            }
        }
        if bytes_before + block.len() as u64 > limits.upload_bytes_max {
            return Err(Error::UploadTooLarge { bytes_max: limits.upload_bytes_max });
        }
    }
    Ok((block, false))
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

struct Upload {
    engine: Engine,
    cancel: CancellationToken,
}

impl Upload {
    /// Types and converts a file that is complete on disk, each with the memory it may need.
    async fn type_and_convert(&self, file: Reader, columns_count: usize) -> Result<(Written, Vec<Column>, u64), Error> {
        let inner = &self.engine.0;
        let claim = self.claim(&file, typing_bytes(&file, columns_count, inner.limits.csv)).await?;
        let (columns, rows, longest_row_bytes) = self
            .to_the_end(self.scan(&file, Typer::default()), |scan| {
                let (rows, longest_row_bytes) = (scan.rows_count(), scan.longest_row_bytes());
                Ok((scan.rows.into_columns(), rows, longest_row_bytes))
            })
            .await?;
        drop(claim);

        let plan = Plan::for_file(file.bytes(), columns_count, longest_row_bytes)?;
        let claim = self.claim(&file, plan.claim_bytes).await?;
        let store = Arc::clone(&inner.store);
        let conversion = Conversion { store, columns, layout: plan.layout, output: None, _claim: claim };
        let (written, columns) = self.to_the_end(self.scan(&file, conversion), |scan| scan.rows.finish()).await?;
        Ok((written, columns, rows))
    }

    fn scan<R: Rows<Error = Error>>(&self, file: &Reader, rows: R) -> FileScan<R> {
        FileScan::new(file.clone(), self.engine.0.limits.csv, Wanted::All, Resume::default(), rows)
    }

    /// Memory out of the pool for files of this size.
    async fn claim(&self, file: &Reader, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        let inner = &self.engine.0;
        let pool = if file.bytes() <= SMALL_UPLOAD_BYTES { &inner.small } else { &inner.large };
        tokio::select! {
            () = self.cancel.cancelled() => Err(Error::Cancelled),
            claim = pool.claim(bytes) => claim,
        }
    }

    /// From here on a cancelled call no longer matters: what it sent is kept.
    async fn publish(&self, csv: Draft, parquet: Written, columns: Vec<Column>, rows: u64) -> Result<Receipt, Error> {
        let Engine(inner) = &self.engine;
        let Some(part) = inner.state.with(|state| state.parts.reserve()) else {
            inner.workers.discard((csv, parquet));
            return Err(Error::TooManyParts { parts_max: PARTS_MAX });
        };
        let store = Arc::clone(&inner.store);
        let published = self.engine.0.workers.run(Lane::Upload, move || {
            let receipt = receipt_of(part, &csv, &parquet, columns, rows);
            store.publish(csv, parquet.draft, &receipt)?;
            let schema = Schema::of(&receipt.columns);
            Ok((receipt, schema))
        });
        match published.await.flatten() {
            Ok((receipt, schema)) => {
                let schema = share_schema(&inner.state, schema);
                let part = Arc::new(Part::of(&receipt, schema));
                inner.state.with(|state| state.parts.insert(part));
                Ok(receipt)
            }
            Err(error) => {
                inner.state.with(|state| state.parts.release());
                Err(error)
            }
        }
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
    _claim: OwnedSemaphorePermit,
}

impl Conversion {
    fn output(&mut self) -> Result<&mut (BatchBuilder, PartWriter), Error> {
        self.output.as_mut().ok_or_else(|| Error::Internal("a row before the header".to_owned()))
    }

    /// The last rows and the footer.
    fn finish(mut self) -> Result<(Written, Vec<Column>), Error> {
        let (batch, writer) = self.output()?;
        writer.write(&batch.take()?)?;
        let Some((_, writer)) = self.output else { return Err(Error::Internal("no header".to_owned())) };
        Ok((writer.finish()?, self.columns))
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
fn typing_bytes(file: &Reader, columns: usize, limits: CsvLimits) -> usize {
    const TYPING_COLUMN_BYTES: usize = 256;
    let file_bytes = usize::try_from(file.bytes()).unwrap_or(usize::MAX);
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
        let claim_bytes = READ_BLOCK_BYTES.min(in_memory)
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
}

impl Pool {
    pub(super) fn new(bytes: usize) -> Self {
        let kib_max = u32::try_from(bytes / KIB).unwrap_or(u32::MAX);
        Self { kib: Arc::new(Semaphore::new(kib_max as usize)), kib_max }
    }

    /// Waits until there is room. What asks for more than there is gets all of it, and so runs alone.
    pub(super) async fn claim(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        let kib = u32::try_from(bytes.div_ceil(KIB)).unwrap_or(u32::MAX).min(self.kib_max);
        Arc::clone(&self.kib).acquire_many_owned(kib).await.ok().ok_or(Error::Draining)
    }
}

fn receipt_of(part: PartId, csv: &Draft, parquet: &Written, columns: Vec<Column>, rows: u64) -> Receipt {
    Receipt {
        format: FORMAT_VERSION,
        part,
        rows,
        columns,
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
