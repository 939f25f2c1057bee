//! The entry points of group sums: over the table for a client, and over one file for a job. Both wait until there is
//! memory for a group sum.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::{
    group_sum::GroupSum,
    output::{Groups, StoredGroups},
    sources::Sources,
    spec::{GroupBy, Plan},
};
use crate::{
    engine::{
        parts::selection::parts_to_read,
        runtime::context::Context,
        state::{Lane, transfers::Origin},
        storage::reader::Reader,
    },
    error::Error,
    limits::{GROUP_BYTES_MAX, GROUP_CALLS_MAX, GROUP_TOP_BYTES},
};

/// The group sum over the parts of the table. Its groups are stored, so that a client may read them slowly while the next
/// group sum runs. If all permits are taken, the call whose client reads most slowly is ended.
///
/// `top`: only so many groups, those with the largest totals.
pub(crate) async fn group_sum(
    context: &Arc<Context>,
    origin: Origin,
    spec: GroupBy,
    top: Option<usize>,
) -> Result<StoredGroups, Error> {
    let permit = context.group_calls.enter(origin, CancellationToken::new()).await;
    let permit = permit.ok_or(Error::TooManyGroupCalls { calls_max: GROUP_CALLS_MAX })?;
    let memory = acquire_memory(context).await?;
    let parts = parts_to_read(context, Lane::Question).await?;
    let sources = Sources::parts(Arc::clone(&context.store), parts);
    let bytes_max = if top.is_some() { GROUP_BYTES_MAX - GROUP_TOP_BYTES } else { GROUP_BYTES_MAX };
    let run = Run { sources, spec, memory, bytes_max };
    let groups = run.start(context, Lane::Question, |_bytes_read| ()).await?;
    let blocks = match top {
        Some(count_max) => groups.store_top(count_max).await?,
        None => groups.store().await?,
    };
    Ok(StoredGroups::new(blocks, permit))
}

/// The group sum of a file that is not a part, for a job. The number of jobs that wait for memory is not
/// limited here. The [`Groups`] keep the memory. A total that does not fit is reported when they are read.
pub(crate) async fn group_sum_file(
    context: &Arc<Context>,
    lane: Lane,
    file: Reader,
    spec: GroupBy,
    progress: impl Fn(u64) + Sync,
) -> Result<Groups, Error> {
    let memory = acquire_memory(context).await?;
    let sources = Sources::File { file, limits: context.limits.csv };
    Run { sources, spec, memory, bytes_max: GROUP_BYTES_MAX }.start(context, lane, progress).await
}

async fn acquire_memory(context: &Context) -> Result<OwnedSemaphorePermit, Error> {
    Arc::clone(&context.group_memory).acquire_owned().await.ok().ok_or(Error::Draining)
}

/// A group sum that has its memory.
struct Run {
    sources: Sources,
    spec: GroupBy,
    memory: OwnedSemaphorePermit,
    /// How much of the memory is for its groups and their merge.
    bytes_max: usize,
}

impl Run {
    async fn start(self, context: &Context, lane: Lane, progress: impl Fn(u64) + Sync) -> Result<Groups, Error> {
        let Self { sources, spec, memory, bytes_max } = self;
        let (workers, folder) = (context.workers.clone(), context.store.temp_folder());
        let group_sum = GroupSum { workers, lane, folder, plan: Plan::with_bytes(bytes_max) };
        group_sum.run(sources, spec, Some(memory), progress).await
    }
}
