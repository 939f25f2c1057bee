//! Unit tests of the error texts.

use super::{
    Error, GroupByError,
    csv::{CellFault, CellProblem, CsvError, Place},
    quoted::Quoted,
};
use crate::model::part::PartId;

#[test]
fn user_text_is_escaped_and_cut() {
    assert_eq!(Quoted("a\nb\u{1b}[31m'\"").to_string(), r#""a\nb\u{1b}[31m'\"""#);
    assert_eq!(Quoted(&"é".repeat(65)).to_string(), format!("\"{}…\"", "é".repeat(64)));
    assert_eq!(Quoted(&"é".repeat(64)).to_string(), format!("\"{}\"", "é".repeat(64)));
}

#[test]
fn no_text_of_a_user_makes_a_message_long() {
    let longest = |text: &str| {
        let text = text.repeat(100_000);
        let cell = || text.clone();
        let place = || Place { row: u64::MAX, column_index: usize::MAX, column: Some(cell()) };
        let part = PartId::new(u64::MAX).expect("above 0");
        let (row, problem) = (u64::MAX, CellProblem::NotANumber);
        let errors = [
            Error::GroupOverflow { group: vec![cell(); 64], column: cell(), total: i128::MIN },
            Error::GroupTooLong { group: vec![cell(); 64], bytes_max: usize::MAX },
            Error::SumOverflow { column: cell(), total: i128::MIN },
            Error::Cell { part, row, column: cell(), cell: cell(), problem },
            Error::NoSuchState { question: cell(), state: cell() },
            CsvError::Summand { row, column: cell(), cell: cell(), problem }.into(),
            CsvError::Cell { place: place(), problem: CellFault::NotUtf8 }.into(),
            GroupByError::List { list: cell(), problem: CellFault::UnclosedQuote }.into(),
        ];
        errors.iter().map(|error| error.to_string().len()).max().expect("some")
    };
    for text in ["a", "é", "漢", "\u{10ffff}", "\n", "\"", "'"] {
        assert!(longest(text) < 1024, "{text:?}: {} bytes", longest(text));
    }
    let group = ["a", "b", "c", "d", "e"].map(String::from).to_vec();
    let error = Error::GroupOverflow { group, column: "n".to_owned(), total: 1 << 63 };
    let expected = r#"group "a", "b", "c", "d", …, column "n": the sum 9223372036854775808 does not fit in 64 bits"#;
    assert_eq!(error.to_string(), expected);
}

#[test]
fn positions_read_as_promised() {
    let cell = |row, column: Option<&str>| {
        let place = Place { row, column_index: 2, column: column.map(String::from) };
        CsvError::Cell { place, problem: CellFault::Nul }.to_string()
    };
    assert_eq!(cell(7, Some("qty")), "row 7, column \"qty\": a NUL byte");
    assert_eq!(cell(0, None), "header, column 3: a NUL byte");
    let ragged = CsvError::Ragged { row: 7, cells: 3, header_cells: 4 };
    assert_eq!(ragged.to_string(), "row 7 has 3 cells, the header has 4");
}
