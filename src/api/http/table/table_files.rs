//! The handler that lists the files of the table for other engines.

use axum::{
    extract::{Query, State, rejection::QueryRejection},
    response::Response,
};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::table_files_json::{FilesAnswer, FilesReply};
use crate::{
    api::http::{
        problem::{Problem, ProblemDetails},
        surface::Surface,
    },
    model::format::Format,
};

pub(super) fn routes() -> OpenApiRouter<Surface> {
    OpenApiRouter::new().routes(routes!(files))
}

/// Which files are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct FilesQuery {
    /// The format of the files: `parquet` (the default) or `csv`.
    #[param(inline)]
    format: Option<FilesFormat>,
    /// List Parquet files that have rows of removed parts, with the positions of these rows.
    #[param(default = false)]
    with_removed: Option<bool>,
}

/// The format of the files in a list.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum FilesFormat {
    /// Parts of CSV files.
    Csv,
    /// Whole Parquet files.
    Parquet,
}

impl From<FilesFormat> for Format {
    fn from(format: FilesFormat) -> Self {
        match format {
            FilesFormat::Csv => Self::Csv,
            FilesFormat::Parquet => Self::Parquet,
        }
    }
}

/// The files of the data folder that have each row of the table exactly once, as it is at one moment, for other engines. What is
/// replaced later is moved from parts/ to removed/, where it is deleted after 60 s or when this answer has been read, whichever is
/// later.
#[utoipa::path(
    get, path = "/api/v1/table/files", tag = "table", params(FilesQuery),
    responses(
        (status = 200, description = "All of them", body = FilesReply),
        (status = 400, description = "The query is wrong", body = ProblemDetails),
        (status = 409, description = "Removed parts have rows in the files, and with_removed is not true", body = ProblemDetails),
        (status = 429, description = "Too many calls with a long body or answer", body = ProblemDetails)
    )
)]
async fn files(
    State(surface): State<Surface>,
    query: Result<Query<FilesQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(FilesQuery { format, with_removed }) = query?;
    let format = format.map_or(Format::Parquet, Format::from);
    let files = surface.engine.table_files(format, with_removed.unwrap_or(false))?;
    Ok(FilesAnswer::begin(files).await?.into_response())
}
