//! The files of parts: what a start finds of them, and how they are opened.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Store,
    checksums::{PAGE_BYTES_MAX, listed_blocks, read_page},
    data_folder,
    reader::{Check, FileName, Reader, read_at},
    receipts::{ReceiptFault, parse_receipt},
};
use crate::{
    engine::state::{lock_check::assert_unlocked, missing_parts::MissingParts},
    error::Error,
    model::{
        format::Format,
        part::{FORMAT_VERSION, Part, PartId, Receipt},
    },
};

/// What a start found in the data folder.
#[derive(Debug, Default)]
pub struct Found {
    /// Files without a receipt, removed.
    pub leftovers: usize,
    /// Parts set aside now, with the reason.
    pub quarantined: Vec<(PartId, String)>,
    /// Ids of all parts in quarantine.
    pub in_quarantine: Vec<PartId>,
    /// Those of them that are not in the table, and whose loss no operator has accepted.
    pub missing: MissingParts,
    /// Jobs set aside now, with the reason.
    pub jobs_set_aside: Vec<(String, String)>,
}

impl Store {
    /// Puts the folder in order and calls `part` with every receipt that can be served, in the order of their ids.
    ///
    /// Errors: a receipt of a newer version, in which case nothing has been touched; a file operation fails.
    pub fn recover(&self, mut part: impl FnMut(Receipt)) -> Result<Found, Error> {
        let mut served = BTreeSet::new();
        let mut found = self.tidy(|receipt| {
            served.insert(receipt.part);
            part(receipt);
        })?;
        found.quarantined.iter().try_for_each(|(id, _reason)| self.set_aside(*id))?;
        let quarantine = self.quarantine()?;
        found.missing = quarantine.missing(|id| served.contains(id));
        found.in_quarantine = quarantine.parts.into_iter().collect();
        Ok(found)
    }

    /// The same, but parts that cannot be served stay where they are: they are [`Found::quarantined`], and it is the caller
    /// who sets them aside. What is in quarantine is not looked for.
    pub(crate) fn tidy(&self, mut part: impl FnMut(Receipt)) -> Result<Found, Error> {
        assert_unlocked();
        let mut found = Found::default();
        let files = self.list_parts()?;
        let was_in_quarantine = self.quarantine()?;
        for (&id, &present) in &files {
            if !present.receipt {
                continue;
            }
            match self.check_part(id)? {
                Ok(receipt) => part(receipt),
                Err(reason) => found.quarantined.push((id, reason)),
            }
        }
        // Nothing was changed up to here.
        for (id, present) in files {
            if present.receipt {
                // It is no loss any more; if it is damaged again, that is a new one.
                if was_in_quarantine.accepted.contains(&id) {
                    self.remove(&self.quarantine_path(id, "forgotten"))?;
                }
                continue;
            }
            if was_in_quarantine.parts.contains(&id) {
                // Somebody has put them back without the receipt: they are no leftovers.
                self.set_aside(id)?;
                continue;
            }
            for extension in present.extensions() {
                let path = self.part_path(id, extension);
                if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
                    let what = format!("data folder: {} is a folder: move it elsewhere", path.display());
                    return Err(Error::DataFolder(what)); // what is in it is not ours to remove
                }
                self.remove(&path)?;
                found.leftovers += 1;
            }
        }
        for entry in self.entries("tmp")? {
            self.remove(&entry)?;
            found.leftovers += 1;
        }
        Ok(found)
    }

    /// Whether a part is in `parts/`.
    pub(crate) fn has_receipt(&self, id: PartId) -> bool {
        assert_unlocked();
        self.part_path(id, "json").exists()
    }

    /// Verifies all of the list of checksums of a part, and says how many bytes it has. `blocks` is how many checksums it
    /// may have.
    pub(crate) fn check_part_sums(&self, id: PartId, seed: u64, blocks: RangeInclusive<u64>) -> Result<u64, Error> {
        let damaged = |what: String| Error::Damaged { part: id, what: format!("sums: {what}") };
        let what = || Error::io(format!("part {id}, sums"));
        let file = match data_folder::open(&self.part_path(id, "sums")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound || data_folder::is_no_file(&error) => {
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

    /// A stored file, if it still has the size that its receipt gives. Its CSV is verified as it is read; Parquet is by
    /// whoever knows the format.
    pub fn open_part(&self, part: &Part, format: Format) -> Result<Reader, Error> {
        let Some(checks) = part.checks else {
            return Err(Error::Internal(format!("part {} is read before it was verified", part.id)));
        };
        let mut reader = self.open_part_unverified(part, format)?;
        reader.check = match format {
            Format::Csv if listed_blocks(part.csv_bytes) == 0 => Check::Whole(checks.csv),
            Format::Parquet if !checks.chunks_in_sums => Check::Nothing,
            Format::Csv | Format::Parquet => {
                let sums = data_folder::open(&self.part_path(part.id, "sums")).map_err(|error| match error {
                    error if data_folder::is_no_file(&error) => {
                        reader.damaged(&format!("its list of checksums: {error}"))
                    }
                    error => Error::io(format!("part {}, sums", part.id))(error),
                })?;
                Check::List(Arc::new(sums), checks.csv)
            }
        };
        Ok(reader)
    }

    /// The same of bytes that nothing has been compared with: for who compares the whole file with its receipt.
    pub fn open_part_unverified(&self, part: &Part, format: Format) -> Result<Reader, Error> {
        let (extension, bytes) = match format {
            Format::Csv => ("csv", part.csv_bytes),
            Format::Parquet => ("parquet", part.parquet_bytes),
        };
        let name = FileName::Part(part.id, format);
        let reader = match Reader::open_as(&self.part_path(part.id, extension), name.clone()) {
            Err(Error::Io { cause, .. }) if data_folder::is_no_file(&cause) => {
                return Err(name.damaged(&cause.to_string()));
            }
            opened => opened?,
        };
        if reader.bytes != bytes {
            return Err(reader.damaged(&format!("{} bytes, the receipt says {bytes}", reader.bytes)));
        }
        Ok(reader)
    }

    /// A stored file of a part whose receipt is damaged. Its CSV is verified as it is read if `seed` is that of its list of
    /// checksums.
    pub(crate) fn open_part_without_receipt(
        &self,
        id: PartId,
        format: Format,
        seed: Option<u64>,
    ) -> Result<Reader, Error> {
        let name = FileName::Part(id, format);
        let mut reader = match Reader::open_as(&self.part_path(id, &format.to_string()), name.clone()) {
            Err(Error::Io { cause, .. }) if data_folder::is_no_file(&cause) => {
                return Err(name.damaged(&cause.to_string()));
            }
            opened => opened?,
        };
        if let (Format::Csv, Some(seed)) = (format, seed)
            && let Ok(list) = data_folder::open(&self.part_path(id, "sums"))
        {
            let listed = Reader { check: Check::List(Arc::new(list), seed), ..reader.clone() };
            if listed.listed_sums(0, 1).is_ok() {
                reader = listed;
            }
        }
        Ok(reader)
    }

    pub(super) fn part_path(&self, id: PartId, extension: &str) -> PathBuf {
        self.root.join("parts").join(format!("{id}.{extension}"))
    }

    fn list_parts(&self) -> Result<BTreeMap<PartId, Present>, Error> {
        let mut files = BTreeMap::<PartId, Present>::new();
        for path in self.entries("parts")? {
            match split_name(&path) {
                Some((id, "csv")) => files.entry(id).or_default().csv = true,
                Some((id, "parquet")) => files.entry(id).or_default().parquet = true,
                Some((id, "sums")) => files.entry(id).or_default().sums = true,
                Some((id, "json")) => files.entry(id).or_default().receipt = true,
                _ => tracing::warn!(path = %path.display(), "not a file of ours, left alone"),
            }
        }
        Ok(files)
    }

    /// The receipt of a part whose files are as it says, or why the part cannot be served.
    fn check_part(&self, id: PartId) -> Result<Result<Receipt, String>, Error> {
        assert_unlocked();
        // Only what the files are decides; that they cannot be read now ends the start, with nothing touched.
        let text = self.read_receipt(id).map_err(Error::io(format!("receipt of part {id}")))?;
        let receipt = match parse_receipt(id, &text) {
            Err(ReceiptFault::Newer(format)) => {
                let root = self.root.display();
                return Err(Error::DataFolder(format!(
                    "data folder {root}: part {id} has format version {format}, this program knows {FORMAT_VERSION}: use a newer one"
                )));
            }
            Ok(receipt) => receipt,
            Err(ReceiptFault::Damaged(what)) => return Ok(Err(format!("receipt: {what}"))),
        };
        if id == PartId::END {
            return Ok(Err("receipt: its number is the last that there is, so none could follow it".to_owned()));
        }
        let is_listed =
            receipt.checks.as_ref().is_some_and(|checks| checks.sums_seed.is_some() || checks.chunks_in_sums);
        // The list is verified page by page as it is read.
        let files = [("csv", Some(receipt.csv.bytes)), ("parquet", Some(receipt.parquet.bytes)), ("sums", None)];
        for (extension, bytes) in files.into_iter().filter(|(_, bytes)| bytes.is_some() || is_listed) {
            match fs::symlink_metadata(self.part_path(id, extension)).map(|metadata| metadata.len()) {
                Ok(found) if found == bytes.unwrap_or(found) => {}
                Ok(found) => {
                    let expected = bytes.unwrap_or(found);
                    return Ok(Err(format!("{extension}: {found} bytes, the receipt says {expected}")));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Err(format!("{extension}: {error}")));
                }
                Err(error) => return Err(Error::io(format!("part {id}, {extension}"))(error)),
            }
        }
        Ok(Ok(receipt))
    }
}

/// Which files of a part are there.
#[derive(Clone, Copy, Default)]
struct Present {
    csv: bool,
    parquet: bool,
    sums: bool,
    receipt: bool,
}

impl Present {
    fn extensions(self) -> impl Iterator<Item = &'static str> {
        let files = [("csv", self.csv), ("parquet", self.parquet), ("sums", self.sums)];
        files.into_iter().filter(|(_, there)| *there).map(|(name, _)| name)
    }
}

/// `12.csv` is `(12, "csv")`.
fn split_name(path: &Path) -> Option<(PartId, &str)> {
    let (stem, extension) = (path.file_stem()?.to_str()?, path.extension()?.to_str()?);
    let id = PartId::new(stem.parse().ok()?)?;
    (id.to_string() == stem).then_some((id, extension))
}

/// The same of a file in `quarantine/`, where `12-2.csv` is a second one of part 12.
pub(super) fn split_name_in_quarantine(path: &Path) -> Option<(PartId, &str)> {
    let (stem, extension) = (path.file_stem()?.to_str()?, path.extension()?.to_str()?);
    let number = match stem.split_once('-') {
        Some((number, copy)) if copy.parse::<u32>().is_ok() => number,
        _ => stem,
    };
    let id = PartId::new(number.parse().ok()?)?;
    (id.to_string() == number).then_some((id, extension))
}
