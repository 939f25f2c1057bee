//! The first rows of a part, to be looked at.
//!
//! Memory: a few blocks of the CSV, and the cells of the rows, whose number is bounded.

use std::sync::Arc;

use crate::{
    engine::{
        csv::{
            file_scan::FileScan,
            rows::{Resume, Row, Rows, Wanted},
            stored::STORED_LIMITS,
        },
        parts::listing::find_verifiable,
        runtime::context::Context,
        state::Lane,
        storage::Store,
    },
    error::{Error, csv::CsvError},
    limits::{
        HEADER_BYTES_MAX, PREVIEW_BYTES, PREVIEW_CELLS_MAX, PREVIEW_COLUMNS_MAX, PREVIEW_TEXT_CHARS_MAX,
        READ_BLOCK_BYTES,
    },
    model::{
        format::Format,
        part::{Part, PartId},
    },
};

/// The first rows of a part.
#[derive(Debug)]
pub struct Preview {
    /// The names of the first columns.
    pub columns: Vec<String>,
    /// How many columns there are besides.
    pub columns_left_out: usize,
    /// The rows' cells of these columns, as they are in the CSV; `None` for an empty one. Long texts are cut.
    pub rows: Vec<Vec<Option<String>>>,
    /// Whether the part has more rows.
    pub more: bool,
}

/// Reads the first rows of a part: at most `rows_max`, and fewer if they are long or wide.
///
/// Errors: there is no such part; its CSV is damaged or cannot be read.
pub(crate) async fn preview(context: &Arc<Context>, id: PartId, rows_max: usize) -> Result<Preview, Error> {
    let part = find_verifiable(context, id).await?;
    context.on_worker(Lane::Question, move |store| read_preview(store, &part, rows_max)).await
}

fn read_preview(store: &Store, part: &Part, rows_max: usize) -> Result<Preview, Error> {
    let file = store.open_part(part, Format::Csv)?;
    let schema = store.schema(part)?;
    let names = schema.columns().iter().take(PREVIEW_COLUMNS_MAX).map(|(name, _)| name.clone());
    let columns: Vec<_> = names.collect();
    let rows_max = rows_max.min((PREVIEW_CELLS_MAX / columns.len().max(1)).max(1));
    let rows = FirstRows { rows: Vec::new(), rows_max, columns_count: columns.len() };
    let mut scan = FileScan::new(file, STORED_LIMITS, Wanted::All, Resume::default(), rows);
    match read_rows(&mut scan) {
        Ok(()) | Err(Stop::Enough) => {}
        Err(Stop::Csv(error)) => {
            return Err(Error::Damaged { part: part.id, what: format!("csv: {error}") });
        }
        Err(Stop::Failed(error)) => return Err(error),
    }
    let rows = scan.rows.rows;
    let more = (rows.len() as u64) < part.rows;
    Ok(Preview { columns_left_out: schema.columns_count() - columns.len(), columns, rows, more })
}

/// Reads the header, which may be longer than the rows that are read, and some bytes after it.
fn read_rows(scan: &mut FileScan<FirstRows>) -> Result<(), Stop> {
    let mut is_whole = false;
    while !is_whole && scan.names().is_empty() && scan.offset() < 2 * HEADER_BYTES_MAX as u64 {
        is_whole = scan.step(READ_BLOCK_BYTES)?;
    }
    if !is_whole {
        scan.step(PREVIEW_BYTES)?;
    }
    Ok(())
}

/// Keeps the first rows.
struct FirstRows {
    rows: Vec<Vec<Option<String>>>,
    rows_max: usize,
    columns_count: usize,
}

/// Why the scan ended.
enum Stop {
    /// There are as many rows as wanted.
    Enough,
    Csv(CsvError),
    Failed(Error),
}

impl From<CsvError> for Stop {
    fn from(error: CsvError) -> Self {
        Self::Csv(error)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Rows for FirstRows {
    type Error = Stop;

    fn header(&mut self, _names: &[String]) -> Result<(), Stop> {
        if self.rows_max == 0 { Err(Stop::Enough) } else { Ok(()) }
    }

    fn row(&mut self, row: Row<'_>) -> Result<(), Stop> {
        self.rows.push(row.cells().take(self.columns_count).map(text_of).collect());
        if self.rows.len() < self.rows_max { Ok(()) } else { Err(Stop::Enough) }
    }
}

/// The text of a cell, cut if it is long; `None` if it is empty.
fn text_of(cell: &[u8]) -> Option<String> {
    if cell.is_empty() {
        return None;
    }
    // No character has more than 4 bytes. A character that is cut here is beyond the last one that is shown.
    let start = &cell[..cell.len().min(4 * (PREVIEW_TEXT_CHARS_MAX + 1))];
    let text = String::from_utf8_lossy(start);
    match text.char_indices().nth(PREVIEW_TEXT_CHARS_MAX) {
        Some((end, _)) => Some(format!("{}…", &text[..end])),
        None => Some(text.into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        let max = PREVIEW_TEXT_CHARS_MAX;
        for character in ["x", "é", "€", "😀"] {
            let whole = character.repeat(max);
            assert_eq!(text_of(whole.as_bytes()), Some(whole.clone()));
            assert_eq!(text_of(character.repeat(max + 1).as_bytes()), Some(whole.clone() + "…"));
            assert_eq!(text_of(character.repeat(9 * max).as_bytes()), Some(whole + "…"));
        }
        assert_eq!(text_of(b""), None);
    }
}
