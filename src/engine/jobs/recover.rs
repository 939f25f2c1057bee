//! Recovery of jobs at start: cleans up their folder and fills the table of jobs.

use super::record::{FoundJob, FoundJobs, is_invalid_number};
use crate::{
    engine::{
        state::jobs::{Entry, JobId, JobKind, JobState, Jobs},
        storage::{Store, job_files::JobFiles, names::JobFile},
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
    pub(crate) quarantined: Vec<(String, String)>,
}

/// Whether what the job computes from is there. The input of a task is removed after its record is on the disk.
fn runs_again(id: JobId, files: &JobFiles) -> bool {
    match id.kind() {
        JobKind::Survey => true,
        JobKind::Task => files.input.is_some(),
    }
}

/// Removes the files that no job needs, moves damaged jobs to quarantine, and returns the table of jobs.
pub(crate) fn recover(store: &Store, found: FoundJobs) -> Result<Recovered, Error> {
    let mut jobs = Jobs::new();
    for FoundJob { id, order, state, since, files } in found.jobs {
        let name = id.to_string();
        let (mut result_bytes, result_check) = (None, state.result_check());
        let state = match state.into() {
            // The size is not compared here. Reading a damaged result is an error until the file has been restored.
            JobState::Done { bytes } if files.result.is_some() => {
                result_bytes = Some(bytes);
                JobState::Done { bytes }
            }
            // A power failure kept the record, and not the result: nobody was told that the job is done.
            JobState::Done { .. } if runs_again(id, &files) => JobState::Queued,
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
    for name in &found.leftovers {
        store.remove_job(name);
    }
    for (name, _) in &found.damaged {
        store.move_job_to_quarantine(name)?;
    }
    // The numbers of damaged jobs are not used again, because their clients must not get another job's result.
    found.in_quarantine.iter().for_each(|id| jobs.skip_to(*id));
    let damaged = found.damaged.iter().filter_map(|(name, _)| name.parse().ok());
    damaged.filter(|id| !is_invalid_number(*id)).for_each(|id| jobs.skip_to(id));
    jobs.all_were_found();
    Ok(Recovered { jobs, leftovers: found.leftovers.len(), quarantined: found.damaged })
}
