//! The stored parts, for everything that reads them: which parts an answer needs, their receipts, missing parts, and the upgrade of
//! parts of format version 1.

pub mod quarantine;
pub mod receipts;
pub mod selection;
pub mod upgrade;
