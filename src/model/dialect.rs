//! The dialect of an uploaded file: in which way it differs from plain CSV. Plain data, and the rules for its values.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::{NULL_TEXTS_BYTES_MAX, NULL_TEXTS_MAX};

/// What the client says about its file. The default is plain CSV, which is stored byte for byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dialect {
    /// What separates cells; a comma if it is not given.
    pub delimiter: Option<Delimiter>,
    /// The encoding of the text; UTF-8 if it is not given.
    pub encoding: Option<Encoding>,
    /// Cells with one of these texts have no value.
    pub null: NullTexts,
    /// White space around names and cells is removed.
    pub trim: bool,
    /// Empty cells beyond the last named column are removed.
    pub drop_trailing_empty: bool,
    /// How the file is compressed, if it may be.
    pub decompress: Option<Decompress>,
}

impl Dialect {
    /// Whether the rows are written anew. Otherwise the text is CSV as it is, once it is decompressed and decoded.
    pub fn changes_rows(&self) -> bool {
        self.delimiter.is_some() || !self.null.0.is_empty() || self.trim || self.drop_trailing_empty
    }

    /// The dialect, unless it is that of plain CSV.
    pub fn unless_plain(self) -> Option<Self> {
        (self != Self::default()).then_some(self)
    }
}

/// The byte between two cells: ASCII, and neither a quote nor a row end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delimiter(u8);

impl Delimiter {
    /// The byte.
    pub fn byte(self) -> u8 {
        self.0
    }
}

impl FromStr for Delimiter {
    type Err = InvalidDialect;

    fn from_str(text: &str) -> Result<Self, InvalidDialect> {
        match *text.as_bytes() {
            _ if text == "tab" => Ok(Self(b'\t')),
            [b'"' | b'\n' | b'\r' | 0] => Err(InvalidDialect::Delimiter(text.to_owned())),
            [byte] => Ok(Self(byte)), // a single byte of a text is ASCII
            _ => Err(InvalidDialect::Delimiter(text.to_owned())),
        }
    }
}

impl fmt::Display for Delimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == b'\t' { f.write_str("tab") } else { write!(f, "{}", char::from(self.0)) }
    }
}

/// An encoding of the WHATWG Encoding Standard (<https://encoding.spec.whatwg.org>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding(&'static encoding_rs::Encoding);

impl Encoding {
    /// A decoder. As the standard says, a byte order mark at the start is left out, and overrides the name.
    pub fn decoder(self) -> encoding_rs::Decoder {
        self.0.new_decoder()
    }
}

impl FromStr for Encoding {
    type Err = InvalidDialect;

    fn from_str(text: &str) -> Result<Self, InvalidDialect> {
        let encoding = encoding_rs::Encoding::for_label_no_replacement(text.as_bytes());
        encoding.map(Self).ok_or_else(|| InvalidDialect::Encoding(text.to_owned()))
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

/// Texts of cells that mean that there is no value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NullTexts(Vec<String>);

impl NullTexts {
    /// Errors: there are too many, or they are too long together.
    pub fn new(texts: Vec<String>) -> Result<Self, InvalidDialect> {
        let bytes: usize = texts.iter().map(String::len).sum();
        if texts.len() > NULL_TEXTS_MAX || bytes > NULL_TEXTS_BYTES_MAX {
            return Err(InvalidDialect::NullTexts { texts: texts.len(), bytes });
        }
        Ok(Self(texts))
    }

    /// Whether a cell with this text has no value.
    pub fn has(&self, cell: &[u8]) -> bool {
        self.0.iter().any(|text| text.as_bytes() == cell)
    }
}

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decompress {
    /// As its first bytes say: one of the following, or not at all.
    Auto,
    /// gzip (RFC 1952); it may have several members.
    Gzip,
    /// Zstandard (RFC 8878); it may have several frames.
    Zstd,
}

impl Decompress {
    /// All names, for help texts.
    pub const NAMES: [&str; 3] = ["auto", "gzip", "zstd"];
}

impl FromStr for Decompress {
    type Err = InvalidDialect;

    fn from_str(text: &str) -> Result<Self, InvalidDialect> {
        match text {
            "auto" => Ok(Self::Auto),
            "gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            other => Err(InvalidDialect::Decompress(other.to_owned())),
        }
    }
}

impl fmt::Display for Decompress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// A value that a dialect cannot have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidDialect {
    /// It is not one byte, or a byte that has another meaning.
    #[error("delimiter {}: it is one ASCII character other than a quote, a line end and NUL, or the word tab", shown(.0))]
    Delimiter(String),
    /// There is no such encoding.
    #[error(
        "encoding {}: it is a name of the WHATWG Encoding Standard, for example utf-8, windows-1252, utf-16le or shift_jis",
        shown(.0)
    )]
    Encoding(String),
    /// There is no such compression.
    #[error("decompress {}: it is gzip, zstd or auto", shown(.0))]
    Decompress(String),
    /// It is neither true nor false.
    #[error("{option} {}: it is true or false", shown(.text))]
    Flag {
        /// The option.
        option: &'static str,
        /// Its value.
        text: String,
    },
    /// Too many texts that mean no value.
    #[error(
        "null has {texts} texts of {bytes} bytes together: at most {NULL_TEXTS_MAX} of {NULL_TEXTS_BYTES_MAX} bytes are allowed"
    )]
    NullTexts {
        /// How many there are.
        texts: usize,
        /// Their bytes together.
        bytes: usize,
    },
}

/// A value in an error: escaped, and cut if it is long.
fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 32;
    let cut: String = text.chars().take(CHARS_MAX).collect();
    let rest = if cut.len() < text.len() { "…" } else { "" };
    format!("\"{}{rest}\"", cut.escape_debug())
}

/// Bytes of the texts of a [`Source`] other than those that mean no value, as the allocator rounds them up.
const SHORT_TEXTS_BYTES: usize = 4 * 32;

/// The file that was sent, if the stored CSV is not it. Values are texts, so that a receipt can be read whatever they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// [`Dialect::delimiter`]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delimiter: Option<String>,
    /// [`Dialect::encoding`], by the name that the standard gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    /// [`Dialect::null`]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub null: Vec<String>,
    /// [`Dialect::trim`]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trim: bool,
    /// [`Dialect::drop_trailing_empty`]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drop_trailing_empty: bool,
    /// [`Dialect::decompress`]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decompress: Option<String>,
    /// The number of bytes that came.
    pub bytes: u64,
    /// Their checksum, as that of a stored file.
    pub xxh3: String,
}

impl Source {
    /// A file of this dialect, with its size and checksum.
    pub fn new(dialect: Dialect, bytes: u64, xxh3: String) -> Self {
        Self {
            delimiter: dialect.delimiter.map(|delimiter| delimiter.to_string()),
            encoding: dialect.encoding.map(|encoding| encoding.to_string()),
            null: dialect.null.0,
            trim: dialect.trim,
            drop_trailing_empty: dialect.drop_trailing_empty,
            decompress: dialect.decompress.map(|decompress| decompress.to_string()),
            bytes,
            xxh3,
        }
    }

    /// Bytes that it takes in memory.
    pub fn memory_bytes(&self) -> u32 {
        let null_bytes: usize = self.null.iter().map(|text| size_of::<String>() + text.len()).sum();
        u32::try_from(size_of::<Self>() + SHORT_TEXTS_BYTES + null_bytes).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delimiter_is_one_ascii_byte() {
        for (text, byte) in [(";", b';'), ("tab", b'\t'), ("\t", b'\t'), ("|", b'|'), (" ", b' '), ("\u{1}", 1)] {
            let delimiter: Delimiter = text.parse().expect("a delimiter");
            assert_eq!(delimiter.byte(), byte);
        }
        for text in ["", "ab", "\"", "\n", "\r", "\0", "§", "Tab"] {
            let error = text.parse::<Delimiter>().expect_err("refused").to_string();
            assert!(error.ends_with("a quote, a line end and NUL, or the word tab"), "{error}");
        }
        let error = "x".repeat(1 << 20).parse::<Delimiter>().expect_err("refused").to_string();
        assert!(error.len() < 200 && error.contains("xxx…\""), "{error}");
    }

    #[test]
    fn encodings_have_the_names_of_the_standard() {
        for (label, name) in [("Latin1", "windows-1252"), ("utf-16", "UTF-16LE"), (" sjis ", "Shift_JIS")] {
            assert_eq!(label.parse::<Encoding>().expect("an encoding").to_string(), name);
        }
        // Labels that the standard maps to an encoding that decodes nothing.
        for label in ["", "utf-7", "replacement", "iso-2022-kr"] {
            assert!(label.parse::<Encoding>().is_err(), "{label}");
        }
    }

    #[test]
    fn texts_for_no_value_are_bounded() {
        let texts = NullTexts::new(vec!["NA".to_owned(), "-".to_owned()]).expect("few");
        assert!(texts.has(b"NA") && texts.has(b"-") && !texts.has(b"N") && !texts.has(b""));
        assert!(NullTexts::new(vec!["x".to_owned(); NULL_TEXTS_MAX]).is_ok());
        assert!(NullTexts::new(vec!["x".to_owned(); NULL_TEXTS_MAX + 1]).is_err());
        assert!(NullTexts::new(vec!["x".repeat(NULL_TEXTS_BYTES_MAX + 1)]).is_err());
    }
}
