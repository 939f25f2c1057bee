//! Segments on disk: many small parts in a few files, so that a table can have any number of small parts.
//!
//! ```text
//! parts/A-B-V.csv           the CSV of its parts, one after another, byte for byte
//! parts/A-B-V.sums          checksums of its blocks, as N.sums
//! parts/A-B-V.index         an entry and the receipt of each part (`index.rs`), with .index-sums
//! parts/A-B-V.fences        where the blocks of the index are, with .fences-sums
//! parts/A-B-V.keys          pages of the hashes of the parts' idempotency keys, in order
//! parts/A-B-V.parquet       the rows of all parts that have the columns of the first; A-B-V.1.parquet and so on: of others
//! parts/A-B-V.segment       the receipt; the rename to this name is the commit
//! removed/N.packed          part N of a segment is removed; the time of the removal is the file's modification time
//! removed/N.packed-purged   the same, and it cannot be restored: the next segment is written without it
//! removed/A-B-V.dropped     all parts of this segment were purged, so it is gone, whatever is left of its files
//! removed/N.replaced        the receipt of a part that is in a segment now; its other files are beside it for a while
//! ```
//!
//! Writing a segment changes nothing before its receipt is renamed. From then on the files that it replaces are leftovers: they
//! are moved out of `parts/` at once, so that other programs do not count rows twice, and deleted when nobody reads them.
//! Segments are always synced, because the files that they replace may have been on disk for long.

pub mod clean_up;
pub mod cursor;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod index;
pub mod reading;
pub mod recovery;
pub mod removed_rows;
pub mod replaced;
#[cfg(test)]
mod tests;
pub mod writing;
