//! What may be in the data folder, and how its files are opened: regular files in five known places, nothing else.
//!
//! Whoever can write there could put a FIFO, a device or a symbolic link in place of a file. To open one could block a
//! worker for ever, or reach a file outside of the folder. So the type of every entry is checked at start, before
//! anything is opened or changed, and each file is opened in a way that follows no link and waits for nothing.

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
pub(super) const FOLDERS: [&str; 4] = ["tmp", "parts", "jobs", "quarantine"];

/// Gives folders that an earlier start made, and the files in them, the mode that new ones have; but the owner's rights
/// stay what they are. The files are gone through only where their folder had another mode. What cannot be changed is
/// logged, and left as it is.
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
                tracing::info!(folder, old, new = new_mode, files_failed = failed, "its mode and its files' is changed")
            }
            Err(error) => tracing::warn!(folder, old, new = new_mode, %error, "its mode could not be changed"),
        }
    }
    if let Err(error) = change_file_mode(&root.join("lock"), mode) {
        tracing::warn!(%error, "the mode of the lock could not be changed");
    }
    // It may be anything that somebody chose, /tmp for example, so it is not changed.
    let root_mode = fs::metadata(root).map_err(Error::io(format!("data folder {}", root.display())))?.mode();
    let writers = root_mode & 0o022 & !mode.of_folders();
    if writers != 0 && root_mode & 0o1000 == 0 {
        tracing::warn!(
            mode = format!("{:04o}", root_mode & 0o7777),
            "others than the server may write to the data folder"
        );
    }
    Ok(())
}

fn change_file_mode(path: &Path, mode: FileMode) -> io::Result<()> {
    let (file, old) = (open(path)?, fs::symlink_metadata(path)?.mode());
    let new = (old & 0o7700) | (mode.0 & 0o077);
    if old & 0o7777 == new { Ok(()) } else { file.set_permissions(fs::Permissions::from_mode(new)) }
}

/// Whether a file could not be opened because it is gone, or because what is there is no regular file: then what it held
/// is lost, and to try again does not help.
pub(super) fn is_no_file(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData)
}

/// Makes what is missing of the data folder, but for the lock.
///
/// Errors: something in its top level is neither a regular file nor a folder, or has the name of one of ours and is
/// something else; then nothing has been made.
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

/// The lock file, made if it is not there.
pub(super) fn open_lock(root: &Path) -> io::Result<File> {
    assert_unlocked();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    checked(options.custom_flags(FLAGS).open(root.join("lock"))).map(|(lock, _bytes)| lock)
}

/// Opens a file for reading.
///
/// Errors: what is there is no regular file, see [`is_no_file`].
pub(super) fn open(path: &Path) -> io::Result<File> {
    open_with_size(path).map(|(file, _bytes)| file)
}

/// The same, and the file's size in bytes.
pub(super) fn open_with_size(path: &Path) -> io::Result<(File, u64)> {
    assert_unlocked();
    let opened = OpenOptions::new().read(true).custom_flags(FLAGS).open(path);
    let opened = match opened {
        // Another program has a lease on it (fcntl(2), F_SETLEASE), which only a regular file can have. That is waited for.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            OpenOptions::new().read(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(path)
        }
        opened => opened,
    };
    checked(opened)
}

/// A new file, in place of what has that name.
pub(super) fn create(path: &Path) -> io::Result<File> {
    assert_unlocked();
    let create = || OpenOptions::new().write(true).create_new(true).open(path);
    match create() {
        // Nothing is ever written through a name that somebody else gave to something.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            create()
        }
        created => created,
    }
}

/// The open file, or a new one of this path, which must not exist.
pub(super) fn open_or_create<'a>(file: &'a mut Option<Arc<File>>, path: &Path) -> io::Result<&'a mut Arc<File>> {
    assert_unlocked();
    let opened = match file.take() {
        Some(opened) => opened,
        None => Arc::new(OpenOptions::new().read(true).write(true).create_new(true).open(path)?),
    };
    Ok(file.insert(opened))
}

/// No link is followed, and nothing is waited for: a FIFO that nobody writes to, a terminal, a lease.
const FLAGS: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).bits().cast_signed();

/// The file and its size if it is a regular one.
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
