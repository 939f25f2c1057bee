//! Receipts on disk: they are written with their own checksum, and verified when they are read.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use super::{
    checksums::{RecordChecksum, add_checksum, verify_record},
    data_folder,
    draft::Draft,
    segments::reading::OpenSegment,
    store::Store,
};
use crate::{
    engine::state::lock_check::assert_unlocked,
    error::Error,
    limits::RECEIPT_TEXT_BYTES_MAX,
    model::{
        part::{FORMAT_VERSION, Part, PartId, PartialReceipt, Receipt},
        schema::Schema,
    },
};

/// Why a part cannot be served.
pub(super) enum Unusable {
    Damaged(String),
    /// Its files cannot be read now, or a newer program wrote them.
    Unreadable(Error),
}

impl From<Error> for Unusable {
    fn from(error: Error) -> Self {
        Self::Unreadable(error)
    }
}

impl Store {
    /// The fields that can still be read from a damaged receipt.
    pub(crate) fn partial_receipt(&self, id: PartId) -> PartialReceipt {
        self.read_receipt(id).map(|text| PartialReceipt::parse(&text)).unwrap_or_default()
    }

    /// Whether the file checksum `stored` is the only damage of a receipt, and `actual` is the correct one.
    pub(crate) fn is_only_damage_of_receipt(&self, id: PartId, stored: &str, actual: &str) -> bool {
        let Ok(Ok(text)) = self.read_receipt(id).map(String::from_utf8) else { return false };
        verify_record(text.replace(stored, actual).as_bytes()) == RecordChecksum::Valid
    }

    /// A part's receipt, verified.
    ///
    /// Errors: it is damaged or missing; it cannot be read.
    pub fn receipt(&self, id: PartId) -> Result<Receipt, Error> {
        let damaged = |what: String| Error::Damaged { part: id, what: format!("receipt: {what}") };
        let text = match self.read_receipt(id) {
            Err(error) if data_folder::is_no_regular_file(&error) => return Err(damaged(error.to_string())),
            read => read.map_err(Error::io(format!("part {id}, receipt")))?,
        };
        parse_receipt(id, &text).map_err(|fault| {
            damaged(match fault {
                ReceiptFault::Newer(format) => format!("it has format version {format}"),
                ReceiptFault::Damaged(what) => what,
            })
        })
    }

    /// The receipt of a part in the table.
    ///
    /// Errors: those of [`Store::receipt`]; it is not the one with which the part was added, but for example that of a part with
    /// the same number in another data folder, which is valid in itself.
    pub fn receipt_of(&self, part: &Part) -> Result<Receipt, Error> {
        self.receipt_with(part, &mut OpenSegment::default())
    }

    /// As [`Self::receipt_of`]. `open` has what was read of a segment before, for parts that follow each other.
    pub fn receipt_with(&self, part: &Part, open: &mut OpenSegment) -> Result<Receipt, Error> {
        if let Some(packed) = &part.packed {
            return self.packed_receipt(part, &packed.segment, open);
        }
        let receipt = self.receipt(part.id)?;
        if Part::of(&receipt, None).is_same_as(part) {
            return Ok(receipt);
        }
        Err(Error::Damaged {
            part: part.id,
            what: "receipt: it describes other files than those of this part".to_owned(),
        })
    }

    /// A part's columns: from memory, or from its receipt if they are not kept in memory.
    ///
    /// Errors: those of [`Store::receipt_of`].
    pub fn schema(&self, part: &Part) -> Result<Arc<Schema>, Error> {
        self.schema_with(part, &mut OpenSegment::default())
    }

    /// As [`Self::schema`]. `open` has what was read of a segment before, for parts that follow each other.
    pub fn schema_with(&self, part: &Part, open: &mut OpenSegment) -> Result<Arc<Schema>, Error> {
        match &part.schema {
            Some(schema) => Ok(Arc::clone(schema)),
            None => Ok(Arc::new(Schema::of(&self.receipt_with(part, open)?.columns))),
        }
    }

    /// Whether all cells of a column of a part are empty.
    ///
    /// Errors: those of [`Store::receipt_of`].
    pub fn is_without_values(&self, part: &Part, column_index: usize) -> Result<bool, Error> {
        self.is_without_values_with(part, column_index, &mut OpenSegment::default())
    }

    /// As [`Self::is_without_values`]. `open` has what was read of a segment before, for parts that follow each other.
    pub fn is_without_values_with(
        &self,
        part: &Part,
        column_index: usize,
        open: &mut OpenSegment,
    ) -> Result<bool, Error> {
        let receipt = self.receipt_with(part, open)?;
        Ok(receipt.columns.get(column_index).is_some_and(|column| column.nulls == receipt.rows))
    }

    /// Replaces the receipt of a part of format version 1 with one of the current version, and adds its block list.
    pub fn upgrade_receipt(&self, receipt: &Receipt, sums: Option<Draft>) -> Result<(), Error> {
        if let Some(mut sums) = sums {
            sums.finish(self.is_synced()).map_err(Error::io(format!("part {}, sums", receipt.part)))?;
            sums.rename(&self.part_path(receipt.part, "sums"))?;
        }
        self.publish_record(&self.part_path(receipt.part, "json"), &receipt_text(receipt)?)
    }

    pub(super) fn read_receipt(&self, id: PartId) -> io::Result<Vec<u8>> {
        self.open_part_file(id, "json").and_then(read_record)
    }

    /// The receipt of a part in quarantine. `None` if it is missing or damaged.
    pub fn quarantined_receipt(&self, id: PartId) -> Option<Receipt> {
        self.receipt_at(id, &self.quarantine_path(id, "json"))
    }

    /// The receipt of a part that was removed. `None` if it is missing or damaged.
    pub(crate) fn removed_receipt(&self, id: PartId) -> Option<Receipt> {
        self.receipt_at(id, &self.removed_path(id, "json"))
    }

    fn receipt_at(&self, id: PartId, path: &Path) -> Option<Receipt> {
        let text = data_folder::open_with_size(path).and_then(read_record).ok()?;
        parse_receipt(id, &text).ok()
    }
}

fn read_record((file, bytes): (File, u64)) -> io::Result<Vec<u8>> {
    assert_unlocked();
    // One byte more than the file has, so that the buffer does not grow before the end of the file is seen.
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).min(RECEIPT_TEXT_BYTES_MAX);
    let mut text = Vec::with_capacity(bytes + 1);
    file.take(RECEIPT_TEXT_BYTES_MAX as u64).read_to_end(&mut text)?;
    Ok(text)
}

/// A receipt as it is stored.
pub(super) fn receipt_text(receipt: &Receipt) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(receipt).map(add_checksum).map_err(|error| Error::Internal(format!("receipt: {error}")))
}

/// Why a receipt cannot be used.
pub(super) enum ReceiptFault {
    /// It is undamaged and has this newer version.
    Newer(u32),
    /// What is wrong with it.
    Damaged(String),
}

pub(super) fn parse_receipt(id: PartId, text: &[u8]) -> Result<Receipt, ReceiptFault> {
    #[derive(serde::Deserialize)]
    struct Version {
        format: u32,
    }
    let damaged = |what: &str| ReceiptFault::Damaged(what.to_owned());
    let has_checksum = match verify_record(text) {
        RecordChecksum::Valid => true,
        RecordChecksum::Missing => false,
        RecordChecksum::Invalid => return Err(damaged("it is not what was written")),
    };
    // The version is read first, because a receipt of a newer version may have other fields.
    if let Ok(Version { format }) = serde_json::from_slice(text)
        && has_checksum
        && format > FORMAT_VERSION
    {
        return Err(ReceiptFault::Newer(format));
    }
    let receipt: Receipt = serde_json::from_slice(text).map_err(|error| ReceiptFault::Damaged(error.to_string()))?;
    // Version 1 has no checksum of the receipt itself.
    let version = if has_checksum { FORMAT_VERSION } else { 1 };
    if receipt.part != id || receipt.format != version || receipt.checks().is_some() != has_checksum {
        return Err(damaged("it is of another part or version"));
    }
    Ok(receipt)
}
