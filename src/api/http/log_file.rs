//! The file of `--log-file`: written by a thread of its own, so that a disk that stalls or is full stops no call. The
//! price is that lines can be lost: they are counted, and the first of each failure is told on standard error.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use file_rotate::{ContentLimit, FileRotate, compression::Compression, suffix::AppendCount};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

use crate::{config::LogFile, engine::state::lock_check::assert_unlocked, error::Error, limits::LOG_LINES_MAX};

/// How many lines did not come into the file; clones count the same.
#[derive(Clone, Default)]
pub(crate) struct LostLines(Arc<Lost>);

#[derive(Default)]
struct Lost {
    /// Those that could not be written.
    unwritten: AtomicU64,
    /// Those that came faster than they could be written.
    dropped: OnceLock<ErrorCounter>,
}

impl LostLines {
    pub(crate) fn count(&self) -> u64 {
        let dropped = self.0.dropped.get().map_or(0, ErrorCounter::dropped_lines);
        self.0.unwritten.load(Ordering::Relaxed) + dropped as u64
    }
}

/// A writer that never waits for the disk. What it took is written when the guard is dropped, as far as a second goes.
///
/// Errors: the file cannot be appended to.
pub(crate) fn open(file: &LogFile) -> Result<(NonBlocking, WorkerGuard, LostLines), Error> {
    let LogFile { path, bytes_max, files_kept } = file;
    check_appendable(path)?; // FileRotate itself would write nowhere
    let limit = ContentLimit::BytesSurpassed(*bytes_max);
    let file = FileRotate::new(Path::new(path), AppendCount::new(*files_kept), limit, Compression::None, None);
    let lost = LostLines::default();
    let file = Told { file, lost: lost.clone(), is_failing: false };
    let (writer, guard) = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LOG_LINES_MAX).finish(file);
    lost.0.dropped.get_or_init(|| writer.error_counter());
    Ok((writer, guard, lost))
}

/// Makes sure that a file can be appended to, and makes it if it is not there.
fn check_appendable(path: &Path) -> Result<(), Error> {
    assert_unlocked();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::io(folder.display().to_string()))?;
    }
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.map(drop).map_err(Error::io(path.display().to_string()))
}

/// A writer of lines whose failures are told: the thread that writes keeps them to itself.
struct Told<W> {
    file: W,
    lost: LostLines,
    is_failing: bool,
}

impl<W: Write> Write for Told<W> {
    /// Takes the whole line, whatever becomes of it: the rest of one that failed would be a line of its own.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.file.write_all(line) {
            Ok(()) => self.is_failing = false,
            Err(error) => {
                self.lost.0.unwritten.fetch_add(1, Ordering::Relaxed);
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::error!(%error, "--log-file: lines are lost until it can be written again");
                }
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that is full for the lines that say so.
    struct Disk(Vec<u8>);

    impl Write for Disk {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            if line.starts_with(b"lost") {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0.write(line)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_the_next_line_is_whole() {
        let lost = LostLines::default();
        let mut file = Told { file: Disk(Vec::new()), lost: lost.clone(), is_failing: false };
        for (line, failing) in
            [("a\n", false), ("lost 1\n", true), ("lost 2\n", true), ("b\n", false), ("lost 3\n", true)]
        {
            assert_eq!(file.write(line.as_bytes()).expect("never an error"), line.len());
            assert_eq!(file.is_failing, failing, "{line}");
        }
        assert_eq!((file.file.0.as_slice(), lost.count()), (b"a\nb\n".as_slice(), 3));
    }
}
