//! Token files, values of the header `Authorization`, and targets with tickets: see `access/fuzzing.rs`.
//!
//! The first byte of an input says which of them the others are.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tally::access::fuzzing::{check_authorization, check_ticket, check_token_file};

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind % 3 {
        0 => check_token_file(rest),
        1 => check_authorization(rest),
        _ => check_ticket(rest),
    }
});
