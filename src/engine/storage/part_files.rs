//! The files of parts: opening them, and verifying their block lists.

use std::{fs::File, io, ops::RangeInclusive, sync::Arc};

use super::{
    checksums::{PAGE_BYTES_MAX, listed_blocks, read_page},
    data_folder,
    names::FileName,
    reader::{Check, Reader, read_at},
    removed_parts::PURGED,
    segments::{reading::OpenSegment, replaced::REPLACED},
    store::Store,
};
use crate::{
    engine::state::lock_check::assert_unlocked,
    error::Error,
    model::{
        format::Format,
        part::{Part, PartId},
    },
};

impl Store {
    /// Whether a part has a receipt, in `parts/` or in `removed/`.
    pub(crate) fn has_receipt(&self, id: PartId) -> bool {
        assert_unlocked();
        self.part_path(id, "json").exists() || self.has_removed_receipt(id)
    }

    /// Verifies the whole block list of a part, which must have as many checksums as `blocks` allows. Returns its size.
    pub(crate) fn check_part_sums(&self, id: PartId, seed: u64, blocks: RangeInclusive<u64>) -> Result<u64, Error> {
        let damaged = |what: String| Error::Damaged { part: id, what: format!("sums: {what}") };
        let what = || Error::io(format!("part {id}, sums"));
        let file = match self.open_part_file(id, "sums").map(|(file, _bytes)| file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound || data_folder::is_no_regular_file(&error) => {
                return Err(damaged(error.to_string()));
            }
            file => file.map_err(what())?,
        };
        let (mut page, mut bytes, mut sums) = (vec![0; PAGE_BYTES_MAX], 0, 0);
        for index in 0.. {
            let read = read_at(&file, bytes, &mut page).map_err(what())?;
            if read == 0 {
                break;
            }
            let found = read_page(seed, index, &page[..read]);
            let found = found.ok_or_else(|| damaged(format!("its page {index} is not what was written")))?;
            bytes += read as u64;
            sums += found.len() as u64;
        }
        if !blocks.contains(&sums) {
            return Err(damaged(format!(
                "it has {sums} checksums, and the part's files have {} blocks",
                blocks.start()
            )));
        }
        Ok(bytes)
    }

    /// Opens a file of a part, if it still has the size that its receipt gives. CSV is verified as it is read; Parquet is
    /// verified by the caller.
    pub fn open_part(&self, part: &Part, format: Format) -> Result<Reader, Error> {
        self.open_part_with(part, format, &mut OpenSegment::default())
    }

    /// As [`Self::open_part`]. `open` has the files of the segment that was read before, for parts that follow each other.
    pub fn open_part_with(&self, part: &Part, format: Format, open: &mut OpenSegment) -> Result<Reader, Error> {
        if let Some(packed) = &part.packed {
            return match format {
                Format::Csv => self.open_packed_csv(part, packed, open),
                Format::Parquet => Err(Error::Internal(format!("part {} has no Parquet file of its own", part.id))),
            };
        }
        let Some(checks) = part.checks else {
            return Err(Error::Internal(format!("part {} is read before it was verified", part.id)));
        };
        let mut reader = self.open_part_unverified(part, format)?;
        reader.check = match format {
            Format::Csv if listed_blocks(part.csv_bytes) == 0 => Check::OneBlock(checks.csv),
            Format::Parquet if !checks.chunks_in_sums => Check::Unverified,
            Format::Csv | Format::Parquet => {
                let (sums, _bytes) = self.open_part_file(part.id, "sums").map_err(|error| match error {
                    error if data_folder::is_no_regular_file(&error) => {
                        reader.damaged(&format!("its list of checksums: {error}"))
                    }
                    error => Error::io(format!("part {}, sums", part.id))(error),
                })?;
                Check::BlockList(Arc::new(sums), checks.csv)
            }
        };
        Ok(reader)
    }

    /// As [`Self::open_part`], but nothing is verified. The caller compares the whole file with its receipt.
    pub fn open_part_unverified(&self, part: &Part, format: Format) -> Result<Reader, Error> {
        let bytes = match format {
            Format::Csv => part.csv_bytes,
            Format::Parquet => part.parquet_bytes,
        };
        let reader = self.open_file(part.id, format)?;
        if reader.bytes != bytes {
            return Err(reader.damaged(&format!("{} bytes, the receipt says {bytes}", reader.bytes)));
        }
        Ok(reader)
    }

    /// Opens a file of a part whose receipt is damaged. CSV is verified as it is read if `seed` is that of its block list.
    pub(crate) fn open_part_without_receipt(
        &self,
        id: PartId,
        format: Format,
        seed: Option<u64>,
    ) -> Result<Reader, Error> {
        let mut reader = self.open_file(id, format)?;
        if let (Format::Csv, Some(seed)) = (format, seed)
            && let Ok((list, _bytes)) = self.open_part_file(id, "sums")
        {
            let listed = Reader { check: Check::BlockList(Arc::new(list), seed), ..reader.clone() };
            if listed.block_checksums(0, 1).is_ok() {
                reader = listed;
            }
        }
        Ok(reader)
    }

    fn open_file(&self, id: PartId, format: Format) -> Result<Reader, Error> {
        let name = FileName::Part(id, format);
        match self.open_part_file(id, &format.to_string()) {
            Err(error) if data_folder::is_no_regular_file(&error) => Err(name.damaged(&error.to_string())),
            opened => Reader::of(opened, name),
        }
    }

    /// Opens a file of a part, and returns its size: from `parts/`, or from `removed/` if the part was removed since the
    /// caller took its snapshot of the table.
    pub(super) fn open_part_file(&self, id: PartId, extension: &str) -> io::Result<(File, u64)> {
        let purged = if extension == "json" { PURGED } else { extension };
        let path = self.part_path(id, extension);
        let mut opened = data_folder::open_with_size(&path);
        let is_missing =
            |opened: &io::Result<_>| matches!(opened, Err(error) if error.kind() == io::ErrorKind::NotFound);
        if !is_missing(&opened) {
            return opened;
        }
        let replaced = if extension == "json" { REPLACED } else { extension };
        let removed = [purged, replaced, extension].map(|extension| self.removed_path(id, extension));
        // Twice, because the file may be moved back meanwhile.
        for place in removed.iter().chain([&path]).chain(&removed) {
            opened = data_folder::open_with_size(place);
            if !is_missing(&opened) {
                break;
            }
        }
        opened
    }
}
