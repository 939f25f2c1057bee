//! Receipts, the index of a segment, pages of checksums and records of jobs: see `engine/storage/fuzzing.rs`.
//!
//! The first byte of an input says which of them the others are.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tally::{
    engine::{
        jobs::fuzzing::check_record,
        storage::{
            fuzzing::{check_pages, check_receipt, check_segment_receipt},
            segments::fuzzing::{check_index, segment_of_index},
        },
    },
    model::segment::SegmentReceipt,
};

static SEGMENT: LazyLock<SegmentReceipt> = LazyLock::new(segment_of_index);

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind % 5 {
        0 => check_receipt(rest),
        1 => check_segment_receipt(rest),
        2 => check_index(&SEGMENT, rest),
        3 => check_pages(rest),
        _ => check_record(rest),
    }
});
