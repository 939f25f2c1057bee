//! The quarantine folder: damaged parts and jobs, and the losses that an operator has accepted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{
    data_folder,
    names::{parse_quarantine_file_name, parse_quarantined_segment_file_name},
    segments::recovery::parse_segment_receipt,
    store::Store,
    sync::{rename, sync_folder},
};
use crate::{
    engine::state::{lock_check::assert_unlocked, missing_parts::MissingParts},
    error::Error,
    model::{packed::SegmentId, part::PartId},
};

/// The parts and segments that have files in `quarantine/`.
#[derive(Debug, Default)]
pub struct Quarantine {
    /// All parts in quarantine, without those of segments.
    pub parts: BTreeSet<PartId>,
    /// Parts whose loss an operator has accepted.
    pub accepted: BTreeSet<PartId>,
    /// All segments in quarantine, with the number of their parts: if the receipt cannot be read, of the numbers that they cover.
    pub segments: BTreeMap<SegmentId, usize>,
    /// Segments whose loss an operator has accepted.
    pub accepted_segments: BTreeSet<SegmentId>,
}

impl Quarantine {
    /// What is neither in the table nor accepted as lost.
    pub fn missing(
        &self,
        is_served: impl Fn(&PartId) -> bool,
        is_segment_served: impl Fn(SegmentId) -> bool,
    ) -> MissingParts {
        let mut missing: MissingParts =
            self.parts.difference(&self.accepted).copied().filter(|id| !is_served(id)).collect();
        let segments = self.segments.iter().map(|(id, parts)| (*id, *parts));
        let is_missing = |id| !self.accepted_segments.contains(&id) && !is_segment_served(id);
        missing.add_segments(segments.filter(|(id, _)| is_missing(*id)));
        missing
    }

    /// Whether a part with this number may be in a segment that is in quarantine.
    pub(super) fn covers(&self, part: PartId) -> bool {
        self.segments.keys().any(|id| id.covers(part))
    }
}

impl Store {
    /// The parts and segments that have files in `quarantine/`.
    pub fn quarantine(&self) -> Result<Quarantine, Error> {
        assert_unlocked();
        let path = self.root.join("quarantine");
        let what = || Error::io(format!("data folder {}", path.display()));
        let mut quarantine = Quarantine::default();
        for entry in fs::read_dir(&path).map_err(what())? {
            let path = entry.map_err(what())?.path();
            if let Some((id, extension)) = parse_quarantined_segment_file_name(&path) {
                match extension {
                    "forgotten" => {
                        quarantine.accepted_segments.insert(id);
                    }
                    _ => {
                        quarantine.segments.entry(id).or_insert(0);
                    }
                }
                continue;
            }
            match parse_quarantine_file_name(&path) {
                Some((id, "forgotten")) => quarantine.accepted.insert(id),
                Some((id, "csv" | "parquet" | "sums" | "json")) => quarantine.parts.insert(id),
                _ => false,
            };
        }
        for (id, parts) in &mut quarantine.segments {
            *parts = self.quarantined_parts(*id);
        }
        Ok(quarantine)
    }

    /// How many parts a segment in quarantine has.
    fn quarantined_parts(&self, id: SegmentId) -> usize {
        let receipt = data_folder::open_with_size(&self.quarantined_segment_path(id, "segment"))
            .ok()
            .and_then(|(file, _bytes)| parse_segment_receipt(id, file).ok()?.ok());
        let covered = || (id.last.get() - id.first.get()).saturating_add(1);
        let parts = receipt.map_or_else(covered, |receipt| receipt.files.iter().map(|file| file.parts).sum());
        usize::try_from(parts).unwrap_or(usize::MAX)
    }

    fn quarantined_segment_path(&self, id: SegmentId, extension: &str) -> PathBuf {
        self.root.join("quarantine").join(format!("{id}.{extension}"))
    }

    /// Whether a part has files in `quarantine/`, and whether its loss was accepted.
    pub fn is_in_quarantine(&self, id: PartId) -> Result<(bool, bool), Error> {
        assert_unlocked();
        let exists = |extension| {
            let exists = self.quarantine_path(id, extension).try_exists();
            exists.map_err(Error::io(format!("part {id} in quarantine")))
        };
        Ok((exists("json")? || exists("csv")? || exists("parquet")?, exists("forgotten")?))
    }

    /// Records the loss of a part that is being purged if damaged copies of it are in quarantine, so that the next start does not
    /// say that it is missing.
    pub(super) fn accept_earlier_loss(&self, id: PartId, now: &str) -> Result<(), Error> {
        match self.is_in_quarantine(id)? {
            (true, false) => self.record_loss(id, now),
            _ => Ok(()),
        }
    }

    /// Whether a segment has files in `quarantine/`.
    pub(crate) fn is_segment_in_quarantine(&self, id: SegmentId) -> bool {
        assert_unlocked();
        ["segment", "csv", "index"].iter().any(|extension| self.quarantined_segment_path(id, extension).exists())
    }

    /// Records that an operator has accepted the loss of a part. This is synced whatever `--durability` says.
    pub fn record_loss(&self, id: PartId, forgotten_at: &str) -> Result<(), Error> {
        let text = format!("{{\"part\":{id},\"forgotten_at\":\"{forgotten_at}\"}}\n");
        self.write_record_of_loss(&format!("part {id}"), &text, &self.quarantine_path(id, "forgotten"))
    }

    /// The same for all parts of a segment.
    pub fn record_loss_of_segment(&self, id: SegmentId, forgotten_at: &str) -> Result<(), Error> {
        let text = format!("{{\"segment\":\"{id}\",\"forgotten_at\":\"{forgotten_at}\"}}\n");
        self.write_record_of_loss(&format!("segment {id}"), &text, &self.quarantined_segment_path(id, "forgotten"))
    }

    /// Deletes the record that the loss of a segment was accepted, because it is back.
    pub(super) fn remove_record_of_loss(&self, id: SegmentId) -> Result<(), Error> {
        self.remove(&self.quarantined_segment_path(id, "forgotten"))
    }

    fn write_record_of_loss(&self, lost: &str, text: &str, path: &Path) -> Result<(), Error> {
        let what = || Error::io(format!("the record that {lost} is forgotten"));
        let mut draft = self.draft()?;
        draft.write_all(text.as_bytes()).and_then(|()| draft.sync()).map_err(what())?;
        draft.rename(path)?;
        sync_folder(&self.root.join("quarantine")).map_err(what())
    }

    /// The names, without extensions, of all files in quarantine.
    pub fn names_in_quarantine(&self) -> Result<Vec<String>, Error> {
        let name = |path: PathBuf| path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
        Ok(self.entries("quarantine")?.into_iter().filter_map(name).collect())
    }

    /// Moves all files of a part to `quarantine/`, without overwriting files there. The receipt is moved last: if this is
    /// interrupted, the next start finds a damaged part again, and not leftovers that it would remove.
    pub(crate) fn move_part_to_quarantine(&self, id: PartId) -> Result<(), Error> {
        assert_unlocked();
        for extension in ["csv", "parquet", "sums", "json"] {
            self.move_to_quarantine(&self.part_path(id, extension), &id.to_string(), extension)?;
        }
        Ok(())
    }

    pub(super) fn move_to_quarantine(&self, from: &Path, name: &str, extension: &str) -> Result<(), Error> {
        assert_unlocked();
        let mut to = self.root.join("quarantine").join(format!("{name}.{extension}"));
        for copy in 2.. {
            if !to.exists() {
                break;
            }
            to.set_file_name(format!("{name}-{copy}.{extension}"));
        }
        match rename(from, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("quarantine {}", from.display()))(error))
            }
            _ => Ok(()),
        }
    }
}
