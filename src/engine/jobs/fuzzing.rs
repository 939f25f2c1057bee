//! What the fuzz target `records` checks of the records of jobs, as `engine/storage/fuzzing.rs` does of receipts.

use super::record::Record;
use crate::engine::storage::{
    checksums::{RecordChecksum, add_checksum, verify_record},
    fuzzing::{flipped, with_checksum},
};

/// A record of a job.
pub fn check_record(text: &[u8]) {
    for text in [text, &with_checksum(text)] {
        let value = serde_json::from_slice::<serde_json::Value>(text).unwrap_or_default();
        let name = value["id"].as_str().unwrap_or_default();
        let parse = |text: &[u8]| Record::parse(name, text, verify_record(text)).ok();
        let Some(record) = parse(text) else { continue };
        assert_eq!(record.id.to_string(), name);
        if verify_record(text) != RecordChecksum::Valid {
            continue; // of version 1, which is not written any more
        }
        // Times lose what is below a microsecond when they are written for the first time.
        let write = |record: &Record| record.text().map(add_checksum).unwrap_or_default();
        let written = write(&record);
        assert_eq!(parse(&written).map(|again| write(&again)).as_deref(), Some(&written[..]), "{record:?}");
        assert!(parse(&flipped(&written)).is_none(), "a flipped bit of {record:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn the_kept_inputs_hold() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/records");
        let mut inputs = 0;
        for entry in fs::read_dir(folder).expect("a corpus") {
            let input = fs::read(entry.expect("an entry").path()).expect("readable");
            check_record(&input[1..]); // most of them are of no job
            inputs += 1;
        }
        assert!(inputs > 3, "{inputs} inputs");
    }
}
