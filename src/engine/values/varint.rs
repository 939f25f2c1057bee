//! Variable-length integers (LEB128; DWARF 5, section 7.6): seven bits in a byte, the lowest first, and the highest bit
//! of a byte set if another follows. Signed integers are zigzag-encoded first: 0, -1, 1, -2, ... become 0, 1, 2, 3, ....
//! Parquet uses 64 bits, spilled group sums use 128.

macro_rules! varints {
    ($bits:literal, $unsigned:ty, $signed:ty, $put:ident, $take:ident, $put_signed:ident, $take_signed:ident) => {
        #[doc = concat!("Appends a number of ", $bits, " bits.")]
        #[allow(clippy::cast_possible_truncation, reason = "the low seven bits are what is written")]
        pub fn $put(mut number: $unsigned, out: &mut Vec<u8>) {
            while number >= 0x80 {
                out.push(number as u8 | 0x80);
                number >>= 7;
            }
            out.push(number as u8);
        }

        #[doc = concat!("Appends a signed number of ", $bits, " bits.")]
        pub fn $put_signed(number: $signed, out: &mut Vec<u8>) {
            $put((number << 1 ^ number >> (<$signed>::BITS - 1)).cast_unsigned(), out);
        }

        #[doc = concat!("Takes a number of at most ", $bits, " bits from the start of `bytes`; `None` if they are not one.")]
        pub fn $take(bytes: &mut &[u8]) -> Option<$unsigned> {
            let mut number = 0;
            for shift in (0..<$unsigned>::BITS).step_by(7) {
                let (&byte, rest) = bytes.split_first()?;
                *bytes = rest;
                let bits = <$unsigned>::from(byte & 0x7f);
                if bits << shift >> shift != bits {
                    return None;
                }
                number |= bits << shift;
                if byte < 0x80 {
                    return Some(number);
                }
            }
            None
        }

        #[doc = concat!("Takes a signed number of ", $bits, " bits.")]
        pub fn $take_signed(bytes: &mut &[u8]) -> Option<$signed> {
            let zigzag = $take(bytes)?;
            Some((zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed())
        }
    };
}

varints!("64", u64, i64, put_u64, take_u64, put_i64, take_i64);
varints!("128", u128, i128, put_u128, take_u128, put_i128, take_i128);

/// Bytes of the longest number of 128 bits.
pub const BYTES_MAX: usize = 19;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        let mut random = fastrand::Rng::with_seed(1);
        let edges = [0, 1, -1, 63, -64, 64, i128::MIN, i128::MAX, i64::MIN.into(), i64::MAX.into(), u64::MAX.into()];
        let any = std::iter::repeat_with(|| random.i128(..) >> random.u32(..128)).take(2000);
        for number in any.chain(edges) {
            let mut bytes = Vec::new();
            put_i128(number, &mut bytes);
            put_u128(number.cast_unsigned(), &mut bytes);
            let mut rest = &bytes[..];
            assert_eq!(take_i128(&mut rest), Some(number));
            assert_eq!(take_u128(&mut rest), Some(number.cast_unsigned()));
            assert!(rest.is_empty() && bytes.len() <= 2 * BYTES_MAX);
            let Ok(short) = i64::try_from(number) else { continue };
            let mut of_64_bits = Vec::new();
            put_i64(short, &mut of_64_bits);
            assert!(bytes.starts_with(&of_64_bits), "{number}: the width of the type does not show");
            put_u64(short.cast_unsigned(), &mut of_64_bits);
            let mut rest = &of_64_bits[..];
            assert_eq!((take_i64(&mut rest), take_u64(&mut rest)), (Some(short), Some(short.cast_unsigned())));
        }
    }

    #[test]
    fn what_is_cut_off_or_too_large_is_refused() {
        assert_eq!(take_u64(&mut &b""[..]), None);
        assert_eq!(take_u64(&mut &b"\x80\x80"[..]), None);
        let most = [&[0xff; 9][..], &[1]].concat();
        assert_eq!(take_u64(&mut &most[..]), Some(u64::MAX));
        let beyond = [&[0xff; 9][..], &[2]].concat();
        assert_eq!((take_u64(&mut &beyond[..]), take_u128(&mut &beyond[..]).is_some()), (None, true));
        let padded = [&[0x80; 10][..], &[0]].concat();
        assert_eq!(take_u64(&mut &padded[..]), None);
    }
}
