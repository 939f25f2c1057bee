//! Cancelling jobs that wait or run.

use super::{
    record::RecordState,
    record_changes::{change_record, is_tried_again, read_record, reason_of},
};
use crate::{
    engine::{
        runtime::context::Context,
        state::jobs::{Cancelled, JobId},
    },
    error::{Error, jobs::JobError},
};

use std::sync::Arc;

/// Stops a running job, or removes a waiting job from its queue. Returns whether there was something to stop.
pub(crate) async fn cancel(context: Arc<Context>, id: JobId) -> Result<bool, Error> {
    match context.state.with(|state| state.jobs.cancel(id)) {
        None => Ok(false),
        Some(Cancelled::Running) => Ok(true),
        Some(Cancelled::Waiting) => {
            if let Err(error) = end_waiting(&context, id).await {
                // The job no longer runs. Writing that to disk is retried in the background, as it may take long.
                tokio::spawn(async move {
                    let mut failure = Some(error);
                    while let Some(error) = failure
                        && is_tried_again(&context, id, &error).await
                    {
                        failure = end_waiting(&context, id).await.err();
                    }
                });
            }
            Ok(true)
        }
    }
}

/// Writes the last state of a job that did not run.
async fn end_waiting(context: &Arc<Context>, id: JobId) -> Result<(), Error> {
    let mut record = read_record(context, id).await?;
    let failed = RecordState::Failed { reason: reason_of(&JobError::Cancelled.into()) };
    change_record(context, &mut record, failed, None).await
}
