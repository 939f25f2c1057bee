//! Which parts a question reads.

use std::sync::Arc;

use imbl::OrdMap;

use super::{quarantine::whole_table, upgrade::upgrade};
use crate::{
    engine::{
        runtime::{context::Context, detached::detached},
        state::Lane,
    },
    error::Error,
    model::part::{Part, PartId},
};

/// All parts as they are now, each of which can be verified as it is read. Those of format version 1 are verified whole
/// first: all of them, as the names of their columns are not to be trusted before.
///
/// Errors: a part is missing, and answers must be complete; one of them is of format version 1 and damaged.
pub(crate) async fn parts_to_read(context: &Arc<Context>, lane: Lane) -> Result<OrdMap<PartId, Arc<Part>>, Error> {
    let parts = whole_table(context)?;
    if context.state.with(|state| state.parts.unchecked()) == 0 {
        return Ok(parts);
    }
    for part in parts.values().filter(|part| part.checks.is_none()) {
        let part = Arc::clone(part);
        // To its end, even if the one who asks goes away: large parts would never be done otherwise.
        let context = Arc::clone(context);
        detached(move |_cancel| async move { upgrade(&context, lane, &part).await }).await?;
    }
    whole_table(context)
}
