//! The commit of parts: files in place, synced, then the receipts renamed into `parts/`, then the folder synced.

use std::{
    io::{self, Write},
    sync::Arc,
};

use super::{
    data_folder,
    draft::Draft,
    receipts::receipt_text,
    store::Store,
    sync::{sync_file, sync_file_system, sync_folder},
};
use crate::{
    engine::state::lock_check::assert_unlocked,
    error::Error,
    model::part::{PartId, Receipt},
};

/// A part whose files are in place but for the receipt's name, which makes it one. Its files are removed when it is
/// dropped, unless it was committed.
pub struct PreparedPart {
    store: Arc<Store>,
    part: PartId,
    receipt: Option<Draft>,
    /// Whether its files and its receipt are safe.
    synced: bool,
    committed: bool,
}

impl Store {
    /// Puts two drafts in place as the files of a part, and a receipt beside them, which is synced if they were. After an
    /// error nothing of it is left.
    pub fn prepare_part(
        self: &Arc<Self>,
        csv: Draft,
        parquet: Draft,
        receipt: &Receipt,
    ) -> Result<PreparedPart, Error> {
        assert_unlocked();
        let part = receipt.part;
        let synced = csv.synced && parquet.synced;
        let mut staged = PreparedPart { store: Arc::clone(self), part, receipt: None, synced, committed: false };
        csv.publish(&self.part_path(part, "csv"), &self.part_path(part, "sums"))?;
        parquet.publish(&self.part_path(part, "parquet"), &self.part_path(part, "sums"))?;
        let text = receipt_text(receipt)?;
        let what = || Error::io(format!("record {part}.json"));
        let mut draft = self.draft()?;
        draft.write_all(&text).and_then(|()| draft.complete_file().map(|_file| ())).map_err(what())?;
        if synced {
            draft.sync().map_err(what())?;
        }
        staged.receipt = Some(draft);
        Ok(staged)
    }

    /// Makes staged parts, all of this store, parts of the table: their bytes synced, then their receipts renamed into
    /// place, then the folder synced. They share these syncs.
    ///
    /// Errors: after them nothing of any is left.
    pub fn commit(&self, mut batch: Vec<PreparedPart>) -> Result<(), Error> {
        assert_unlocked();
        let what = || Error::io("parts on their way into the table");
        let unsynced: Vec<_> = batch.iter().filter(|staged| !staged.synced).collect();
        if unsynced.len() > 1 && self.syncs_at_once {
            sync_file_system(&self.folder).map_err(what())?;
        } else {
            // What others write to this file system is not waited for.
            unsynced.into_iter().try_for_each(PreparedPart::sync)?;
        }
        batch.iter_mut().try_for_each(PreparedPart::rename_receipt)?;
        sync_folder(&self.root.join("parts")).map_err(what())?;
        // Only now: what is dropped before is removed.
        batch.iter_mut().for_each(|staged| staged.committed = true);
        Ok(())
    }
}

impl PreparedPart {
    /// Waits until its files and its receipt are safe.
    fn sync(&self) -> Result<(), Error> {
        let what = || Error::io(format!("part {}", self.part));
        for extension in ["csv", "parquet", "sums"] {
            match data_folder::open(&self.store.part_path(self.part, extension)) {
                Err(error) if extension == "sums" && error.kind() == io::ErrorKind::NotFound => {} // of one block
                file => file.and_then(|file| sync_file(&file)).map_err(what())?,
            }
        }
        self.receipt.iter().filter_map(|receipt| receipt.file.as_deref()).try_for_each(sync_file).map_err(what())
    }

    /// Makes it a part that nothing is synced of.
    pub fn commit_unsynced(mut self) -> Result<(), Error> {
        self.rename_receipt()?;
        self.committed = true;
        Ok(())
    }

    fn rename_receipt(&mut self) -> Result<(), Error> {
        let to = self.store.part_path(self.part, "json");
        self.receipt.iter_mut().try_for_each(|receipt| receipt.rename(&to))
    }
}

impl Drop for PreparedPart {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        // The receipt first: without it the others are leftovers, which a start would remove too.
        for extension in ["json", "csv", "parquet", "sums"] {
            self.store.remove_if_present(&self.store.part_path(self.part, extension));
        }
    }
}
