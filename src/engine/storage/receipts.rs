//! Receipts on disk: written with a checksum of themselves, verified when they are read.

use std::{
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use super::{
    checksums::{RecordChecksum, add_checksum, verify_record},
    data_folder,
    draft::Draft,
    store::Store,
};
use crate::{
    engine::state::lock_check::assert_unlocked,
    error::Error,
    limits::{KIB, MIB},
    model::{
        part::{FORMAT_VERSION, Part, PartId, Receipt, Remains},
        schema::Schema,
    },
};

impl Store {
    /// What a damaged receipt still says.
    pub(crate) fn receipt_remains(&self, id: PartId) -> Remains {
        self.read_receipt(id).map(|text| Remains::of(&text)).unwrap_or_default()
    }

    /// Whether a damaged receipt would be whole if it said `found` where it says `told`: both are checksums.
    pub(crate) fn is_only_damage_of_receipt(&self, id: PartId, told: &str, found: &str) -> bool {
        let Ok(Ok(text)) = self.read_receipt(id).map(String::from_utf8) else { return false };
        verify_record(text.replace(told, found).as_bytes()) == RecordChecksum::Valid
    }

    /// A part's receipt, verified.
    ///
    /// Errors: it is damaged or gone; it cannot be read.
    pub fn receipt(&self, id: PartId) -> Result<Receipt, Error> {
        let damaged = |what: String| Error::Damaged { part: id, what: format!("receipt: {what}") };
        let text = match self.read_receipt(id) {
            Err(error) if data_folder::is_no_file(&error) => return Err(damaged(error.to_string())),
            read => read.map_err(Error::io(format!("part {id}, receipt")))?,
        };
        parse_receipt(id, &text).map_err(|fault| {
            damaged(match fault {
                ReceiptFault::Newer(format) => format!("it has format version {format}"),
                ReceiptFault::Damaged(what) => what,
            })
        })
    }

    /// A part's columns: as they are kept in memory, or from its receipt where there was no room to keep them.
    ///
    /// Errors: those of [`Store::receipt`].
    pub fn schema(&self, part: &Part) -> Result<Arc<Schema>, Error> {
        match &part.schema {
            Some(schema) => Ok(Arc::clone(schema)),
            None => Ok(Arc::new(Schema::of(&self.receipt(part.id)?.columns))),
        }
    }

    /// Gives a part of format version 1 a receipt of this version, and the list of checksums that belongs to it.
    pub fn upgrade_receipt(&self, receipt: &Receipt, sums: Option<Draft>) -> Result<(), Error> {
        if let Some(mut sums) = sums {
            let what = || Error::io(format!("part {}, sums", receipt.part));
            sums.complete_file().map(|_file| ()).map_err(what())?;
            if self.is_synced() {
                sums.sync().map_err(what())?;
            }
            sums.rename(&self.part_path(receipt.part, "sums"))?;
        }
        self.publish_record(&self.part_path(receipt.part, "json"), &receipt_text(receipt)?)
    }

    pub(super) fn read_receipt(&self, id: PartId) -> io::Result<Vec<u8>> {
        read_record(&self.part_path(id, "json"))
    }

    /// The receipt of a part in quarantine. `None` if it is missing or damaged.
    pub fn quarantined_receipt(&self, id: PartId) -> Option<Receipt> {
        let text = read_record(&self.quarantine_path(id, "json")).ok()?;
        parse_receipt(id, &text).ok()
    }
}

fn read_record(path: &Path) -> io::Result<Vec<u8>> {
    // The header row is at most 1 MiB; JSON may escape it to six times that, and adds a little for each column.
    const RECEIPT_BYTES_MAX: u64 = 8 * MIB as u64;
    assert_unlocked();
    let mut text = Vec::with_capacity(4 * KIB); // most end within one read
    data_folder::open(path)?.take(RECEIPT_BYTES_MAX).read_to_end(&mut text)?;
    Ok(text)
}

/// A receipt as it is stored.
pub(super) fn receipt_text(receipt: &Receipt) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(receipt).map(add_checksum).map_err(|error| Error::Internal(format!("receipt: {error}")))
}

/// Why a receipt cannot be used.
pub(super) enum ReceiptFault {
    /// A newer program wrote it, and its checksum says that it is what was written.
    Newer(u32),
    /// It is not what was written.
    Damaged(String),
}

/// The receipt of a part.
pub(super) fn parse_receipt(id: PartId, text: &[u8]) -> Result<Receipt, ReceiptFault> {
    #[derive(serde::Deserialize)]
    struct Version {
        format: u32,
    }
    let damaged = |what: &str| ReceiptFault::Damaged(what.to_owned());
    let is_sealed = match verify_record(text) {
        RecordChecksum::Valid => true,
        RecordChecksum::Missing => false,
        RecordChecksum::Invalid => return Err(damaged("it is not what was written")),
    };
    // What a newer version wrote may be no receipt to this one, and still says what it is.
    if let Ok(Version { format }) = serde_json::from_slice(text)
        && is_sealed
        && format > FORMAT_VERSION
    {
        return Err(ReceiptFault::Newer(format));
    }
    let receipt: Receipt = serde_json::from_slice(text).map_err(|error| ReceiptFault::Damaged(error.to_string()))?;
    // Version 1 has no checksums but those of the two files.
    let version = if is_sealed { FORMAT_VERSION } else { 1 };
    if receipt.part != id || receipt.format != version || receipt.checks().is_some() != is_sealed {
        return Err(damaged("it is of another part or version"));
    }
    Ok(receipt)
}
