//! The parameters of a question in a request's query, read one by one, so that an error names the one that is wrong.

use std::{fmt::Display, ops::RangeInclusive, str::FromStr};

use axum::extract::{Query, rejection::QueryRejection};

use crate::{api::http::problem::Problem, error::quoted::Quoted};

/// The parameters of a query, as they are extracted.
pub(super) type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// The parameters of a query. All have known names.
#[derive(Debug)]
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Errors: a parameter with another name than these.
    pub(super) fn of(pairs: Pairs, names: &[&str]) -> Result<Self, Problem> {
        let Query(pairs) = pairs?;
        match pairs.iter().find(|(name, _)| !names.contains(&name.as_str())) {
            Some((name, _)) => {
                let all = names.join(", ");
                Err(Problem::bad_request("query", format!("there is no parameter {}: there are {all}", Quoted(name))))
            }
            None => Ok(Self(pairs)),
        }
    }

    /// All values of a parameter that may be repeated.
    pub(super) fn all(&mut self, name: &str) -> Vec<String> {
        self.0.extract_if(.., |(given, _)| given == name).map(|(_, text)| text).collect()
    }

    /// The value of a parameter. Errors: it occurs twice.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<String>, Problem> {
        let mut all = self.all(name).into_iter();
        match (all.next(), all.next()) {
            (_, Some(_)) => Err(Problem::bad_request(name, "it occurs twice")),
            (text, None) => Ok(text),
        }
    }

    /// Errors: there is none; it occurs twice.
    pub(super) fn required(&mut self, name: &'static str) -> Result<String, Problem> {
        self.text(name)?.ok_or_else(|| Problem::bad_request(name, format!("the parameter {name} is missing")))
    }

    /// A whole number. Errors: it is no number, or not in this range.
    pub(super) fn number<N>(&mut self, name: &'static str, range: RangeInclusive<N>) -> Result<Option<N>, Problem>
    where
        N: FromStr + PartialOrd + Display,
    {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let number = text.parse().ok().filter(|number| range.contains(number));
        let (least, greatest) = range.into_inner();
        let wrong =
            || Problem::bad_request(name, format!("{}: it is a number from {least} to {greatest}", Quoted(&text)));
        number.ok_or_else(wrong).map(Some)
    }

    /// One of these words. Errors: another one.
    pub(super) fn choice<T: Copy>(&mut self, name: &'static str, choices: &[(&str, T)]) -> Result<Option<T>, Problem> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let found = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        let wrong = || Problem::bad_request(name, format!("{}: it is {}", Quoted(&text), words.join(" or ")));
        found.ok_or_else(wrong).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(query: &str) -> Result<Parameters, Problem> {
        let uri = format!("/?{query}").parse().expect("a URI");
        Parameters::of(Query::try_from_uri(&uri), &["by", "limit", "format"])
    }

    #[test]
    fn errors_name_the_parameter() {
        let limit = |query| parameters(query).and_then(|mut found| found.number("limit", 1..=10_u64));
        let format = |query| parameters(query).and_then(|mut found| found.choice("format", &[("csv", 1), ("json", 2)]));
        assert_eq!(limit("limit=10&by=a&by=b").expect("valid"), Some(10));
        assert_eq!(limit("").expect("valid"), None);
        assert_eq!(format("format=json").expect("valid"), Some(2));
        assert_eq!(parameters("by=a%26&by=&by=%2C").expect("valid").all("by"), ["a&", "", ","]);
        for (error, field, message) in [
            (limit("limit=0").expect_err("0"), "limit", "\"0\": it is a number from 1 to 10"),
            (limit("limit=-1").expect_err("-1"), "limit", "\"-1\": it is a number from 1 to 10"),
            (limit("limit=").expect_err("empty"), "limit", "\"\": it is a number from 1 to 10"),
            (limit("limit=1&limit=1").expect_err("twice"), "limit", "it occurs twice"),
            (
                limit("limits=1").expect_err("unknown"),
                "query",
                "there is no parameter \"limits\": there are by, limit, format",
            ),
            (format("format=CSV").expect_err("unknown"), "format", "\"CSV\": it is csv or json"),
        ] {
            assert_eq!(error.field_and_detail(), (Some(field), message));
        }
        let missing = parameters("").expect("valid").required("by").expect_err("missing");
        assert_eq!(missing.field_and_detail(), (Some("by"), "the parameter by is missing"));
    }
}
