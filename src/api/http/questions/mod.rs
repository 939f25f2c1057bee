//! Questions about the table over HTTP. Errors are problem details.

mod group_answer;
mod json;
mod parameters;

use std::time::Instant;

use axum::{Json, extract::State, http::Extensions, response::Response};
use utoipa_axum::{router::OpenApiRouter, routes};

use self::{
    group_answer::GroupAnswer,
    json::{
        ColumnsQuery, GroupsQuery, QuestionsQuery, StatesQuery, SumQuery, SurveyQuestions, SurveyStates, TableColumns,
        TableGroups, TableOverview, TableSum, to_format, to_groups,
    },
    parameters::{Pairs, Parameters},
};
use super::{
    no_query::NoQuery,
    problem::{Problem, ProblemDetails},
    surface::Surface,
};
use crate::{
    api::caller::Caller,
    engine::survey::names::NameList,
    limits::{COLUMNS_LISTED_MAX, SURVEY_LISTED_MAX},
};

pub(super) fn routes() -> OpenApiRouter<Surface> {
    OpenApiRouter::new()
        .routes(routes!(overview))
        .routes(routes!(columns))
        .routes(routes!(sum))
        .routes(routes!(groups))
        .routes(routes!(survey_questions))
        .routes(routes!(survey_states))
}

/// The figures of the whole table. They are counted when parts are added and removed, so this reads no file.
#[utoipa::path(
    get, path = "/api/v1/table", tag = "table",
    responses(
        (status = 200, description = "The figures", body = TableOverview),
        (status = 400, description = "The request has query parameters", body = ProblemDetails)
    )
)]
async fn overview(State(surface): State<Surface>, _no_query: NoQuery) -> Json<TableOverview> {
    Json(surface.engine.overview().into())
}

/// The columns of the table, sorted by the bytes of their names: types, parts, rows, empty cells, bytes as Parquet.
#[utoipa::path(
    get, path = "/api/v1/table/columns", tag = "table", params(ColumnsQuery),
    responses(
        (status = 200, description = "Some columns; `next` is where the others begin", body = TableColumns),
        (status = 400, description = "A parameter is wrong", body = ProblemDetails)
    )
)]
async fn columns(State(surface): State<Surface>, query: Pairs) -> Result<Json<TableColumns>, Problem> {
    let mut query = Parameters::of(query, &["after", "limit"])?;
    let limit = query.number("limit", 1..=COLUMNS_LISTED_MAX)?.unwrap_or(COLUMNS_LISTED_MAX);
    let page = surface.engine.columns_page(query.text("after")?, limit).await?;
    Ok(Json(page.into()))
}

/// The exact sum of a column, with the time and the bytes that it took. A column that no part has has the sum 0.
#[utoipa::path(
    get, path = "/api/v1/table/sum", tag = "table", params(SumQuery),
    responses(
        (status = 200, description = "The sum", body = TableSum),
        (status = 400, description = "A parameter is wrong; a cell is no integer; the sum does not fit in 64 bits", body = ProblemDetails)
    )
)]
async fn sum(State(surface): State<Surface>, query: Pairs) -> Result<Json<TableSum>, Problem> {
    let mut query = Parameters::of(query, &["column", "format"])?;
    let (column, format) = (query.required("column")?, to_format(&mut query)?);
    let started = Instant::now();
    let sum =
        surface.engine.column_sum(&column, format).await.map_err(|error| Problem::from(error).of_input("column"))?;
    Ok(Json(TableSum::of(column, format, sum, started.elapsed(), surface.engine.parts_count())))
}

/// Exact sums for each group: the rows with the same cells in the columns to group by. Only parts that have all named columns
/// are read. All sums are complete before the first byte is sent.
#[utoipa::path(
    get, path = "/api/v1/table/groups", tag = "table", params(GroupsQuery),
    responses(
        (
            status = 200, description = "The groups",
            content(
                (TableGroups = "application/json"),
                (String = "application/x-ndjson", example = json!({"key": ["a"], "totals": [12]})),
                (String = "text/csv; charset=utf-8")
            )
        ),
        (status = 400, description = "A parameter is wrong; a cell is no integer; a sum does not fit in 64 bits", body = ProblemDetails),
        (status = 429, description = "Too many group sums, or too many calls with a long body or answer", body = ProblemDetails)
    )
)]
async fn groups(State(surface): State<Surface>, query: Pairs, extensions: Extensions) -> Result<Response, Problem> {
    let (asked, Caller { origin, .. }) = (to_groups(query)?, Caller::of(&extensions));
    let (by, sum) = (asked.spec.by().to_vec(), asked.spec.sum().to_vec());
    let started = Instant::now();
    let groups = match asked.top {
        Some(count) => surface.engine.top_groups(origin, asked.spec, count).await,
        None => surface.engine.group_sum(origin, asked.spec).await,
    };
    Ok(GroupAnswer::new(groups?, asked.format, by, sum, asked.limit, started.elapsed()).into_response())
}

/// The questions of the survey that have rows with a value, over all parts of the table.
#[utoipa::path(
    get, path = "/api/v1/survey/questions", tag = "statistics", params(QuestionsQuery),
    responses(
        (status = 200, description = "The questions, sorted by the bytes of their texts", body = SurveyQuestions),
        (status = 400, description = "A parameter is wrong", body = ProblemDetails)
    )
)]
async fn survey_questions(State(surface): State<Surface>, query: Pairs) -> Result<Json<SurveyQuestions>, Problem> {
    let mut query = Parameters::of(query, &["limit"])?;
    let limit = query.number("limit", 1..=SURVEY_LISTED_MAX)?.unwrap_or(SURVEY_LISTED_MAX);
    let names = surface.engine.survey_names(NameList::Questions).await?;
    Ok(Json(SurveyQuestions::of(names, limit)))
}

/// The states that have rows with a value: of one question, or of all.
#[utoipa::path(
    get, path = "/api/v1/survey/states", tag = "statistics", params(StatesQuery),
    responses(
        (status = 200, description = "The states, sorted by the bytes of their names", body = SurveyStates),
        (status = 400, description = "A parameter is wrong", body = ProblemDetails)
    )
)]
async fn survey_states(State(surface): State<Surface>, query: Pairs) -> Result<Json<SurveyStates>, Problem> {
    let question = Parameters::of(query, &["question"])?.text("question")?;
    let names = surface.engine.survey_names(NameList::States { question }).await?;
    Ok(Json(names.into()))
}
