//! The flags of `tally upload` for files that are not plain CSV, and the message that tells the server of them.

use std::{ffi::OsStr, path::Path, str::FromStr};

use bytes::{BufMut, Bytes, BytesMut};
use clap::{Args, builder::BoolishValueParser};
use prost::Message;

use crate::{
    model::dialect::{Decompress, Delimiter, Encoding, InvalidDialect, NullTexts},
    proto::pb::tally::{UploadChunk, UploadOptions},
};

/// In which way the files differ from plain CSV.
#[derive(Debug, Args)]
#[command(next_help_heading = "Files that are not plain CSV (the server stores the CSV that they mean)")]
pub struct DialectArgs {
    /// What separates cells: one ASCII character, or tab
    #[arg(long, value_name = "CHAR", env = "TALLY_DELIMITER", hide_env_values = true)]
    pub delimiter: Option<Delimiter>,

    /// The encoding, by a name of the WHATWG Encoding Standard (windows-1252, utf-16le, shift_jis, ...)
    #[arg(long, value_name = "NAME", env = "TALLY_ENCODING", hide_env_values = true)]
    pub encoding: Option<Encoding>,

    /// Cells with this text have no value (for example NA); may be repeated
    #[arg(long, value_name = "TEXT", env = "TALLY_NULL", hide_env_values = true)]
    pub null: Vec<String>,

    /// Remove white space around names and cells
    #[arg(long, env = "TALLY_TRIM", hide_env_values = true, value_parser = BoolishValueParser::new())]
    pub trim: bool,

    /// Remove empty cells beyond the last column that has a name
    #[arg(long, env = "TALLY_DROP_TRAILING_EMPTY", hide_env_values = true, value_parser = BoolishValueParser::new())]
    pub drop_trailing_empty: bool,

    /// How the files are compressed: gzip, zstd, auto (one of these if a file begins like it), or
    /// name (gzip for names that end in .gz, zstd for .zst)
    #[arg(long, value_name = "WHAT", env = "TALLY_DECOMPRESS", hide_env_values = true)]
    pub decompress: Option<DecompressFlag>,
}

/// The values of `--decompress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecompressFlag {
    /// What the name of the file says.
    Name,
    /// What the server takes.
    Server(Decompress),
}

impl FromStr for DecompressFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "name" => Ok(Self::Name),
            _ => text
                .parse()
                .map(Self::Server)
                .map_err(|_invalid: InvalidDialect| "it is gzip, zstd, auto or name".to_owned()),
        }
    }
}

impl DecompressFlag {
    fn of_file(self, file: &Path) -> Option<Decompress> {
        match self {
            Self::Server(decompress) => Some(decompress),
            Self::Name => match file.extension().and_then(OsStr::to_str) {
                Some(extension) if extension.eq_ignore_ascii_case("gz") => Some(Decompress::Gzip),
                Some(extension) if extension.eq_ignore_ascii_case("zst") => Some(Decompress::Zstd),
                _ => None,
            },
        }
    }
}

impl DialectArgs {
    /// Checks what clap has not checked.
    ///
    /// Errors: too many texts that mean no value.
    pub(super) fn check(&self) -> Result<(), InvalidDialect> {
        NullTexts::new(self.null.clone()).map(|_checked| ())
    }

    /// The message that goes before those with the file; `None` for plain CSV.
    pub(super) fn message(&self, file: &Path) -> Option<Bytes> {
        let text_of = |value: Option<String>| value.unwrap_or_default();
        let options = UploadOptions {
            delimiter: text_of(self.delimiter.map(|delimiter| delimiter.to_string())),
            encoding: text_of(self.encoding.map(|encoding| encoding.to_string())),
            null: self.null.clone(),
            trim: self.trim,
            drop_trailing_empty: self.drop_trailing_empty,
            decompress: text_of(self.decompress.and_then(|flag| flag.of_file(file)).map(|kind| kind.to_string())),
            ..UploadOptions::default() // the key is in the metadata
        };
        if options == UploadOptions::default() {
            return None;
        }
        let message = UploadChunk { options: Some(options), ..UploadChunk::default() };
        let mut bytes = BytesMut::new();
        bytes.put_u8(0); // not compressed
        bytes.put_uint(message.encoded_len() as u64, 4);
        bytes.put(message.encode_to_vec().as_slice());
        Some(bytes.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_file_says_how_it_is_compressed() {
        let flag: DecompressFlag = "name".parse().expect("a value");
        for (name, expected) in [
            ("a.csv.gz", Some(Decompress::Gzip)),
            ("b/A.GZ", Some(Decompress::Gzip)),
            ("a.zst", Some(Decompress::Zstd)),
            ("a.csv", None),
            ("gz", None),
            ("-", None),
        ] {
            assert_eq!(flag.of_file(Path::new(name)), expected, "{name}");
        }
        assert_eq!("zstd".parse(), Ok(DecompressFlag::Server(Decompress::Zstd)));
        assert_eq!("xz".parse::<DecompressFlag>(), Err("it is gzip, zstd, auto or name".to_owned()));
    }

    #[test]
    fn plain_csv_has_no_options() {
        let plain = DialectArgs {
            delimiter: None,
            encoding: None,
            null: Vec::new(),
            trim: false,
            drop_trailing_empty: false,
            decompress: Some(DecompressFlag::Name),
        };
        assert_eq!(plain.message(Path::new("a.csv")), None);
        let message = plain.message(Path::new("a.csv.gz")).expect("options");
        let chunk = UploadChunk::decode(&message[5..]).expect("a message");
        assert_eq!(chunk.options.expect("options").decompress, "gzip");
        assert_eq!(u32::from_be_bytes([message[1], message[2], message[3], message[4]]) as usize, message.len() - 5);
    }
}
