//! What a group sum reads: one file, or the CSV of all parts of the table, opened one at a time and lazily.

use std::sync::Arc;

use imbl::OrdMap;

use super::spec::GroupBy;
use crate::{
    engine::{
        csv::{
            header::read_header,
            split::{CAREFUL_GUESS, guess_row_start},
            stored::STORED_LIMITS,
        },
        storage::{Store, reader::Reader},
    },
    error::{Error, column_sum::ColumnSumError, csv::CsvError},
    limits::{CsvLimits, ROW_BYTES_CEILING},
    model::{
        format::Format,
        part::{Part, PartId},
        schema::{ColumnType, Schema},
    },
};

/// CSV files in order.
pub enum Sources {
    /// One file that is no part.
    File {
        /// The file.
        file: Reader,
        /// What it may measure.
        limits: CsvLimits,
    },
    /// The parts of a table as it was. Those that lack a column add nothing.
    Parts {
        /// Where they are.
        store: Arc<Store>,
        /// Which.
        parts: OrdMap<PartId, Arc<Part>>,
    },
}

/// A place in all sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    /// A part's number; 0 is the file that is no part.
    pub(super) source: u64,
    pub(super) offset: u64,
}

impl Mark {
    /// After all sources.
    pub(super) const END: Self = Self { source: u64::MAX, offset: 0 };

    /// The start of the source after this one.
    pub(super) fn next_source(self) -> Self {
        Self { source: self.source + 1, offset: 0 }
    }
}

/// A source that has the columns, open.
pub(super) struct Source {
    pub(super) id: u64,
    pub(super) file: Reader,
    pub(super) limits: CsvLimits,
    /// What is known of it already, if it is a part.
    pub(super) part: Option<(Arc<Part>, Arc<Schema>)>,
}

/// The next source of a walk.
pub(super) enum Opened {
    Source(Box<Source>),
    /// One that lacks a column, and its size.
    Without {
        bytes: u64,
    },
    None,
}

/// What stops the reading of a source.
#[derive(Debug)]
pub(super) enum Stop {
    /// Something is wrong with it, at a row counted from where the reader began.
    Csv(CsvError),
    /// A part's CSV is not what its receipt says.
    Damaged(String),
    /// A part's column is of a type that is never summed.
    NotSummable { column: String, column_type: ColumnType },
    /// Nothing is wrong with the source.
    Other(Error),
}

impl From<CsvError> for Stop {
    fn from(error: CsvError) -> Self {
        Self::Csv(error)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl Sources {
    /// Of all of them together.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::File { file, .. } => file.bytes(),
            Self::Parts { parts, .. } => parts.values().map(|part| part.csv_bytes).sum(),
        }
    }

    /// No row is longer: neither than its file nor than what is allowed.
    pub(super) fn row_bytes_max(&self) -> usize {
        let (allowed, file_bytes) = match self {
            Self::File { file, limits } => (limits.row_bytes_max, file.bytes()),
            Self::Parts { parts, .. } => {
                (ROW_BYTES_CEILING, parts.values().map(|part| part.csv_bytes).max().unwrap_or(0))
            }
        };
        usize::try_from(file_bytes).unwrap_or(usize::MAX).min(allowed)
    }

    /// Where each of so many pieces of about one size begins.
    pub(super) fn cut(&self, count: usize) -> Vec<Mark> {
        let total = u128::from(self.bytes());
        let wanted = |index: usize| total * index as u128 / count as u128;
        let mut marks = vec![Mark::default()];
        let mut before = 0;
        let mut add = |source, bytes: u64| {
            while marks.len() < count && wanted(marks.len()) < before + u128::from(bytes) {
                let offset = u64::try_from(wanted(marks.len()) - before).unwrap_or(0);
                // What begins with a byte order mark is not cut within it.
                marks.push(Mark { source, offset: if offset < 4 { 0 } else { offset } });
            }
            before += u128::from(bytes);
        };
        match self {
            Self::File { file, .. } => add(0, file.bytes()),
            Self::Parts { parts, .. } => parts.iter().for_each(|(id, part)| add(id.get(), part.csv_bytes)),
        }
        marks
    }

    /// The first source from this id on, and its id.
    pub(super) fn open(&self, id: u64, spec: &GroupBy) -> (u64, Result<Opened, Stop>) {
        match self {
            Self::File { file, limits } if id == 0 => {
                let source = Source { id, file: file.clone(), limits: *limits, part: None };
                (id, Ok(Opened::Source(Box::new(source))))
            }
            Self::File { .. } => (id, Ok(Opened::None)),
            Self::Parts { store, parts } => {
                let next = PartId::new(id.max(1)).and_then(|first| parts.range(first..).next());
                next.map_or((id, Ok(Opened::None)), |(id, part)| (id.get(), open_part(store, part, spec)))
            }
        }
    }

    /// What a stop means to who asked, when so many rows of the source come before those that were counted.
    pub(super) fn error(&self, id: u64, stop: Stop, rows_before: u64) -> Error {
        let part = PartId::new(id);
        match (stop, part) {
            (Stop::Other(error), _) => error,
            (Stop::Csv(error), None) => error.after_rows(rows_before).into(),
            (Stop::Csv(CsvError::Summand { row, column, cell, problem }), Some(part)) => {
                Error::Cell { part, row: row + rows_before, column, cell, problem }
            }
            (Stop::Csv(error), Some(part)) => {
                Error::Damaged { part, what: format!("csv: {}", error.after_rows(rows_before)) }
            }
            (Stop::Damaged(what), Some(part)) => Error::Damaged { part, what: format!("csv: {what}") },
            (Stop::NotSummable { column, column_type }, Some(part)) => {
                ColumnSumError::NotSummable { part, column, column_type }.into()
            }
            (Stop::Damaged(what), None) => Error::Internal(format!("a file that is no part: {what}")),
            (Stop::NotSummable { column, .. }, None) => Error::Internal(format!("a file with types: {column}")),
        }
    }
}

fn open_part(store: &Store, part: &Arc<Part>, spec: &GroupBy) -> Result<Opened, Stop> {
    let schema = store.schema(part)?;
    if spec.by().iter().chain(spec.sum()).any(|name| schema.find(name).is_none()) {
        return Ok(Opened::Without { bytes: part.csv_bytes });
    }
    for column in spec.sum() {
        match schema.find(column) {
            Some((_, ColumnType::Int64 | ColumnType::Utf8)) | None => {}
            Some((_, column_type)) => return Err(Stop::NotSummable { column: column.clone(), column_type }),
        }
    }
    let file = store.open_part(part, Format::Csv)?;
    let source = Source { id: part.id.get(), file, limits: STORED_LIMITS, part: Some((Arc::clone(part), schema)) };
    Ok(Opened::Source(Box::new(source)))
}

impl Source {
    /// The names of the columns and a guess where the first row starts that does not begin before `offset`; none if
    /// that cannot be guessed.
    pub(super) fn guess(&self, offset: u64) -> Result<Option<(Vec<String>, u64)>, Stop> {
        let Some(names) = self.header()? else { return Ok(None) };
        let start = guess_row_start(&self.file, offset, names.len(), self.limits, CAREFUL_GUESS)?;
        Ok(start.map(|start| (names, start)))
    }

    /// The names of the columns; none if something is wrong with the header, which whoever reads the file from its start
    /// will say.
    fn header(&self) -> Result<Option<Vec<String>>, Error> {
        match read_header(&self.file, self.limits) {
            Ok(names) => Ok(Some(names)),
            Err(Error::Csv(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
