//! fsync, syncfs and rename, in one place, so that tests can record their order.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

#[cfg(test)]
use super::order_tests;
use crate::engine::state::lock_check::assert_unlocked;

/// Makes the names in a folder as durable as what they name.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    assert_unlocked();
    sync_file(&File::open(path)?)
}

/// Waits until a file's bytes are on disk. All that must be durable is synced here or in [`sync_file_system`], and gets
/// its name in [`rename`], so that tests see the order (`order_tests.rs`).
pub(super) fn sync_file(file: &File) -> io::Result<()> {
    assert_unlocked();
    file.sync_all()?;
    #[cfg(test)]
    order_tests::note_sync(file);
    Ok(())
}

/// Waits until all that was written to the file system of `folder` is on disk.
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

/// Whether `syncfs` says if something could not be written: Linux does since 5.8.
pub(super) fn reports_failed_syncfs(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    numbers.next().zip(numbers.next()) >= Some((5, 8))
}
