//! The permissions of the files in the data folder.

use std::str::FromStr;

use rustix::{fs::Mode, process::umask};

/// The mode of the files in the data folder, as in chmod(1): `0600`, or `0640` to let a group read them. Folders are
/// searchable for everyone who may read the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMode(pub(crate) u32);

impl FileMode {
    /// Only the user who runs the server may read and write.
    pub const PRIVATE: Self = Self(0o600);

    pub(crate) fn of_folders(self) -> u32 {
        self.0 | (self.0 & 0o444) >> 2
    }

    /// Sets the umask, so that all files and folders that this process creates from now on have this mode.
    pub fn set_umask(self) {
        umask(Mode::from_bits_truncate(0o777 & !self.of_folders()));
    }
}

impl FromStr for FileMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode & 0o600 == 0o600 && mode & !0o666 == 0 => Ok(Self(mode)),
            _ => Err("it must be an octal file mode such as 0640 that lets the owner read and write".to_owned()),
        }
    }
}
