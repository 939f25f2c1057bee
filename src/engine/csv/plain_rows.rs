//! Delivers all cells of rows without quotes, whose separators vector code has found.

use super::{
    rows::{Cells, Row, Rows},
    scanner::{PLAIN_BYTES, Scanner},
};
use crate::engine::kernels::{self, MARKS_ROOM};

impl Scanner {
    /// As `scan`, for all columns and all rows, if a row of [`PLAIN_BYTES`] is within the limits.
    pub(super) fn scan_plain<R: Rows>(&mut self, block: &[u8], rows: &mut R) -> Result<usize, R::Error> {
        let mut marks = std::mem::take(&mut self.marks);
        marks.resize(PLAIN_BYTES + MARKS_ROOM, 0);
        let mut next = 0;
        while next < block.len() {
            let piece = &block[next..];
            let marked = &piece[..piece.len().min(PLAIN_BYTES)];
            let count = kernels::find_marks(marked, &mut marks);
            let scanned = self.scan_marked(piece, marked.len(), &marks[..count], rows)?;
            next += scanned;
            if scanned == 0 || marked.len() == piece.len() {
                // A row that is long, wrong, or not complete.
                next += self.scan(&block[next..], rows, u64::MAX)?;
                break;
            }
        }
        self.marks = marks;
        Ok(next)
    }

    /// Scans rows that begin with `piece`, of whose first `marked_bytes` bytes the marks are known. Returns the start of the first row
    /// that was not delivered.
    fn scan_marked<R: Rows>(
        &mut self,
        piece: &[u8],
        marked_bytes: usize,
        mut marks: &[u32],
        rows: &mut R,
    ) -> Result<usize, R::Error> {
        let columns = self.names.len();
        let is_row_end = |mark: u32| matches!(piece[mark as usize], b'\n' | b'\r');
        let mut start = 0;
        while let Some((&first, after_first)) = marks.split_first() {
            if first as usize == start && is_row_end(first) {
                // An empty line is no row.
                (start, marks) = (start + 1, after_first);
                continue;
            }
            let Some((ends, after)) = marks.split_at_checked(columns) else { break };
            let Some((&last, commas)) = ends.split_last() else { break };
            if is_row_end(last) && commas.iter().all(|&mark| piece[mark as usize] == b',') {
                self.rows += 1;
                self.longest_row_bytes = self.longest_row_bytes.max(last as usize - start);
                let cells = Cells::Plain { start, ends };
                rows.row(Row { number: self.rows, bytes: piece, unescaped: &[], cells })?;
                (start, marks) = (last as usize + 1, after);
                continue;
            }
            let scanned = self.scan(&piece[start..], rows, 1)?;
            start += scanned;
            if scanned == 0 || start >= marked_bytes {
                break;
            }
            let passed = marks.iter().take_while(|&&mark| (mark as usize) < start).count();
            marks = &marks[passed..];
        }
        Ok(start)
    }
}
