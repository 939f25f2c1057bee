//! What a scan knows of the segments that it verifies.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    engine::storage::segments::reading::SegmentFile,
    model::{
        packed::{Segment, SegmentId},
        segment::SegmentReceipt,
    },
};

/// The segments that a scan verifies.
pub(super) struct Segments {
    /// Those that have not been begun.
    pub(super) left: VecDeque<SegmentId>,
    /// Whether a segment is still in the table. The files of one that was replaced meanwhile may be gone.
    pub(super) is_in_table: Box<dyn Fn(SegmentId) -> bool + Send>,
    /// Segments with a damaged file.
    pub(super) damaged: Vec<SegmentId>,
}

/// A file of a segment that has to be verified.
pub(super) struct SegmentTarget {
    pub(super) receipt: Arc<SegmentReceipt>,
    pub(super) segment: Arc<Segment>,
    pub(super) file: SegmentFile,
}
