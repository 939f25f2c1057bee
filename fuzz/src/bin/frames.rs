//! Bodies of uploads over gRPC, of one message and of many: see `api/grpc/fuzzing.rs`.
//!
//! The first byte of an input says which of the two it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tally::api::grpc::fuzzing::check_body;

fuzz_target!(|input: &[u8]| {
    let Some((kind, body)) = input.split_first() else { return };
    check_body(kind % 2 == 1, body);
});
