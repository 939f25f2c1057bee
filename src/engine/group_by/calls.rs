//! The entry points of group sums: over the table for a client, and over one file for a job. Both wait until there is
//! memory for a group sum. If there is a cluster, the table is read by it, and the groups are merged here.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::{
    collected::Collected,
    group_sum::GroupSum,
    lists::GroupLists,
    output::{Groups, StoredGroups},
    sources::Sources,
    spec::{GroupBy, Plan},
    work::{Reservation, Work},
};
use crate::{
    engine::{
        parts::selection::parts_to_read,
        query::by_list::ByList,
        runtime::{
            context::Context,
            part_engine::{Cluster, GroupQuestion},
        },
        state::{Lane, registry::Snapshot, transfers::Origin},
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
    let bytes_max = if top.is_some() { GROUP_BYTES_MAX - GROUP_TOP_BYTES } else { GROUP_BYTES_MAX };
    let groups = match &context.cluster {
        Some(cluster) => read_by_cluster(context, cluster.as_ref(), parts, spec, memory, bytes_max).await?,
        None => {
            let sources = Sources::parts(Arc::clone(&context.store), parts);
            Run { sources, spec, memory, bytes_max }.start(context, Lane::Question, |_bytes_read| ()).await?
        }
    };
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

/// The groups of the table, which other machines read.
async fn read_by_cluster(
    context: &Arc<Context>,
    cluster: &dyn Cluster,
    parts: Snapshot,
    spec: GroupBy,
    memory: OwnedSemaphorePermit,
    bytes_max: usize,
) -> Result<Groups, Error> {
    // The other half is for parts that are read here.
    let group_sum = group_sum_of(context, Lane::Question, Plan::with_bytes(bytes_max / 2));
    let none = Snapshot::of(OrdMap::new(), OrdMap::new(), OrdSet::new());
    let sources = Sources::parts(Arc::clone(&context.store), none);
    let (folder, plan) = (group_sum.folder.clone(), group_sum.plan);
    let work = Arc::new(Work::new(sources, spec.clone(), folder, plan, Reservation::new(Some(memory)).0));
    let question = GroupQuestion::Sum { by: spec.by().to_vec(), sum: spec.sum().to_vec() };
    let columns: Vec<_> = spec.by().iter().chain(spec.sum()).cloned().collect();
    let here = Plan { partitions_max: 1, ..Plan::with_bytes(bytes_max / 2) };
    let here = group_sum_of(context, Lane::Question, here);
    let here = GroupLists { group_sum: here, store: Arc::clone(&context.store) };
    let mut collected = Collected::new(&group_sum, work);
    let mut asked = ByList {
        context,
        question: &question,
        columns: &columns,
        groups_all_rows: true,
        here: &here,
        lane: Lane::Question,
        read_here: 0,
    };
    asked.ask(cluster, parts, &mut collected, |_parts_read| ()).await?;
    collected.into_groups().await
}

fn group_sum_of(context: &Context, lane: Lane, plan: Plan) -> GroupSum {
    GroupSum { workers: context.workers.clone(), lane, folder: context.store.temp_folder(), plan }
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
        let group_sum = group_sum_of(context, lane, Plan::with_bytes(bytes_max));
        group_sum.run(sources, spec, Some(memory), progress).await
    }
}
