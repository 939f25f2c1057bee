//! The quarantine folder: damaged parts and jobs, and the losses that an operator has accepted.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{
    names::{parse_quarantine_file_name, parse_segment_file_name},
    store::Store,
    sync::{rename, sync_folder},
};
use crate::{
    engine::state::{lock_check::assert_unlocked, missing_parts::MissingParts},
    error::Error,
    model::part::PartId,
};

/// The parts that have files in `quarantine/`.
#[derive(Debug, Default)]
pub struct Quarantine {
    /// All parts in quarantine.
    pub parts: BTreeSet<PartId>,
    /// Parts whose loss an operator has accepted.
    pub accepted: BTreeSet<PartId>,
}

impl Quarantine {
    /// The parts that are neither in the table nor accepted as lost.
    pub fn missing(&self, is_served: impl Fn(&PartId) -> bool) -> MissingParts {
        self.parts.difference(&self.accepted).copied().filter(|id| !is_served(id)).collect()
    }
}

impl Store {
    /// The parts that have files in `quarantine/`.
    pub fn quarantine(&self) -> Result<Quarantine, Error> {
        assert_unlocked();
        let path = self.root.join("quarantine");
        let what = || Error::io(format!("data folder {}", path.display()));
        let mut quarantine = Quarantine::default();
        for entry in fs::read_dir(&path).map_err(what())? {
            let path = entry.map_err(what())?.path();
            match parse_quarantine_file_name(&path) {
                Some((id, "forgotten")) => quarantine.accepted.insert(id),
                Some((id, "csv" | "parquet" | "sums" | "json")) => quarantine.parts.insert(id),
                // A segment is represented by its first part.
                _ => parse_segment_file_name(&path).is_some_and(|(id, _)| quarantine.parts.insert(id.first)),
            };
        }
        Ok(quarantine)
    }

    /// Whether a part has files in `quarantine/`, and whether its loss was accepted.
    pub fn is_in_quarantine(&self, id: PartId) -> Result<(bool, bool), Error> {
        assert_unlocked();
        let exists = |extension| {
            let exists = self.quarantine_path(id, extension).try_exists();
            exists.map_err(Error::io(format!("part {id} in quarantine")))
        };
        Ok((exists("json")? || exists("csv")? || exists("parquet")?, exists("forgotten")?))
    }

    /// Records that an operator has accepted the loss of a part. This is synced whatever `--durability` says.
    pub fn record_loss(&self, id: PartId, forgotten_at: &str) -> Result<(), Error> {
        let what = || Error::io(format!("the record that part {id} is forgotten"));
        let text = format!("{{\"part\":{id},\"forgotten_at\":\"{forgotten_at}\"}}\n");
        let mut draft = self.draft()?;
        draft.write_all(text.as_bytes()).and_then(|()| draft.sync()).map_err(what())?;
        draft.rename(&self.quarantine_path(id, "forgotten"))?;
        sync_folder(&self.root.join("quarantine")).map_err(what())
    }

    /// The names, without extensions, of all files in quarantine.
    pub fn names_in_quarantine(&self) -> Result<Vec<String>, Error> {
        let name = |path: PathBuf| path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
        Ok(self.entries("quarantine")?.into_iter().filter_map(name).collect())
    }

    /// Moves all files of a part to `quarantine/`, without overwriting files there. The receipt is moved last: if this is
    /// interrupted, the next start finds a damaged part again, and not leftovers that it would remove.
    pub(crate) fn move_part_to_quarantine(&self, id: PartId) -> Result<(), Error> {
        assert_unlocked();
        for extension in ["csv", "parquet", "sums", "json"] {
            self.move_to_quarantine(&self.part_path(id, extension), &id.to_string(), extension)?;
        }
        Ok(())
    }

    pub(super) fn move_to_quarantine(&self, from: &Path, name: &str, extension: &str) -> Result<(), Error> {
        assert_unlocked();
        let mut to = self.root.join("quarantine").join(format!("{name}.{extension}"));
        for copy in 2.. {
            if !to.exists() {
                break;
            }
            to.set_file_name(format!("{name}-{copy}.{extension}"));
        }
        match rename(from, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("quarantine {}", from.display()))(error))
            }
            _ => Ok(()),
        }
    }
}
