//! Writes the file of `--log-file` on its own thread, so that no call waits for a disk that is slow or full. Lines can be
//! lost instead: they are counted, and the first failure of each series is reported on standard error.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use file_rotate::{ContentLimit, FileRotate, compression::Compression, suffix::AppendCount};
use rustix::fs::OFlags;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

use crate::{
    api::metrics::DroppedFileLines, config::LogFile, engine::state::lock_check::assert_unlocked, error::Error,
    limits::LOG_LINES_MAX,
};

/// A writer that never waits for the disk. Dropping the guard writes the lines in its queue, for at most a second.
///
/// Errors: the file cannot be appended to.
pub(super) fn open(file: &LogFile, dropped: &DroppedFileLines) -> Result<(NonBlocking, WorkerGuard), Error> {
    let LogFile { path, bytes_max, files_kept } = file;
    check_appendable(path)?; // FileRotate would ignore the error and write nowhere
    let limit = ContentLimit::BytesSurpassed(*bytes_max);
    let file = FileRotate::new(Path::new(path), AppendCount::new(*files_kept), limit, Compression::None, None);
    let file = CountingWriter { file, dropped: dropped.clone(), is_failing: false };
    let (writer, guard) = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LOG_LINES_MAX).finish(file);
    dropped.count_dropped_of(writer.error_counter());
    Ok((writer, guard))
}

/// Checks that a file can be appended to, and creates it if it does not exist.
fn check_appendable(path: &Path) -> Result<(), Error> {
    assert_unlocked();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::io(folder.display().to_string()))?;
    }
    // Opening a FIFO that nobody reads would wait for ever; so it is an error.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let opened = OpenOptions::new().append(true).create(true).custom_flags(flags).open(path);
    opened.map(drop).map_err(Error::io(path.display().to_string()))
}

/// A writer of lines that counts and reports its failures, which the thread of [`NonBlocking`] ignores.
struct CountingWriter<W> {
    file: W,
    dropped: DroppedFileLines,
    /// The last line could not be written.
    is_failing: bool,
}

impl<W: Write> Write for CountingWriter<W> {
    /// Always accepts the whole line: the rest of a failed one would be written as another line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.file.write_all(line) {
            Ok(()) => self.is_failing = false,
            Err(error) => {
                self.dropped.add_failed();
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::error!(%error, "--log-file: lines are dropped until the file can be written again");
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
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn a_fifo_that_nobody_reads_is_an_error() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let path = folder.path().join("fifo");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO");
        assert!(matches!(check_appendable(&path), Err(Error::Io { .. })));
        let _reader = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(&path);
        assert!(check_appendable(&path).is_ok());
    }

    /// A disk that is full for lines that begin with `lost`.
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
    fn a_line_that_cannot_be_written_is_counted_and_the_next_one_is_whole() {
        let dropped = DroppedFileLines::default();
        let mut file = CountingWriter { file: Disk(Vec::new()), dropped: dropped.clone(), is_failing: false };
        for (line, failing) in
            [("a\n", false), ("lost 1\n", true), ("lost 2\n", true), ("b\n", false), ("lost 3\n", true)]
        {
            assert_eq!(file.write(line.as_bytes()).expect("never an error"), line.len());
            assert_eq!(file.is_failing, failing, "{line}");
        }
        assert_eq!((file.file.0.as_slice(), dropped.count()), (b"a\nb\n".as_slice(), 3));
    }
}
