//! The commit of parts: the files in `parts/` are synced, then the receipts are renamed into it, then the folder is synced.

use std::{
    io::{self, Write},
    sync::Arc,
};

use super::{
    data_folder,
    draft::Draft,
    receipts::receipt_text,
    store::Store,
    sync::{sync_file, sync_folder},
    unremoved::Unremoved,
};
use crate::{
    engine::state::lock_check::assert_unlocked,
    error::Error,
    model::part::{PartId, Receipt},
};

/// A part whose files are in `parts/`, while its receipt is still a draft. Its files are removed when it is dropped
/// without having been committed.
pub struct PreparedPart {
    store: Arc<Store>,
    part: PartId,
    receipt: Option<Draft>,
    /// Whether its files and its receipt are synced.
    synced: bool,
    committed: bool,
}

impl Store {
    /// Publishes two drafts as the files of a part, and writes its receipt as a draft, which is synced if they are. After an
    /// error all of these files are removed.
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
        let mut draft = self.draft()?;
        draft.write_all(&text).and_then(|()| draft.finish(synced)).map_err(Error::io(format!("record {part}.json")))?;
        staged.receipt = Some(draft);
        Ok(staged)
    }

    /// Commits staged parts of this store. They share the syncs.
    ///
    /// Errors: a file operation fails. Then the files of all these parts are removed.
    pub fn commit(&self, mut batch: Vec<PreparedPart>) -> Result<(), Error> {
        assert_unlocked();
        let what = || Error::io("commit of parts");
        let unsynced: Vec<_> = batch.iter().filter(|staged| !staged.synced).collect();
        if unsynced.len() > 1 && self.uses_syncfs() {
            self.sync_all().map_err(what())?;
        } else {
            // This does not wait for other writes to the file system.
            unsynced.into_iter().try_for_each(PreparedPart::sync)?;
        }
        batch.iter_mut().try_for_each(PreparedPart::rename_receipt)?;
        sync_folder(&self.root.join("parts")).map_err(what())?;
        // Only after the last error: a part that is dropped uncommitted removes its files.
        batch.iter_mut().for_each(|staged| staged.committed = true);
        Ok(())
    }
}

impl Store {
    /// Removes the files of a part that was not committed, now or later.
    pub(super) fn remove_uncommitted_part(&self, part: PartId) {
        // The receipt first: the next start removes files without a receipt, but a receipt without files is a damaged part.
        let paths = ["json", "csv", "parquet", "sums"].map(|extension| self.part_path(part, extension));
        self.remove_or_later(paths, Unremoved::Part(part));
    }
}

impl PreparedPart {
    /// Syncs its files and its receipt.
    fn sync(&self) -> Result<(), Error> {
        let what = || Error::io(format!("part {}", self.part));
        for extension in ["csv", "parquet", "sums"] {
            match data_folder::open(&self.store.part_path(self.part, extension)) {
                Err(error) if extension == "sums" && error.kind() == io::ErrorKind::NotFound => {} // the CSV has one block
                file => file.and_then(|file| sync_file(&file)).map_err(what())?,
            }
        }
        self.receipt.iter().filter_map(|receipt| receipt.file.as_deref()).try_for_each(sync_file).map_err(what())
    }

    /// Commits it without any sync.
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
        self.store.remove_uncommitted_part(self.part);
    }
}
