//! Vector code that handles 64 bytes of CSV at a time, and scalar code with the same results for processors without the
//! instructions. The only folder with `unsafe`, so a call of the allocator is here, too. Nothing here knows errors, row numbers or files.
//!
//! - [`find_cells`] finds the cells of one column, in rows of any width, with quotes or without.
//! - [`find_marks`] finds everything that may end a cell, for rows of which several columns are wanted.
//! - [`sum_rows`] adds up plain rows: no quotes, as many cells in each row as there are columns, and in the wanted column
//!   only `-?[0-9]{1,18}` or no text. For anything else it returns `None`, and the scanner in `csv/` reads the rows.
//! - [`read_integers`] parses rows of integers, and stops at anything else. [`read_narrow_integers`] does so for short
//!   integers, sixteen at a time instead of eight. [`gather`] and [`put_narrow_deltas`] make pages of them.
//! - [`unpack()`], [`add_deltas`] and [`expand`] read the numbers of pages, and [`sum_miniblock`] adds them up without that.
//!
//! Why: a row of 16 bytes, `1,-12345,678901` and a line feed, takes 3 ns here and 12 ns without vectors.
#![allow(unsafe_code, reason = "vector instructions; each block says why it is sound, and tests compare scalar code")]

pub mod classify;
pub mod delta;
pub mod free_memory;
pub mod integer_table;
pub mod unpack;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_columns;
#[cfg(target_arch = "x86_64")]
mod avx512_marks;
#[cfg(target_arch = "x86_64")]
mod avx512_read;
#[cfg(target_arch = "x86_64")]
mod avx512_sum;
#[cfg(target_arch = "x86_64")]
mod avx512_unpack;
mod dispatch;
mod scalar;
mod types;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod unpack_tests;

pub use self::{
    dispatch::{
        add_deltas, expand, find_cells, find_marks, gather, put_deltas, put_narrow_deltas, read_integers,
        read_narrow_integers, serves, sum_miniblock, sum_rows, unpack,
    },
    types::{Added, FoundCells, LANES, MARKS_ROOM, Parsed, RowCell, Stopped},
};
