//! Reads the rows of a column chunk page by page: the Parquet library reads a page and decompresses it, we decode it.

use std::ops::Range;

use bytes::Bytes;
use parquet::{
    basic::Encoding,
    column::page::{Page, PageReader},
    errors::ParquetError,
    file::serialized_reader::SerializedPageReader,
};

use super::{
    file::{Chunk, ParquetFile},
    hybrid::UnsupportedPage,
    window::Window,
};
use crate::error::Error;

/// The rows of one page, decoded.
pub(super) trait DecodedPage {
    /// Replaces the rows by those of a page: `rows` definition levels, and then the values in this encoding.
    ///
    /// Errors: the page is damaged.
    fn decode(&mut self, page: &[u8], rows: usize, encoding: Encoding) -> Result<(), UnsupportedPage>;
}

/// The rows of a column chunk, of which one page is in memory.
pub(super) struct RowPages<'a, P> {
    parquet: &'a ParquetFile<'a>,
    pages: SerializedPageReader<Window>,
    /// Rows of the row group that no page had yet.
    rows_left: usize,
    /// The page that is read.
    pub(super) page: P,
    /// Its rows.
    page_rows: usize,
    /// How many of them were read.
    at: usize,
}

impl<'a, P: DecodedPage> RowPages<'a, P> {
    /// Opens a chunk. `page` is used for its pages.
    ///
    /// Errors: the column cannot be null, or is a list; the chunk cannot be read.
    pub(super) fn open(chunk: &Chunk<'a>, page: P) -> Result<Self, Error> {
        let (parquet, column) = (chunk.parquet, chunk.metadata.column_descr());
        if (column.max_def_level(), column.max_rep_level()) != (1, 0) {
            return Err(parquet.damaged(&format!("its column {} is no column of single values", chunk.column_index)));
        }
        Ok(Self { parquet, pages: chunk.pages()?, rows_left: chunk.rows_count()?, page, page_rows: 0, at: 0 })
    }

    /// The dictionary at the start of the chunk, if there is one, and the number of its values.
    pub(super) fn dictionary(&mut self) -> Result<Option<(Bytes, usize)>, Error> {
        let mut read = || match self.pages.peek_next_page()? {
            Some(page) if page.is_dict => match self.pages.get_next_page()? {
                Some(Page::DictionaryPage { buf, num_values, encoding: Encoding::PLAIN, .. }) => {
                    Ok(Some((buf, num_values as usize)))
                }
                _ => Err(general("a dictionary is not encoded as PLAIN")),
            },
            _ => Ok(None),
        };
        read().map_err(|error| self.parquet.read_error(error))
    }

    /// Reads the next `count` rows: calls `take` with each page that has some of them, which of its rows they are, and how many
    /// came before them.
    ///
    /// Errors: there are fewer rows; a page is damaged; the chunk does not match its checksums.
    pub(super) fn read(&mut self, count: usize, mut take: impl FnMut(&P, Range<usize>, usize)) -> Result<(), Error> {
        let mut read = 0;
        while read < count {
            if self.at == self.page_rows {
                self.next_page().map_err(|error| self.parquet.read_error(error))?;
            }
            let end = self.page_rows.min(self.at + count - read);
            take(&self.page, self.at..end, read);
            read += end - self.at;
            self.at = end;
        }
        self.check_end()
    }

    /// Passes over the next `count` rows; whole pages are not decoded.
    ///
    /// Errors: as [`RowPages::read`].
    pub(super) fn skip(&mut self, mut count: usize) -> Result<(), Error> {
        while count > 0 {
            let rest = self.page_rows - self.at;
            if rest > 0 {
                let skipped = rest.min(count);
                self.at += skipped;
                count -= skipped;
                continue;
            }
            let skipped = self.skip_page(count).map_err(|error| self.parquet.read_error(error))?;
            count -= skipped;
        }
        self.check_end()
    }

    /// Passes over the next page if it has at most `rows_max` rows, and returns how many; otherwise it is decoded.
    fn skip_page(&mut self, rows_max: usize) -> Result<usize, ParquetError> {
        let rows = self.pages.peek_next_page()?.and_then(|page| page.num_rows.or(page.num_levels));
        match rows {
            Some(rows) if rows <= rows_max && rows <= self.rows_left => {
                self.pages.skip_next_page()?;
                self.rows_left -= rows;
                Ok(rows)
            }
            _ => self.next_page().map(|()| 0),
        }
    }

    /// Decodes the next page that has rows.
    fn next_page(&mut self) -> Result<(), ParquetError> {
        (self.at, self.page_rows) = (0, 0);
        while self.page_rows == 0 {
            let Some(page) = self.pages.get_next_page()? else {
                return Err(ParquetError::EOF("a column chunk has fewer rows than its row group".to_owned()));
            };
            let Page::DataPage { buf, num_values, encoding, .. } = page else {
                return Err(general("a column chunk has a page that is not of data"));
            };
            let rows = num_values as usize;
            if rows > self.rows_left {
                return Err(general("a column chunk has more rows than its row group"));
            }
            let decoded = self.page.decode(&buf, rows, encoding);
            decoded.map_err(|UnsupportedPage| general("a page is not as its header says"))?;
            self.rows_left -= rows;
            self.page_rows = rows;
        }
        Ok(())
    }

    /// After the last row, there must be no other page.
    fn check_end(&mut self) -> Result<(), Error> {
        if self.rows_left > 0 || self.at < self.page_rows {
            return Ok(());
        }
        match self.pages.peek_next_page() {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(self.parquet.damaged("a column chunk has more rows than its row group")),
            Err(error) => Err(self.parquet.read_error(error)),
        }
    }
}

fn general(what: &str) -> ParquetError {
    ParquetError::General(what.to_owned())
}
