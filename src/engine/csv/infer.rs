//! Column types, inferred from all cells of a file. Nothing here converts a value.

use super::{
    header::{check_unnamed, stored_names, unnamed_columns},
    rows::{Row, Rows},
    text::text_of,
};
use crate::{
    engine::values::parse::{self, Class},
    error::{
        Error,
        csv::{CellFault, CellPosition, CsvError},
    },
    model::schema::{Column, ColumnType},
};

/// Sees every cell of a file and infers the type of each column. It also refuses cells that are not text.
#[derive(Default)]
pub struct Typer {
    names: Vec<String>,
    columns: Vec<Typing>,
    /// The columns that must be without values.
    unnamed: Vec<usize>,
}

#[derive(Clone, Copy)]
struct Typing {
    class: Class,
    fractional: bool,
    has_values: bool,
    nulls: u64,
}

impl Typer {
    /// The columns in the order of the file, once all rows have been seen. A column without any value is text.
    pub fn into_columns(self) -> Vec<Column> {
        stored_names(&self.names)
            .into_owned()
            .into_iter()
            .zip(self.columns)
            .map(|(name, typing)| Column { name, column_type: typing.column_type(), nulls: typing.nulls })
            .collect()
    }
}

impl Typing {
    fn column_type(self) -> ColumnType {
        match self.class {
            _ if !self.has_values => ColumnType::Utf8,
            class if class.has(Class::INT64) => ColumnType::Int64,
            class if class.has(Class::NUMBER) && self.fractional => ColumnType::Float64,
            class if class.has(Class::BOOLEAN) => ColumnType::Boolean,
            class if class.has(Class::DATE32) => ColumnType::Date32,
            class if class.has(Class::TIMESTAMP) => ColumnType::Timestamp,
            class if class.has(Class::TIMESTAMP_UTC) => ColumnType::TimestampUtc,
            _ => ColumnType::Utf8,
        }
    }

    /// Restricts the column's class to the types of a cell that is not empty.
    fn add(&mut self, text: &[u8]) -> Result<(), CellFault> {
        self.has_values = true;
        let mut class = Class::TEXT;
        if self.class != Class::TEXT {
            class = parse::class(text);
            if class.has(Class::NUMBER) && !self.fractional {
                self.fractional = parse::is_fractional(text);
            }
            self.class = self.class.and(class);
        }
        // Every other class is ASCII without NUL.
        if class == Class::TEXT { text_of(text).map(|_text| ()) } else { Ok(()) }
    }
}

impl Rows for Typer {
    type Error = Error;

    fn header(&mut self, names: &[String]) -> Result<(), Error> {
        self.names = names.to_vec();
        self.unnamed = unnamed_columns(names);
        self.columns = vec![Typing { class: Class::ANY, fractional: false, has_values: false, nulls: 0 }; names.len()];
        Ok(())
    }

    fn row(&mut self, row: Row<'_>) -> Result<(), Error> {
        for (column_index, (text, typing)) in row.cells().zip(&mut self.columns).enumerate() {
            if text.is_empty() {
                typing.nulls += 1;
            } else if let Err(problem) = typing.add(text) {
                let position = CellPosition::new(row.number.into(), column_index, &self.names);
                return Err(CsvError::Cell { position, problem }.into());
            }
        }
        check_unnamed(&row, &self.unnamed)?;
        Ok(())
    }
}
