//! Progress bars on standard error. If that is not a terminal, nothing is drawn.

use std::path::Path;

use indicatif::{MultiProgress, ProgressBar};

use crate::cli::output::{escaped, style};

/// A bar for each file that is being sent, and a line below them with the number of files that are done.
pub(super) struct Progress {
    bars: MultiProgress,
    /// Only if there is more than one file.
    total: Option<ProgressBar>,
}

impl Progress {
    pub(super) fn new(files_count: usize) -> Self {
        let bars = MultiProgress::new();
        let total = (files_count > 1).then(|| {
            let total = ProgressBar::new(files_count as u64).with_style(style("{pos} of {len} files, {elapsed}"));
            bars.add(total)
        });
        Self { bars, total }
    }

    pub(super) fn start(&self, file: &Path, bytes: Option<u64>) -> ProgressBar {
        let bar = byte_bar(file, bytes);
        match &self.total {
            Some(total) => self.bars.insert_before(total, bar),
            None => self.bars.add(bar),
        }
    }

    pub(super) fn finish(&self, bar: &ProgressBar) {
        bar.finish_and_clear();
        self.bars.remove(bar);
    }

    /// One more file is done.
    pub(super) fn count(&self) {
        if let Some(total) = &self.total {
            total.inc(1);
        }
    }

    /// Prints lines while the bars are hidden.
    pub(super) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bars.suspend(print)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(total) = &self.total {
            total.finish_and_clear();
        }
    }
}

/// A bar for a file of `bytes` bytes, or a counter if the number is unknown.
pub(in crate::cli) fn byte_bar(file: &Path, bytes: Option<u64>) -> ProgressBar {
    let bar = match bytes {
        Some(bytes) => ProgressBar::new(bytes)
            .with_style(style("{prefix:32!} {bytes:>11} {bytes_per_sec:>13} {wide_bar} {percent:>3}%")),
        None => ProgressBar::no_length().with_style(style("{prefix:32!} {bytes:>11} {bytes_per_sec:>13}")),
    };
    let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
    bar.set_prefix(escaped(&name).into_owned());
    bar
}
