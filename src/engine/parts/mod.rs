//! The stored parts as questions see them: which ones they read, receipts, quarantine, upgrade from version 1.

pub mod quarantine;
pub mod receipts;
pub mod selection;
pub mod upgrade;
