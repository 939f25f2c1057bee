//! The query parameters that describe the dialect of an uploaded file.

use utoipa::IntoParams;

use crate::{
    api::http::problem::Problem,
    error::{Error, quoted::Quoted},
    model::dialect::{Dialect, InvalidDialect, NullTexts},
};

/// What distinguishes a file from plain CSV, for the OpenAPI. Without parameters it is stored byte for byte.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "it describes the parameters for the OpenAPI")]
pub(super) struct DialectQuery {
    /// What separates cells: one ASCII character, or `tab`.
    #[param(example = ";")]
    delimiter: Option<String>,
    /// The encoding, by a name of the WHATWG Encoding Standard.
    #[param(example = "windows-1252")]
    encoding: Option<String>,
    /// A cell with this text has no value; may be repeated.
    #[param(explode, style = Form)]
    null: Option<Vec<String>>,
    /// White space around names and cells is removed.
    trim: Option<bool>,
    /// Empty cells beyond the last column that has a name are removed.
    drop_trailing_empty: Option<bool>,
    /// `gzip`, `zstd`, or `auto`: one of these if the file begins like it.
    #[param(example = "auto")]
    decompress: Option<String>,
}

/// The dialect that the parameters of a request describe; `None` if there are none.
///
/// Errors: a parameter that does not exist, that occurs twice, or whose value is not allowed.
pub(super) fn to_dialect(parameters: Vec<(String, String)>) -> Result<Option<Dialect>, Problem> {
    if parameters.is_empty() {
        return Ok(None);
    }
    let (mut dialect, mut null, mut seen) = (Dialect::default(), Vec::new(), Vec::new());
    for (name, text) in parameters {
        let field = match name.as_str() {
            "delimiter" => "delimiter",
            "encoding" => "encoding",
            "null" => "null",
            "trim" => "trim",
            "drop_trailing_empty" => "drop_trailing_empty",
            "decompress" => "decompress",
            _ => {
                let allowed = "delimiter, encoding, null, trim, drop_trailing_empty and decompress";
                let detail = format!("there is no parameter {}: there are {allowed}", Quoted(&name));
                return Err(Problem::bad_request("query", detail));
            }
        };
        if field != "null" && seen.contains(&field) {
            return Err(Problem::bad_request(field, format!("{field}: it occurs twice")));
        }
        seen.push(field);
        let invalid = |error: InvalidDialect| Problem::from(Error::from(error)).of_field(field);
        match field {
            "delimiter" => dialect.delimiter = Some(text.parse().map_err(invalid)?),
            "encoding" => dialect.encoding = Some(text.parse().map_err(invalid)?),
            "trim" => dialect.trim = to_flag(field, text).map_err(invalid)?,
            "drop_trailing_empty" => dialect.drop_trailing_empty = to_flag(field, text).map_err(invalid)?,
            "decompress" => dialect.decompress = Some(text.parse().map_err(invalid)?),
            _ => null.push(text),
        }
    }
    dialect.null = NullTexts::new(null).map_err(|error| Problem::from(Error::from(error)).of_field("null"))?;
    Ok(Some(dialect))
}

/// `?trim` alone means `?trim=true`.
fn to_flag(option: &'static str, text: String) -> Result<bool, InvalidDialect> {
    match text.as_str() {
        "" | "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(InvalidDialect::Flag { option, text }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialect_of(parameters: &[(&str, &str)]) -> Result<Option<Dialect>, (Option<&'static str>, String)> {
        let parameters = parameters.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        to_dialect(parameters.collect()).map_err(|problem| {
            let (field, detail) = problem.field_and_detail();
            (field, detail.to_owned())
        })
    }

    #[test]
    fn parameters_of_a_dialect() {
        assert_eq!(dialect_of(&[]), Ok(None));
        let found =
            dialect_of(&[("delimiter", "tab"), ("null", "NA"), ("null", "-"), ("trim", ""), ("encoding", "latin1")]);
        let found = found.expect("valid").expect("some");
        assert!(found.trim && !found.drop_trailing_empty && found.null.has(b"NA") && found.null.has(b"-"));
        assert_eq!(found.encoding.map(|encoding| encoding.to_string()).as_deref(), Some("windows-1252"));
        for (parameters, field, message) in [
            (&[("delimiter", ";;")][..], "delimiter", "delimiter \";;\": it is one ASCII character"),
            (&[("encoding", "x")], "encoding", "encoding \"x\": it is a name of"),
            (&[("decompress", "xz")], "decompress", "decompress \"xz\": it is gzip, zstd or auto"),
            (&[("trim", "1")], "trim", "trim \"1\": it is true or false"),
            (&[("trim", ""), ("trim", "")], "trim", "trim: it occurs twice"),
            (&[("separator", ";")], "query", "there is no parameter \"separator\": there are delimiter, encoding"),
        ] {
            let error = dialect_of(parameters).expect_err("refused");
            assert!(error.0 == Some(field) && error.1.starts_with(message), "{error:?}");
        }
    }
}
