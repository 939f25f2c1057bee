//! Files outside the data folder that the server reads: a secret, a log file, what the kernel says of the process.

use std::{
    fs,
    fs::{File, OpenOptions},
    io::Read,
    path::Path,
};

use crate::{engine::state::lock_check::assert_unlocked, error::Error};

/// The one line of a file that holds a secret, without its end. Errors: it has none, or more than fits.
pub fn read_secret(path: &Path) -> Result<String, Error> {
    const SECRET_BYTES_MAX: u64 = 1024;
    assert_unlocked();
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text));
    read.map_err(Error::io(path.display().to_string()))?;
    let secret = text.trim();
    if secret.is_empty() || text.len() as u64 > SECRET_BYTES_MAX || secret.contains(char::is_whitespace) {
        let path = path.display();
        return Err(Error::Secret(format!("{path}: it holds one word of at most {SECRET_BYTES_MAX} bytes")));
    }
    Ok(secret.to_owned())
}

/// Makes sure that a file can be appended to, and makes it if it is not there.
pub fn check_appendable(path: &Path) -> Result<(), Error> {
    assert_unlocked();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::io(folder.display().to_string()))?;
    }
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.map(drop).map_err(Error::io(path.display().to_string()))
}

/// This process's memory, without what is swapped out: Linux's own account (proc(5), `VmRSS`).
pub fn resident_bytes() -> Result<u64, Error> {
    const STATUS_BYTES_MAX: u64 = 64 * 1024;
    assert_unlocked();
    let mut status = String::new();
    let read = File::open("/proc/self/status").and_then(|file| file.take(STATUS_BYTES_MAX).read_to_string(&mut status));
    read.map_err(Error::io("/proc/self/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| Error::Internal("/proc/self/status has no VmRSS".to_owned()))
}
