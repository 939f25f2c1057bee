//! Unit tests of the error texts.

use super::{
    ColumnPosition, Error, Position,
    column_sum::ColumnSumError,
    csv::{CellFault, CellPosition, CellProblem, CsvError, FileRow},
    foreign_file::Use,
    group_by::GroupByError,
    quoted::Quoted,
    statistics::StatisticsError,
};
use crate::model::part::PartId;

#[test]
fn user_text_is_escaped_and_cut() {
    assert_eq!(Quoted("a\nb\u{1b}[31m'\"").to_string(), r#""a\nb\u{1b}[31m'\"""#);
    assert_eq!(Quoted(&"é".repeat(65)).to_string(), format!("\"{}…\"", "é".repeat(64)));
    assert_eq!(Quoted(&"é".repeat(64)).to_string(), format!("\"{}\"", "é".repeat(64)));
}

#[test]
fn messages_are_short_whatever_the_text_of_a_user() {
    let longest = |text: &str| {
        let text = text.repeat(100_000);
        let cell = || text.clone();
        let file_row = FileRow { number: u64::MAX, line: Some(u64::MAX) };
        let position = || CellPosition { row: file_row, column_index: usize::MAX, column: Some(cell()) };
        let part = PartId::new(u64::MAX).expect("above 0");
        let (row, problem) = (u64::MAX, CellProblem::NotANumber);
        let errors = [
            GroupByError::GroupOverflow { group: vec![cell(); 64], column: cell(), total: i128::MIN }.into(),
            GroupByError::GroupTooLong { group: vec![cell(); 64], bytes_max: usize::MAX }.into(),
            ColumnSumError::Overflow { column: cell(), total: i128::MIN }.into(),
            Error::Cell { part, row, column: cell(), cell: cell(), problem },
            StatisticsError::NoSuchState { question: cell(), state: cell() }.into(),
            CsvError::Summand { row: file_row, column: cell(), cell: cell(), problem }.into(),
            CsvError::Cell { position: position(), problem: CellFault::NotUtf8 { byte: 0xff, used_for: Use::Upload } }
                .into(),
            GroupByError::List { list: cell(), problem: CellFault::UnclosedQuote }.into(),
        ];
        errors.iter().map(|error| error.to_string().len()).max().expect("some")
    };
    for text in ["a", "é", "漢", "\u{10ffff}", "\n", "\"", "'"] {
        assert!(longest(text) < 1024, "{text:?}: {} bytes", longest(text));
    }
    let group = ["a", "b", "c", "d", "e"].map(String::from).to_vec();
    let error = GroupByError::GroupOverflow { group, column: "n".to_owned(), total: 1 << 63 };
    let expected = r#"group "a", "b", "c", "d", …, column "n": the sum 9223372036854775808 does not fit in 64 bits"#;
    assert_eq!(error.to_string(), expected);
}

#[test]
fn positions_in_messages() {
    let cell = |row: u64, column: Option<&str>| {
        let position = CellPosition { row: row.into(), column_index: 2, column: column.map(String::from) };
        CsvError::Cell { position, problem: CellFault::Nul }.to_string()
    };
    assert_eq!(cell(7, Some("qty")), "row 7, column \"qty\": a NUL byte");
    assert_eq!(cell(0, None), "header, column 3: a NUL byte");
    let ragged = CsvError::Ragged {
        row: 7.into(),
        cells: 3,
        header_cells: 4,
        first_extra: 4,
        extra_are_empty: false,
        used_for: Use::Upload,
    };
    assert_eq!(ragged.to_string(), "row 7 has 3 cells, the header has 4");
    assert_eq!(ragged.on_line(12).to_string(), "row 7 (line 12) has 3 cells, the header has 4");
}

#[test]
fn positions_are_data() {
    let column = Some(ColumnPosition::Name("qty"));
    let summand = |row: u64| CsvError::Summand {
        row: row.into(),
        column: "qty".to_owned(),
        cell: "x".to_owned(),
        problem: CellProblem::NotAnInteger,
    };
    let error = Error::from(summand(7).after_rows(100));
    assert_eq!(error.position(), Position { part: None, row: Some(107), line: None, column });
    let error = Error::from(summand(7).after_rows(100).on_line(205));
    assert_eq!(error.position(), Position { part: None, row: Some(107), line: Some(205), column });
    let part = PartId::FIRST;
    let (cell, problem) = ("x".to_owned(), CellProblem::NotAnInteger);
    let error = Error::Cell { part, row: 7, column: "qty".to_owned(), cell, problem };
    assert_eq!(error.position(), Position { part: Some(part), row: Some(7), line: None, column });
    let position = CellPosition { row: FileRow::HEADER, column_index: 2, column: None };
    let error = Error::from(CsvError::Cell { position, problem: CellFault::Nul });
    let column = Some(ColumnPosition::Index(2));
    assert_eq!(error.position(), Position { part: None, row: Some(0), line: None, column });
    assert_eq!(Error::Draining.position(), Position::default());
}
