//! Sums of Parquet pages accept or refuse any bytes, and never count more rows than allowed. Integers that are packed with
//! vector instructions, or as narrow integers, give the same bytes as the simple code.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tally::engine::{
    kernels::{self, delta},
    parquet::{
        hybrid::SLACK_BYTES,
        page_sum::{PageStatus, PageSum},
    },
};

const ROWS_MAX: u64 = 1000;

fuzz_target!(|input: &[u8]| {
    let mut bytes = input.to_vec();
    bytes.extend([0; SLACK_BYTES]);
    let mut pages = PageSum::new(ROWS_MAX);
    let mut at = 0;
    while let Ok(PageStatus::Added(taken)) = pages.add_page(&bytes[at..]) {
        assert!(taken > 0 && at + taken <= input.len() && pages.rows <= ROWS_MAX);
        at += taken;
    }

    // The first byte is the number of bits of the values.
    let Some((&bits, rest)) = input.split_first() else { return };
    let values = rest.as_chunks::<8>().0.iter().map(|chunk| i64::from_le_bytes(*chunk) >> (bits % 64));
    // Seven values for each, so that there are whole blocks.
    let values: Vec<i64> = values.flat_map(|value| (0..7).map(move |more| value.wrapping_add(more))).collect();
    let (mut wide, mut plain) = (Vec::new(), Vec::new());
    assert_eq!(kernels::put_deltas(&values, &mut wide), delta::put(&values, &mut plain));
    assert_eq!(wide, plain);

    let is_narrow = |value: &i64| value.unsigned_abs() < delta::NARROW_DELTAS_END.into();
    let narrow: Option<Vec<i32>> = values.iter().map(|value| is_narrow(value).then_some(*value as i32)).collect();
    if let Some(narrow) = narrow {
        let (mut wide, mut safe) = (Vec::new(), Vec::new());
        assert_eq!(kernels::put_narrow_deltas(&narrow, &mut wide), delta::put_narrow(&narrow, &mut safe));
        assert!(wide == plain && safe == plain);
    }
});
