//! The group sums of a list of parts, which are some of a table's. A list is read by a [`GroupSum`] of its own, in the order of its
//! parts: so what is an error, and how much memory it takes, is as for a whole table.
//!
//! A group is sent as its key and a value: the number of its rows, and a total of 128 bits for each column.

use std::sync::Arc;

use futures_util::stream::BoxStream;
use imbl::{OrdMap, OrdSet};
use tokio::sync::mpsc;

use super::{
    entry::{MergedGroup, put_entry, take_entry},
    group_sum::GroupSum,
    output::Groups,
    partition::ReadPart,
    sources::Sources,
    spec::GroupBy,
    work::Work,
};
use crate::{
    engine::{
        query::list_answers::{all_answers, failed_answers},
        runtime::{
            group_rows::{GroupRows, GroupsCheck, ValueLayout},
            part_engine::{GroupAnswer, GroupEngine, GroupQuestion, answers_of},
        },
        state::registry::Snapshot,
        storage::Store,
        values::sum::Sum,
    },
    error::Error,
    limits::GROUPS_SENT_BYTES,
    model::part::{Part, PartId},
};

/// Reads lists of parts on this machine.
#[derive(Clone)]
pub struct GroupLists {
    /// Reads one list after another. It must have one partition only, so that parts are read in their order.
    pub group_sum: GroupSum,
    /// The data folder.
    pub store: Arc<Store>,
}

impl GroupEngine for GroupLists {
    fn groups(&self, parts: Vec<Arc<Part>>, question: GroupQuestion) -> BoxStream<'_, Result<GroupAnswer, Error>> {
        answers_of(move |tx| async move {
            match question {
                GroupQuestion::Sum { by, sum } => self.read(parts, GroupBy::new(by, sum)?.counting_rows(), tx).await,
                GroupQuestion::Survey { .. } => Err(Error::Internal("a statistic is no group sum".to_owned())),
            }
        })
    }
}

impl GroupLists {
    /// Reads the parts in their order.
    pub(crate) async fn read(
        &self,
        parts: Vec<Arc<Part>>,
        spec: GroupBy,
        tx: mpsc::Sender<GroupAnswer>,
    ) -> Result<(), Error> {
        let groups = match self.groups_of(&parts, spec.clone()).await {
            Ok(groups) => groups,
            Err(error) => {
                let read_one = |part: Arc<Part>| {
                    let (part, spec) = ([part], spec.clone());
                    async move { self.groups_of(&part, spec).await.map(drop) }
                };
                let answers = failed_answers(&parts, error, read_one).await?;
                return tx.send(GroupAnswer::Parts(answers)).await.ok().ok_or(Error::Cancelled);
            }
        };
        let Groups { ranges, read_parts } = groups;
        let sending = Sending { rows: GroupRows::default(), check: GroupsCheck::default(), value: Vec::new(), tx };
        let sent = ranges.pass(entry, sending, |sending, piece, work| sending.take(piece, work)).await?;
        let Sending { rows, check, tx, .. } = sent;
        let read = read_parts.iter().filter_map(|ReadPart { id, rows }| Some((PartId::new(*id)?, *rows)));
        let answers = all_answers(read, check);
        tx.send(GroupAnswer::Groups(rows)).await.ok().ok_or(Error::Cancelled)?;
        tx.send(GroupAnswer::Parts(answers)).await.ok().ok_or(Error::Cancelled)
    }

    async fn groups_of(&self, parts: &[Arc<Part>], spec: GroupBy) -> Result<Groups, Error> {
        let of_list: OrdMap<_, _> = parts.iter().map(|part| (part.id, Arc::clone(part))).collect();
        let parts = Snapshot::of(of_list, OrdMap::new(), OrdSet::new());
        let sources = Sources::parts(Arc::clone(&self.store), parts);
        self.group_sum.run(sources, spec, None, |_bytes_read| ()).await
    }
}

/// Appends a group to a piece, whatever its length and its totals are: other rows may be added to it.
#[allow(clippy::unnecessary_wraps, reason = "others have errors")]
fn entry(group: &MergedGroup<'_>, _spec: &GroupBy, piece: &mut Vec<u8>) -> Result<(), Error> {
    put_entry(group, piece);
    Ok(())
}

/// The groups that will be sent next.
struct Sending {
    rows: GroupRows,
    /// Of all groups.
    check: GroupsCheck,
    /// The value of a group.
    value: Vec<u8>,
    tx: mpsc::Sender<GroupAnswer>,
}

impl Sending {
    /// Sends a piece of groups, on a worker, which waits if they are not received.
    fn take(&mut self, mut piece: &[u8], work: &Work) -> Result<(), Error> {
        let layout = layout_of(&work.spec);
        let mut totals = vec![Sum::default(); work.spec.totals_count()];
        while !piece.is_empty() {
            let key = take_entry(&mut piece, &mut totals);
            let key = key.ok_or_else(|| Error::Internal("a piece of groups has no entry there".to_owned()))?;
            let rows = totals.last().and_then(|rows| u64::try_from(rows.exact()).ok());
            let rows = rows.ok_or_else(|| Error::Internal("a group has no number of rows".to_owned()))?;
            self.value.clear();
            self.value.extend(rows.to_le_bytes());
            for total in &totals[..totals.len() - 1] {
                self.value.extend(total.exact().to_le_bytes());
            }
            self.check.add(layout, key, &self.value);
            self.rows.push(key, &self.value);
            if self.rows.bytes() >= GROUPS_SENT_BYTES {
                let rows = GroupAnswer::Groups(std::mem::take(&mut self.rows));
                self.tx.blocking_send(rows).ok().ok_or(Error::Cancelled)?;
            }
        }
        Ok(())
    }
}

/// What a group's value is made of.
pub(super) fn layout_of(spec: &GroupBy) -> ValueLayout {
    GroupQuestion::Sum { by: Vec::new(), sum: spec.sum.clone() }.layout()
}
