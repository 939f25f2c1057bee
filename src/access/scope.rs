//! What a token allows, and what a call needs.

use std::{fmt, str::FromStr};

/// What a caller may do. Each scope includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Scope {
    /// Ask questions and download; nothing of the table is changed.
    Read,
    /// Also add data, remove and restore parts, and use the file-processing tasks.
    Write,
    /// Also what cannot be undone from then on, or is for operators: purge, forget, pack, verify, shut down.
    Admin,
}

impl Scope {
    /// Its name in a token file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Self::Read, Self::Write, Self::Admin].into_iter().find(|scope| scope.name() == text);
        known.ok_or_else(|| "the scope must be read, write or admin".to_owned())
    }
}
