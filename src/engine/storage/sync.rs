//! fsync, syncfs and rename. All files that must be durable use these functions, so that tests can record the order of the
//! calls (`order_tests.rs`).

use std::{
    fs::{self, File},
    io,
    path::Path,
};

#[cfg(test)]
use super::order_tests;
use crate::engine::state::lock_check::assert_unlocked;

/// Waits until the names in a folder are on disk.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    assert_unlocked();
    sync_file(&File::open(path)?)
}

/// Waits until a file's bytes are on disk.
pub(super) fn sync_file(file: &File) -> io::Result<()> {
    assert_unlocked();
    file.sync_all()?;
    #[cfg(test)]
    order_tests::note_sync(file);
    Ok(())
}

/// Waits until everything that was written to the file system of `folder` is on disk.
pub(super) fn sync_file_system(folder: &File) -> io::Result<()> {
    assert_unlocked();
    rustix::fs::syncfs(folder)?;
    #[cfg(test)]
    order_tests::note_sync_of_all();
    Ok(())
}

pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    assert_unlocked();
    fs::rename(from, to)?;
    #[cfg(test)]
    order_tests::note_rename(from, to);
    Ok(())
}

/// Whether `syncfs` reports write errors, which it does since Linux 5.8. `release` is the kernel's, as `uname` gives it.
pub(super) fn reports_failed_syncfs(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    numbers.next().zip(numbers.next()) >= Some((5, 8))
}
