//! The start of the engine: the workers, the data folder and what is found in it, and the background tasks.

use std::{path::Path, sync::Arc};

use super::{
    ingest::{commit, queues::Queues},
    jobs::{
        record,
        recover::{self, Recovered},
        run, sweep,
    },
    parts::removal,
    runtime::{
        context::{Context, unix_seconds},
        workers::Workers,
    },
    scrub,
    state::{Lane, Shared},
    storage::{Store, recover::RecoveryReport},
};
use crate::{
    error::Error,
    limits::Limits,
    model::{
        durability::Durability,
        part::{Part, PartFigures},
        schema::Schema,
    },
};

/// Starts the workers, opens and recovers the data folder, and then starts the background tasks.
///
/// Errors: the folder is in use, cannot be written, or holds parts of a newer version.
pub(super) async fn start(
    root: &Path,
    durability: Durability,
    limits: Limits,
) -> Result<(Arc<Context>, Queues, RecoveryReport), Error> {
    let state = Shared::new();
    state.with(|state| state.parts.set_parts_max(limits.parts_max));
    let workers = Workers::start(state.clone()).map_err(Error::io("worker threads"))?;
    let (root, shared) = (root.to_owned(), state.clone());
    let open = move || open_folder(&root, durability, &shared);
    let (store, found) = workers.run(Lane::Upload, open).await.flatten().inspect_err(|_| workers.close())?;
    state.with(|state| state.jobs.set_surveys_at_once(limits.jobs.statistics_at_once));
    if state.with(|state| state.parts.len() >= state.parts.warning_len()) {
        commit::warn_nearly_full(&state);
    }
    let context = Arc::new(Context::new(state, workers, Arc::new(store), limits));
    let queues = Queues::start(&context);
    run::dispatch(&context);
    tokio::spawn(sweep::keep_sweeping(Arc::downgrade(&context), context.limits.jobs.sweep_interval));
    tokio::spawn(removal::keep_sweeping(Arc::downgrade(&context), context.limits.undo));
    if let Some(interval) = context.limits.scrub_interval {
        tokio::spawn(scrub::keep_scrubbing(Arc::downgrade(&context), interval));
    }
    Ok((context, queues, found))
}

/// Opens the data folder, fills the registry and the job table with what is found, and removes leftovers.
fn open_folder(root: &Path, durability: Durability, shared: &Shared) -> Result<(Store, RecoveryReport), Error> {
    let store = Store::open(root, durability)?;
    let found_jobs = record::find(&store)?; // a newer version is refused before anything is changed
    let mut found = store.recover(|receipt| {
        let schema = commit::share_schema(shared, Schema::of(&receipt.columns));
        let columns = PartFigures::of(&receipt, schema.as_ref());
        let part = Arc::new(Part::of(&receipt, schema));
        shared.with(|state| state.parts.restore(part, &columns));
    })?;
    restore_removed(&store, &found, shared);
    let Recovered { jobs, leftovers, quarantined } = recover::recover(&store, found_jobs)?;
    found.leftovers += leftovers;
    found.jobs_quarantined = quarantined;
    shared.with(|state| {
        let used = found.in_quarantine.iter().chain(found.removed.keys()).chain(&found.last_purged);
        used.for_each(|id| state.parts.skip_to(*id));
        state.parts.set_missing(found.missing.clone());
        state.jobs = jobs;
    });
    Ok((store, found))
}

/// Puts the removed parts that were found into the registry.
fn restore_removed(store: &Store, found: &RecoveryReport, shared: &Shared) {
    for (&id, &since) in &found.removed {
        let Some(receipt) = store.removed_receipt(id) else {
            tracing::error!(part = %id, "the receipt of this removed part is damaged: it cannot be restored, only purged");
            continue;
        };
        let schema = commit::share_schema(shared, Schema::of(&receipt.columns));
        let columns = PartFigures::of(&receipt, schema.as_ref());
        let part = Arc::new(Part::of(&receipt, schema));
        shared.with(|state| state.parts.restore_removed(part, &columns, unix_seconds(since)));
    }
}
