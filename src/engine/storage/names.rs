//! The names of the files in the data folder, on disk and in errors.

use std::{fmt, path::Path, sync::Arc};

use crate::{
    error::{Error, jobs::JobError},
    model::{format::Format, packed::SegmentId, part::PartId},
};

/// A file of a job besides its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobFile {
    /// The file that was uploaded for the job.
    Input,
    /// The result of the job.
    Result,
}

impl JobFile {
    pub(crate) fn extension(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Result => "result",
        }
    }

    /// The extension of its block list.
    pub(super) fn sums_extension(self) -> &'static str {
        match self {
            Self::Input => "input-sums",
            Self::Result => "result-sums",
        }
    }
}

/// The name of a file in errors.
#[derive(Clone)]
pub(super) enum FileName {
    Part(PartId, Format),
    Segment(SegmentId, &'static str),
    Job(Arc<str>, JobFile),
    Other(Arc<str>),
}

impl FileName {
    /// The error for a damaged file.
    pub(super) fn damaged(&self, what: &str) -> Error {
        match self {
            Self::Part(part, format) => Error::Damaged { part: *part, what: format!("{format}: {what}") },
            Self::Segment(segment, extension) => {
                Error::Damaged { part: segment.first, what: format!("segment {segment}, {extension}: {what}") }
            }
            Self::Job(name, kind) => {
                JobError::Damaged { name: name.to_string(), what: format!("{}: {what}", kind.extension()) }.into()
            }
            Self::Other(name) => Error::Internal(format!("{name}: {what}")),
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Part(part, format) => write!(f, "part {part}, {format}"),
            Self::Segment(segment, extension) => write!(f, "segment {segment}, {extension}"),
            Self::Job(name, kind) => write!(f, "job {name}, {}", kind.extension()),
            Self::Other(name) => f.write_str(name),
        }
    }
}

/// `12.csv` is `(12, "csv")`.
pub(super) fn parse_part_file_name(path: &Path) -> Option<(PartId, &str)> {
    let (stem, extension) = (path.file_stem()?.to_str()?, path.extension()?.to_str()?);
    PartId::parse(stem).map(|id| (id, extension))
}

/// `1-1024-1.csv` is the file `csv` of that segment, and `1-1024-1.2.parquet` its file `2.parquet`.
pub(super) fn parse_segment_file_name(path: &Path) -> Option<(SegmentId, &str)> {
    let (id, extension) = path.file_name()?.to_str()?.split_once('.')?;
    SegmentId::parse(id).map(|id| (id, extension))
}

/// The same for a file in `quarantine/`, where `1-1024-1-2.csv` is a second `1-1024-1.csv`.
pub(super) fn parse_quarantined_segment_file_name(path: &Path) -> Option<(SegmentId, &str)> {
    let (name, extension) = path.file_name()?.to_str()?.split_once('.')?;
    let without_copy = || name.rsplit_once('-').filter(|(_, copy)| copy.parse::<u32>().is_ok());
    let id = SegmentId::parse(name).or_else(|| SegmentId::parse(without_copy()?.0))?;
    Some((id, extension))
}

/// The same for a part's file in `quarantine/`, where `12-2.csv` is a second `12.csv`.
pub(super) fn parse_quarantine_file_name(path: &Path) -> Option<(PartId, &str)> {
    let (stem, extension) = (path.file_stem()?.to_str()?, path.extension()?.to_str()?);
    let number = match stem.split_once('-') {
        Some((number, copy)) if copy.parse::<u32>().is_ok() => number,
        _ => stem,
    };
    PartId::parse(number).map(|id| (id, extension))
}

/// The name of a file without its folder. Errors for clients must not reveal where the data folder is.
pub(super) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
