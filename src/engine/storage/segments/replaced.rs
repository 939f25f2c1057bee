//! What a segment replaces: the files of its parts and of smaller segments. They are moved out of `parts/` when the segment is
//! committed, so that other programs do not count rows twice, and deleted when nobody reads them any more.
//!
//! Also the removal of parts that are in segments: a mark in `removed/` for each.

use std::{fs, io, time::SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};

use super::{
    super::{
        checksums::listed_blocks,
        store::Store,
        sync::{rename, sync_file, sync_folder},
        unremoved::Unremoved,
    },
    writing::extensions,
};
use crate::{
    engine::state::lock_check::assert_unlocked,
    error::Error,
    model::{
        packed::{ReplacedSegment, SegmentId},
        part::{Part, PartId},
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

/// Whether a part may have a list of checksums.
pub(crate) fn has_list(part: &Part) -> bool {
    part.checks.is_none_or(|checks| checks.chunks_in_sums) || listed_blocks(part.csv_bytes) > 0
}

/// The files of a part besides its receipt. Looking for one that is not there takes as long as deleting one.
fn files(has_list: bool) -> impl Iterator<Item = &'static str> {
    ["csv", "parquet"].into_iter().chain(has_list.then_some("sums"))
}

impl Store {
    /// Moves the files of a part out of `parts/` that a segment has replaced. Returns whether they all were; a failure is logged.
    /// `has_list`: whether it may have a list of checksums.
    pub(crate) fn set_aside_part(&self, id: PartId, has_list: bool) -> bool {
        let mut is_done = self.set_aside(&self.part_path(id, "json"), &self.removed_path(id, REPLACED));
        for extension in files(has_list) {
            is_done &= self.set_aside(&self.part_path(id, extension), &self.removed_path(id, extension));
        }
        is_done
    }

    /// Deletes the files of a part, now or later, that a segment has replaced and that are not in `parts/` any more. `has_list`:
    /// whether it may have a list of checksums.
    pub(crate) fn delete_replaced_part(&self, id: PartId, has_list: bool) {
        // The receipt last: without it the other files could not be told from those of a removed part.
        let paths = files(has_list).chain([REPLACED]).map(|extension| self.removed_path(id, extension));
        self.remove_or_later(paths, Unremoved::ReplacedPart { id, has_list });
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
        for extension in
            std::iter::once("segment".to_owned()).chain(extensions(segment.has_keys, segment.parquet_files))
        {
            self.set_aside(&self.segment_path(id, &extension), &self.removed_segment_path(id, &extension));
        }
    }

    /// Deletes the files of a segment, now or later, that another one has replaced, wherever they are.
    pub(crate) fn delete_replaced_segment(&self, segment: &ReplacedSegment) {
        let id = segment.id;
        let extensions = extensions(segment.has_keys, segment.parquet_files).into_iter().chain(["segment".to_owned()]);
        let paths = extensions.flat_map(|each| [self.segment_path(id, &each), self.removed_segment_path(id, &each)]);
        // The mark last: without it the next start would keep the files.
        if self.are_removed_or_later(paths, Unremoved::ReplacedSegment(*segment)) {
            self.delete_drop_mark(id);
        }
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
            self.remove_or_at_start([path]);
        }
        dropped.map_err(what())
    }

    /// Deletes the mark of a segment that was dropped, now or later, if its receipt is gone for good.
    pub(in crate::engine::storage) fn delete_drop_mark(&self, id: SegmentId) {
        let mark = self.removed_segment_path(id, DROPPED);
        if !mark.exists() || self.segment_path(id, "segment").exists() {
            return;
        }
        match sync_folder(&self.root.join("parts")) {
            Ok(()) => self.remove_or_later([mark], Unremoved::DropMark(id)),
            Err(error) => {
                tracing::error!(segment = %id, %error, "the mark of a dropped segment is kept for now");
                self.remove_later(Unremoved::DropMark(id));
            }
        }
    }

    /// Moves a file, if it is there. Returns `false` if that fails.
    fn set_aside(&self, from: &std::path::Path, to: &std::path::Path) -> bool {
        match rename(from, to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(path = %from.display(), %error, "a replaced file could not be moved out of parts/");
                false
            }
            _ => true,
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
            self.remove_or_at_start([path]);
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

    /// Deletes the mark of a purged part, now or later, that no segment has any more, unless the files that the part had before it
    /// was packed are still there: then the next start deletes both.
    pub(crate) fn delete_mark(&self, id: PartId) {
        if self.removed_path(id, REPLACED).exists() {
            return;
        }
        self.remove_or_later([self.removed_path(id, PACKED_PURGED)], Unremoved::PurgedMark(id));
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
