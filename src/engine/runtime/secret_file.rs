//! Reading a secret from a file that an operator names, on a worker.

use std::{fs::File, io::Read, path::Path};

use crate::{engine::state::lock_check::assert_unlocked, error::Error};

/// Reads the secret: the only word in the file, without the white space around it.
///
/// Errors: the file has no word, several words, or one that is too long; it cannot be read.
pub fn read_secret(path: &Path) -> Result<String, Error> {
    const SECRET_BYTES_MAX: u64 = 1024;
    assert_unlocked();
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text));
    read.map_err(Error::io(path.display().to_string()))?;
    let secret = text.trim();
    if secret.is_empty() || text.len() as u64 > SECRET_BYTES_MAX || secret.contains(char::is_whitespace) {
        let path = path.display();
        return Err(Error::Secret(format!("{path}: it must contain one word of at most {SECRET_BYTES_MAX} bytes")));
    }
    Ok(secret.to_owned())
}
