//! A question as bytes: its kind, and then its texts, each with its length.

use datafusion::error::Result;
use tally::{
    engine::runtime::{
        group_rows::ValueLayout,
        part_engine::{GroupQuestion, PartQuestion},
    },
    model::format::Format,
};

use super::malformed;

/// What executors are asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    /// About each part by itself.
    Parts(PartQuestion),
    /// About the rows of parts together.
    Groups(GroupQuestion),
}

impl Question {
    /// What the values of groups are made of, if the answer has groups.
    pub fn layout(&self) -> Option<ValueLayout> {
        match self {
            Self::Parts(_) => None,
            Self::Groups(question) => Some(question.layout()),
        }
    }
}

const SUM_OF_CSV: u8 = b'c';
const SUM_OF_PARQUET: u8 = b'p';
const GROUP_SUM: u8 = b'g';
const SURVEY: u8 = b's';

/// The bytes of a question.
pub fn to_bytes(question: &Question) -> Vec<u8> {
    match question {
        Question::Parts(PartQuestion { column, format }) => {
            let kind = match format {
                Format::Csv => SUM_OF_CSV,
                Format::Parquet => SUM_OF_PARQUET,
            };
            bytes_of(kind, &[&[&**column]])
        }
        Question::Groups(GroupQuestion::Sum { by, sum }) => {
            let [by, sum] = [by, sum].map(|names| names.iter().map(String::as_str).collect::<Vec<_>>());
            bytes_of(GROUP_SUM, &[&by, &sum])
        }
        Question::Groups(GroupQuestion::Survey { texts }) => {
            bytes_of(SURVEY, &[&texts.iter().map(String::as_str).collect::<Vec<_>>()])
        }
    }
}

fn bytes_of(kind: u8, lists: &[&[&str]]) -> Vec<u8> {
    let mut bytes = vec![kind];
    let put = |number: usize, bytes: &mut Vec<u8>| bytes.extend((number as u64).to_le_bytes());
    for list in lists {
        put(list.len(), &mut bytes);
        for text in *list {
            put(text.len(), &mut bytes);
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

/// The question of these bytes.
///
/// Errors: [`to_bytes`] did not make them.
pub fn of_bytes(bytes: &[u8]) -> Result<Question> {
    let (kind, mut rest) = bytes.split_first().ok_or_else(|| malformed("an empty question"))?;
    let column_of = |list: Vec<String>| match <[String; 1]>::try_from(list) {
        Ok([text]) => Ok(text),
        Err(list) => Err(malformed(format!("a question with {} texts", list.len()))),
    };
    let question = match *kind {
        SUM_OF_CSV | SUM_OF_PARQUET => {
            let format = if *kind == SUM_OF_CSV { Format::Csv } else { Format::Parquet };
            Question::Parts(PartQuestion { column: column_of(take_list(&mut rest)?)?.into(), format })
        }
        GROUP_SUM => {
            let (by, sum) = (take_list(&mut rest)?, take_list(&mut rest)?);
            Question::Groups(GroupQuestion::Sum { by, sum })
        }
        SURVEY => Question::Groups(GroupQuestion::Survey { texts: take_list(&mut rest)? }),
        _ => return Err(malformed("a question of another kind")),
    };
    match rest.is_empty() {
        true => Ok(question),
        false => Err(malformed("a question with more bytes")),
    }
}

fn take_list(bytes: &mut &[u8]) -> Result<Vec<String>> {
    let count = take_number(bytes)?;
    (0..count).map(|_| take_text(bytes)).collect()
}

fn take_text(bytes: &mut &[u8]) -> Result<String> {
    let len = take_number(bytes)?;
    let (text, rest) = bytes.split_at_checked(len).ok_or_else(|| malformed("a question that ends early"))?;
    *bytes = rest;
    String::from_utf8(text.to_vec()).map_err(|error| malformed(error.to_string()))
}

fn take_number(bytes: &mut &[u8]) -> Result<usize> {
    let (number, rest) = bytes.split_first_chunk().ok_or_else(|| malformed("a question that ends early"))?;
    *bytes = rest;
    usize::try_from(u64::from_le_bytes(*number)).map_err(|error| malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_as_they_are_written() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let questions = [
            Question::Parts(PartQuestion { column: "a".into(), format: Format::Csv }),
            Question::Parts(PartQuestion { column: "".into(), format: Format::Parquet }),
            Question::Groups(GroupQuestion::Sum { by: names(&["", "a,b"]), sum: names(&["ä"]) }),
            Question::Groups(GroupQuestion::Survey { texts: names(&["4", "a question", ""]) }),
        ];
        for question in questions {
            let bytes = to_bytes(&question);
            assert_eq!(of_bytes(&bytes).expect("a question"), question);
            for len in 0..bytes.len() {
                of_bytes(&bytes[..len]).expect_err("cut short");
            }
            of_bytes(&[&bytes[..], &[0]].concat()).expect_err("too long");
        }
        of_bytes(&[SURVEY, 255, 255, 255, 255, 255, 255, 255, 255]).expect_err("a huge list");
    }
}
