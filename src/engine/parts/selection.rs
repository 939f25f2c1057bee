//! Which parts are read for an answer.

use std::sync::Arc;

use super::{
    quarantine::{WholeTable, whole_table},
    upgrade::upgrade,
};
use crate::{
    engine::{
        runtime::{context::Context, detached::detached},
        state::{Lane, registry::Snapshot},
    },
    error::Error,
};

/// A snapshot of all parts, each of which can be verified while it is read. Parts of format version 1 are first verified whole and
/// upgraded: all of them, because the names of their columns cannot be trusted before.
///
/// Errors: a part is missing, and `--incomplete` refuses such answers; a part of format version 1 is damaged.
pub(crate) async fn parts_to_read(context: &Arc<Context>, lane: Lane) -> Result<Snapshot, Error> {
    loop {
        let WholeTable { parts, unchecked } = whole_table(context)?;
        if unchecked == 0 {
            return Ok(parts);
        }
        for part in parts.parts.values().filter(|part| part.checks.is_none()) {
            let part = Arc::clone(part);
            // Detached, so that it ends even if the caller is dropped: otherwise large parts might never be upgraded.
            let context = Arc::clone(context);
            detached(move |_cancel| async move { upgrade(&context, lane, &part).await }).await?;
        }
        // Others may have been restored meanwhile.
    }
}
