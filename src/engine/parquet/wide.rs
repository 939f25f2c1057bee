//! Which parts have so many columns that their footers count in memory.

use crate::{
    limits::{WIDE_CHUNKS, WIDE_FOOTER_BYTES},
    model::part::Part,
};

pub(crate) fn is_wide(part: &Part) -> bool {
    part.column_chunks() > WIDE_CHUNKS as u64 || part.footer_bytes as usize > WIDE_FOOTER_BYTES
}
