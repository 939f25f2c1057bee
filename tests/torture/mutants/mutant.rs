//! The bug that this run of a program has: `make mutants` builds all of them into one program, and the environment variable
//! `MUTANT` chooses. This file is in the copy of the tree alone.

use std::sync::OnceLock;

/// Whether it has this one.
pub fn is(name: &str) -> bool {
    static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("MUTANT").ok()).as_deref() == Some(name)
}
