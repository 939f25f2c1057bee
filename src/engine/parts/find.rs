//! Finding one part by its number.

use std::sync::Arc;

use crate::{
    engine::{
        runtime::context::Context,
        state::{Lane, registry::Located},
        storage::segments::cursor::find_now,
    },
    error::Error,
    model::part::{Part, PartId},
};

/// A part of the table; `None` if there is no such part.
///
/// Errors: an index is damaged or cannot be read.
pub(crate) async fn find_part(context: &Context, id: PartId) -> Result<Option<Arc<Part>>, Error> {
    match context.state.with(|state| state.parts.locate(id)) {
        None => Ok(None),
        Some(Located::Part(part)) => Ok(Some(part)),
        located => context.on_worker(Lane::Question, move |store| find_now(store, located, id)).await,
    }
}
