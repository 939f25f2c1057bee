//! Missing parts: those that are in quarantine and whose loss no operator has accepted.
//!
//! A start moves a damaged part to `quarantine/`. Then the table is incomplete, and answers about the whole table are refused
//! (`--incomplete`), until the part's files are moved back to `parts/` and a start finds them undamaged, or an operator
//! accepts the loss (`tally forget`). A part is missing if `quarantine/` has a file of it and no `N.forgotten`.

use std::sync::Arc;

use chrono::{SecondsFormat, Utc};

use super::find::find_part;
use crate::{
    engine::{
        runtime::{context::Context, detached::detached},
        state::{
            Lane,
            registry::{Registry, Snapshot},
        },
        storage::segments::cursor::find_now,
    },
    error::Error,
    limits::Incomplete,
    model::{packed::SegmentId, part::PartId},
};

/// All parts, for an answer about the whole table.
pub(super) struct WholeTable {
    /// A snapshot of them.
    pub(super) parts: Snapshot,
    /// How many of them have format version 1.
    pub(super) unchecked: usize,
}

/// A snapshot of all parts, for an answer about the whole table.
///
/// Errors: a part is missing, and `--incomplete` refuses such answers.
pub(super) fn whole_table(context: &Context) -> Result<WholeTable, Error> {
    whole_table_and(context, |_parts| ()).map(|(table, ())| table)
}

/// The same, and a figure of the same moment.
pub(super) fn whole_table_and<T>(
    context: &Context,
    figure: impl FnOnce(&Registry) -> T,
) -> Result<(WholeTable, T), Error> {
    let (table, missing) = context.state.with(|state| {
        let table = WholeTable { parts: state.parts.snapshot(), unchecked: state.parts.unchecked() };
        ((table, figure(&state.parts)), state.parts.missing().error())
    });
    match (context.limits.incomplete, missing) {
        (Incomplete::Refuse, Some(error)) => Err(error),
        (Incomplete::Answer, _) | (Incomplete::Refuse, None) => Ok(table),
    }
}

/// Accepts the loss of a part that is in quarantine, and returns how many parts are still missing. The loss is first recorded on
/// disk. Accepting it again changes nothing.
///
/// Errors: the part is not in quarantine; the record cannot be written.
pub(crate) async fn forget_part(context: &Arc<Context>, id: PartId) -> Result<usize, Error> {
    // One at a time, so that no part is counted twice.
    let permit = Arc::clone(&context.losses).acquire_owned().await.ok().ok_or(Error::Draining)?;
    let context = Arc::clone(context);
    detached(move |_cancel| async move {
        let _permit = permit; // kept until the work has ended, even if the caller was dropped
        forget_now(&context, id).await
    })
    .await
}

async fn forget_now(context: &Context, id: PartId) -> Result<usize, Error> {
    let (is_removed, is_listed, segment) = context.state.with(|state| {
        let (parts, missing) = (&state.parts, state.parts.missing());
        (parts.removal(id).is_some(), missing.listed().binary_search(&id).is_ok(), missing.segment_of(id))
    });
    if is_removed || find_part(context, id).await?.is_some() {
        return Err(Error::NotInQuarantine { part: id.get() });
    }
    let store = Arc::clone(&context.store);
    let record = move || {
        let now = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
        let (is_there, is_accepted) = store.is_in_quarantine(id)?;
        if let (false, Some(segment)) = (is_there, segment) {
            store.record_loss_of_segment(segment, &now)?;
            return Ok(Some(segment.first));
        }
        if !is_listed && !is_there {
            let is_forgotten = store.quarantine()?.segments.keys().any(|segment| segment.covers(id));
            return if is_forgotten { Ok(None) } else { Err(Error::NotInQuarantine { part: id.get() }) };
        }
        if !is_accepted {
            store.record_loss(id, &now)?;
        }
        Ok((is_listed || !is_accepted).then_some(id))
    };
    let missing = context.workers.run(Lane::Question, record).await.flatten()?;
    if missing.is_some_and(|id| context.state.with(|state| state.parts.accept_loss(id))) {
        let (store, state) = (Arc::clone(&context.store), context.state.clone());
        let look_up = move || {
            let is_known = |id: &PartId| {
                let (located, removed) =
                    state.with(|state| (state.parts.locate(*id), state.parts.removal(*id).is_some()));
                removed || find_now(&store, located, *id).is_ok_and(|part| part.is_some())
            };
            let segments = state.with(|state| state.parts.snapshot()).segments;
            let is_kept = |segment: SegmentId| segments.get(&segment.first).is_some_and(|kept| kept.id == segment);
            Ok(store.quarantine()?.missing(is_known, is_kept))
        };
        let missing = context.workers.run(Lane::Question, look_up).await.flatten()?;
        context.state.with(|state| state.parts.set_missing(missing));
    }
    Ok(context.state.with(|state| state.parts.missing().count()))
}

#[cfg(test)]
mod tests {
    use crate::engine::state::missing_parts::MissingParts;
    use crate::{engine::storage::quarantine::Quarantine, limits::MISSING_PARTS_LISTED_MAX};

    use super::*;

    fn ids(numbers: impl IntoIterator<Item = u64>) -> Vec<PartId> {
        numbers.into_iter().filter_map(PartId::new).collect()
    }

    #[test]
    fn the_list_is_bounded_and_the_count_is_not() {
        let all = ids(1..=MISSING_PARTS_LISTED_MAX as u64 + 2);
        let mut missing: MissingParts = all.iter().copied().collect();
        assert_eq!((missing.count(), missing.listed()), (all.len(), &all[..MISSING_PARTS_LISTED_MAX]));
        assert!(!missing.remove(all[MISSING_PARTS_LISTED_MAX]), "it is not listed, and only counted");
        assert_eq!((missing.count(), missing.listed().len()), (all.len() - 1, MISSING_PARTS_LISTED_MAX));
        for &id in &all[..MISSING_PARTS_LISTED_MAX - 1] {
            assert!(!missing.remove(id), "others are still listed");
        }
        assert!(missing.remove(all[MISSING_PARTS_LISTED_MAX - 1]), "a missing part is not listed");
        assert_eq!(missing.count(), 1);
    }

    #[test]
    fn the_parts_of_a_segment_are_missing_together() {
        let segment = |text| SegmentId::parse(text).expect("a name");
        let quarantine = Quarantine {
            parts: ids([9]).into_iter().collect(),
            segments: [(segment("1-5-1"), 4), (segment("10-20-1"), 11), (segment("30-31-2"), 2)].into(),
            accepted_segments: [segment("30-31-2")].into(),
            ..Quarantine::default()
        };
        let mut missing = quarantine.missing(|_| false, |id| id == segment("10-20-1"));
        assert_eq!((missing.count(), missing.listed()), (5, &ids([1, 9])[..]));
        let error = missing.error().expect("incomplete").to_string();
        assert!(error.contains("1-5-1.segment and the others") && error.contains("5 parts"), "{error}");
        assert!(ids([3]).iter().all(|id| missing.may_have(*id)) && !ids([6]).iter().any(|id| missing.may_have(*id)));
        assert!(!missing.remove(ids([1])[0]));
        assert_eq!((missing.count(), missing.listed()), (1, &ids([9])[..]));
    }

    #[test]
    fn what_is_served_or_accepted_is_not_missing() {
        let set = |numbers: &[u64]| ids(numbers.iter().copied()).into_iter().collect();
        let quarantine = Quarantine { parts: set(&[2, 3, 5, 7]), accepted: set(&[3, 9]), ..Quarantine::default() };
        let missing = quarantine.missing(|id| id.get() == 7, |_| false);
        assert_eq!((missing.count(), missing.listed()), (2, &ids([2, 5])[..]));
        assert!(Quarantine::default().missing(|_| false, |_| false).error().is_none());
    }
}
