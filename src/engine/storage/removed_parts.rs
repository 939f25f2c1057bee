//! Parts that were removed from the table. They can be restored until they are purged.
//!
//! ```text
//! removed/N.json                        the receipt of a removed part; its modification time is the time of the removal
//! removed/N.csv, N.parquet, N.sums      its other files; until they have been moved, they are in `parts/`
//! removed/N.purged                      the receipt of a purged part, whose files are being deleted. It is empty once they
//!                                       are gone; then only the one with the greatest number is kept
//! ```
//!
//! The place of the receipt decides what a part is: in the table (`parts/N.json`), removed or purged. So one rename removes,
//! restores or purges a part. It takes no space, so it works on a full disk, and it is synced whatever `--durability` says.
//! The other files are moved after a removal and before a restore. If that is interrupted, the next start completes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
    sync::atomic::Ordering,
    time::SystemTime,
};

use super::{
    data_folder,
    names::{parse_part_file_name, parse_segment_file_name},
    receipts::Unusable,
    segments::replaced::{PACKED, PACKED_PURGED, REPLACED},
    store::Store,
    sync::{rename, sync_file, sync_folder},
    unremoved::Unremoved,
};
use crate::{
    engine::state::lock_check::assert_unlocked,
    error::Error,
    model::{
        packed::SegmentId,
        part::{PartId, Receipt},
    },
};

/// The extension of the receipt of a purged part.
pub(super) const PURGED: &str = "purged";
/// The files of a part besides its receipt.
const FILES: [&str; 3] = ["csv", "parquet", "sums"];

/// What is in `removed/`.
#[derive(Debug, Default)]
pub(super) struct RemovedFiles {
    /// The removed parts, with the time of their removal.
    pub(super) parts: BTreeMap<PartId, SystemTime>,
    /// The purged parts.
    pub(super) purged: BTreeSet<PartId>,
    /// Parts whose files a segment has replaced.
    pub(super) replaced: BTreeSet<PartId>,
    /// Removed parts of segments, with the time of their removal.
    pub(super) packed: BTreeMap<PartId, SystemTime>,
    /// Purged parts of segments.
    pub(super) packed_purged: BTreeSet<PartId>,
    /// Segments that others have replaced, with the extensions of their files.
    pub(super) segments: BTreeMap<SegmentId, BTreeSet<String>>,
}

impl RemovedFiles {
    /// All parts that have files there.
    pub(super) fn all_parts(&self) -> impl Iterator<Item = &PartId> {
        let of_segments = self.packed.keys().chain(&self.packed_purged);
        self.parts.keys().chain(&self.purged).chain(&self.replaced).chain(of_segments)
    }
}

impl Store {
    /// Removes a part from the table, for good once this returns. [`Self::move_removed_files`] has to follow.
    ///
    /// Errors, after which the part is still in the table: a file operation fails.
    pub(crate) fn remove_part(&self, id: PartId, now: SystemTime) -> Result<(), Error> {
        let receipt = self.part_path(id, "json");
        let dated = data_folder::open(&receipt).and_then(|file| {
            file.set_modified(now)?;
            sync_file(&file)
        });
        dated.map_err(Error::io(format!("part {id}, receipt")))?;
        move_receipt(id, &receipt, &self.removed_path(id, "json"))
    }

    /// Moves the other files of a removed part to `removed/`. A failure is only logged: they are found in both folders.
    pub(crate) fn move_removed_files(&self, id: PartId) {
        for extension in FILES {
            let moved = rename_if_present(&self.part_path(id, extension), &self.removed_path(id, extension));
            if let Err(error) = moved {
                tracing::error!(part = %id, extension, %error, "a file of a removed part could not be moved to removed/");
            }
        }
    }

    /// Puts a removed part back, and returns its receipt.
    ///
    /// Errors, after which the part is still removed: a file is missing, has another size than its receipt says, or cannot be
    /// moved; the receipt is damaged.
    pub(crate) fn restore_part(&self, id: PartId) -> Result<Receipt, Error> {
        let restored = self.move_files_back(id).and_then(|receipt| {
            // The receipt must not be on disk before the files that it describes.
            sync_folder(&self.root.join("parts")).map_err(Error::io(format!("part {id}")))?;
            move_receipt(id, &self.removed_path(id, "json"), &self.part_path(id, "json"))?;
            Ok(receipt)
        });
        if restored.is_err() {
            self.move_removed_files(id);
        }
        restored
    }

    fn move_files_back(&self, id: PartId) -> Result<Receipt, Error> {
        for extension in FILES {
            rename_if_present(&self.removed_path(id, extension), &self.part_path(id, extension))
                .map_err(Error::io(format!("part {id}, {extension}")))?;
        }
        self.check_part(id).map_err(|fault| match fault {
            Unusable::Damaged(what) => Error::Damaged { part: id, what },
            Unusable::Unreadable(error) => error,
        })
    }

    /// Purges a part of the table or, if `is_removed`, a removed one: it can never be restored. [`Self::delete_purged`] has to
    /// follow.
    ///
    /// Errors, after which the part is where it was: a file operation fails.
    pub(crate) fn purge_part(&self, id: PartId, is_removed: bool, now: &str) -> Result<(), Error> {
        self.accept_earlier_loss(id, now)?;
        let receipt = if is_removed { self.removed_path(id, "json") } else { self.part_path(id, "json") };
        data_folder::open(&receipt).map_err(Error::io(format!("part {id}, receipt")))?; // a link must not be moved
        move_receipt(id, &receipt, &self.removed_path(id, PURGED))
    }

    /// Whether a removed part has a receipt, which may be damaged.
    pub(crate) fn has_removed_receipt(&self, id: PartId) -> bool {
        assert_unlocked();
        self.removed_path(id, "json").exists()
    }

    /// Deletes the files of a purged part.
    ///
    /// Errors, after which its receipt says what is left to do: a file cannot be deleted.
    pub(crate) fn delete_purged(&self, id: PartId) -> Result<(), Error> {
        for extension in FILES {
            for path in [self.part_path(id, extension), self.removed_path(id, extension)] {
                delete_if_present(&path).map_err(Error::io(format!("purged part {id}, {extension}")))?;
            }
        }
        let receipt = self.removed_path(id, PURGED);
        let what = || Error::io(format!("purged part {id}, receipt"));
        let greatest = self.last_purged.fetch_max(id.get(), Ordering::Relaxed);
        if greatest > id.get() {
            return delete_if_present(&receipt).map_err(what());
        }
        // The greatest number is kept, so that it is not given to another part after a restart. The old file is not changed,
        // because a backup may have a hard link to it.
        let mut empty = self.draft()?;
        empty.finish(false).map_err(what())?;
        empty.rename(&receipt)?;
        if let Some(before) = PartId::new(greatest).filter(|before| *before != id) {
            self.delete_earlier_purged(before);
        }
        Ok(())
    }

    /// Deletes the receipt of a purged part, now or later, whose number is not the greatest any more.
    pub(super) fn delete_earlier_purged(&self, id: PartId) {
        let receipt = self.removed_path(id, PURGED);
        // Unless it is empty, its own files are still being deleted.
        match data_folder::open_with_size(&receipt) {
            Ok((_, 0)) => self.remove_or_later([receipt], Unremoved::PurgedReceipt(id)),
            Ok(_) => {}
            Err(error) if data_folder::is_no_regular_file(&error) => {}
            Err(error) => {
                tracing::error!(part = %id, %error, "the receipt of a purged part could not be removed");
                self.remove_later(Unremoved::PurgedReceipt(id));
            }
        }
    }

    /// Lists `removed/`, without parts that somebody put back into the table.
    pub(super) fn removed_files(&self, is_in_table: impl Fn(PartId) -> bool) -> Result<RemovedFiles, Error> {
        let mut found = RemovedFiles::default();
        for path in self.entries("removed")? {
            match parse_part_file_name(&path) {
                Some((id, "json" | PURGED)) if is_in_table(id) => {
                    tracing::warn!(path = %path.display(), "this part is in the table, so this file is ignored");
                }
                Some((id, "json")) => {
                    let modified = data_folder::open(&path).and_then(|file| file.metadata()?.modified());
                    let modified = modified.map_err(Error::io(format!("receipt of the removed part {id}")))?;
                    found.parts.insert(id, modified);
                }
                Some((id, PURGED)) => {
                    found.purged.insert(id);
                }
                Some((_, "csv" | "parquet" | "sums")) => {}
                Some((id, REPLACED)) => {
                    found.replaced.insert(id);
                }
                Some((id, PACKED)) => {
                    let modified = data_folder::open(&path).and_then(|file| file.metadata()?.modified());
                    let modified = modified.map_err(Error::io(format!("the mark that part {id} is removed")))?;
                    found.packed.insert(id, modified);
                }
                Some((id, PACKED_PURGED)) => {
                    found.packed_purged.insert(id);
                }
                _ => match parse_segment_file_name(&path) {
                    Some((id, extension)) => {
                        found.segments.entry(id).or_default().insert(extension.to_owned());
                    }
                    None => tracing::warn!(path = %path.display(), "unknown file, ignored"),
                },
            }
        }
        Ok(found)
    }
}

/// Renames a receipt. It is synced in its new folder before it is gone from the old one.
///
/// Errors, after which it has its old name: a rename or a sync fails.
fn move_receipt(id: PartId, from: &Path, to: &Path) -> Result<(), Error> {
    let what = || Error::io(format!("part {id}, receipt"));
    rename(from, to).map_err(what())?;
    let mut folders = vec![to.parent(), from.parent()];
    folders.dedup();
    let synced = folders.into_iter().flatten().try_for_each(sync_folder);
    if synced.is_err()
        && let Err(error) = rename(to, from)
    {
        tracing::error!(part = %id, %error, "the receipt could not be renamed back");
    }
    synced.map_err(what())
}

fn delete_if_present(path: &Path) -> io::Result<()> {
    assert_unlocked();
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        deleted => deleted,
    }
}

fn rename_if_present(from: &Path, to: &Path) -> io::Result<()> {
    match rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed,
    }
}
