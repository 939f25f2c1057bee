//! Puts the folder of jobs in order when the server starts, and fills the table of jobs.

use super::record::{FoundJob, FoundJobs, is_beyond_all};
use crate::{
    engine::{
        state::jobs::{Entry, JobState, Jobs},
        storage::{Store, names::JobFile},
    },
    error::Error,
};

/// The jobs after a start.
pub(crate) struct Recovered {
    /// All known jobs; those that had not ended are queued again.
    pub(crate) jobs: Jobs,
    /// How many jobs had files but no record; their files were removed.
    pub(crate) leftovers: usize,
    /// Names of the jobs that were moved to quarantine, and why.
    pub(crate) set_aside: Vec<(String, String)>,
}

/// Removes the files that no job needs, moves damaged jobs to quarantine, and returns the table of jobs.
pub(crate) fn recover(store: &Store, found: FoundJobs) -> Result<Recovered, Error> {
    let mut jobs = Jobs::new();
    for FoundJob { id, order, state, since, files } in found.jobs {
        let name = id.to_string();
        let (mut result_bytes, result_check) = (None, state.result_check());
        let state = match state.into() {
            // Its size is not compared here: a reader of a damaged result gets an error until the file has been replaced.
            JobState::Done { bytes } if files.result.is_some() => {
                result_bytes = Some(bytes);
                JobState::Done { bytes }
            }
            JobState::Done { .. } => JobState::Failed { reason: "its result is gone".into() },
            JobState::Queued | JobState::Running { .. } => JobState::Queued,
            state @ (JobState::Failed { .. } | JobState::Downloaded) => state,
        };
        if files.result.is_some() && result_bytes.is_none() {
            store.remove_job_file(&name, JobFile::Result); // from a run that was interrupted
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
    // Their numbers are not given out again: their clients may still ask for them, and must not get another job's state.
    found.in_quarantine.iter().for_each(|id| jobs.skip_to(*id));
    let damaged = found.damaged.iter().filter_map(|(name, _)| name.parse().ok());
    damaged.filter(|id| !is_beyond_all(*id)).for_each(|id| jobs.skip_to(id));
    Ok(Recovered { jobs, leftovers: found.strays.len(), set_aside: found.damaged })
}
