//! What a segment replaces: the files of its parts and of smaller segments. They are moved out of `parts/` when the segment is
//! committed, so that other programs do not count rows twice, and deleted when nobody reads them any more.
//!
//! Also the removal of parts that are in segments: a mark in `removed/` for each.

use std::{fs, io, time::SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};

use super::{
    super::{
        store::Store,
        sync::{rename, sync_file, sync_folder},
    },
    writing::extensions,
};
use crate::{
    engine::state::lock_check::assert_unlocked,
    error::Error,
    model::{
        packed::{Segment, SegmentId},
        part::PartId,
    },
};

/// The extension of the receipt of a part that is in a segment now.
pub(in crate::engine::storage) const REPLACED: &str = "replaced";
/// The extension of the mark of a removed part of a segment.
pub(in crate::engine::storage) const PACKED: &str = "packed";
/// The same if the part cannot be restored.
pub(in crate::engine::storage) const PACKED_PURGED: &str = "packed-purged";

/// The extension of the mark of a segment that was dropped, because all its parts were purged.
pub(in crate::engine::storage) const DROPPED: &str = "dropped";

const FILES: [&str; 3] = ["csv", "parquet", "sums"];

/// A segment that another one has replaced, and which files it has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplacedSegment {
    id: SegmentId,
    parquet_files: usize,
    has_keys: bool,
}

impl ReplacedSegment {
    pub(crate) fn of(segment: &Segment) -> Self {
        Self { id: segment.id, parquet_files: segment.files.len(), has_keys: segment.keys.0 > 0 }
    }

    fn extensions(self) -> Vec<String> {
        extensions(self.has_keys, self.parquet_files)
    }
}

impl Store {
    /// Moves the files of a part out of `parts/` that a segment has replaced. A failure is only logged: the next start deletes
    /// them.
    pub(crate) fn set_aside_part(&self, id: PartId) {
        self.set_aside(&self.part_path(id, "json"), &self.removed_path(id, REPLACED));
        for extension in FILES {
            self.set_aside(&self.part_path(id, extension), &self.removed_path(id, extension));
        }
    }

    /// Deletes the files of a part that a segment has replaced. A failure is only logged: the next start tries again.
    pub(crate) fn delete_replaced_part(&self, id: PartId) {
        for extension in FILES {
            self.remove_if_present(&self.part_path(id, extension));
            self.remove_if_present(&self.removed_path(id, extension));
        }
        // The receipts last: without them the other files could not be told from those of a removed part.
        self.remove_if_present(&self.part_path(id, "json"));
        self.remove_if_present(&self.removed_path(id, REPLACED));
    }

    /// As [`Self::delete_replaced_part`], but leaves files in `parts/` alone.
    pub(in crate::engine::storage) fn delete_set_aside_part(&self, id: PartId) {
        for extension in FILES.into_iter().chain([REPLACED]) {
            self.remove_if_present(&self.removed_path(id, extension));
        }
    }

    /// As [`Self::set_aside_part`], for a segment.
    pub(crate) fn set_aside_segment(&self, segment: &ReplacedSegment) {
        let id = segment.id;
        // Damaged copies from earlier, of which the next start must not say that they are missing.
        if self.is_segment_in_quarantine(id)
            && let Err(error) = self.record_loss_of_segment(id, &Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true))
        {
            tracing::error!(segment = %id, %error, "it was replaced, but has copies in quarantine");
        }
        for extension in std::iter::once("segment".to_owned()).chain(segment.extensions()) {
            self.set_aside(&self.segment_path(id, &extension), &self.removed_segment_path(id, &extension));
        }
    }

    /// As [`Self::delete_replaced_part`], for a segment.
    pub(crate) fn delete_replaced_segment(&self, segment: &ReplacedSegment) {
        let id = segment.id;
        for extension in segment.extensions().into_iter().chain(["segment".to_owned()]) {
            self.remove_if_present(&self.segment_path(id, &extension));
            self.remove_if_present(&self.removed_segment_path(id, &extension));
        }
        self.delete_drop_mark(id);
    }

    /// Removes a segment all of whose parts are purged, for good once this returns. Its files are set aside and deleted like
    /// those of a segment that was replaced. The numbers of its parts are not used again.
    ///
    /// Errors, after which nothing has changed: a file operation fails.
    pub(crate) fn drop_segment(&self, id: SegmentId) -> Result<(), Error> {
        assert_unlocked();
        let what = || Error::io(format!("the mark that segment {id} is dropped"));
        self.delete_purged(id.last)?; // keeps this number, as that of a purged part
        self.sync_removed().map_err(what())?;
        let path = self.removed_segment_path(id, DROPPED);
        let dropped = super::super::data_folder::create(&path)
            .and_then(|file| sync_file(&file))
            .and_then(|()| self.sync_removed());
        if dropped.is_err() {
            self.remove_if_present(&path);
        }
        dropped.map_err(what())
    }

    /// Deletes the mark of a segment that was dropped, if its receipt is gone for good. A failure is only logged: the next start
    /// tries again.
    pub(in crate::engine::storage) fn delete_drop_mark(&self, id: SegmentId) {
        let mark = self.removed_segment_path(id, DROPPED);
        if !mark.exists() || self.segment_path(id, "segment").exists() {
            return;
        }
        match sync_folder(&self.root.join("parts")) {
            Ok(()) => self.remove_if_present(&mark),
            Err(error) => tracing::error!(segment = %id, %error, "the mark of a dropped segment is kept"),
        }
    }

    fn set_aside(&self, from: &std::path::Path, to: &std::path::Path) {
        match rename(from, to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(path = %from.display(), %error, "a replaced file could not be moved out of parts/");
            }
            _ => {}
        }
    }

    /// Removes or purges a part of a segment, for good once this returns. It takes no space on the disk but an entry of the
    /// folder.
    ///
    /// Errors, after which the part is in the table: a file operation fails.
    pub(crate) fn mark_removed(&self, id: PartId, is_purged: bool, now: SystemTime) -> Result<(), Error> {
        assert_unlocked();
        let what = || Error::io(format!("the mark that part {id} is removed"));
        if is_purged {
            self.accept_earlier_loss(id, &DateTime::<Utc>::from(now).to_rfc3339_opts(SecondsFormat::Secs, true))?;
        }
        let path = self.removed_path(id, if is_purged { PACKED_PURGED } else { PACKED });
        let file = super::super::data_folder::create(&path).map_err(what())?;
        let synced = file.set_modified(now).and_then(|()| sync_file(&file)).and_then(|()| self.sync_removed());
        if synced.is_err() {
            self.remove_if_present(&path);
        }
        synced.map_err(what())
    }

    /// Puts a removed part of a segment back.
    ///
    /// Errors, after which the part is still removed: a file operation fails.
    pub(crate) fn unmark_removed(&self, id: PartId, since: SystemTime) -> Result<(), Error> {
        assert_unlocked();
        let what = || Error::io(format!("the mark that part {id} is removed"));
        fs::remove_file(self.removed_path(id, PACKED)).map_err(what())?;
        let synced = self.sync_removed();
        if synced.is_err()
            && let Err(error) = self.mark_removed(id, false, since)
        {
            tracing::error!(part = %id, %error, "the part may be back in the table after the next start");
        }
        synced.map_err(what())
    }

    /// Notes that a removed part of a segment cannot be restored any more.
    ///
    /// Errors, after which the part can be restored: a file operation fails.
    pub(crate) fn mark_purged(&self, id: PartId, now: &str) -> Result<(), Error> {
        self.accept_earlier_loss(id, now)?;
        let what = || Error::io(format!("the mark that part {id} is purged"));
        let (from, to) = (self.removed_path(id, PACKED), self.removed_path(id, PACKED_PURGED));
        rename(&from, &to).map_err(what())?;
        let synced = self.sync_removed();
        if synced.is_err()
            && let Err(error) = rename(&to, &from)
        {
            tracing::error!(part = %id, %error, "the part is purged after the next start");
        }
        synced.map_err(what())
    }

    /// Deletes the mark of a purged part that no segment has any more, unless the files that the part had before it was packed are
    /// still there: then the next start deletes both. A failure is only logged.
    pub(crate) fn delete_mark(&self, id: PartId) {
        if self.removed_path(id, REPLACED).exists() {
            return;
        }
        self.remove_if_present(&self.removed_path(id, PACKED_PURGED));
    }

    /// Deletes what a start finds of a replaced segment, whatever its receipt says.
    pub(in crate::engine::storage) fn delete_segment_files<'a>(
        &self,
        id: SegmentId,
        folder: &str,
        extensions: impl Iterator<Item = &'a str>,
    ) -> Result<usize, Error> {
        let mut deleted = 0;
        for extension in extensions {
            let path = self.root.join(folder).join(format!("{id}.{extension}"));
            if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
                let what = format!("data folder: {} is a folder: move it elsewhere", path.display());
                return Err(Error::DataFolder(what)); // it may contain a user's files
            }
            self.remove(&path)?;
            deleted += 1;
        }
        Ok(deleted)
    }

    fn sync_removed(&self) -> io::Result<()> {
        sync_folder(&self.root.join("removed"))
    }
}
