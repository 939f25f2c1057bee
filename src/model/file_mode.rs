//! Who may read the files of the data folder.

use std::str::FromStr;

use rustix::{fs::Mode, process::umask};

/// Who may read and write the files of the data folder, as chmod(1) has it: `0600`, or `0640` for those who share them.
/// Whoever may read a file may go through its folder, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMode(pub(crate) u32);

impl FileMode {
    /// The user who runs the server, and nobody else.
    pub const PRIVATE: Self = Self(0o600);

    pub(crate) fn of_folders(self) -> u32 {
        self.0 | (self.0 & 0o444) >> 2
    }

    /// From here on all files and folders that this process makes have this mode, whatever the umask was.
    pub fn set_umask(self) {
        umask(Mode::from_bits_truncate(0o777 & !self.of_folders()));
    }
}

impl FromStr for FileMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode & 0o600 == 0o600 && mode & !0o666 == 0 => Ok(Self(mode)),
            _ => Err("it is an octal mode of files, such as 0640, that lets the owner read and write them".to_owned()),
        }
    }
}
