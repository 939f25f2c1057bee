//! Tests of `content_parser`, and of `framing` through it.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use bytes::{BufMut as _, Bytes};
use prost::{Message, encoding::encode_varint};

use super::{
    content_parser::{ContentParser, FIELD_NUMBER_MAX},
    framing::{
        BodyError::{self, *},
        CONTENT_BYTES_MAX, Framing, Mode,
    },
};

/// Like UploadReq and UploadChunk.
#[derive(Clone, PartialEq, Message)]
struct OneField {
    #[prost(bytes = "bytes", tag = "1")]
    content: Bytes,
}

/// The slices in one piece, and how the body ended.
type Outcome = (Vec<u8>, Result<(), BodyError>);

fn parse<'a>(mode: Mode, pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let mut parser = ContentParser::new(mode);
    let mut content = Vec::new();
    for piece in pieces {
        let mut input = Bytes::copy_from_slice(piece);
        let memory = input.as_ptr() as usize..input.as_ptr() as usize + input.len();
        loop {
            match parser.next(&mut input) {
                Ok(Some(slice)) => {
                    assert!(!slice.is_empty());
                    assert!(memory.contains(&(slice.as_ptr() as usize)), "a slice was copied");
                    content.extend_from_slice(&slice);
                }
                Ok(None) => break,
                Err(error) => return (content, Err(error)),
            }
        }
        assert!(input.is_empty());
    }
    (content, parser.finish())
}

/// Cuts `body` at random, empty pieces included.
fn pieces<'a>(random: &mut fastrand::Rng, body: &'a [u8]) -> Vec<&'a [u8]> {
    let mut rest = body;
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(random.usize(0..=rest.len().min(9)));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// The outcome of `body`, which is the same however it is cut.
fn outcome(random: &mut fastrand::Rng, mode: Mode, body: &[u8]) -> Outcome {
    let whole = parse(mode, std::iter::once(body));
    assert_eq!(parse(mode, body.chunks(1)), whole, "byte by byte: {body:?}");
    let cut = pieces(random, body);
    assert_eq!(parse(mode, cut.iter().copied()), whole, "in pieces: {cut:?}");

    // The check without protobuf agrees wherever protobuf is not what is wrong.
    let mut framing = Framing::new(mode);
    let checked = cut.iter().try_for_each(|piece| framing.check(piece)).and_then(|()| framing.finish());
    if is_about_framing(&whole.1) {
        assert_eq!(checked, whole.1, "{body:?}");
    }
    whole
}

fn is_about_framing(result: &Result<(), BodyError>) -> bool {
    matches!(
        result,
        Ok(()) | Err(Compressed | Flag(_) | EndsInPrefix | EndsInMessage { .. } | NoMessage | SecondMessage)
    )
}

fn message(payload: &[u8]) -> Vec<u8> {
    let mut message = vec![0];
    message.put_u32(u32::try_from(payload.len()).unwrap());
    message.extend_from_slice(payload);
    message
}

fn messages(payloads: &[&[u8]]) -> Vec<u8> {
    payloads.iter().flat_map(|payload| message(payload)).collect()
}

fn varint(value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_varint(value, &mut bytes);
    bytes
}

fn nested_groups(depth: usize) -> Vec<u8> {
    [vec![0x13; depth], vec![0x14; depth]].concat()
}

/// One test for each line: the bytes of a body, field 1's content in it, and how it ends.
macro_rules! cases {
    ($($name:ident: $mode:ident, $body:expr => $content:expr, $end:expr;)*) => {
        $(#[test]
        fn $name() {
            let body: Vec<u8> = $body.into();
            let seen = outcome(&mut fastrand::Rng::with_seed(1), Mode::$mode, &body);
            assert_eq!(seen, ($content.to_vec(), $end));
        })*
    };
}

cases! {
    // What is well formed.
    field_one: Unary, message(b"\x0a\x03a,b") => b"a,b", Ok(());
    empty_message: Unary, message(b"") => b"", Ok(());
    empty_field: Unary, message(b"\x0a\x00") => b"", Ok(());
    padded_key_and_length: Unary, message(b"\x8a\x00\x83\x80\x00a,b") => b"a,b", Ok(());
    stream_without_messages: Stream, b"" => b"", Ok(());
    stream_of_one: Stream, message(b"\x0a\x01a") => b"a", Ok(());
    stream_of_three: Stream, messages(&[b"\x0a\x01a", b"", b"\x0a\x02bc"]) => b"abc", Ok(());
    stream_of_empty_fields: Stream, messages(&[b"\x0a\x00", b"\x0a\x00"]) => b"", Ok(());
    // Unknown fields.
    unknown_varint: Unary, message(b"\x10\xff\x01\x0a\x01a") => b"a", Ok(());
    unknown_largest_varint: Unary, message(b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01") => b"", Ok(());
    unknown_fixed64: Unary, message(b"\x0a\x01a\x1112345678") => b"a", Ok(());
    unknown_bytes: Unary, message(b"\x12\x04\x0a\x02no\x0a\x01a") => b"a", Ok(());
    unknown_empty_bytes: Unary, message(b"\x12\x00\x0a\x01a") => b"a", Ok(());
    unknown_fixed32: Unary, message(b"\x151234\x0a\x01a") => b"a", Ok(());
    unknown_group: Unary, message(b"\x13\x0a\x02no\x08\x01\x14\x0a\x01a") => b"a", Ok(());
    unknown_group_in_group: Unary, message(b"\x13\x1b\x12\x01x\x1c\x14\x0a\x01a") => b"a", Ok(());
    unknown_groups_of_largest_depth: Unary, message(&nested_groups(100)) => b"", Ok(());
    unknown_largest_field: Unary, message(b"\xf8\xff\xff\xff\x0f\x00") => b"", Ok(());
    // gRPC's framing.
    compressed: Unary, b"\x01\0\0\0\x03\x0a\x01a" => b"", Err(Compressed);
    flag_two: Unary, b"\x02\0\0\0\x03\x0a\x01a" => b"", Err(Flag(2));
    flag_of_text: Stream, b"GET / HTTP/1.1" => b"", Err(Flag(b'G'));
    flag_of_second_message: Stream, [message(b"\x0a\x01a"), vec![9]].concat() => b"a", Err(Flag(9));
    no_message: Unary, b"" => b"", Err(NoMessage);
    end_after_flag: Unary, b"\0" => b"", Err(EndsInPrefix);
    end_in_length: Unary, b"\0\0\0\0" => b"", Err(EndsInPrefix);
    end_in_second_prefix: Stream, [message(b"\x0a\x01a"), vec![0]].concat() => b"a", Err(EndsInPrefix);
    end_after_prefix: Unary, b"\0\0\0\0\x09" => b"", Err(EndsInMessage { missing: 9 });
    end_in_content: Unary, b"\0\0\0\0\x09\x0a\x07abc" => b"abc", Err(EndsInMessage { missing: 4 });
    end_in_skipped: Unary, b"\0\0\0\0\x09\x12\x07abc" => b"", Err(EndsInMessage { missing: 4 });
    end_in_key: Unary, b"\0\0\0\0\x09\x8a" => b"", Err(EndsInMessage { missing: 8 });
    second_message: Unary, messages(&[b"\x0a\x01a", b"\x0a\x01b"]) => b"a", Err(SecondMessage);
    second_empty_message: Unary, messages(&[b"", b""]) => b"", Err(SecondMessage);
    byte_after_message: Unary, [message(b"\x0a\x01a"), vec![0]].concat() => b"a", Err(SecondMessage);
    // protobuf's.
    message_too_short: Unary, b"\0\0\0\0\x04\x0a\x03abc" => b"", Err(too_long(1, 3, 2));
    second_field_one: Unary, message(b"\x0a\x01a\x0a\x01b") => b"a", Err(SecondContent);
    second_empty_field_one: Stream, message(b"\x0a\x00\x0a\x00") => b"", Err(SecondContent);
    field_one_varint: Unary, message(b"\x08\x01") => b"", Err(ContentWireType { wire_type: 0 });
    field_one_fixed64: Unary, message(b"\x0912345678") => b"", Err(ContentWireType { wire_type: 1 });
    field_one_group: Unary, message(b"\x0b\x0c") => b"", Err(ContentWireType { wire_type: 3 });
    field_one_group_end: Unary, message(b"\x0c") => b"", Err(ContentWireType { wire_type: 4 });
    field_one_fixed32: Unary, message(b"\x0d1234") => b"", Err(ContentWireType { wire_type: 5 });
    field_one_six: Unary, message(b"\x0e") => b"", Err(ContentWireType { wire_type: 6 });
    field_zero: Unary, message(b"\x02\x00") => b"", Err(FieldNumber(0));
    field_too_large: Unary, message(b"\x80\x80\x80\x80\x10\x00") => b"", Err(FieldNumber(1 << 29));
    field_largest: Unary, message(&varint(u64::MAX)) => b"", Err(FieldNumber(u64::MAX >> 3));
    wire_type_six: Unary, message(b"\x16") => b"", Err(WireType { field: 2, wire_type: 6 });
    wire_type_seven: Unary, message(b"\x13\x17") => b"", Err(WireType { field: 2, wire_type: 7 });
    key_of_eleven_bytes: Unary, message(&[0x80; 11]) => b"", Err(VarintTooLong);
    key_of_65_bits: Unary, message(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02") => b"", Err(VarintTooLong);
    length_of_eleven_bytes: Unary, message(&[&[0x0a], &[0x80; 11][..]].concat()) => b"", Err(VarintTooLong);
    number_of_eleven_bytes: Unary, message(&[&[0x10], &[0x80; 11][..]].concat()) => b"", Err(VarintTooLong);
    field_one_beyond_message: Unary, message(b"\x0a\x05abcd") => b"", Err(too_long(1, 5, 4));
    unknown_beyond_message: Unary, message(b"\x12\x05abcd") => b"", Err(too_long(2, 5, 4));
    length_64_bit: Unary, message(&[&[0x0a][..], &varint(u64::MAX)].concat()) => b"", Err(too_long(1, u64::MAX, 0));
    length_33_bit: Unary, message(b"\x0a\x83\x80\x80\x80\x10abc") => b"", Err(too_long(1, (1 << 32) + 3, 3));
    key_beyond_message: Unary, message(b"\x0a\x01a\x8a") => b"a", Err(EndsInField);
    length_beyond_message: Unary, message(b"\x0a\x81") => b"", Err(EndsInField);
    length_missing: Unary, message(b"\x0a") => b"", Err(EndsInField);
    number_beyond_message: Unary, message(b"\x10\x81") => b"", Err(EndsInField);
    fixed64_beyond_message: Unary, message(b"\x111234567") => b"", Err(EndsInField);
    fixed32_beyond_message: Unary, message(b"\x15123") => b"", Err(EndsInField);
    field_goes_on_in_next_message: Stream, messages(&[b"\x15", b"1234"]) => b"", Err(EndsInField);
    group_left_open: Unary, message(b"\x13\x1b\x1c") => b"", Err(EndsInGroup { field: 2 });
    group_closed_in_next_message: Stream, messages(&[b"\x13", b"\x14"]) => b"", Err(EndsInGroup { field: 2 });
    group_closed_twice: Unary, message(b"\x13\x14\x14") => b"", Err(GroupMismatch { field: 2 });
    groups_crossed: Unary, message(b"\x13\x1b\x14\x1c") => b"", Err(GroupMismatch { field: 2 });
    group_end_alone: Unary, message(b"\x14") => b"", Err(GroupMismatch { field: 2 });
    groups_too_deep: Unary, message(&nested_groups(101)) => b"", Err(GroupsTooDeep);
}

fn too_long(field: u32, length: u64, left: u32) -> BodyError {
    BodyError::FieldTooLong { field, length, left }
}

/// A message of 4 GiB - 1 is announced, and only its beginning is ever made.
#[test]
fn content_is_limited_and_announced_lengths_cost_nothing() {
    for (length, end) in [
        (CONTENT_BYTES_MAX, BodyError::EndsInMessage { missing: u32::MAX - 9 }),
        (CONTENT_BYTES_MAX + 1, BodyError::ContentTooLong { length: CONTENT_BYTES_MAX + 1 }),
    ] {
        let body = [vec![0, 0xff, 0xff, 0xff, 0xff, 0x0a], varint(length), b"abc".to_vec()].concat();
        let content = if length > CONTENT_BYTES_MAX { vec![] } else { b"abc".to_vec() };
        assert_eq!(outcome(&mut fastrand::Rng::with_seed(2), Mode::Unary, &body), (content, Err(end)));
    }
}

/// Whatever prost accepts has the same content here, and what prost refuses is refused here.
#[test]
fn agrees_with_prost_on_random_messages() {
    let mut accepted = 0;
    for seed in 0..20_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut payload = Vec::new();
        put_fields(&mut random, &mut payload, 0);
        for _ in 0..random.usize(0..3).saturating_sub(1) {
            spoil(&mut random, &mut payload);
        }
        let (content, end) = outcome(&mut random, Mode::Unary, &message(&payload));
        let decoded = OneField::decode(payload.as_slice());
        match (&decoded, &end) {
            (Ok(decoded), Ok(())) => {
                assert_eq!(decoded.content, content, "seed {seed}: {payload:?}");
                accepted += 1;
            }
            (Err(_), Err(_)) => {}
            // prost takes the last one; here the first one has already been handed on.
            (_, Err(BodyError::SecondContent)) => {}
            _ => panic!("seed {seed}: prost says {decoded:?}, we say {end:?} for {payload:?}"),
        }
    }
    assert!((5_000..19_000).contains(&accepted), "the seeds are lopsided: {accepted} valid messages");
}

#[test]
fn a_stream_is_its_messages_one_after_the_other() {
    for seed in 0..2_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut body = Vec::new();
        let mut contents = Vec::new();
        for _ in 0..random.usize(0..5) {
            let content: Vec<u8> = (0..random.usize(0..300)).map(|_| random.u8(..)).collect();
            body.extend(message(&OneField { content: content.clone().into() }.encode_to_vec()));
            contents.extend(content);
        }
        assert_eq!(outcome(&mut random, Mode::Stream, &body), (contents, Ok(())), "seed {seed}");
    }
}

#[test]
fn noise_neither_panics_nor_depends_on_the_cuts() {
    for seed in 0..20_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut body: Vec<u8> = (0..random.usize(0..40)).map(|_| random.u8(..)).collect();
        if random.bool() {
            body.splice(0..0, [0, 0, 0, 0, random.u8(..40)]);
        }
        let mode = if random.bool() { Mode::Unary } else { Mode::Stream };
        let (content, _end) = outcome(&mut random, mode, &body);
        assert!(content.len() <= body.len());
    }
}

#[test]
fn errors_are_lower_case_and_have_no_full_stop() {
    let text = BodyError::EndsInMessage { missing: 7 }.to_string();
    assert_eq!(text, "the body ends 7 bytes before its message does");
    let text = BodyError::ContentTooLong { length: 1 << 31 }.to_string();
    assert_eq!(text, "field 1 is 2147483648 bytes long, at most 2147483647 fit in one message");
}

/// Random fields, valid but for a second field 1.
fn put_fields(random: &mut fastrand::Rng, payload: &mut Vec<u8>, depth: usize) {
    for _ in 0..random.usize(0..4) {
        let field = if random.bool() { 2 } else { random.u64(2..=FIELD_NUMBER_MAX) };
        match random.u8(0..6) {
            0 => payload.extend([varint(field << 3), varint(random.u64(..) >> random.u32(0..64))].concat()),
            1 => payload.extend([varint(field << 3 | 1), random.u64(..).to_le_bytes().to_vec()].concat()),
            2 => put_bytes(random, payload, field),
            3 if depth < 20 => {
                payload.extend(varint(field << 3 | 3));
                put_fields(random, payload, depth + 1);
                payload.extend(varint(field << 3 | 4));
            }
            4 => payload.extend([varint(field << 3 | 5), random.u32(..).to_le_bytes().to_vec()].concat()),
            _ => put_bytes(random, payload, 1),
        }
    }
}

fn put_bytes(random: &mut fastrand::Rng, payload: &mut Vec<u8>, field: u64) {
    let length_max = if random.u8(..) == 0 { 20_000 } else { 20 };
    let length = random.usize(0..=length_max);
    payload.extend([varint(field << 3 | 2), varint(length as u64)].concat());
    payload.extend((0..length).map(|_| random.u8(..)));
}

fn spoil(random: &mut fastrand::Rng, payload: &mut Vec<u8>) {
    if payload.is_empty() {
        return payload.push(random.u8(..));
    }
    let at = random.usize(0..payload.len());
    match random.u8(0..4) {
        0 => payload[at] = random.u8(..),
        1 => payload.truncate(at),
        2 => payload.insert(at, random.u8(..)),
        _ => payload[at] ^= 0x80,
    }
}

/// The options in a body of a stream, and how the body ends, which do not depend on where it is cut.
fn options_of(body: &[u8]) -> (Option<Vec<u8>>, Vec<u8>, Result<(), BodyError>) {
    let parse = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut parser, mut options, mut content) = (ContentParser::new(Mode::Stream), None, Vec::new());
        for piece in pieces {
            let mut input = Bytes::copy_from_slice(piece);
            loop {
                let parsed = parser.next(&mut input);
                if let Some(found) = parser.take_options() {
                    assert!(content.is_empty() && options.is_none(), "options come first, and once");
                    options = Some(found);
                }
                match parsed {
                    Ok(Some(slice)) => content.extend_from_slice(&slice),
                    Ok(None) => break,
                    Err(error) => return (options, content, Err(error)),
                }
            }
        }
        (options, content, parser.finish())
    };
    let whole = parse(&mut std::iter::once(body));
    assert_eq!(parse(&mut body.chunks(1)), whole, "{body:?}");
    whole
}

#[test]
fn options_come_in_the_first_message_before_its_content() {
    let options = b"\x12\x03\x0a\x01;";
    for (body, content) in [
        (messages(&[options, b"\x0a\x01a"]), &b"a"[..]),
        (message(b"\x12\x03\x0a\x01;\x0a\x01a"), b"a"),
        (messages(&[b"", options]), b""), // an empty message is no message with data
    ] {
        assert_eq!(options_of(&body), (Some(b"\x0a\x01;".to_vec()), content.to_vec(), Ok(())), "{body:?}");
    }
    assert_eq!(options_of(&message(b"\x12\x00\x0a\x01a")), (Some(Vec::new()), b"a".to_vec(), Ok(())));
    for body in [
        message(b"\x0a\x01a\x12\x03\x0a\x01;"),
        messages(&[b"\x0a\x01a", options]),
        messages(&[options, options]),
        message(b"\x12\x00\x12\x00"),
    ] {
        assert_eq!(options_of(&body).2, Err(LateOptions), "{body:?}");
    }
    let long = [vec![0x12], varint(4097), vec![0; 4097]].concat();
    assert_eq!(options_of(&message(&long)).2, Err(OptionsTooLong { length: 4097 }));
    // Elsewhere field 2 is unknown: with another wire type, and in a group.
    assert_eq!(options_of(&message(b"\x10\x01\x0a\x01a")), (None, b"a".to_vec(), Ok(())));
    assert_eq!(options_of(&message(b"\x1b\x12\x01x\x1c\x0a\x01a")), (None, b"a".to_vec(), Ok(())));
}
