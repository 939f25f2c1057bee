//! Writes a segment in short tasks: first the CSV and the index, then the key hashes, then one Parquet file after another.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::{plan::Run, rows::ParquetOfParts};
use crate::{
    engine::{
        parquet::writer::Layout,
        storage::{
            Store,
            segments::{
                cursor::PartCursor,
                reading::OpenSegment,
                writing::{PreparedSegment, SegmentWriter},
            },
        },
    },
    error::Error,
    limits::{CONVERT_TASK_BYTES, PACKED_BLOCK_PARTS},
    model::{
        format::Format,
        packed::Segment,
        part::{Part, PartId},
        schema::Schema,
    },
};

/// A segment that is being written.
pub(super) struct Packing {
    store: Arc<Store>,
    run: Run,
    layout: Layout,
    writer: SegmentWriter,
    cursor: PartCursor,
    after: Option<PartId>,
    open: OpenSegment,
    /// Key hashes of parts that have their own files.
    keys: Vec<u64>,
    stage: Stage,
}

/// What is written next.
enum Stage {
    Parts,
    Keys,
    /// The Parquet file with this number.
    Parquet(usize, Option<Box<ParquetOfParts>>),
    Done,
}

/// The result of one task.
pub(super) enum Step {
    /// There is more to do. About so many bytes were read.
    More(Box<Packing>, u64),
    /// The segment can be committed.
    Prepared(Box<PreparedSegment>),
}

impl Packing {
    /// Begins a segment, whose Parquet files have this layout.
    pub(super) fn new(store: &Arc<Store>, run: Run, layout: Layout) -> Result<Self, Error> {
        let cursor = PartCursor::new(run.snapshot());
        Ok(Self {
            store: Arc::clone(store),
            layout,
            writer: SegmentWriter::new(store, run.id)?,
            cursor,
            after: None,
            open: OpenSegment::default(),
            keys: Vec::new(),
            stage: Stage::Parts,
            run,
        })
    }

    /// One task.
    ///
    /// Errors: a part is damaged or cannot be read; the disk is full.
    pub(super) fn step(mut self: Box<Self>) -> Result<Step, Error> {
        let bytes = match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Parts => self.add_parts()?,
            Stage::Keys => {
                self.add_keys()?;
                self.stage = Stage::Parquet(0, None);
                0
            }
            Stage::Parquet(file, parquet) if file < self.writer.files_count() => self.add_rows(file, parquet)?,
            Stage::Parquet(..) | Stage::Done => {
                return Ok(Step::Prepared(Box::new(self.writer.prepare()?)));
            }
        };
        Ok(Step::More(self, bytes))
    }

    fn next(&mut self) -> Result<Option<Arc<Part>>, Error> {
        let part = self.cursor.next(&self.store, self.after)?;
        self.after = part.as_ref().map(|part| part.id);
        Ok(part)
    }

    fn add_parts(&mut self) -> Result<u64, Error> {
        let mut bytes = 0;
        for _part in 0..PACKED_BLOCK_PARTS {
            if bytes >= CONVERT_TASK_BYTES as u64 {
                break;
            }
            let Some(part) = self.next()? else {
                self.stage = Stage::Keys;
                return Ok(bytes);
            };
            let receipt = self.store.receipt_with(&part, &mut self.open)?;
            let csv = self.store.open_part_with(&part, Format::Csv, &mut self.open)?;
            let csv = csv.block(0, usize::try_from(part.csv_bytes).unwrap_or(usize::MAX))?;
            self.writer.add(&part, &receipt, &csv)?;
            if part.packed.is_none() {
                self.keys.extend(part.key_hash.map(std::num::NonZeroU64::get));
            }
            bytes += part.csv_bytes;
        }
        self.stage = Stage::Parts;
        Ok(bytes)
    }

    /// Merges the key hashes of all sources, without those of purged parts.
    fn add_keys(&mut self) -> Result<(), Error> {
        let mut purged = BTreeMap::<u64, usize>::new();
        for &id in &self.run.purged {
            let segment = self.run.segments.iter().find(|segment| segment.id.covers(id));
            let found =
                segment.map(|segment| crate::engine::storage::segments::cursor::find_in(&self.store, segment, id));
            if let Some(hash) = found.transpose()?.flatten().and_then(|part| part.key_hash) {
                *purged.entry(hash.get()).or_default() += 1;
            }
        }
        self.keys.sort_unstable();
        let mut sources = vec![KeySource { segment: None, page: 0, hashes: self.keys.drain(..).collect() }];
        for segment in self.run.segments.iter().filter(|segment| segment.keys.0 > 0) {
            sources.push(KeySource { segment: Some(Arc::clone(segment)), page: 0, hashes: VecDeque::new() });
        }
        loop {
            let mut least: Option<(u64, usize)> = None;
            for (index, source) in sources.iter_mut().enumerate() {
                if let Some(hash) = source.peek(&self.store)?
                    && least.is_none_or(|(other, _)| hash < other)
                {
                    least = Some((hash, index));
                }
            }
            let Some((hash, index)) = least else { return Ok(()) };
            sources[index].hashes.pop_front();
            match purged.get_mut(&hash) {
                Some(count) if *count > 0 => *count -= 1,
                _ => self.writer.add_key(hash)?,
            }
        }
    }

    /// Adds rows to a Parquet file.
    fn add_rows(&mut self, file: usize, parquet: Option<Box<ParquetOfParts>>) -> Result<u64, Error> {
        let columns = self.writer.columns(file).to_vec();
        let mut parquet = match parquet {
            Some(parquet) => parquet,
            None => {
                self.after = None;
                Box::new(ParquetOfParts::new(&self.store, &columns, self.layout)?)
            }
        };
        let hash = Schema::of(&columns).hash();
        let mut bytes = 0;
        for _part in 0..PACKED_BLOCK_PARTS {
            if bytes >= CONVERT_TASK_BYTES as u64 {
                break;
            }
            let Some(part) = self.next()? else {
                let written = parquet.finish()?;
                self.writer.set_parquet(file, written.draft, written.row_groups, written.footer_bytes);
                self.stage = Stage::Parquet(file + 1, None);
                return Ok(bytes);
            };
            if self.writer.files_count() > 1 && self.schema_hash(&part)? != hash {
                continue;
            }
            let csv = self.store.open_part_with(&part, Format::Csv, &mut self.open)?;
            parquet.add(&part, csv)?;
            bytes += part.csv_bytes;
        }
        self.stage = Stage::Parquet(file, Some(parquet));
        Ok(bytes)
    }

    fn schema_hash(&mut self, part: &Part) -> Result<u128, Error> {
        match &part.schema {
            Some(schema) => Ok(schema.hash()),
            None => Ok(Schema::of(&self.store.receipt_with(part, &mut self.open)?.columns).hash()),
        }
    }
}

/// The key hashes of a segment, or of parts that have their own files, in order.
struct KeySource {
    segment: Option<Arc<Segment>>,
    page: u64,
    hashes: VecDeque<u64>,
}

impl KeySource {
    fn peek(&mut self, store: &Store) -> Result<Option<u64>, Error> {
        if let (true, Some(segment)) = (self.hashes.is_empty(), &self.segment) {
            self.hashes = store.key_hashes(segment, self.page)?.into();
            self.page += 1;
        }
        Ok(self.hashes.front().copied())
    }
}
