//! A new folder with hard links to files of a data folder that is being served. Such a file never changes, but may be moved.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use super::failure::Failure;
use crate::{model::folder_id::folder_id, proto::pb::tally::FilesHead};

/// How often a file is looked for where it may be: it may be moved in between.
const ATTEMPTS: usize = 3;

/// As that of the folders of a data folder: for their owner alone.
const FOLDER_MODE: u32 = 0o700;

/// The folder. It is deleted if not all links can be made.
pub(super) struct Links {
    folder: PathBuf,
    is_complete: bool,
}

impl Links {
    /// Makes the folder, and folders in it. Errors: it is there already; it cannot be made.
    pub(super) fn make(folder: PathBuf, inside: &[&str]) -> Result<Self, Failure> {
        let failed = |path: &Path, error: &io::Error| {
            Failure::Refused(format!("{}: the folder cannot be made: {error}", path.display()))
        };
        let make = |path: &Path| DirBuilder::new().mode(FOLDER_MODE).create(path).map_err(|error| failed(path, &error));
        make(&folder)?;
        let links = Self { folder, is_complete: false };
        inside.iter().try_for_each(|name| make(&links.folder.join(name)))?;
        Ok(links)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes an empty file in it.
    pub(super) fn add_empty(&self, path: &str) -> Result<(), Failure> {
        let path = self.folder.join(path);
        fs::File::create(&path).map(drop).map_err(|error| Failure::File(path, error))
    }

    pub(super) fn keep(mut self) {
        self.is_complete = true;
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        if !self.is_complete {
            let _only_links = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Checks that a folder is the data folder of the server that has listed these files. Older servers do not tell.
///
/// Errors: it is another one.
pub(super) fn check_folder(data: &Path, head: &FilesHead) -> Result<(), Failure> {
    if head.folder.is_empty() {
        return Ok(());
    }
    let id = fs::metadata(data.join("lock")).map(|lock| folder_id(lock.ino(), lock.mtime(), lock.mtime_nsec()));
    if id.is_ok_and(|id| id == head.folder) {
        return Ok(());
    }
    let data = data.display();
    Err(Failure::Refused(format!(
        "{data} is not the data folder of this server: choose it with --data, or the server with --server"
    )))
}

/// Links a file, which has one of these paths in the data folder, to `link`.
///
/// Errors: it has none of them; it cannot be linked, for example because the folder is on another file system.
pub(super) fn link(data: &Path, paths: &[String], link: &Path) -> Result<(), Failure> {
    if link_if_there(data, paths, link)? {
        return Ok(());
    }
    let path = paths.first().map_or("", String::as_str);
    Err(Failure::Refused(format!("{path} is not in {}: is it the data folder of this server?", data.display())))
}

/// The same for a file that may not be there. Returns whether it is.
pub(super) fn link_if_there(data: &Path, paths: &[String], link: &Path) -> Result<bool, Failure> {
    for _attempt in 0..ATTEMPTS {
        for path in paths {
            let path = data.join(path);
            match fs::hard_link(&path, link) {
                Ok(()) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let path = path.display();
                    return Err(Failure::Refused(format!("{path}: no hard link to it can be made: {error}")));
                }
            }
        }
    }
    Ok(false)
}

/// The name of a file without its folder.
pub(super) fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The names of the files in a folder.
pub(super) fn names_in(folder: &Path) -> Result<Vec<String>, Failure> {
    let failed = |error| Failure::File(folder.to_owned(), error);
    let names = fs::read_dir(folder).map_err(failed)?;
    names.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
}
