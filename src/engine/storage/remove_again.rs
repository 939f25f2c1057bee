//! Removals that failed are tried again by the sweep of jobs (`engine/jobs/sweep.rs`); what it does not remove, the next start does.
//!
//! Invariant: a removal that is tried again hits no file that is needed. Numbers of drafts and parts are not given out twice while
//! the server runs, and the files that a segment has replaced do not come back. The files of a job may: the sweep looks at the
//! job first. Files of a segment that was not committed are not tried again, because the next attempt has the same names.

use std::path::PathBuf;

use super::{
    store::Store,
    unremoved::{Unremoved, remove_in_order},
};

impl Store {
    /// Removes files one after the other, up to the first that cannot be removed. This is logged, and `what` is tried again later.
    pub(super) fn remove_or_later(&self, paths: impl IntoIterator<Item = PathBuf>, what: Unremoved) {
        let _is_tried_again = self.are_removed_or_later(paths, what);
    }

    /// As [`Self::remove_or_later`]. Returns whether all are removed.
    pub(super) fn are_removed_or_later(&self, paths: impl IntoIterator<Item = PathBuf>, what: Unremoved) -> bool {
        let is_removed = remove_in_order(paths).is_ok();
        if !is_removed {
            self.unremoved.push(what);
        }
        is_removed
    }

    /// As [`Self::remove_or_later`], for files whose names may be used again: the next start removes them.
    pub(super) fn remove_or_at_start(&self, paths: impl IntoIterator<Item = PathBuf>) {
        remove_in_order(paths).ok(); // it was logged
    }

    /// What is still to be removed, and is now the caller's.
    pub(crate) fn take_unremoved(&self) -> Vec<Unremoved> {
        self.unremoved.take()
    }

    /// Keeps what cannot be removed yet.
    pub(crate) fn remove_later(&self, what: Unremoved) {
        self.unremoved.push(what);
    }

    /// Tries again to remove files. If that fails, it is tried again later.
    pub(crate) fn remove_again(&self, what: Unremoved) {
        match what {
            Unremoved::Draft { number, is_block_list: false } => self.draft_path(number).remove(),
            Unremoved::Draft { number, is_block_list: true } => self.draft_path(number).of_block_list().remove(),
            Unremoved::Part(id) => self.remove_uncommitted_part(id),
            Unremoved::ReplacedPart { id, has_list } => self.delete_replaced_part(id, has_list),
            Unremoved::ReplacedSegment(segment) => self.delete_replaced_segment(&segment),
            Unremoved::DropMark(id) => self.delete_drop_mark(id),
            Unremoved::PurgedMark(id) => self.delete_mark(id),
            Unremoved::PurgedReceipt(id) => self.delete_earlier_purged(id),
            Unremoved::Job(id) => self.remove_job(&id.to_string()),
            Unremoved::JobFile(id, kind) => self.remove_job_file(&id.to_string(), kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _};

    use tempfile::TempDir;

    use super::{super::names::JobFile, *};
    use crate::{
        engine::state::jobs::JobId,
        limits::{DRAFT_BUFFER_BYTES, UNREMOVED_MAX},
        model::{durability::Durability, part::PartId},
    };

    fn store() -> (TempDir, Store) {
        let folder = TempDir::new().expect("a folder");
        let store = Store::open(&folder.path().join("data"), Durability::None).expect("opened");
        (folder, store)
    }

    /// Calls `remove` while no file of this folder can be removed, because another file is where the folder is.
    fn while_unreachable(store: &Store, folder: &str, remove: impl FnOnce()) {
        let (path, away) = (store.root.join(folder), store.root.join("away"));
        fs::rename(&path, &away).expect("moved away");
        fs::write(&path, "").expect("written");
        remove();
        fs::remove_file(&path).expect("removed");
        fs::rename(&away, &path).expect("moved back");
    }

    fn remove_again(store: &Store) -> usize {
        let unremoved = store.take_unremoved();
        unremoved.iter().for_each(|&what| store.remove_again(what));
        unremoved.len()
    }

    #[test]
    fn what_could_not_be_removed_is_removed_later() {
        let (_folder, store) = store();
        let part = |id| PartId::new(id).expect("an id");
        let task: JobId = "job_id_7".parse().expect("an id");
        let paths =
            ["parts/1.json", "parts/1.csv", "parts/1.sums", "removed/2.replaced", "removed/2.csv", "removed/3.purged"];
        let paths = paths.iter().chain(&["jobs/job_id_7.json", "jobs/job_id_7.input", "jobs/job_id_8.result"]);
        let paths: Vec<_> = paths.map(|path| store.root.join(path)).collect();
        paths.iter().for_each(|path| fs::write(path, "").expect("written"));
        while_unreachable(&store, "parts", || store.remove_uncommitted_part(part(1)));
        while_unreachable(&store, "removed", || store.delete_replaced_part(part(2), true));
        while_unreachable(&store, "removed", || store.delete_earlier_purged(part(3)));
        while_unreachable(&store, "jobs", || store.remove_job("job_id_7"));
        while_unreachable(&store, "jobs", || store.remove_job_file("job_id_8", JobFile::Result));
        assert!(paths.iter().all(|path| path.exists()));
        let expected = [
            Unremoved::Part(part(1)),
            Unremoved::ReplacedPart { id: part(2), has_list: true },
            Unremoved::PurgedReceipt(part(3)),
            Unremoved::Job(task),
            Unremoved::JobFile("job_id_8".parse().expect("an id"), JobFile::Result),
        ];
        let unremoved = store.take_unremoved();
        assert_eq!(unremoved, expected);
        // Still not: it is kept once more.
        while_unreachable(&store, "parts", || store.remove_again(unremoved[0]));
        unremoved[1..].iter().for_each(|&what| store.remove_again(what));
        assert_eq!(remove_again(&store), 1);
        assert!(paths.iter().all(|path| !path.exists()));
        assert_eq!(remove_again(&store), 0);
    }

    #[test]
    fn a_draft_and_its_block_list_are_removed_later() {
        let (_folder, store) = store();
        let mut draft = store.draft_with_block_checksums().expect("a draft");
        draft.write_all(&vec![b'd'; 600 * DRAFT_BUFFER_BYTES]).expect("written");
        draft.sync().expect("synced");
        let closed = {
            let mut draft = store.draft().expect("a draft");
            draft.write_all(b"closed").expect("written");
            draft.close().expect("closed")
        };
        while_unreachable(&store, "tmp", || drop((draft, closed)));
        assert_eq!(store.entries("tmp").expect("readable").len(), 3);
        assert_eq!(remove_again(&store), 3);
        assert_eq!(store.entries("tmp").expect("readable").len(), 0);
    }

    #[test]
    fn a_folder_in_the_way_stays_and_is_not_tried_again() {
        let (_folder, store) = store();
        let (folder, file) = (store.root.join("parts/1.json"), store.root.join("parts/1.csv"));
        fs::create_dir(&folder).expect("created");
        fs::write(&file, "").expect("written");
        store.remove_uncommitted_part(PartId::FIRST);
        assert!(folder.exists() && !file.exists());
        assert_eq!(store.take_unremoved(), []);
    }

    #[test]
    fn no_more_is_kept_than_there_is_memory_for() {
        let (_folder, store) = store();
        (0..2 * UNREMOVED_MAX).for_each(|_| store.remove_later(Unremoved::Part(PartId::FIRST)));
        assert_eq!(store.take_unremoved().len(), UNREMOVED_MAX);
        assert_eq!(store.take_unremoved(), []);
    }
}
