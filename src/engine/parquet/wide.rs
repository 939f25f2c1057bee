//! Wide parts: those whose footers are so long that only a few may be in memory at once.

use crate::{
    limits::{WIDE_CHUNKS, WIDE_FOOTER_BYTES},
    model::part::Part,
};

pub(crate) fn is_wide(part: &Part) -> bool {
    part.column_chunks() > WIDE_CHUNKS as u64 || part.footer_bytes as usize > WIDE_FOOTER_BYTES
}
