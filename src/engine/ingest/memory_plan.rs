//! How much memory the steps of an upload may need, so that it can be reserved before they run.
//!
//! This is arithmetic: nothing here allocates or reserves memory. The pools are in the engine's `Context`; small and large
//! files have separate ones, so small uploads never wait for large ones.

use crate::{
    engine::parquet::{chunk_checksums::ChunkChecksums, writer::Layout},
    error::Error,
    limits::{
        BATCH_BYTES_MAX, BATCH_CELLS_MAX, COLUMN_CHUNK_ENTRY_BYTES, COLUMN_CHUNKS_MAX, CsvLimits,
        DICTIONARY_COLUMNS_MAX, DRAFT_BUFFER_BYTES, KIB, PAGE_BYTES, PAGE_BYTES_MIN, READ_BLOCK_BYTES, ROW_GROUP_BYTES,
        ROW_GROUP_BYTES_CEILING, SPILL_PAGES_BYTES,
    },
};

/// What the writer and the builders allocate for a column before its first value, without and with a dictionary.
const COLUMN_BYTES: usize = 10 * KIB;
const DICTIONARY_COLUMN_BYTES: usize = 64 * KIB;

/// Bytes that finding the types of a file may need: a block, a row that crosses the end of a block, the unescaped cells of
/// that row (both in buffers that may be twice as long as their content), and the state of the columns.
pub fn typing_bytes(file_bytes: u64, columns: usize, limits: CsvLimits) -> usize {
    const TYPING_COLUMN_BYTES: usize = 256;
    let file_bytes = usize::try_from(file_bytes).unwrap_or(usize::MAX);
    (READ_BLOCK_BYTES + 4 * limits.row_bytes_max).min(file_bytes.saturating_mul(5)) + columns * TYPING_COLUMN_BYTES
}

/// The layout of a Parquet file, and the memory that the conversion to it may need.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// The sizes of row groups and pages.
    pub layout: Layout,
    /// Bytes to reserve before the conversion.
    pub memory_bytes: usize,
}

impl Plan {
    /// The plan for a CSV file of `file_bytes` and `columns`, whose longest row has `longest_row_bytes`.
    ///
    /// Errors: the file has so many columns and bytes that a row group fits neither in memory nor in a spill file.
    pub fn for_file(file_bytes: u64, columns: usize, longest_row_bytes: usize) -> Result<Self, Error> {
        // A text of one byte takes five bytes in a page, so a file may need a few times its size before its pages are compressed.
        let in_memory = usize::try_from(file_bytes.saturating_mul(3)).unwrap_or(usize::MAX);
        let row_groups_max = (COLUMN_CHUNKS_MAX / columns.max(1)).max(1);
        let row_group_bytes = ROW_GROUP_BYTES.max(in_memory / row_groups_max);
        if row_group_bytes > ROW_GROUP_BYTES_CEILING {
            return Err(Error::TooWideAndLong { columns, file_bytes });
        }
        // Of a row group that is too large for memory, only one page of each column is in memory.
        let spill = row_group_bytes > ROW_GROUP_BYTES;
        let page_bytes =
            if spill { (SPILL_PAGES_BYTES / columns).clamp(PAGE_BYTES_MIN, PAGE_BYTES) } else { PAGE_BYTES };
        let pages_bytes = if spill { columns * page_bytes } else { in_memory.min(row_group_bytes) };
        let column_bytes = if columns <= DICTIONARY_COLUMNS_MAX { DICTIONARY_COLUMN_BYTES } else { COLUMN_BYTES };
        let row_groups = in_memory / row_group_bytes + 1;
        // The cells of a batch are in the builders, in the pages and in a compressed copy of a page; the last row of each
        // may be the longest.
        let batch_bytes = 3 * (BATCH_BYTES_MAX + 8 * BATCH_CELLS_MAX.min(in_memory)) + 6 * longest_row_bytes;
        let memory_bytes = (READ_BLOCK_BYTES + DRAFT_BUFFER_BYTES).min(in_memory)
            + pages_bytes
            + in_memory.min(batch_bytes)
            + columns * (column_bytes + row_groups * COLUMN_CHUNK_ENTRY_BYTES)
            + ChunkChecksums::bytes_max(columns * row_groups, in_memory / 3);
        Ok(Self { layout: Layout { row_group_bytes, page_bytes, spill }, memory_bytes })
    }
}

#[cfg(test)]
mod tests {
    use crate::limits::{COLUMNS_MAX, LARGE_CONVERSION_BYTES, MIB, SMALL_CONVERSION_BYTES, SMALL_UPLOAD_BYTES};

    use super::*;

    #[test]
    fn plans_fit_in_the_pools_and_footers_stay_small() {
        const GIB: u64 = 1024 * MIB as u64;
        for columns in [1, 3, 34, 128, 129, 1000, COLUMNS_MAX] {
            for file_bytes in [0, 100, SMALL_UPLOAD_BYTES, 10 * MIB as u64, GIB, 10 * GIB, 40 * GIB] {
                let plan = Plan::for_file(file_bytes, columns, 64 * KIB).expect("it can be converted");
                let pool =
                    if file_bytes <= SMALL_UPLOAD_BYTES { SMALL_CONVERSION_BYTES } else { LARGE_CONVERSION_BYTES };
                // Only the widest small files need more than their pool has, and they run alone.
                let alone = columns == COLUMNS_MAX && file_bytes <= SMALL_UPLOAD_BYTES;
                assert!(plan.memory_bytes <= pool || alone, "{columns} columns, {file_bytes} bytes: {plan:?}");
                let row_groups = 3 * file_bytes / plan.layout.row_group_bytes as u64;
                let column_chunks = row_groups * columns as u64;
                assert!(column_chunks <= COLUMN_CHUNKS_MAX as u64, "{columns} columns, {file_bytes} bytes: {plan:?}");
            }
        }
        let too_much = Plan::for_file(100 * GIB, COLUMNS_MAX, 64 * KIB).expect_err("too wide and long");
        assert!(matches!(too_much, Error::TooWideAndLong { .. }));
    }
}
