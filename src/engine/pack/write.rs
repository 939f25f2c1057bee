//! Writes a segment in short tasks: first the CSV and the index, then the key hashes, then one Parquet file after another.
//!
//! For a Parquet file with few parts, their numbers are remembered. For any other, all parts are looked at; there are at most as
//! many of these as blocks of so many parts.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use imbl::OrdSet;

use super::{plan::Run, rows::ParquetOfParts};
use crate::{
    engine::{
        parquet::writer::Layout,
        state::registry::Snapshot,
        storage::{
            Store,
            segments::{
                cursor::PartCursor,
                reading::{KeyPages, OpenSegment},
                writing::{PreparedSegment, SegmentWriter},
            },
        },
    },
    error::Error,
    limits::{CONVERT_TASK_BYTES, PACKED_BLOCK_PARTS, PACKED_FEW_PARTS},
    model::{
        format::Format,
        packed::SegmentId,
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
    /// The parts of each Parquet file; `None` if they are many.
    members: Vec<Option<Vec<PartId>>>,
    /// The Parquet file for the parts of a Parquet file of a segment that is replaced.
    file_of: HashMap<(SegmentId, u32), usize>,
    /// Parts of the run for whose columns the segment has no room.
    left_out: BTreeSet<PartId>,
    /// How often the Parquet file that is being written was given up.
    given_up: usize,
    stage: Stage,
}

/// What is written next.
enum Stage {
    Parts,
    Keys(Option<Box<MergedKeys>>),
    /// The Parquet file with this number.
    Parquet(usize, Option<ParquetInWork>),
    Done,
}

struct ParquetInWork {
    parquet: Box<ParquetOfParts>,
    /// How many of the [`Packing::members`] were added.
    added: usize,
}

/// The result of one task.
pub(super) enum Step {
    /// There is more to do. About so many bytes were read.
    More(Box<Packing>, u64),
    /// The segment can be committed. It is made of the run, which may have fewer parts than before.
    Prepared(Box<PreparedSegment>, Run),
}

/// A Parquet file is not given up more often than this.
const GIVEN_UP_MAX: usize = 3;
/// Key hashes that one task merges.
const TASK_KEYS: usize = 16 * 1024;

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
            members: Vec::new(),
            file_of: HashMap::new(),
            left_out: BTreeSet::new(),
            given_up: 0,
            stage: Stage::Parts,
            run,
        })
    }

    /// Whether the next step needs the memory of a conversion.
    pub(super) fn converts(&self) -> bool {
        matches!(self.stage, Stage::Parquet(..) | Stage::Done)
    }

    /// Whether a Parquet file is being written, which takes memory between the steps.
    pub(super) fn has_open_parquet(&self) -> bool {
        matches!(self.stage, Stage::Parquet(_, Some(_)))
    }

    /// Whether the Parquet file that is being written may be given up, because others need the memory.
    pub(super) fn may_give_up(&self) -> bool {
        self.has_open_parquet() && self.given_up < GIVEN_UP_MAX
    }

    /// Begins the Parquet file anew.
    pub(super) fn give_up(&mut self) {
        if let Stage::Parquet(_, parquet) = &mut self.stage {
            *parquet = None;
            self.given_up += 1;
        }
    }

    /// One task.
    ///
    /// Errors: a part is damaged or cannot be read; the disk is full.
    pub(super) fn step(mut self: Box<Self>) -> Result<Step, Error> {
        let bytes = match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Parts => self.add_parts()?,
            Stage::Keys(merged) => self.add_keys(merged)?,
            Stage::Parquet(file, parquet) if file < self.writer.files_count() => self.add_rows(file, parquet)?,
            Stage::Parquet(..) | Stage::Done => {
                return Ok(Step::Prepared(Box::new(self.writer.prepare()?), self.run));
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
                if !self.left_out.is_empty() {
                    self.run.parts.retain(|part| !self.left_out.contains(&part.id));
                    self.cursor = PartCursor::new(self.run.snapshot());
                }
                self.stage = Stage::Keys(None);
                return Ok(bytes);
            };
            let receipt = self.store.receipt_with(&part, &mut self.open)?;
            if part.packed.is_none() && !self.writer.has_room_for(&receipt.columns) {
                if self.run.segments.is_empty() {
                    self.end_run_before(part.id);
                    self.stage = Stage::Keys(None);
                    return Ok(bytes);
                }
                self.left_out.insert(part.id); // a part between segments, which keeps its own files
                continue;
            }
            let csv = self.store.open_part_with(&part, Format::Csv, &mut self.open)?;
            let csv = csv.block(0, usize::try_from(part.csv_bytes).unwrap_or(usize::MAX))?;
            let file = self.writer.add(&part, &receipt, &csv)?;
            match &part.packed {
                Some(packed) => {
                    self.file_of.insert((packed.segment.id, packed.file), file);
                }
                None => self.keys.extend(part.key_hash.map(std::num::NonZeroU64::get)),
            }
            self.members.resize(self.writer.files_count(), Some(Vec::new()));
            if let Some(members) = &mut self.members[file] {
                members.push(part.id);
                if members.len() > PACKED_FEW_PARTS {
                    self.members[file] = None;
                }
            }
            bytes += part.csv_bytes;
        }
        self.stage = Stage::Parts;
        Ok(bytes)
    }

    /// Ends a run of parts that would have too many lists of columns for one segment.
    fn end_run_before(&mut self, id: PartId) {
        self.run.parts.retain(|part| part.id < id);
        if let Some(last) = self.run.parts.last() {
            self.run.id.last = last.id;
            self.writer.end_at(last.id);
        }
        self.cursor = PartCursor::new(self.run.snapshot());
    }

    /// Merges some key hashes of all sources, without those of purged parts.
    fn add_keys(&mut self, merged: Option<Box<MergedKeys>>) -> Result<u64, Error> {
        let mut merged = match merged {
            Some(merged) => merged,
            None => Box::new(MergedKeys::new(&self.run, std::mem::take(&mut self.keys))),
        };
        for _key in 0..TASK_KEYS {
            if merged.add_next_purged(&self.store, &self.run)? {
                continue;
            }
            match merged.next(&self.store)? {
                Some(hash) => self.writer.add_key(hash)?,
                None => {
                    (self.stage, self.after) = (Stage::Parquet(0, None), None);
                    return Ok(0);
                }
            }
        }
        self.stage = Stage::Keys(Some(merged));
        Ok((8 * TASK_KEYS) as u64)
    }

    /// Adds rows to a Parquet file.
    fn add_rows(&mut self, file: usize, in_work: Option<ParquetInWork>) -> Result<u64, Error> {
        let mut in_work = match in_work {
            Some(in_work) => in_work,
            None => {
                self.after = None;
                let parquet = ParquetOfParts::new(&self.store, self.writer.columns(file), self.layout)?;
                ParquetInWork { parquet: Box::new(parquet), added: 0 }
            }
        };
        let mut bytes = 0;
        for _part in 0..PACKED_BLOCK_PARTS {
            if bytes >= CONVERT_TASK_BYTES as u64 {
                break;
            }
            let Some(part) = self.next_of(file, &mut in_work.added)? else {
                let written = in_work.parquet.finish()?;
                self.writer.set_parquet(file, written.draft, written.row_groups, written.footer_bytes)?;
                (self.stage, self.given_up) = (Stage::Parquet(file + 1, None), 0);
                return Ok(bytes);
            };
            if self.file_of(&part)? != Some(file) {
                continue;
            }
            let csv = self.store.open_part_with(&part, Format::Csv, &mut self.open)?;
            in_work.parquet.add(&part, csv)?;
            bytes += part.csv_bytes;
        }
        self.stage = Stage::Parquet(file, Some(in_work));
        Ok(bytes)
    }

    /// The next part that may belong in a Parquet file. If it has few parts, the others are skipped.
    fn next_of(&mut self, file: usize, added: &mut usize) -> Result<Option<Arc<Part>>, Error> {
        let Some(Some(members)) = self.members.get(file) else { return self.next() };
        let Some(id) = members.get(*added).copied() else { return Ok(None) };
        *added += 1;
        self.cursor.first_from(&self.store, id)
    }

    /// Which Parquet file has the rows of a part.
    fn file_of(&mut self, part: &Part) -> Result<Option<usize>, Error> {
        if let Some(packed) = &part.packed {
            return Ok(self.file_of.get(&(packed.segment.id, packed.file)).copied());
        }
        let hash = match &part.schema {
            Some(schema) => schema.hash(),
            None => Schema::hash_of(&self.store.receipt_with(part, &mut self.open)?.columns),
        };
        Ok(self.writer.file_with(hash))
    }
}

/// The key hashes of all sources, in order.
struct MergedKeys {
    sources: Vec<KeySource>,
    /// Hashes of purged parts, and how many of them have each.
    purged: BTreeMap<u64, usize>,
    /// How many purged parts were looked at.
    purged_seen: usize,
    cursor: PartCursor,
}

impl MergedKeys {
    fn new(run: &Run, mut own: Vec<u64>) -> Self {
        own.sort_unstable();
        let mut sources = vec![KeySource { pages: None, hashes: own.into() }];
        for segment in run.segments.iter().filter(|segment| segment.keys.0 > 0) {
            sources.push(KeySource { pages: Some(KeyPages::new(segment)), hashes: VecDeque::new() });
        }
        let purged_seen = if sources.len() == 1 { run.purged.len() } else { 0 };
        let Snapshot { parts, segments, .. } = run.snapshot();
        let cursor = PartCursor::new(Snapshot::of(parts, segments, OrdSet::new()));
        Self { sources, purged: BTreeMap::new(), purged_seen, cursor }
    }

    /// Looks at a purged part. Returns whether there was one.
    fn add_next_purged(&mut self, store: &Store, run: &Run) -> Result<bool, Error> {
        let Some(id) = run.purged.get(self.purged_seen) else { return Ok(false) };
        self.purged_seen += 1;
        let part = self.cursor.first_from(store, *id)?.filter(|part| part.id == *id);
        if let Some(hash) = part.and_then(|part| part.key_hash) {
            *self.purged.entry(hash.get()).or_default() += 1;
        }
        Ok(true)
    }

    /// The least hash that is left, without those of purged parts.
    fn next(&mut self, store: &Store) -> Result<Option<u64>, Error> {
        loop {
            let mut least: Option<(u64, usize)> = None;
            for (index, source) in self.sources.iter_mut().enumerate() {
                if let Some(hash) = source.peek(store)?
                    && least.is_none_or(|(other, _)| hash < other)
                {
                    least = Some((hash, index));
                }
            }
            let Some((hash, index)) = least else { return Ok(None) };
            self.sources[index].hashes.pop_front();
            match self.purged.get_mut(&hash) {
                Some(count) if *count > 0 => *count -= 1,
                _ => return Ok(Some(hash)),
            }
        }
    }
}

/// The key hashes of a segment, or of parts that have their own files, in order.
struct KeySource {
    pages: Option<KeyPages>,
    hashes: VecDeque<u64>,
}

impl KeySource {
    fn peek(&mut self, store: &Store) -> Result<Option<u64>, Error> {
        if let (true, Some(pages)) = (self.hashes.is_empty(), &mut self.pages) {
            self.hashes = pages.next(store)?.into();
        }
        Ok(self.hashes.front().copied())
    }
}
