//! A scan: one pass over the stored files, which verifies each of them.

use super::segments::{SegmentTarget, Segments};
use crate::{
    engine::{
        jobs::record::{Record, RecordState, Work},
        parquet::{file::ParquetFile, wide::is_wide},
        storage::{
            Store,
            checksums::listed_blocks,
            draft::checksum_text,
            names::JobFile,
            reader::{Blocks, Reader},
            segments::reading::{KeyCheck, SegmentFile},
        },
    },
    error::{Error, Kind},
    limits::{TASK_BYTES, TASK_PARTS_MAX},
    model::{
        format::Format,
        packed::{Segment, SegmentId},
        part::{Part, PartId, PartialReceipt},
    },
};
use std::{
    collections::{BTreeSet, VecDeque},
    hash::Hasher,
    sync::Arc,
};

use twox_hash::XxHash3_64;

/// A stored file that does not match its checksum, or that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedFile {
    /// Its path in the data folder.
    pub file: String,
    /// What is wrong with it.
    pub what: String,
}

/// What a verification has done since the last call.
#[derive(Debug, Default)]
pub struct Progress {
    /// Files that were read to the end.
    pub files: u64,
    /// Bytes that were read, without those of receipts and records.
    pub bytes: u64,
    /// Damaged files, in the order in which they were read.
    pub damaged: Vec<DamagedFile>,
}

/// Pages of key hashes that are verified at once.
const KEY_PAGES: usize = 64;

/// The state of a scan: the files that have not been verified yet, and the progress.
pub(super) struct Scan {
    /// Parts that have not been begun, with their entries in the registry, which are `None` if no server uses the folder.
    parts: Box<dyn Iterator<Item = (PartId, Option<Arc<Part>>)> + Send>,
    /// Whether a part is still in the table. One that was removed meanwhile is not damaged if its files are gone.
    is_in_table: Box<dyn Fn(PartId) -> bool + Send>,
    pub(super) segments: Segments,
    /// Names of jobs that have not been begun; `None` until all parts and segments are done.
    pub(super) jobs: Option<std::vec::IntoIter<String>>,
    /// Files of the current part or job that have not been begun.
    pub(super) pending_files: VecDeque<StoredFile>,
    reading: Option<Reading>,
    pub(super) progress: Progress,
    /// Parts with a damaged file.
    pub(super) damaged_parts: BTreeSet<PartId>,
}

/// A file that has to be verified.
pub(super) enum StoredFile {
    /// The receipt of a part, and the part's entry in the registry, which is used if the receipt is damaged.
    Receipt(PartId, Option<Arc<Part>>),
    /// A file of a part, and its checksum from the receipt.
    PartFile(Arc<Part>, Format, String),
    /// The block list of a part.
    Sums(Arc<Part>),
    /// The CSV of a part whose receipt is damaged, block by block.
    CsvBlocks(Arc<Part>),
    /// The Parquet file of a part whose receipt is damaged, from a block of its column chunks on.
    ParquetBlocks(Arc<Part>, u64),
    /// A file of a part whose receipt is damaged and that is not in the registry.
    FileWithoutReceipt(PartId, Format, Arc<PartialReceipt>),
    /// The block list of such a part.
    SumsWithoutReceipt(PartId, Arc<PartialReceipt>),
    /// The receipt of a segment.
    Segment(SegmentId),
    SegmentFile(SegmentTarget),
    /// The key hashes of a segment, from some page on.
    Keys(SegmentId, Box<KeyCheck>),
    Record(String),
    JobFile(Arc<Record>, JobFile),
}

/// A file that is being read.
struct Reading {
    of: Owner,
    file: String,
    blocks: Blocks,
    offset: u64,
    hash: XxHash3_64,
    /// The checksum of the whole file; `None` if only its blocks have checksums.
    expected: Option<String>,
    /// Whether `expected` is from a damaged receipt, and so may be wrong.
    is_doubtful: bool,
}

/// The part, segment or job that a file belongs to.
enum Owner {
    Part(PartId),
    Segment(SegmentId),
    Job(Arc<Record>),
}

impl Scan {
    pub(super) fn new(
        parts: impl Iterator<Item = (PartId, Option<Arc<Part>>)> + Send + 'static,
        is_in_table: impl Fn(PartId) -> bool + Send + 'static,
        segments: Segments,
    ) -> Self {
        Self {
            segments,
            parts: Box::new(parts),
            is_in_table: Box::new(is_in_table),
            jobs: None,
            pending_files: VecDeque::new(),
            reading: None,
            progress: Progress::default(),
            damaged_parts: BTreeSet::new(),
        }
    }

    /// Whether the next task decodes a long Parquet footer.
    pub(super) fn is_wide_read_next(&self) -> bool {
        self.reading.is_none() && self.pending_files.front().is_some_and(decodes_long_footer)
    }

    /// Verifies as much as fits in one task, and returns whether there is more. Without `wide_reads` the task ends before a
    /// long Parquet footer has to be decoded.
    ///
    /// Errors: the folder of jobs cannot be read.
    pub(super) fn step(&mut self, store: &Store, wide_reads: bool) -> Result<bool, Error> {
        // Each file counts as some bytes more than it has, so that a task also ends after many small files.
        const FILE_BYTES: u64 = (TASK_BYTES / TASK_PARTS_MAX / 4) as u64;
        let before = self.progress.bytes + self.progress.files * FILE_BYTES;
        while self.progress.bytes + self.progress.files * FILE_BYTES < before + TASK_BYTES as u64 {
            if self.reading.is_some() {
                self.read_block(store);
            } else if self.is_wide_read_next() && !wide_reads {
                break;
            } else if let Some(target) = self.pending_files.pop_front() {
                self.begin(store, target);
            } else if let Some((id, part)) = self.parts.next() {
                self.pending_files.push_back(StoredFile::Receipt(id, part));
            } else if let Some(id) = self.segments.left.pop_front() {
                self.pending_files.push_back(StoredFile::Segment(id));
            } else if let Some(jobs) = &mut self.jobs {
                let Some(name) = jobs.next() else { return Ok(false) };
                self.pending_files.push_back(StoredFile::Record(name));
            } else {
                self.jobs = Some(store.job_names()?.into_iter());
            }
        }
        Ok(true)
    }

    fn begin(&mut self, store: &Store, target: StoredFile) {
        match target {
            StoredFile::Receipt(id, known) => self.begin_receipt(store, id, known),
            StoredFile::PartFile(part, format, expected) => {
                let (id, file) = (part.id, format!("parts/{}.{format}", part.id));
                // The CSV is also verified block by block, so that a block list of another file is detected.
                let opened = match (format, part.checks) {
                    (Format::Csv, Some(_)) => store.open_part(&part, format),
                    (Format::Csv, None) | (Format::Parquet, _) => store.open_part_unverified(&part, format),
                };
                match opened {
                    Ok(reader) => self.reading = Some(Reading::new(Owner::Part(id), file, &reader, Some(expected))),
                    Err(error) => self.part_is_damaged(id, file, &error),
                }
            }
            StoredFile::Sums(part) => match check_sums(store, &part) {
                Ok(None) => {}
                Ok(Some(bytes)) => self.end_file(bytes),
                Err(error) => self.part_is_damaged(part.id, format!("parts/{}.sums", part.id), &error),
            },
            StoredFile::CsvBlocks(part) => {
                let (id, file) = (part.id, format!("parts/{}.csv", part.id));
                match store.open_part(&part, Format::Csv) {
                    Ok(reader) => self.reading = Some(Reading::new(Owner::Part(id), file, &reader, None)),
                    Err(error) => self.part_is_damaged(id, file, &error),
                }
            }
            StoredFile::ParquetBlocks(part, from) => match verify_blocks(store, &part, from) {
                Ok((bytes, None)) => self.end_file(bytes),
                Ok((bytes, Some(next))) => {
                    self.progress.bytes += bytes;
                    self.pending_files.push_front(StoredFile::ParquetBlocks(part, next));
                }
                Err(error) => self.part_is_damaged(part.id, format!("parts/{}.parquet", part.id), &error),
            },
            StoredFile::FileWithoutReceipt(id, format, receipt) => {
                let file = format!("parts/{id}.{format}");
                match store.open_part_without_receipt(id, format, receipt.sums_seed) {
                    Ok(reader) => {
                        let reading = Reading::new(Owner::Part(id), file, &reader, receipt.checksum(format).cloned());
                        self.reading = Some(Reading { is_doubtful: true, ..reading });
                    }
                    Err(error) => self.part_is_damaged(id, file, &error),
                }
            }
            StoredFile::SumsWithoutReceipt(id, receipt) => match check_sums_without_receipt(store, id, &receipt) {
                Ok(None) => {}
                Ok(Some(bytes)) => self.end_file(bytes),
                Err(error) => self.part_is_damaged(id, format!("parts/{id}.sums"), &error),
            },
            StoredFile::Segment(id) => self.begin_segment(store, id),
            StoredFile::SegmentFile(target) => self.begin_segment_file(store, &target),
            StoredFile::Keys(id, check) => self.check_keys(store, id, check),
            StoredFile::Record(name) => self.begin_record(store, name),
            StoredFile::JobFile(record, kind) => self.begin_job_file(store, record, kind),
        }
    }

    fn begin_receipt(&mut self, store: &Store, id: PartId, known: Option<Arc<Part>>) {
        let receipt = known.as_ref().map_or_else(|| store.receipt(id), |part| store.receipt_of(part));
        match receipt {
            Ok(receipt) => {
                self.end_file(0);
                let part = Arc::new(Part::of(&receipt, None));
                self.pending_files.extend([
                    StoredFile::PartFile(Arc::clone(&part), Format::Csv, receipt.csv.xxh3),
                    StoredFile::PartFile(Arc::clone(&part), Format::Parquet, receipt.parquet.xxh3),
                    StoredFile::Sums(part),
                ]);
            }
            Err(error) => {
                self.part_is_damaged(id, format!("parts/{id}.json"), &error);
                if error.kind() == Kind::DataLoss {
                    self.push_files_without_receipt(store, id, known);
                }
            }
        }
    }

    /// Verifies the receipt of a segment, and then its files.
    fn begin_segment(&mut self, store: &Store, id: SegmentId) {
        let damaged = |what: String| Error::Damaged { part: id.first, what: format!("segment {id}: {what}") };
        let receipt = store.segment_receipt(id).and_then(|receipt| receipt.map_err(damaged));
        let found = receipt.and_then(|receipt| {
            let segment =
                Segment::of(&receipt, Vec::new()).ok_or_else(|| damaged("receipt: it is invalid".to_owned()))?;
            Ok((Arc::new(receipt), Arc::new(segment)))
        });
        match found {
            Ok((receipt, segment)) => {
                self.end_file(0);
                let files = SegmentFile::all(&receipt);
                let target =
                    |file| SegmentTarget { receipt: Arc::clone(&receipt), segment: Arc::clone(&segment), file };
                self.pending_files.extend(files.into_iter().map(|file| StoredFile::SegmentFile(target(file))));
            }
            Err(error) => self.segment_is_damaged(id, format!("parts/{id}.segment"), &error),
        }
    }

    fn begin_segment_file(&mut self, store: &Store, target: &SegmentTarget) {
        let SegmentTarget { receipt, segment, file } = target;
        let id = segment.id;
        let name = format!("parts/{id}.{}", file.extension());
        if *file == SegmentFile::Keys {
            self.pending_files.push_front(StoredFile::Keys(id, Box::new(KeyCheck::new(segment))));
            return;
        }
        match store.open_segment(segment, *file) {
            Ok(reader) => {
                let expected = file.info(receipt).map(|info| info.xxh3.clone());
                self.reading = Some(Reading::new(Owner::Segment(id), name, &reader, expected));
            }
            Err(error) => self.segment_is_damaged(id, name, &error),
        }
    }

    fn check_keys(&mut self, store: &Store, id: SegmentId, mut check: Box<KeyCheck>) {
        match check.step(store, KEY_PAGES) {
            Ok((bytes, false)) => self.end_file(bytes),
            Ok((bytes, true)) => {
                self.progress.bytes += bytes;
                self.pending_files.push_front(StoredFile::Keys(id, check));
            }
            Err(error) => self.segment_is_damaged(id, format!("parts/{id}.keys"), &error),
        }
    }

    fn segment_is_damaged(&mut self, id: SegmentId, file: String, error: &Error) {
        if !(self.segments.is_in_table)(id) {
            return;
        }
        if error.kind() == Kind::DataLoss && !self.segments.damaged.contains(&id) {
            self.segments.damaged.push(id);
        }
        self.is_damaged(file, error);
    }

    fn begin_record(&mut self, store: &Store, name: String) {
        match Record::read(store, &name) {
            Ok(record) => {
                self.end_file(0);
                let file = match (&record.state, &record.work) {
                    (RecordState::Done { .. }, _) => Some(JobFile::Result),
                    (RecordState::Queued | RecordState::Running, Work::GroupSum { .. }) => Some(JobFile::Input),
                    (RecordState::Queued | RecordState::Running, Work::Survey(_)) => None,
                    (RecordState::Failed { .. } | RecordState::Downloaded, _) => None,
                };
                let record = Arc::new(record);
                self.pending_files.extend(file.map(|file| StoredFile::JobFile(record, file)));
            }
            // The job was removed meanwhile.
            Err(_) if !store.has_job_record(&name) => {}
            Err(error) => self.is_damaged(format!("jobs/{name}.json"), &error),
        }
    }

    fn begin_job_file(&mut self, store: &Store, record: Arc<Record>, kind: JobFile) {
        let name = record.id.to_string();
        let file = format!("jobs/{name}.{}", kind.extension());
        let (bytes, check) = match (kind, &record.state) {
            (JobFile::Result, RecordState::Done { bytes, .. }) => (Some(*bytes), record.state.result_check()),
            _ => (None, record.input_check()),
        };
        match store.open_job_file(&name, kind, check) {
            Ok(reader) if bytes.is_some_and(|bytes| bytes != reader.bytes()) => {
                let what = format!("{} bytes, its record says {}", reader.bytes(), bytes.unwrap_or(0));
                self.job_is_damaged(store, &record, file, &reader.damaged(&what));
            }
            Ok(reader) => self.reading = Some(Reading::new(Owner::Job(record), file, &reader, None)),
            Err(error) => self.job_is_damaged(store, &record, file, &error),
        }
    }

    /// Continues with the files of a part whose receipt is damaged. They are compared with the part's entry in the registry,
    /// or else with what can still be read of the receipt.
    fn push_files_without_receipt(&mut self, store: &Store, id: PartId, known: Option<Arc<Part>>) {
        if let Some(part) = known.filter(|part| part.checks.is_some()) {
            let files = [StoredFile::CsvBlocks(Arc::clone(&part)), StoredFile::ParquetBlocks(Arc::clone(&part), 0)];
            self.pending_files.extend(files.into_iter().chain([StoredFile::Sums(part)]));
            return;
        }
        let receipt = Arc::new(store.partial_receipt(id));
        for format in [Format::Csv, Format::Parquet] {
            self.pending_files.push_back(StoredFile::FileWithoutReceipt(id, format, Arc::clone(&receipt)));
        }
        self.pending_files.push_back(StoredFile::SumsWithoutReceipt(id, receipt));
    }

    fn read_block(&mut self, store: &Store) {
        let Some(mut reading) = self.reading.take() else { return };
        let ended = match reading.next_block() {
            Ok(0) => reading.compare(store),
            Ok(bytes) => {
                self.progress.bytes += bytes;
                self.reading = Some(reading);
                return;
            }
            Err(error) => Err(error),
        };
        match (ended, reading.of) {
            (Ok(()), _) => self.end_file(0),
            (Err(error), Owner::Part(id)) => self.part_is_damaged(id, reading.file, &error),
            (Err(error), Owner::Segment(id)) => self.segment_is_damaged(id, reading.file, &error),
            (Err(error), Owner::Job(record)) => self.job_is_damaged(store, &record, reading.file, &error),
        }
    }

    fn end_file(&mut self, bytes: u64) {
        self.progress.files += 1;
        self.progress.bytes += bytes;
    }

    fn part_is_damaged(&mut self, id: PartId, file: String, error: &Error) {
        if !(self.is_in_table)(id) {
            return;
        }
        // A file that cannot be read now is not necessarily damaged.
        if error.kind() == Kind::DataLoss {
            self.damaged_parts.insert(id);
        }
        self.is_damaged(file, error);
    }

    /// Reports a damaged file of a job. If the job has changed since its record was read, it may have other files now, so its
    /// record is read again instead.
    fn job_is_damaged(&mut self, store: &Store, record: &Record, file: String, error: &Error) {
        let name = record.id.to_string();
        match Record::read(store, &name) {
            Ok(now) if now.state == record.state && now.since == record.since => self.is_damaged(file, error),
            _ => self.pending_files.push_back(StoredFile::Record(name)),
        }
    }

    fn is_damaged(&mut self, file: String, error: &Error) {
        self.end_file(0);
        self.progress.damaged.push(DamagedFile { file, what: error.to_string() });
    }
}

impl Reading {
    fn new(of: Owner, file: String, reader: &Reader, expected: Option<String>) -> Self {
        let (blocks, hash) = (reader.blocks(), XxHash3_64::new());
        Self { of, file, blocks, offset: 0, hash, expected, is_doubtful: false }
    }

    /// Reads a block, and returns its length; 0 at the end of the file.
    fn next_block(&mut self) -> Result<u64, Error> {
        let block = self.blocks.from(self.offset)?;
        let bytes = block.len() as u64;
        self.hash.write(block);
        self.offset += bytes;
        Ok(bytes)
    }

    /// Compares the whole file with its checksum.
    fn compare(&self, store: &Store) -> Result<(), Error> {
        let found = checksum_text(&self.hash);
        let Some(expected) = self.expected.as_ref().filter(|expected| **expected != found) else { return Ok(()) };
        match self.of {
            // The receipt is damaged in this checksum, and the file is undamaged.
            Owner::Part(id) if self.is_doubtful && store.is_only_damage_of_receipt(id, expected, &found) => Ok(()),
            Owner::Part(_) if self.is_doubtful => Err(self.blocks.damaged(&format!(
                "its checksum is {found}, what is left of the receipt says {expected}: one of the two is damaged"
            ))),
            Owner::Part(_) | Owner::Segment(_) | Owner::Job(_) => Err(self
                .blocks
                .damaged(&format!("it is not what was written: its checksum is {found}, the receipt says {expected}"))),
        }
    }
}

/// Whether verifying a file decodes a long Parquet footer, of which only few may be in memory at once.
fn decodes_long_footer(file: &StoredFile) -> bool {
    match file {
        StoredFile::ParquetBlocks(part, _) => is_wide(part),
        StoredFile::Sums(part) => is_wide(part) && part.checks.is_some_and(|checks| checks.chunks_in_sums),
        StoredFile::Receipt(..)
        | StoredFile::PartFile(..)
        | StoredFile::CsvBlocks(_)
        | StoredFile::FileWithoutReceipt(..)
        | StoredFile::SumsWithoutReceipt(..)
        | StoredFile::Segment(_)
        | StoredFile::SegmentFile(_)
        | StoredFile::Keys(..)
        | StoredFile::Record(_)
        | StoredFile::JobFile(..) => false,
    }
}

/// Verifies a part's block list and returns its size; `None` if the part needs no list.
fn check_sums(store: &Store, part: &Part) -> Result<Option<u64>, Error> {
    let csv_blocks = listed_blocks(part.csv_bytes);
    let Some(checks) = part.checks.filter(|checks| checks.chunks_in_sums || csv_blocks > 0) else { return Ok(None) };
    let blocks = match checks.chunks_in_sums {
        false => csv_blocks..=csv_blocks,
        true => {
            let file = store.open_part(part, Format::Parquet);
            match file.and_then(|file| Ok(ParquetFile::open(&file, part)?.blocks_count())) {
                Ok(chunk_blocks) => csv_blocks + chunk_blocks..=csv_blocks + chunk_blocks,
                // The Parquet file is damaged or cannot be read, which is already reported. Its number of blocks is unknown.
                Err(_) => csv_blocks..=u64::MAX,
            }
        }
    };
    store.check_part_sums(part.id, checks.csv, blocks).map(Some)
}

/// The same for a part whose receipt is damaged.
fn check_sums_without_receipt(store: &Store, id: PartId, receipt: &PartialReceipt) -> Result<Option<u64>, Error> {
    let Some(seed) = receipt.sums_seed else { return Ok(None) };
    let csv = store.open_part_without_receipt(id, Format::Csv, None);
    let blocks = match csv.map(|csv| listed_blocks(csv.bytes())) {
        Ok(blocks) if !receipt.chunks_in_sums => blocks..=blocks,
        Ok(blocks) => blocks..=u64::MAX,
        Err(_) => 0..=u64::MAX, // the CSV cannot be read, which is already reported
    };
    store.check_part_sums(id, seed, blocks).map(Some)
}

/// Verifies some blocks of a part's Parquet file, beginning with block `from`. Returns the number of bytes, and the next
/// block if there is one.
fn verify_blocks(store: &Store, part: &Part, from: u64) -> Result<(u64, Option<u64>), Error> {
    let file = store.open_part(part, Format::Parquet)?;
    ParquetFile::open(&file, part)?.verify_blocks(from, TASK_BYTES as u64)
}
