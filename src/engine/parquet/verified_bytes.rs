//! The bytes of a part's Parquet file in their order, whatever they mean, for downloads. Each block is read and verified once,
//! and the footer is parsed once for [`DOWNLOAD_BLOCKS_MAX`] blocks.
//!
//! Memory: a block, and offsets and checksums of the blocks after it; while these are read, the footer.

use std::collections::VecDeque;

use bytes::Bytes;

use super::file::{FileBlock, ParquetFile, Tail};
use crate::{
    engine::storage::{
        checksums::{CHUNK_BLOCK_BYTES, checksum},
        reader::Reader,
    },
    error::Error,
    limits::{DOWNLOAD_BLOCK_BYTES, DOWNLOAD_BLOCK_ENTRY_BYTES, DOWNLOAD_BLOCKS_MAX},
    model::part::Part,
};

/// The first bytes of a Parquet file. No checksum of the part covers them.
const MAGIC: &[u8] = b"PAR1";

const _: () = assert!(CHUNK_BLOCK_BYTES <= DOWNLOAD_BLOCK_BYTES);
const _: () = assert!(size_of::<FileBlock>() <= DOWNLOAD_BLOCK_ENTRY_BYTES);

/// Reads a Parquet file from any offset on.
#[derive(Default)]
pub(crate) struct VerifiedBytes {
    /// The next blocks, each at the end of the one before it.
    next: VecDeque<FileBlock>,
    /// The block that was read last, verified.
    block: Vec<u8>,
    /// Its offset in the file.
    start: u64,
}

impl VerifiedBytes {
    /// Whether the bytes at `offset` can be read without the footer.
    pub(crate) fn covers(&self, offset: u64) -> bool {
        self.has(offset) || self.next.front().is_some_and(|next| next.has(offset))
    }

    fn has(&self, offset: u64) -> bool {
        offset >= self.start && offset - self.start < self.block.len() as u64
    }

    /// Verified bytes from `offset` on: at most `bytes_max`, and at least one unless the file ends there.
    ///
    /// Errors: they are not what was written; they cannot be read.
    pub(crate) fn read(&mut self, file: &Reader, part: &Part, offset: u64, bytes_max: usize) -> Result<Bytes, Error> {
        let left = usize::try_from(file.bytes().saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = bytes_max.min(left);
        if wanted > 0 && !self.covers(offset) {
            self.next = blocks_from(file, part, offset)?;
        }
        let mut found = Vec::with_capacity(wanted);
        while found.len() < wanted {
            let at = offset + found.len() as u64;
            if !self.has(at) {
                match self.next.pop_front() {
                    Some(next) if next.has(at) => self.load(file, next)?,
                    None if !found.is_empty() => break,
                    _ => return Err(file.damaged(&format!("no column chunk has its byte {at}"))),
                }
            }
            let from = usize::try_from(at - self.start).unwrap_or(usize::MAX);
            let end = self.block.len().min(from + (wanted - found.len()));
            found.extend_from_slice(&self.block[from..end]);
        }
        Ok(found.into())
    }

    fn load(&mut self, file: &Reader, FileBlock { start, bytes, sum }: FileBlock) -> Result<(), Error> {
        self.block.clear(); // empty after an error
        let mut block = std::mem::take(&mut self.block);
        block.resize(bytes as usize, 0);
        file.fill_unverified(start, &mut block)?;
        if checksum(&block) != sum {
            let end = start + u64::from(bytes);
            return Err(file.damaged(&format!("the bytes from {start} to {end} are not what was written")));
        }
        (self.block, self.start) = (block, start);
        Ok(())
    }
}

/// The blocks of a file from the one with the byte at `offset` on, at most about [`DOWNLOAD_BLOCKS_MAX`].
fn blocks_from(file: &Reader, part: &Part, offset: u64) -> Result<VecDeque<FileBlock>, Error> {
    if offset >= Tail::start(file, part)? {
        return Ok(blocks_of_tail(&Tail::read(file, part)?, offset));
    }
    let mut blocks = VecDeque::new();
    let mut from = offset;
    let magic = FileBlock { start: 0, bytes: 4, sum: checksum(MAGIC) };
    if magic.has(offset) {
        from = u64::from(magic.bytes);
        blocks.push_back(magic);
    }
    // With the first bytes come some of the first chunk, so that an answer does not begin if that is damaged.
    blocks.extend(ParquetFile::open(file, part)?.chunk_blocks_from(from, DOWNLOAD_BLOCKS_MAX - blocks.len())?);
    Ok(blocks)
}

/// The footer has one checksum, so it was read and verified as a whole; its blocks get checksums here.
fn blocks_of_tail(tail: &Tail, offset: u64) -> VecDeque<FileBlock> {
    let starts = (tail.start..).step_by(CHUNK_BLOCK_BYTES);
    let block = |(bytes, start): (&[u8], u64)| FileBlock {
        start,
        bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
        sum: checksum(bytes),
    };
    let blocks = tail.bytes.chunks(CHUNK_BLOCK_BYTES).zip(starts).map(block);
    blocks.skip_while(|block| !block.has(offset)).take(DOWNLOAD_BLOCKS_MAX).collect()
}

#[cfg(test)]
#[cfg(not(feature = "model"))]
mod tests {
    use std::{fmt::Write as _, sync::Arc};

    use futures_util::stream;

    use super::*;
    use crate::{
        engine::{Engine, storage::reader::reads},
        limits::{KIB, Limits, MIB},
        model::{durability::Durability, format::Format},
    };

    const PIECE: usize = 48 * KIB;

    /// The Parquet file of a part, and its bytes.
    struct Stored {
        engine: Engine,
        folder: tempfile::TempDir,
        part: Arc<Part>,
        file: Reader,
        bytes: Vec<u8>,
    }

    async fn stored(csv: String) -> Stored {
        let folder = tempfile::TempDir::new().expect("a folder");
        let opened = Engine::open(folder.path(), Durability::None, Limits::default()).await;
        let (engine, _) = opened.expect("a data folder");
        engine.upload(stream::iter([Ok::<_, Error>(Bytes::from(csv))])).await.expect("a valid file");
        let part = engine.context.state.with(|state| state.parts.next_unpacked(None)).expect("a part");
        let file = engine.context.store.open_part(&part, Format::Parquet).expect("readable");
        let bytes = std::fs::read(folder.path().join("parts/1.parquet")).expect("readable");
        Stored { engine, folder, part, file, bytes }
    }

    /// Many blocks: texts that do not compress. Or many chunks that are shorter than a piece.
    fn csv_of(columns: usize, rows: usize, is_wide: bool) -> String {
        let mut random = fastrand::Rng::with_seed(columns as u64);
        let mut csv = (0..columns).map(|column| format!("c{column}")).collect::<Vec<_>>().join(",") + "\n";
        for _ in 0..rows {
            for column in 0..columns {
                let separator = if column + 1 < columns { "," } else { "\n" };
                match is_wide {
                    true => write!(csv, "{}{separator}", random.u8(..)).expect("memory"),
                    false => write!(csv, "{:016x}{:016x}{separator}", random.u64(..), random.u64(..)).expect("memory"),
                }
            }
        }
        csv
    }

    #[tokio::test]
    async fn each_block_is_read_once_and_the_footer_seldom() {
        for (columns, rows, is_wide) in [(1, 300_000, false), (1500, 20, true), (2, 3, false), (3, 0, false)] {
            let Stored { engine, folder: _folder, part, file, bytes } = stored(csv_of(columns, rows, is_wide)).await;
            assert!(is_wide || rows < 10 || bytes.len() > 8 * MIB, "{}", bytes.len());
            reads::take();
            let (mut content, mut found) = (VerifiedBytes::default(), Vec::new());
            while found.len() < bytes.len() {
                let piece = content.read(&file, &part, found.len() as u64, PIECE).expect("undamaged");
                assert!((1..=PIECE).contains(&piece.len()));
                found.extend_from_slice(&piece);
            }
            assert!(
                found == bytes && content.read(&file, &part, found.len() as u64, PIECE).is_ok_and(|it| it.is_empty())
            );
            let tail = bytes.len() as u64 - u64::from(part.footer_bytes) - 8;
            let (footers, blocks): (Vec<_>, Vec<_>) = reads::take().into_iter().partition(|read| read.start == tail);
            let lengths = blocks.iter().map(|read| read.end - read.start);
            if !part.is_small_parquet() {
                assert_eq!(lengths.sum::<u64>(), tail, "{columns} columns");
                let plans = blocks.len().div_ceil(DOWNLOAD_BLOCKS_MAX);
                assert!(footers.len() <= plans + 2, "{} footers for {} blocks", footers.len(), blocks.len());
            }
            engine.close();
        }
    }

    #[tokio::test]
    async fn bytes_from_anywhere_are_those_of_the_file_or_an_error() {
        let Stored { engine, folder, part, file, bytes } = stored(csv_of(2, 10_000, false)).await;
        let (whole, footer) = (bytes.len() as u64, u64::from(part.footer_bytes));
        for offset in
            [0, 1, 3, 4, 5, PIECE as u64, whole / 2, whole - footer - 9, whole - footer - 8, whole - 8, whole - 1]
        {
            for bytes_max in [1, 3, 100, PIECE] {
                let found = VerifiedBytes::default().read(&file, &part, offset, bytes_max).expect("undamaged");
                let from = usize::try_from(offset).expect("small");
                assert!(!found.is_empty() && bytes[from..].starts_with(&found), "{offset}");
            }
        }
        let path = folder.path().join("parts/1.parquet");
        for at in [
            0,
            3,
            4,
            PIECE,
            bytes.len() / 2,
            bytes.len() - part.footer_bytes as usize - 9,
            bytes.len() - 9,
            bytes.len() - 1,
        ] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, damaged).expect("written");
            let mut content = VerifiedBytes::default();
            let mut offset = 0;
            let error = loop {
                match content.read(&file, &part, offset, PIECE) {
                    Ok(piece) if piece.is_empty() => break None,
                    Ok(piece) => offset += piece.len() as u64,
                    Err(error) => break Some(error.to_string()),
                }
            };
            assert!(
                offset <= at as u64 && error.is_some_and(|it| it.starts_with("part 1 is damaged: parquet")),
                "{at}"
            );
        }
        engine.close();
    }
}
