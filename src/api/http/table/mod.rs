//! The table over HTTP: its parts, one by one and in lists. Errors are problem details.

mod dialect;
mod files;
mod ids;
mod lists;
mod parts;
mod parts_json;
mod table_files;
mod table_files_json;
mod upload;
mod wide_receipt;

use utoipa_axum::router::OpenApiRouter;

pub(super) use self::ids::checked_limit;
use super::surface::Surface;

pub(super) fn routes() -> OpenApiRouter<Surface> {
    upload::routes().merge(lists::routes()).merge(parts::routes()).merge(files::routes()).merge(table_files::routes())
}
