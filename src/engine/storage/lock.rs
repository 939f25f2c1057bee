//! The lock file of a data folder. At most one server holds it, and writes its process id into it.

use std::{
    fs::{File, TryLockError},
    io::{self, Read, Write},
    path::Path,
};

use super::data_folder;
use crate::{engine::state::lock_check::assert_unlocked, error::Error};

/// Takes the lock and writes this process's id into it. The lock is released when the file is closed.
///
/// Errors: another server holds the lock; the file cannot be opened or written.
pub(super) fn take(root: &Path) -> Result<File, Error> {
    assert_unlocked();
    let what = format!("data folder {}: its lock", root.display());
    let mut lock = data_folder::open_lock(root);
    let lock = lock.as_mut().map_err(|error| Error::DataFolder(format!("{what}: {error}")))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            lock.take(32).read_to_string(&mut holder).map_err(Error::io(what))?;
            let (root, holder) = (root.display(), holder.trim());
            return Err(Error::DataFolder(format!("data folder {root} is in use by process {holder}")));
        }
        Err(TryLockError::Error(error)) => return Err(Error::io(what)(error)),
    }
    lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id())).map_err(Error::io(what.clone()))?;
    lock.try_clone().map_err(Error::io(what))
}

/// The id of the process that uses a data folder; `None` if no process does.
///
/// Errors: the lock file cannot be read; its holder has not written its id yet.
pub fn lock_holder(root: &Path) -> Result<Option<u64>, Error> {
    let what = format!("data folder {}: its lock", root.display());
    let lock = match data_folder::open(&root.join("lock")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        lock => lock.map_err(Error::io(what.clone()))?,
    };
    match lock.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            lock.take(32).read_to_string(&mut holder).map_err(Error::io(what))?;
            let in_use = |error| Error::DataFolder(format!("data folder {} is in use: {error}", root.display()));
            holder.trim().parse().map(Some).map_err(in_use)
        }
        Err(TryLockError::Error(error)) => Err(Error::io(what)(error)),
    }
}
