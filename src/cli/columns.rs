//! What a command says about a column that no part has.

use std::{borrow::Cow, fmt::Write};

use strsim::levenshtein;
use tonic::Status;

use super::connect::Connection;
use crate::proto::pb::tally::{ListColumnsRequest, tally_client::TallyClient};

/// Names that are shown.
const NAMES_MAX: usize = 5;
/// Characters of a name that are compared and shown.
const NAME_CHARS_MAX: usize = 64;

/// `no part has a column "n"; the table has " n ", id`, the nearest names first. `None` if a part has the column, or if the
/// server does not know the call.
pub(super) async fn hint(channel: Connection, column: &str) -> Option<String> {
    let mut nearest = Nearest::new(column);
    match collect(channel, &mut nearest).await {
        Ok(()) if !nearest.is_there => Some(nearest.hint()),
        // The sum is right in any case.
        Ok(()) | Err(_) => None,
    }
}

async fn collect(channel: Connection, nearest: &mut Nearest<'_>) -> Result<(), Status> {
    let mut columns = TallyClient::new(channel).list_columns(ListColumnsRequest {}).await?.into_inner();
    while !nearest.is_there
        && let Some(column) = columns.message().await?
    {
        nearest.add(&column.name);
    }
    Ok(())
}

/// The names of a table that are nearest to one that was asked for.
struct Nearest<'a> {
    asked: &'a str,
    is_there: bool,
    count: usize,
    /// The nearest first; names at the same distance are in the order in which they came.
    names: Vec<(usize, String)>,
}

impl<'a> Nearest<'a> {
    fn new(asked: &'a str) -> Self {
        Self { asked, is_there: false, count: 0, names: Vec::new() }
    }

    fn add(&mut self, name: &str) {
        self.is_there |= name == self.asked;
        self.count += 1;
        let distance = levenshtein(&compared(self.asked), &compared(name));
        let rank = self.names.partition_point(|(other, _)| *other <= distance);
        if rank < NAMES_MAX {
            self.names.insert(rank, (distance, name.to_owned()));
            self.names.truncate(NAMES_MAX);
        }
    }

    fn hint(&self) -> String {
        let mut text = format!("no part has a column {}; ", quoted(self.asked));
        if self.names.is_empty() {
            text.push_str("the table has no columns");
            return text;
        }
        text.push_str("the table has ");
        for (index, (_, name)) in self.names.iter().enumerate() {
            text.push_str(if index == 0 { "" } else { ", " });
            text.push_str(&shown(name));
        }
        if self.count > self.names.len() {
            let _a_string_takes_it = write!(text, " and {} more", self.count - self.names.len());
        }
        text
    }
}

/// What is compared of a name: neither white space around it nor case count.
fn compared(name: &str) -> String {
    name.trim().chars().take(NAME_CHARS_MAX).collect::<String>().to_lowercase()
}

/// A name in a list: in quotes if its ends could not be recognised otherwise.
fn shown(name: &str) -> Cow<'_, str> {
    let is_plain = !name.is_empty() && name.trim() == name && !name.contains([',', '"', ';']);
    if is_plain && name.chars().nth(NAME_CHARS_MAX).is_none() { Cow::Borrowed(name) } else { Cow::Owned(quoted(name)) }
}

fn quoted(name: &str) -> String {
    let cut: String = name.chars().take(NAME_CHARS_MAX).collect();
    let end = if cut.len() < name.len() { "…" } else { "" };
    format!("\"{cut}{end}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint_of(asked: &str, names: &[&str]) -> String {
        let mut nearest = Nearest::new(asked);
        names.iter().for_each(|name| nearest.add(name));
        nearest.hint()
    }

    #[test]
    fn the_nearest_names_come_first() {
        assert_eq!(hint_of("n", &["id", " n "]), "no part has a column \"n\"; the table has \" n \", id");
        assert_eq!(
            hint_of("QTY", &["price", "qty", "Qtz"]),
            "no part has a column \"QTY\"; the table has qty, Qtz, price"
        );
        assert_eq!(hint_of("", &["", "a,b"]), "no part has a column \"\"; the table has \"\", \"a,b\"",);
        assert_eq!(hint_of("x", &[]), "no part has a column \"x\"; the table has no columns");
        let names = ["aaaa", "xxxx", "bbbb", "xx", "cccc", "x ", "dddd", "eeee"];
        assert_eq!(
            hint_of("x", &names),
            "no part has a column \"x\"; the table has \"x \", xx, xxxx, aaaa, bbbb and 3 more"
        );
        let long = "y".repeat(1000);
        let shown = hint_of(&long, &[&long[1..]]);
        assert_eq!(shown.matches('…').count(), 2);
        assert!(shown.len() < 250, "{shown}");
    }
}
