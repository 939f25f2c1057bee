//! Jobs that a start finds on disk.

use super::record::{FoundJob, FoundJobs, is_beyond_all};
use crate::{
    engine::{
        state::jobs::{Entry, JobState, Jobs},
        storage::{Store, names::JobFile},
    },
    error::Error,
};

/// Jobs after a start.
pub(crate) struct Recovered {
    /// All of them; those that had not ended wait again.
    pub(crate) jobs: Jobs,
    /// Jobs of which there were files and no record; they were removed.
    pub(crate) leftovers: usize,
    /// Names of those that were set aside, and why.
    pub(crate) set_aside: Vec<(String, String)>,
}

/// Puts the folder in order.
pub(crate) fn recover(store: &Store, found: FoundJobs) -> Result<Recovered, Error> {
    let mut jobs = Jobs::new();
    for FoundJob { id, order, state, since, files } in found.jobs {
        let name = id.to_string();
        let (mut result_bytes, result_check) = (None, state.result_check());
        let state = match state.into() {
            // Of another size it is damaged, which whoever asks for it is told, as long as it is not put back.
            JobState::Done { bytes } if files.result.is_some() => {
                result_bytes = Some(bytes);
                JobState::Done { bytes }
            }
            JobState::Done { .. } => JobState::Failed { reason: "its result is gone".into() },
            JobState::Queued | JobState::Running { .. } => JobState::Queued,
            state @ (JobState::Failed { .. } | JobState::Downloaded) => state,
        };
        if files.result.is_some() && result_bytes.is_none() {
            store.remove_job_file(&name, JobFile::Result); // of a run that did not come to its end
        }
        if files.input.is_some() && !state.is_undone() {
            store.remove_job_file(&name, JobFile::Input);
        }
        jobs.insert(id, Entry { result_check, ..Entry::new(order, state, since, result_bytes) });
    }
    for name in &found.strays {
        store.remove_job(name);
    }
    for (name, _) in &found.damaged {
        store.move_job_to_quarantine(name)?;
    }
    // Who asked for them may ask again, and must not be told of another job.
    found.in_quarantine.iter().for_each(|id| jobs.skip_to(*id));
    let damaged = found.damaged.iter().filter_map(|(name, _)| name.parse().ok());
    damaged.filter(|id| !is_beyond_all(*id)).for_each(|id| jobs.skip_to(id));
    Ok(Recovered { jobs, leftovers: found.strays.len(), set_aside: found.damaged })
}
