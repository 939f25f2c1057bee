//! The questions about the table: the half of [`Engine`] that changes nothing.

use super::{
    Engine,
    group_by::{calls, output::StoredGroups, spec::GroupBy},
    parts::{
        column_figures::{self, ColumnsPage},
        columns::{self, TableColumns},
    },
    query::shared_sum,
    state::{Lane, transfers::Origin},
    stats::{self, Overview, Stats},
    survey::{
        self,
        answer::Answer,
        names::{self, NameList, SurveyNames},
        question::SurveyQuestion,
    },
};
use crate::{
    error::Error,
    model::{column_sum::ColumnSum, format::Format},
};

impl Engine {
    /// The exact sum of a column over all parts; 0 if none has it.
    ///
    /// Errors: the first cell, in part and row order, that is not an integer; a column of another type; a total that
    /// does not fit in 64 bits; a damaged file; a part that is missing from the table.
    pub async fn column_sum(&self, column: &str, format: Format) -> Result<ColumnSum, Error> {
        shared_sum::column_sum(&self.context, column, format).await
    }

    /// A statistic of the survey: of all parts that have its columns.
    ///
    /// Errors: a question or state that no row with a value has; the first cell, in part and row order, that is no number
    /// where a value is wanted; more groups than there is memory for; a damaged file; a part that is missing from the table.
    pub async fn survey(&self, question: &SurveyQuestion) -> Result<Answer, Error> {
        survey::answer(&self.context, question, Lane::Question, |_parts_done, _parts_count| ()).await
    }

    /// The questions or states of the survey.
    ///
    /// Errors: a damaged file; a part that is missing from the table.
    pub async fn survey_names(&self, list: NameList) -> Result<SurveyNames, Error> {
        names::names(&self.context, list).await
    }

    /// The exact sums of columns over all parts that have all the columns, for each group of rows; of the parts that
    /// there are when its turn has come. Its groups may be read at any pace.
    ///
    /// Errors: as for [`Engine::column_sum`]; a group that is too long for an answer; as many group sums as there may be;
    /// a full disk.
    pub async fn group_sum(&self, origin: Origin, spec: GroupBy) -> Result<StoredGroups, Error> {
        calls::group_sum(&self.context, origin, spec, None).await
    }

    /// The same, of only so many groups: those with the largest totals in the first column that is summed, the largest first,
    /// and equal ones in the order of their cells.
    ///
    /// Errors: those of [`Engine::group_sum`], of any group; these groups take too much memory.
    pub async fn top_groups(&self, origin: Origin, spec: GroupBy, count_max: usize) -> Result<StoredGroups, Error> {
        calls::group_sum(&self.context, origin, spec, Some(count_max)).await
    }

    /// The columns of the table, page by page.
    pub fn table_columns(&self) -> TableColumns {
        columns::table_columns(&self.context)
    }

    /// The figures of the first columns after a name: at most `count_max`, and only as many as fit in a page.
    ///
    /// Errors: a receipt that is damaged or cannot be read.
    pub async fn columns_page(&self, after: Option<String>, count_max: usize) -> Result<ColumnsPage, Error> {
        column_figures::columns_page(&self.context, after, count_max).await
    }

    /// The figures of the whole table. They are counted when parts are added and removed, so this only copies them.
    pub fn overview(&self) -> Overview {
        stats::overview(&self.context)
    }

    /// What the server measures of itself.
    pub async fn stats(&self) -> Result<Stats, Error> {
        stats::stats(&self.context).await
    }

    /// How many parts the table has.
    pub fn parts_count(&self) -> usize {
        self.context.state.with(|state| state.parts.len())
    }
}
