//! Vector code: integers added up, found or read 64 bytes at a time, with the processor's vector instructions where it
//! has them and a scalar twin that gives the same answers. The only folder with `unsafe` in it. Nothing here knows
//! errors, row numbers or files.
//!
//! - [`find_cells`] finds the cells of one column, in rows of any width, with quotes or without.
//! - [`sum_rows`] takes whole rows that are plain: no quotes, as many cells in each row as there are columns, and in
//!   the wanted column only `-?[0-9]{1,18}` or no text. For anything else it returns `None`, and the scanner in `csv/`
//!   decides what it means.
//! - [`read_integers`] takes rows of cells that Parquet can have as integers, and stops where something else is;
//!   [`read_narrow_integers`] does so for short ones, sixteen at a time instead of eight, and [`gather`] and
//!   [`put_narrow_deltas`] take them on to a page.
//!
//! Why: a row of bigdata's 16 bytes, `1,-12345,678901` and a line feed, takes 3 ns here and 12 without vectors.
#![allow(unsafe_code, reason = "vector instructions; each block says why it is sound, and tests compare a safe twin")]

pub mod classify;
pub mod delta;
pub mod integer_table;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_columns;
#[cfg(target_arch = "x86_64")]
mod avx512_read;
#[cfg(target_arch = "x86_64")]
mod avx512_sum;
mod dispatch;
mod scalar;
mod types;

#[cfg(test)]
mod tests;

pub use self::{
    dispatch::{
        find_cells, gather, put_deltas, put_narrow_deltas, read_integers, read_narrow_integers, serves, sum_rows,
    },
    types::{Added, LANES, RowCell, Rows, Stopped, Taken},
};
