//! Reading small files that an operator names, on a worker: secrets, tokens and keys.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use crate::{engine::state::lock_check::assert_unlocked, error::Error};

/// Reads the secret: the only word in the file, without the white space around it.
///
/// Errors: the file has no word, several words, or one that is too long; it cannot be read.
pub fn read_secret(path: &Path) -> Result<Zeroizing<String>, Error> {
    const SECRET_BYTES_MAX: usize = 1024;
    let wrong = || {
        let path = path.display();
        Error::Secret(format!("{path}: it must contain one word of at most {SECRET_BYTES_MAX} bytes"))
    };
    let text = read_start(path, SECRET_BYTES_MAX, READ_OR_WRITE)?.ok_or_else(wrong)?;
    let secret = text.trim();
    if secret.is_empty() || secret.contains(char::is_whitespace) {
        return Err(wrong());
    }
    Ok(Zeroizing::new(secret.to_owned()))
}

/// Reads the text of a file that has at most `bytes_max` bytes. It is overwritten when it is dropped. The log warns if everybody may
/// write the file, or may read one that is secret.
///
/// Errors: the file has more bytes, or it cannot be read.
pub fn read_text(path: &Path, bytes_max: usize, is_secret: bool) -> Result<Zeroizing<String>, Error> {
    let too_long = || Error::Secret(format!("{}: it has more than {bytes_max} bytes", path.display()));
    read_start(path, bytes_max, if is_secret { READ_OR_WRITE } else { WRITE })?.ok_or_else(too_long)
}

/// How long a FIFO (also that of a shell's `<(...)`) or a terminal may take. The worker waits for it.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Time between two looks at it.
const WAIT_INTERVAL: Duration = Duration::from_millis(10);

/// What everybody on the machine may do with a file, in its mode.
const WRITE: u32 = 0o002;
const READ_OR_WRITE: u32 = 0o006;

/// The text; `None` if it has more than `bytes_max` bytes. If everybody may do something with the file that only its owner
/// should, the log warns.
fn read_start(path: &Path, bytes_max: usize, forbidden: u32) -> Result<Option<Zeroizing<String>>, Error> {
    assert_unlocked();
    let open = || -> io::Result<File> {
        // Otherwise opening a FIFO that nobody writes to would block the worker for ever.
        let flags = OFlags::NONBLOCK.union(OFlags::NOCTTY).bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_file() && metadata.mode() & forbidden != 0 {
            tracing::warn!(file = %path.display(), "everybody on this machine may read or write this file: chmod o-rw");
        }
        Ok(file)
    };
    let text = open().and_then(|file| read_in_time(file, bytes_max + 1, WAIT_MAX));
    let text = text.map_err(Error::io(path.display().to_string()))?;
    Ok((text.len() <= bytes_max).then_some(text))
}

/// The first bytes of a file, as text. A FIFO is waited for until it was written to and closed, but not for longer than this.
fn read_in_time(file: File, bytes_max: usize, wait: Duration) -> io::Result<Zeroizing<String>> {
    let is_fifo = file.metadata()?.file_type().is_fifo();
    // With room for all bytes, so that no copy of a shorter buffer stays behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(bytes_max));
    let (begun, mut file) = (Instant::now(), file.take(bytes_max as u64));
    loop {
        match file.read_to_end(&mut bytes) {
            Ok(_) if is_fifo && bytes.is_empty() => {} // nobody has opened it for writing yet
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if begun.elapsed() >= wait {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("nothing more came within {} s", wait.as_secs()),
            ));
        }
        sleep(WAIT_INTERVAL);
    }
    if std::str::from_utf8(&bytes).is_err() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"));
    }
    Ok(Zeroizing::new(String::from_utf8(std::mem::take(&mut *bytes)).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, thread};

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn a_fifo_blocks_nobody_for_ever() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let path = folder.path().join("fifo");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO");
        let open = || {
            let flags = OFlags::NONBLOCK.bits().cast_signed();
            OpenOptions::new().read(true).custom_flags(flags).open(&path).expect("opened")
        };
        let error = read_in_time(open(), 100, Duration::from_millis(50)).expect_err("nobody writes");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // Somebody who writes slowly is waited for.
        let to = path.clone();
        let writer = thread::spawn(move || {
            let mut fifo = OpenOptions::new().write(true).open(to).expect("opened");
            fifo.write_all(b"sec").expect("written");
            sleep(Duration::from_millis(50));
            fifo.write_all(b"ret\n").expect("written");
        });
        assert_eq!(&*read_secret(&path).expect("a secret"), "secret");
        writer.join().expect("it has ended");
        // Somebody who does not stop is not.
        let endless = File::open("/dev/zero").expect("opened");
        assert_eq!(read_in_time(endless, 100, Duration::ZERO).expect("text").len(), 100);
    }
}
