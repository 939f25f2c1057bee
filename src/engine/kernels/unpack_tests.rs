//! Compares the functions that unpack numbers with a simple computation, bit by bit.

use super::{
    add_deltas, delta, expand, sum_miniblock, unpack,
    unpack::{SUM_BITS_MAX, add_deltas_plain, expand_plain, sum_miniblock_plain, unpack_plain},
};

/// Packs numbers bit by bit.
fn pack(numbers: &[u64], width: u8) -> Vec<u8> {
    let width = usize::from(width);
    let mut packed = vec![0; (numbers.len() * width).div_ceil(8)];
    for (index, number) in numbers.iter().enumerate() {
        for bit in (0..width).filter(|bit| number >> bit & 1 == 1) {
            packed[(index * width + bit) / 8] |= 1 << ((index * width + bit) % 8);
        }
    }
    packed
}

fn random_numbers(random: &mut fastrand::Rng, count: usize, width: u8) -> Vec<u64> {
    let mask = 1_u64.checked_shl(u32::from(width)).map_or(u64::MAX, |bit| bit - 1);
    // Often the greatest number, whose bits would show in its neighbours.
    std::iter::repeat_with(|| if random.u8(..3) == 0 { mask } else { random.u64(..) & mask }).take(count).collect()
}

#[test]
fn numbers_of_every_width_are_unpacked() {
    let mut random = fastrand::Rng::with_seed(1);
    for width in 0..=32 {
        for count in (0..70).chain([504, 1000]) {
            let numbers = random_numbers(&mut random, count, width);
            let expected: Vec<u32> = numbers.iter().map(|&number| u32::try_from(number).expect("32 bits")).collect();
            // Any bytes may follow, or none.
            let mut packed = pack(&numbers, width);
            packed.extend(vec![0xff; [0, 1, 8, 100][random.usize(..4)]]);
            for function in [unpack, unpack_plain] {
                let mut out = vec![7; count];
                let greatest = function(&packed, width, &mut out);
                assert_eq!(
                    Some(greatest),
                    expected.iter().copied().max().or(Some(0)),
                    "{count} numbers of {width} bits"
                );
                assert_eq!(out, expected, "{count} numbers of {width} bits");
            }
        }
    }
}

#[test]
fn deltas_of_every_width_are_added() {
    let mut random = fastrand::Rng::with_seed(2);
    for width in 0..=64 {
        for count in (0..70).chain([256]) {
            let (deltas, delta_min, first) =
                (random_numbers(&mut random, count, width), random.i64(..), random.i64(..));
            let mut last = first;
            let mut next = |delta: &u64| {
                last = last.wrapping_add(delta_min).wrapping_add(delta.cast_signed());
                last
            };
            let expected: Vec<i64> = deltas.iter().map(&mut next).collect();
            let mut packed = pack(&deltas, width);
            packed.extend(vec![0xff; [0, 1, 8, 100][random.usize(..4)]]);
            for function in [add_deltas, add_deltas_plain] {
                let mut out = vec![7; count];
                let end = function(&packed, width, delta_min, first, &mut out);
                assert_eq!((&out, end), (&expected, last), "{count} deltas of {width} bits");
            }
        }
    }
}

#[test]
fn miniblocks_of_every_width_are_summed() {
    let mut random = fastrand::Rng::with_seed(3);
    for width in 0..=SUM_BITS_MAX {
        for slack in [8, 9, 64, 100] {
            let numbers = random_numbers(&mut random, delta::MINIBLOCK_VALUES, width);
            let running = numbers.iter().scan(0, |sum, number| {
                *sum += number;
                Some(*sum)
            });
            let expected = (numbers.iter().sum::<u64>(), running.sum::<u64>());
            let mut packed = pack(&numbers, width);
            packed.extend(vec![0xff; slack]);
            assert_eq!(sum_miniblock(&packed, width), expected, "{width} bits");
            assert_eq!(sum_miniblock_plain(&packed, width), expected, "{width} bits");
        }
    }
}

#[test]
fn numbers_are_spread_over_rows() {
    const OTHER: u32 = 5;
    let mut random = fastrand::Rng::with_seed(4);
    for rows in (0..100).chain([1000]) {
        for ones in [0, 1, 4, 7, 8] {
            let bits: Vec<bool> = std::iter::repeat_with(|| random.u8(..8) < ones).take(rows).collect();
            let mut next = 0;
            let number_of = |is_set: &bool| {
                next += u32::from(*is_set);
                if *is_set { next * 1_000_003 } else { OTHER }
            };
            let expected: Vec<u32> = bits.iter().map(number_of).collect();
            let numbers: Vec<u32> = expected.iter().copied().filter(|&number| number != OTHER).collect();
            let mut bytes = pack(&bits.iter().map(|&is_set| u64::from(is_set)).collect::<Vec<_>>(), 1);
            // The bits after the last row may be set.
            if let Some(last) = bytes.last_mut().filter(|_| rows % 8 > 0) {
                *last |= 0xff << (rows % 8);
            }
            for function in [expand, expand_plain] {
                let mut out = vec![7; rows];
                function(&bytes, &numbers, OTHER, &mut out);
                assert_eq!(out, expected, "{rows} rows");
            }
        }
    }
}
