//! What the data folder may contain (folders and regular files only), and how its files are opened.
//!
//! Whoever can write there could replace a file with a FIFO, a device or a symbolic link. Opening one could block a worker
//! for ever, or reach a file outside of the folder. So the type of every entry is checked at start, before anything is
//! opened or changed, and files are opened without following links or blocking.

use std::{
    fs::{self, File, FileType, OpenOptions},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::OFlags;

use crate::{engine::state::lock_check::assert_unlocked, error::Error, model::file_mode::FileMode};

/// The folders in it.
pub(super) const FOLDERS: [&str; 5] = ["tmp", "parts", "jobs", "quarantine", "removed"];

/// Gives existing folders, and the files in them, the mode that new ones have. The owner's permissions are not changed. The
/// files in a folder are changed only if the folder has another mode. Failures are logged and ignored.
pub(super) fn apply_mode(root: &Path, mode: FileMode) -> Result<(), Error> {
    for folder in FOLDERS {
        let path = root.join(folder);
        let old = fs::symlink_metadata(&path).map_err(Error::io(format!("data folder {}", path.display())))?.mode();
        let new = (old & 0o7700) | (mode.of_folders() & 0o077);
        if old & 0o7777 == new {
            continue;
        }
        let mut failed = 0;
        for file in entries(root, folder)? {
            if let Err(error) = change_file_mode(&file, mode)
                && error.kind() != io::ErrorKind::NotFound
            {
                failed += 1;
            }
        }
        let (old, new_mode) = (format!("{:04o}", old & 0o7777), format!("{new:04o}"));
        match fs::set_permissions(&path, fs::Permissions::from_mode(new)) {
            Ok(()) => {
                tracing::info!(folder, old, new = new_mode, files_failed = failed, "changed the folder's mode")
            }
            Err(error) => tracing::warn!(folder, old, new = new_mode, %error, "the folder's mode could not be changed"),
        }
    }
    if let Err(error) = change_file_mode(&root.join("lock"), mode) {
        tracing::warn!(%error, "the mode of the lock file could not be changed");
    }
    // The mode of the data folder itself is not changed: it may be a folder that others use, such as /tmp.
    let root_mode = fs::metadata(root).map_err(Error::io(format!("data folder {}", root.display())))?.mode();
    let writers = root_mode & 0o022 & !mode.of_folders();
    if writers != 0 && root_mode & 0o1000 == 0 {
        tracing::warn!(mode = format!("{:04o}", root_mode & 0o7777), "other users may write to the data folder");
    }
    Ok(())
}

fn change_file_mode(path: &Path, mode: FileMode) -> io::Result<()> {
    let (file, old) = (open(path)?, fs::symlink_metadata(path)?.mode());
    let new = (old & 0o7700) | (mode.0 & 0o077);
    if old & 0o7777 == new { Ok(()) } else { file.set_permissions(fs::Permissions::from_mode(new)) }
}

/// Whether a file could not be opened because it is missing or not a regular file. Then its contents are lost, and trying
/// again does not help.
pub(super) fn is_no_regular_file(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData)
}

/// Creates the data folder and the folders in it, if they are missing.
///
/// Errors, after which nothing has been created: an entry of the data folder is neither a regular file nor a folder, or has
/// the name of one of its folders or of the lock and is not one.
pub(super) fn prepare(root: &Path) -> Result<(), Error> {
    assert_unlocked();
    if root.exists() {
        for (path, file_type) in typed_entries(root, "")? {
            let name = path.file_name().unwrap_or_default();
            if FOLDERS.iter().any(|folder| *folder == name) && !file_type.is_dir() {
                return Err(refused(root, &path, file_type, "where a folder is wanted"));
            }
            if name == "lock" && !file_type.is_file() {
                return Err(refused(root, &path, file_type, "where a regular file is wanted"));
            }
        }
    }
    for folder in FOLDERS {
        let path = root.join(folder);
        fs::create_dir_all(&path).map_err(Error::io(format!("data folder {}", path.display())))?;
    }
    Ok(())
}

/// The paths of all entries of one of the folders, or of the data folder itself where `folder` is empty.
///
/// Errors: one of them is neither a regular file nor a folder.
pub(super) fn entries(root: &Path, folder: &str) -> Result<Vec<PathBuf>, Error> {
    Ok(typed_entries(root, folder)?.into_iter().map(|(path, _file_type)| path).collect())
}

/// Opens the lock file, and creates it if it is missing.
pub(super) fn open_lock(root: &Path) -> io::Result<File> {
    assert_unlocked();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    checked(options.custom_flags(FLAGS).open(root.join("lock"))).map(|(lock, _bytes)| lock)
}

/// Opens a file for reading.
///
/// Errors: it is missing or not a regular file, see [`is_no_regular_file`]; it cannot be opened.
pub(super) fn open(path: &Path) -> io::Result<File> {
    open_with_size(path).map(|(file, _bytes)| file)
}

/// As [`open`], and returns the file's size in bytes.
pub(super) fn open_with_size(path: &Path) -> io::Result<(File, u64)> {
    assert_unlocked();
    let opened = OpenOptions::new().read(true).custom_flags(FLAGS).open(path);
    let opened = match opened {
        // Another program has a lease on the file (fcntl(2), F_SETLEASE). Only a regular file can have one, so this waits.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            OpenOptions::new().read(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(path)
        }
        opened => opened,
    };
    checked(opened)
}

/// Creates a file, replacing an existing one.
pub(super) fn create(path: &Path) -> io::Result<File> {
    assert_unlocked();
    let create = || OpenOptions::new().write(true).create_new(true).open(path);
    match create() {
        // The existing file may be a link that somebody else made, so it is removed and not written to.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            create()
        }
        created => created,
    }
}

/// Returns the open file, or creates one at `path`, where no file may exist yet.
pub(super) fn open_or_create<'a>(file: &'a mut Option<Arc<File>>, path: &Path) -> io::Result<&'a mut Arc<File>> {
    assert_unlocked();
    let opened = match file.take() {
        Some(opened) => opened,
        None => Arc::new(OpenOptions::new().read(true).write(true).create_new(true).open(path)?),
    };
    Ok(file.insert(opened))
}

/// Opening follows no symbolic link, and does not wait for a FIFO's writer, a terminal or a lease.
const FLAGS: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).bits().cast_signed();

/// The file and its size; an error if it is not a regular file.
fn checked(opened: io::Result<File>) -> io::Result<(File, u64)> {
    let not_regular = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{what}, not a regular file"));
    let file = opened.map_err(|error| match rustix::io::Errno::from_io_error(&error) {
        Some(rustix::io::Errno::LOOP) => not_regular("it is a symbolic link"),
        Some(rustix::io::Errno::NXIO) => not_regular("it is a socket or a device"),
        _ => error,
    })?;
    let metadata = file.metadata()?;
    match metadata.file_type() {
        file_type if file_type.is_file() => Ok((file, metadata.len())),
        other => Err(not_regular(&format!("it is {}", name_of(other)))),
    }
}

fn typed_entries(root: &Path, folder: &str) -> Result<Vec<(PathBuf, FileType)>, Error> {
    assert_unlocked();
    let within = root.join(folder);
    let what = || Error::io(format!("data folder {}", within.display()));
    let mut entries = Vec::new();
    for entry in fs::read_dir(&within).map_err(what())? {
        let entry = entry.map_err(what())?;
        let file_type = entry.file_type().map_err(what())?;
        if !file_type.is_file() && !file_type.is_dir() {
            return Err(refused(root, &entry.path(), file_type, "and only regular files and folders may be there"));
        }
        entries.push((entry.path(), file_type));
    }
    Ok(entries)
}

fn refused(root: &Path, path: &Path, file_type: FileType, why: &str) -> Error {
    let (is, path) = (name_of(file_type), path.strip_prefix(root).unwrap_or(path).display());
    let root = root.display();
    Error::DataFolder(format!("data folder {root}: {path} is {is}, {why}: move it elsewhere, then start again"))
}

fn name_of(file_type: FileType) -> &'static str {
    match () {
        () if file_type.is_symlink() => "a symbolic link",
        () if file_type.is_fifo() => "a FIFO",
        () if file_type.is_socket() => "a socket",
        () if file_type.is_block_device() => "a block device",
        () if file_type.is_char_device() => "a character device",
        () if file_type.is_dir() => "a folder",
        () if file_type.is_file() => "a regular file",
        () => "of an unknown type",
    }
}
