//! The upgrade of parts of format version 1. (Verifying the whole data folder on request is in `scrub.rs`.)
//!
//! Other parts are verified block by block while they are read. Version 1 had no checksums of blocks, so such a part is compared
//! with its receipt as a whole when it is first used, and the checksums of its blocks are stored then.
//!
//! Memory: one block of a file, and one page of the list of checksums.

use std::{hash::Hasher, io::Write, sync::Arc};

use twox_hash::XxHash3_64;

use crate::{
    engine::{
        parquet::{file::checked_chunk_ranges, wide::is_wide},
        runtime::context::Context,
        state::Lane,
        storage::{
            Store,
            checksums::{BlockHasher, CHUNK_BLOCK_BYTES, PageWriter, checksum, listed_blocks},
            draft::{Draft, checksum_text},
            reader::Reader,
        },
    },
    error::Error,
    limits::{COLUMN_CHUNKS_MAX, NAME_BYTES_MAX, READ_BLOCK_BYTES, TASK_BYTES},
    model::{
        checksum::{from_hex, to_hex},
        format::Format,
        part::{FORMAT_VERSION, PARQUET_TAIL_BYTES, Part, PartId, Receipt, ReceiptChecks},
    },
};

async fn read_receipt(context: &Arc<Context>, lane: Lane, id: PartId) -> Result<Receipt, Error> {
    let store = Arc::clone(&context.store);
    context.workers.run(lane, move || store.receipt(id)).await.flatten()
}

/// Errors: the checksum is not the one in the receipt.
fn compare(file: &Reader, hash: &XxHash3_64, expected: &str) -> Result<(), Error> {
    let found = checksum_text(hash);
    if found == expected {
        return Ok(());
    }
    Err(file.damaged(&format!("it is not what was written: its checksum is {found}, the receipt says {expected}")))
}

/// Reads a whole file on the workers and passes its blocks to `step`. The blocks are verified if `file` is a verified reader.
async fn fold_file<T: Send + 'static>(
    context: &Arc<Context>,
    lane: Lane,
    file: &Reader,
    mut state: T,
    step: fn(&mut T, &[u8]) -> Result<(), Error>,
) -> Result<T, Error> {
    let (mut blocks, file_bytes, mut offset) = (file.blocks(), file.bytes(), 0);
    while offset < file_bytes {
        let task = move || {
            let end = file_bytes.min(offset + TASK_BYTES as u64);
            while offset < end {
                let block = blocks.from(offset)?;
                offset += block.len() as u64;
                step(&mut state, block)?;
            }
            Ok::<_, Error>((blocks, offset, state))
        };
        (blocks, offset, state) = context.workers.run(lane, task).await.flatten()?;
    }
    Ok(state)
}

/// An upper bound of the footers that Tally writes: twice the names, which have up to 1 KiB for each of 32,768 chunks.
const FOOTER_BYTES_MAX: u64 = 2 * (COLUMN_CHUNKS_MAX * NAME_BYTES_MAX) as u64;

/// Writes the file that lists the checksums of blocks.
struct SumsFile {
    pages: PageWriter,
    draft: Draft,
}

impl SumsFile {
    fn new(store: &Store, seed: u64) -> Result<Self, Error> {
        Ok(Self { pages: PageWriter::new(seed), draft: store.draft()? })
    }

    fn push(&mut self, sum: u64) -> Result<(), Error> {
        self.pages.push(sum).map_or(Ok(()), |page| self.write(&page))
    }

    fn finish(mut self) -> Result<Draft, Error> {
        if let Some(page) = self.pages.end() {
            self.write(&page)?;
        }
        Ok(self.draft)
    }

    fn write(&mut self, page: &[u8]) -> Result<(), Error> {
        self.draft.write_all(page).map_err(Error::io("a list of checksums"))
    }
}

/// Verifies a part of format version 1 as a whole, and stores the checksums of its blocks.
pub(super) async fn upgrade(context: &Arc<Context>, lane: Lane, part: &Arc<Part>) -> Result<(), Error> {
    // One at a time: a second caller then finds the part upgraded.
    let _permit = context.upgrades.acquire().await.ok().ok_or(Error::Draining)?;
    let is_done = |part: Option<&Arc<Part>>| part.is_none_or(|part| part.checks.is_some());
    if is_done(context.state.with(|state| state.parts.snapshot()).parts.get(&part.id)) {
        return Ok(());
    }
    let mut receipt = read_receipt(context, lane, part.id).await?;
    let has_list = listed_blocks(part.csv_bytes) > 0;
    // Not random: if the process is killed between list and receipt, the next attempt writes the same list.
    let seed = from_hex(&receipt.csv.xxh3);
    let seed = seed.ok_or_else(|| Error::Damaged { part: part.id, what: "receipt: no checksum".to_owned() })?;
    let store = Arc::clone(&context.store);
    let sums = context.workers.run(lane, move || SumsFile::new(&store, seed)).await.flatten()?;
    let sums = csv_sums(context, lane, part, &receipt, sums).await?;
    let (sums, footer) = parquet_sums(context, lane, part, &receipt, sums).await?;
    let chunks_in_sums = !part.is_small_parquet();
    let sums_seed = has_list.then(|| to_hex(seed));
    receipt.format = FORMAT_VERSION;
    receipt.checks = Some(ReceiptChecks { sums_seed, footer_xxh3: to_hex(footer), chunks_in_sums });
    // Only now, because reading takes long, and meanwhile parts may be removed and restored.
    let _permit = match context.part_changes.acquire().await {
        Ok(permit) if context.state.with(|state| state.parts.contains_unpacked(part.id)) => permit,
        removed_or_draining => {
            context.workers.discard(sums);
            return removed_or_draining.ok().map(drop).ok_or(Error::Draining);
        }
    };
    let (store, schema) = (Arc::clone(&context.store), part.schema.clone());
    let write = move || {
        let sums = sums.finish()?;
        store.upgrade_receipt(&receipt, (has_list || chunks_in_sums).then_some(sums))?;
        Ok::<_, Error>(Part::of(&receipt, schema))
    };
    let upgraded = context.workers.run(lane, write).await.flatten()?;
    tracing::info!(part = %upgraded.id, "verified a part of format version 1, and stored checksums of its blocks");
    context.state.with(|state| state.parts.replace(Arc::new(upgraded)));
    Ok(())
}

/// Returns the list if `result` is `Ok`. Otherwise a worker removes the list.
fn unless_failed(context: &Arc<Context>, sums: SumsFile, result: Result<(), Error>) -> Result<SumsFile, Error> {
    match result {
        Ok(()) => Ok(sums),
        Err(error) => {
            context.workers.discard(sums);
            Err(error)
        }
    }
}

/// Compares the CSV with the receipt and lists the checksums of its blocks, if it has more than one.
async fn csv_sums(
    context: &Arc<Context>,
    lane: Lane,
    part: &Arc<Part>,
    receipt: &Receipt,
    sums: SumsFile,
) -> Result<SumsFile, Error> {
    let (store, of) = (Arc::clone(&context.store), Arc::clone(part));
    let file = context.workers.run(lane, move || store.open_part_unverified(&of, Format::Csv)).await.flatten()?;
    let is_listed = listed_blocks(part.csv_bytes) > 0;
    let state = (XxHash3_64::new(), sums, is_listed);
    // A block of the reader is a block of the list.
    let (hash, sums, _) = fold_file(context, lane, &file, state, |(hash, sums, is_listed), block| {
        hash.write(block);
        if *is_listed { sums.push(checksum(block)) } else { Ok(()) }
    })
    .await?;
    unless_failed(context, sums, compare(&file, &hash, &receipt.csv.xxh3))
}

/// Compares the Parquet file with the receipt, and the receipt with its footer. Unless the file is small, lists the checksums
/// of its column chunks' blocks. Also returns the checksum of the footer.
async fn parquet_sums(
    context: &Arc<Context>,
    lane: Lane,
    part: &Arc<Part>,
    receipt: &Receipt,
    sums: SumsFile,
) -> Result<(SumsFile, u64), Error> {
    struct Tail {
        hash: XxHash3_64,
        /// Bytes before the tail that have not been read.
        left: u64,
        bytes: Vec<u8>,
    }
    let (store, of) = (Arc::clone(&context.store), Arc::clone(part));
    let file = context.workers.run(lane, move || store.open_part_unverified(&of, Format::Parquet)).await.flatten()?;
    // The length of the footer has not been verified yet.
    let tail_bytes = u64::from(part.footer_bytes) + PARQUET_TAIL_BYTES as u64;
    let before_tail = file.bytes().checked_sub(tail_bytes).filter(|_| tail_bytes <= FOOTER_BYTES_MAX);
    let before_tail = match before_tail.ok_or_else(|| file.damaged("its footer is not as long as the receipt says")) {
        Ok(before_tail) => before_tail,
        Err(error) => {
            context.workers.discard(sums);
            return Err(error);
        }
    };
    let wide = match is_wide(part) {
        true => Some(context.wide_reads.acquire().await.ok().ok_or(Error::Draining)?),
        false => None,
    };
    let tail = Tail { hash: XxHash3_64::new(), left: before_tail, bytes: Vec::new() };
    let tail = fold_file(context, lane, &file, tail, |tail, bytes| {
        tail.hash.write(bytes);
        let before = usize::try_from(tail.left).unwrap_or(usize::MAX).min(bytes.len());
        tail.left -= before as u64;
        tail.bytes.extend_from_slice(&bytes[before..]);
        Ok(())
    })
    .await?;
    let sums = unless_failed(context, sums, compare(&file, &tail.hash, &receipt.parquet.xxh3))?;
    // From here on the footer is known to be undamaged.
    let (footer, of, columns) = (checksum(&tail.bytes), Arc::clone(part), receipt.columns.clone());
    let read = move || checked_chunk_ranges(&tail.bytes, &of, &columns);
    let ranges = context.workers.run(lane, read).await?.map_err(|what| file.damaged(&what));
    drop(wide);
    let ranges = match ranges {
        Ok(ranges) if !part.is_small_parquet() => ranges,
        result => return Ok((unless_failed(context, sums, result.map(drop))?, footer)),
    };
    let hashed = hash_chunks(context, lane, &file, ranges, sums).await?;
    Ok((unless_failed(context, hashed.sums, compare(&file, &hashed.hash, &receipt.parquet.xxh3))?, footer))
}

/// The state of the second pass over a Parquet file, which goes chunk by chunk.
struct ChunkHashes {
    /// The checksum of all bytes, which must be the same as in the first pass.
    hash: XxHash3_64,
    sums: SumsFile,
    hasher: BlockHasher,
    /// Ends of the chunks that have not been read, in reverse order.
    ends: Vec<u64>,
    offset: u64,
}

/// Lists the checksums of the chunks' blocks. The chunks follow one another, after the bytes before the first.
async fn hash_chunks(
    context: &Arc<Context>,
    lane: Lane,
    file: &Reader,
    ranges: Vec<(u64, u64)>,
    sums: SumsFile,
) -> Result<ChunkHashes, Error> {
    let first = ranges.first().map_or(0, |(start, _)| *start);
    let mut ends: Vec<_> = ranges.iter().map(|(_, end)| *end).collect();
    ends.reverse();
    let hasher = BlockHasher::new(CHUNK_BLOCK_BYTES);
    let state = (ChunkHashes { hash: XxHash3_64::new(), sums, hasher, ends, offset: 0 }, first);
    let (hashes, _) = fold_file(context, lane, file, state, |(hashes, first), mut bytes| {
        hashes.hash.write(bytes);
        let before = usize::try_from(first.saturating_sub(hashes.offset)).unwrap_or(usize::MAX).min(bytes.len());
        hashes.offset += before as u64;
        bytes = &bytes[before..];
        while let Some(&end) = hashes.ends.last()
            && !bytes.is_empty()
        {
            let left = usize::try_from(end - hashes.offset).unwrap_or(usize::MAX);
            let (taken, rest) = bytes.split_at(bytes.len().min(left));
            let mut found = Vec::with_capacity(1 + READ_BLOCK_BYTES / CHUNK_BLOCK_BYTES);
            hashes.hasher.update(taken, |sum| found.push(sum));
            hashes.offset += taken.len() as u64;
            bytes = rest;
            if hashes.offset == end {
                found.extend(hashes.hasher.end());
                hashes.ends.pop();
            }
            found.into_iter().try_for_each(|sum| hashes.sums.push(sum))?;
        }
        Ok(())
    })
    .await?;
    Ok(hashes)
}
