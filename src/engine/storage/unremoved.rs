//! Files that are no longer needed and could not be removed, in a queue. `remove_again.rs` tries again.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::names::JobFile;
use crate::{
    engine::state::{jobs::JobId, lock_check::assert_unlocked},
    limits::{UNREMOVED_ENTRY_BYTES, UNREMOVED_MAX},
    model::{
        packed::{ReplacedSegment, SegmentId},
        part::PartId,
    },
};

/// What is still to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unremoved {
    /// `tmp/N`, or its block list.
    Draft { number: u64, is_block_list: bool },
    /// The files of a part that was not committed.
    Part(PartId),
    /// The files of a part that a segment has replaced.
    ReplacedPart { id: PartId, has_list: bool },
    /// The files of a segment that another one has replaced.
    ReplacedSegment(ReplacedSegment),
    /// The mark that a segment was dropped.
    DropMark(SegmentId),
    /// The mark that a part is purged which no segment has any more.
    PurgedMark(PartId),
    /// The empty receipt of a purged part, after one with a greater number.
    PurgedReceipt(PartId),
    /// All files of a job.
    Job(JobId),
    /// The input or the result of a job.
    JobFile(JobId, JobFile),
}

/// An entry is in the queue, and in the list of those that are tried again.
const _: () = assert!(2 * (size_of::<Unremoved>() + size_of::<usize>()) <= UNREMOVED_ENTRY_BYTES);

/// What is to be removed again, at most [`UNREMOVED_MAX`].
pub(super) struct Queue {
    sender: Sender<Unremoved>,
    receiver: Receiver<Unremoved>,
}

impl Queue {
    pub(super) fn new() -> Arc<Self> {
        let (sender, receiver) = bounded(UNREMOVED_MAX);
        Arc::new(Self { sender, receiver })
    }

    pub(super) fn push(&self, what: Unremoved) {
        if self.sender.try_send(what).is_err() {
            tracing::error!(?what, "too many files could not be removed: these are left to the next start");
        }
    }

    /// All that is in it.
    pub(super) fn take(&self) -> Vec<Unremoved> {
        self.receiver.try_iter().take(UNREMOVED_MAX).collect()
    }
}

/// Removes files one after the other, up to the first that cannot be removed: this is returned as an error, and logged. Those
/// that are not there count as removed. Folders stay, because they are not ours.
pub(super) fn remove_in_order(paths: impl IntoIterator<Item = PathBuf>) -> io::Result<()> {
    assert_unlocked();
    for path in paths {
        let Err(error) = fs::remove_file(&path) else { continue };
        if error.kind() == io::ErrorKind::NotFound {
            continue;
        }
        tracing::error!(path = %path.display(), %error, "a file that is no longer needed could not be removed");
        if error.kind() != io::ErrorKind::IsADirectory {
            return Err(error);
        }
    }
    Ok(())
}

/// The path of a draft or of its block list.
pub(super) struct DraftPath {
    path: PathBuf,
    number: u64,
    is_block_list: bool,
    unremoved: Arc<Queue>,
}

impl DraftPath {
    /// Of the draft with this number. `tmp` is the folder of drafts.
    pub(super) fn new(tmp: &Path, number: u64, unremoved: &Arc<Queue>) -> Self {
        Self { path: tmp.join(number.to_string()), number, is_block_list: false, unremoved: Arc::clone(unremoved) }
    }

    /// Of the block list of this draft.
    pub(super) fn of_block_list(&self) -> Self {
        let (path, unremoved) = (self.path.with_extension("sums"), Arc::clone(&self.unremoved));
        Self { path, number: self.number, is_block_list: true, unremoved }
    }

    /// The same path, whose file is removed by somebody else from now on.
    pub(super) fn handed_over(&self) -> Self {
        Self { path: self.path.clone(), unremoved: Arc::clone(&self.unremoved), ..*self }
    }

    /// Removes the file. A failure is logged, and tried again later.
    pub(super) fn remove(&self) {
        if remove_in_order([self.path.clone()]).is_err() {
            self.unremoved.push(Unremoved::Draft { number: self.number, is_block_list: self.is_block_list });
        }
    }
}

impl AsRef<Path> for DraftPath {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}
