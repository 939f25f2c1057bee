//! The stored parts: which parts an answer needs, their receipts and files, lists of them, missing and removed parts, and the upgrade of format version 1.

pub mod column_figures;
pub mod columns;
pub mod find;
pub mod listing;
mod name_page;
pub mod part_file;
pub mod quarantine;
pub mod receipts;
pub mod removal;
pub mod segment_rows;
pub mod selection;
pub mod table_files;
pub mod upgrade;
