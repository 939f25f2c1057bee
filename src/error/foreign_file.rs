//! Files that are something else than CSV with commas in UTF-8, and what their sender can do about it. `engine/csv/sniff.rs`
//! recognises them.

/// What a file seems to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignFile {
    /// Cells separated by something else than commas, so that the header would be one column.
    Separated(Separator),
    /// The first line is `sep=` and a character, which tells Excel the separator.
    SeparatorLine(Option<Separator>),
    /// The first line is a title: the header is below it, with cells separated by this, or else by commas.
    Title(Option<Separator>),
    /// The header begins with `#`.
    Comment,
    /// There are two byte order marks at the start. Some programs add one to a file that has one.
    TwoByteOrderMarks,
    /// UTF-16, little endian.
    Utf16Le,
    /// UTF-16, big endian.
    Utf16Be,
    /// UTF-32 of either byte order.
    Utf32,
    /// A web page, such as the error page of a download.
    Html,
    /// XML.
    Xml,
    /// JSON, or JSON lines.
    Json,
    /// A document in the Portable Document Format.
    Pdf,
    /// A ZIP archive. Workbooks (`.xlsx`, `.ods`) are such archives.
    Zip,
    /// An Excel workbook before 2007 (`.xls`).
    OldExcel,
    /// Compressed with gzip (RFC 1952).
    Gzip,
    /// Compressed with Zstandard (RFC 8878).
    Zstd,
    /// Compressed with xz.
    Xz,
    /// Apache Parquet.
    Parquet,
}

/// A separator of cells that is not a comma.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Separator {
    /// `;`
    Semicolon,
    /// A tab.
    Tab,
    /// `|`
    Pipe,
}

/// What a file is sent for. It decides what its sender can do about a foreign one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// An upload, which has options for other dialects.
    Upload,
    /// A group sum of the file alone, which has none.
    GroupSum,
}

impl Separator {
    /// All of them, the most frequent first.
    pub const ALL: [Self; 3] = [Self::Semicolon, Self::Tab, Self::Pipe];

    /// The character.
    pub fn byte(self) -> u8 {
        match self {
            Self::Semicolon => b';',
            Self::Tab => b'\t',
            Self::Pipe => b'|',
        }
    }

    /// As `--delimiter` takes it.
    fn option(self) -> &'static str {
        match self {
            Self::Semicolon => "\";\"",
            Self::Tab => "tab",
            Self::Pipe => "\"|\"",
        }
    }

    /// As it is called in a sentence.
    fn name(self) -> &'static str {
        match self {
            Self::Tab => "a tab",
            Self::Semicolon | Self::Pipe => self.option(),
        }
    }
}

impl ForeignFile {
    /// What the file seems to be, and what to do about it.
    pub(super) fn hint(self, used_for: Use) -> String {
        let remedy = |for_upload: &str, otherwise: &'static str| match used_for {
            Use::Upload => format!("upload {for_upload}"),
            Use::GroupSum => otherwise.to_owned(),
        };
        let delimiter = |separator: Separator| {
            remedy(&format!("with --delimiter {}", separator.option()), "save the file with commas")
        };
        let encoding = |name| remedy(&format!("with --encoding {name}"), "save it as UTF-8");
        let decompress = |name| remedy(&format!("with --decompress {name}"), "decompress it first");
        match self {
            Self::Separated(separator) => {
                format!("the separator looks like {}: {}", separator.name(), delimiter(separator))
            }
            Self::SeparatorLine(separator) => {
                let then = separator.map_or(String::new(), |separator| format!(", and {}", delimiter(separator)));
                format!("the first line is \"sep=\" and a separator, which only Excel understands: remove it{then}")
            }
            Self::Title(Some(separator)) => {
                let then = delimiter(separator);
                format!("the first line looks like a title above the header: remove it, and {then}")
            }
            Self::Title(None) => "the first line looks like a title above the header: remove it, or name each column in it".to_owned(),
            Self::Comment => {
                "the header begins with \"#\", as a comment does: remove the comment, or put the column's name in quotes"
                    .to_owned()
            }
            Self::TwoByteOrderMarks => "the file begins with two byte order marks: remove one".to_owned(),
            Self::Utf16Le => format!("the file is in UTF-16: {}", encoding("utf-16le")),
            Self::Utf16Be => format!("the file is in UTF-16: {}", encoding("utf-16be")),
            Self::Utf32 => "the file is in UTF-32: save it as UTF-8".to_owned(),
            Self::Html => "the file is HTML, perhaps an error page: look at it, and download the CSV again".to_owned(),
            Self::Xml => "the file is XML: export the table as CSV".to_owned(),
            Self::Json => "the file is JSON: convert it to CSV".to_owned(),
            Self::Pdf => "the file is a PDF document: export the table as CSV".to_owned(),
            Self::Zip => "the file is a ZIP archive or an Excel workbook: unpack it, or save it as CSV".to_owned(),
            Self::OldExcel => "the file is an Excel workbook: save it as CSV".to_owned(),
            Self::Gzip => format!("the file is compressed with gzip: {}", decompress("gzip")),
            Self::Zstd => format!("the file is compressed with zstd: {}", decompress("zstd")),
            Self::Xz => "the file is compressed with xz: decompress it first".to_owned(),
            Self::Parquet => "the file is Parquet: convert it to CSV".to_owned(),
        }
    }
}
