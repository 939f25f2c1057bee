//! Reads of a footer only what the sum of one column of integers needs. The Parquet library makes objects for all columns and
//! the schema, which takes longer than summing a small part.
//!
//! Only footers as our own writer wrote them are accepted. For any other footer this returns `None`, and the library reads it
//! and reports what is wrong with it. The bytes are verified before.
//!
//! The format: Thrift's compact protocol, <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>,
//! with the structs of <https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>.

use super::{
    chunk_checksums::{CHECKSUM_DIGITS, CHUNK_CHECKSUMS_KEY},
    hybrid::{Cursor, UnsupportedPage},
};
use crate::{engine::storage::checksums::CHUNK_BLOCK_BYTES, model::checksum::from_hex};

/// A column of integers that are not compressed and may be null, over all row groups.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct IntegerColumn<'a> {
    /// The rows of the file.
    pub(super) rows: u64,
    /// Its chunks, one for each row group.
    pub(super) chunks: Vec<IntegerChunk>,
    /// The checksums of all chunks' blocks, as text; empty if the footer has none.
    checksums: &'a [u8],
}

/// Where a chunk is, and what is before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct IntegerChunk {
    /// The rows of its row group.
    pub(super) rows: u64,
    pub(super) start: u64,
    pub(super) end: u64,
    /// The blocks of all chunks before it, of any column.
    pub(super) first_block: u64,
}

impl IntegerChunk {
    /// The number of its blocks.
    pub(super) fn blocks(&self) -> usize {
        usize::try_from((self.end - self.start).div_ceil(CHUNK_BLOCK_BYTES as u64)).unwrap_or(usize::MAX)
    }
}

impl<'a> IntegerColumn<'a> {
    /// Finds a column in a footer; `None` if the library has to read it.
    pub(super) fn find(footer: &'a [u8], index: usize, name: &str) -> Option<Self> {
        read_file(&mut Cursor { bytes: footer, at: 0, end: footer.len() }, index, name).ok()
    }

    /// The checksums of a chunk's blocks; `None` if the footer does not have them.
    pub(super) fn checksums(&self, chunk: &IntegerChunk) -> Option<Vec<u64>> {
        let start = usize::try_from(chunk.first_block).ok()?.checked_mul(CHECKSUM_DIGITS)?;
        let text = self.checksums.get(start..)?.get(..chunk.blocks().checked_mul(CHECKSUM_DIGITS)?)?;
        text.chunks(CHECKSUM_DIGITS).map(|digits| from_hex(std::str::from_utf8(digits).ok()?)).collect()
    }
}

/// Thrift's types, as the headers of fields and lists have them.
mod thrift {
    pub(super) const STOP: u8 = 0;
    pub(super) const TRUE: u8 = 1;
    pub(super) const FALSE: u8 = 2;
    pub(super) const BYTE: u8 = 3;
    pub(super) const I16: u8 = 4;
    pub(super) const I32: u8 = 5;
    pub(super) const I64: u8 = 6;
    pub(super) const DOUBLE: u8 = 7;
    pub(super) const BINARY: u8 = 8;
    pub(super) const LIST: u8 = 9;
    pub(super) const SET: u8 = 10;
    pub(super) const STRUCT: u8 = 12;
}

/// Structs within structs, at most. A footer of ours has fewer.
const DEPTH_MAX: usize = 8;

/// Parquet's numbers of the type INT64, of no compression, and of a column that may be null.
const INT64: i64 = 2;
const UNCOMPRESSED: i64 = 0;
const OPTIONAL: i64 = 1;

type Result<T> = std::result::Result<T, UnsupportedPage>;

/// Calls `field` with the number and the type of each field of a struct. It must read the field.
fn for_fields<'a>(
    cursor: &mut Cursor<'a>,
    mut field: impl FnMut(&mut Cursor<'a>, u64, u8) -> Result<()>,
) -> Result<()> {
    let mut number = 0;
    loop {
        let header = cursor.byte()?;
        if header == thrift::STOP {
            return Ok(());
        }
        let step = u64::from(header >> 4);
        if step == 0 {
            return Err(UnsupportedPage); // our fields are in order, and few are left out
        }
        number += step;
        field(cursor, number, header & 0xf)?;
    }
}

/// The type and the number of a list's elements, each of which has at least one byte.
fn list_header(cursor: &mut Cursor<'_>) -> Result<(u8, usize)> {
    let header = cursor.byte()?;
    let count = match header >> 4 {
        15 => usize::try_from(cursor.varint()?).ok().ok_or(UnsupportedPage)?,
        count => usize::from(count),
    };
    if count > cursor.rest().len() {
        return Err(UnsupportedPage);
    }
    Ok((header & 0xf, count))
}

fn structs(cursor: &mut Cursor<'_>, field_type: u8) -> Result<usize> {
    let is_list = field_type == thrift::LIST;
    match list_header(cursor)? {
        (thrift::STRUCT, count) if is_list => Ok(count),
        _ => Err(UnsupportedPage),
    }
}

fn binary<'a>(cursor: &mut Cursor<'a>, field_type: u8) -> Result<&'a [u8]> {
    if field_type != thrift::BINARY {
        return Err(UnsupportedPage);
    }
    let bytes = usize::try_from(cursor.varint()?).ok().ok_or(UnsupportedPage)?;
    cursor.take(bytes)
}

fn integer(cursor: &mut Cursor<'_>, field_type: u8) -> Result<i64> {
    if matches!(field_type, thrift::I32 | thrift::I64) { cursor.zigzag() } else { Err(UnsupportedPage) }
}

fn size(cursor: &mut Cursor<'_>, field_type: u8) -> Result<u64> {
    u64::try_from(integer(cursor, field_type)?).ok().ok_or(UnsupportedPage)
}

fn skip(cursor: &mut Cursor<'_>, field_type: u8, depth: usize) -> Result<()> {
    let depth = depth.checked_sub(1).ok_or(UnsupportedPage)?;
    match field_type {
        thrift::TRUE | thrift::FALSE => Ok(()),
        thrift::BYTE => cursor.byte().map(drop),
        thrift::I16 | thrift::I32 | thrift::I64 => cursor.varint().map(drop),
        thrift::DOUBLE => cursor.take(8).map(drop),
        thrift::BINARY => binary(cursor, field_type).map(drop),
        thrift::LIST | thrift::SET => {
            let (element_type, count) = list_header(cursor)?;
            for _ in 0..count {
                match element_type {
                    thrift::TRUE | thrift::FALSE => cursor.byte().map(drop)?,
                    _ => skip(cursor, element_type, depth)?,
                }
            }
            Ok(())
        }
        thrift::STRUCT => for_fields(cursor, |cursor, _, field_type| skip(cursor, field_type, depth)),
        _ => Err(UnsupportedPage),
    }
}

/// `FileMetaData`
fn read_file<'a>(cursor: &mut Cursor<'a>, index: usize, name: &str) -> Result<IntegerColumn<'a>> {
    let (mut rows, mut is_optional, mut chunks, mut checksums) = (None, false, None, &[][..]);
    for_fields(cursor, |cursor, number, field_type| match number {
        2 => {
            // The first element is the root, whose children are the columns.
            for element in 0..structs(cursor, field_type)? {
                let is_flat = read_element(cursor, (element == index + 1).then_some(&mut is_optional))?;
                if element > 0 && !is_flat {
                    return Err(UnsupportedPage);
                }
            }
            Ok(())
        }
        3 => {
            rows = Some(size(cursor, field_type)?);
            Ok(())
        }
        4 => {
            let (count, mut blocks) = (structs(cursor, field_type)?, 0);
            let groups = (0..count).map(|_| read_group(cursor, index, name, &mut blocks));
            chunks = Some(groups.collect::<Result<Vec<_>>>()?);
            Ok(())
        }
        5 => {
            for _ in 0..structs(cursor, field_type)? {
                let (mut key, mut value) = (&[][..], &[][..]);
                for_fields(cursor, |cursor, number, field_type| {
                    *(if number == 1 { &mut key } else { &mut value }) = binary(cursor, field_type)?;
                    Ok(())
                })?;
                if key == CHUNK_CHECKSUMS_KEY.as_bytes() {
                    checksums = value;
                }
            }
            Ok(())
        }
        _ => skip(cursor, field_type, DEPTH_MAX),
    })?;
    cursor.ended()?;
    match (rows, chunks) {
        (Some(rows), Some(chunks)) if is_optional => Ok(IntegerColumn { rows, chunks, checksums }),
        _ => Err(UnsupportedPage),
    }
}

/// `SchemaElement`. Returns whether it has no children. `is_optional` is set to whether the column may be null.
fn read_element(cursor: &mut Cursor<'_>, mut is_optional: Option<&mut bool>) -> Result<bool> {
    let mut is_flat = true;
    for_fields(cursor, |cursor, number, field_type| {
        match (number, &mut is_optional) {
            (3, Some(is_optional)) => **is_optional = integer(cursor, field_type)? == OPTIONAL,
            (5, _) => is_flat = integer(cursor, field_type)? == 0,
            _ => skip(cursor, field_type, DEPTH_MAX)?,
        }
        Ok(())
    })?;
    Ok(is_flat)
}

/// `RowGroup`. `blocks` counts the blocks of all chunks.
fn read_group(cursor: &mut Cursor<'_>, index: usize, name: &str, blocks: &mut u64) -> Result<IntegerChunk> {
    let (mut found, mut rows) = (None, None);
    for_fields(cursor, |cursor, number, field_type| match number {
        1 => {
            for column in 0..structs(cursor, field_type)? {
                let mut chunk = read_chunk(cursor, (column == index).then_some(name))?;
                chunk.first_block = *blocks;
                *blocks = blocks.saturating_add(chunk.blocks() as u64);
                if column == index {
                    found = Some(chunk);
                }
            }
            Ok(())
        }
        3 => {
            rows = Some(size(cursor, field_type)?);
            Ok(())
        }
        _ => skip(cursor, field_type, DEPTH_MAX),
    })?;
    Ok(IntegerChunk { rows: rows.ok_or(UnsupportedPage)?, ..found.ok_or(UnsupportedPage)? })
}

/// `ColumnChunk`, and the `ColumnMetaData` in it. If `name` is given, it must be the name of a column of integers that are not
/// compressed.
fn read_chunk(cursor: &mut Cursor<'_>, name: Option<&str>) -> Result<IntegerChunk> {
    let mut is_as_wanted = name.is_none();
    let (mut bytes, mut first_page, mut dictionary) = (None, None, None);
    for_fields(cursor, |cursor, number, field_type| match number {
        1 => Err(UnsupportedPage), // the chunk is in another file
        3 if field_type == thrift::STRUCT => {
            let (mut is_integer, mut is_plain, mut is_named) = (false, false, false);
            for_fields(cursor, |cursor, number, field_type| {
                match number {
                    1 => is_integer = integer(cursor, field_type)? == INT64,
                    3 if name.is_some() => {
                        is_named = list_header(cursor)? == (thrift::BINARY, 1)
                            && binary(cursor, thrift::BINARY)? == name.unwrap_or_default().as_bytes();
                        if !is_named {
                            return Err(UnsupportedPage);
                        }
                    }
                    4 => is_plain = integer(cursor, field_type)? == UNCOMPRESSED,
                    7 => bytes = Some(size(cursor, field_type)?),
                    9 => first_page = Some(size(cursor, field_type)?),
                    11 => dictionary = Some(size(cursor, field_type)?),
                    _ => skip(cursor, field_type, DEPTH_MAX)?,
                }
                Ok(())
            })?;
            is_as_wanted |= is_integer && is_plain && is_named;
            Ok(())
        }
        _ => skip(cursor, field_type, DEPTH_MAX),
    })?;
    let (start, bytes) = (dictionary.or(first_page).ok_or(UnsupportedPage)?, bytes.ok_or(UnsupportedPage)?);
    let end = start.checked_add(bytes).ok_or(UnsupportedPage)?;
    if is_as_wanted { Ok(IntegerChunk { start, end, ..IntegerChunk::default() }) } else { Err(UnsupportedPage) }
}
