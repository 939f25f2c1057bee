//! How results and errors are printed. Text from users and servers is made safe for a terminal here.

use std::{
    borrow::Cow,
    fmt::Display,
    io::{self, Write},
};

use indicatif::ProgressStyle;
use serde::Serialize;

/// Prints one line on standard error. If standard error is closed, only the exit code tells.
pub(super) fn print_error(text: impl Display) {
    let _ = writeln!(io::stderr(), "error: {}", escaped(&text.to_string()));
}

/// Prints one line on standard error that is no error.
pub(super) fn print_note(text: impl Display) {
    let _ = writeln!(io::stderr(), "{}", escaped(&text.to_string()));
}

/// Writes `value` as JSON on one line. JSON allows DEL, C1 and direction marks inside a string, but a terminal may act on
/// them, so they are written as JSON's own escapes.
pub(super) fn write_json(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_string(value)?;
    let safe = replaced(&json, |c| format!("\\u{:04x}", u32::from(c)));
    writeln!(out, "{safe}")
}

/// Makes text safe for a terminal: characters that would move the cursor, change colours or reverse the reading direction
/// become escapes (`\n`, `\u{1b}`).
pub(super) fn escaped(text: &str) -> Cow<'_, str> {
    replaced(text, |c| c.escape_default().to_string())
}

fn replaced(text: &str, escape: impl Fn(char) -> String) -> Cow<'_, str> {
    if !text.contains(acts_on_terminals) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts_on_terminals(c) {
            safe.push_str(&escape(c));
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// The style of a progress bar. The templates are constants of this program; a wrong one becomes indicatif's default bar.
pub(super) fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_invalid| ProgressStyle::default_bar())
}

/// `1 row`, `2 rows`.
pub(super) fn rows_text(rows_count: u64) -> String {
    format!("{rows_count} {}", if rows_count == 1 { "row" } else { "rows" })
}

/// Whether it is a control character, or one of Unicode's separators and direction marks that make a line read differently.
fn acts_on_terminals(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_act_on_a_terminal() {
        let cases = [
            ("plain, ünïcode, 数, \"quoted\"", "plain, ünïcode, 数, \"quoted\""),
            ("a\nb\tc\r", "a\\nb\\tc\\r"),
            ("\x1b[31mred\x07", "\\u{1b}[31mred\\u{7}"),
            ("del\x7f csi\u{9b}2J", "del\\u{7f} csi\\u{9b}2J"),
            ("\u{202e}gpj.exe\u{2066}", "\\u{202e}gpj.exe\\u{2066}"),
        ];
        for (text, expected) in cases {
            assert_eq!(escaped(text), expected);
        }
    }

    #[test]
    fn json_cannot_act_on_a_terminal_and_says_the_same() -> Result<(), Box<dyn std::error::Error>> {
        let text = "\x1b[2J \u{9b}2J \x7f \u{202e} \"quoted\" \\ \n ü";
        let mut line = Vec::new();
        write_json(&mut line, &text)?;
        let line = String::from_utf8(line)?;
        assert!(!line.trim_end_matches('\n').contains(acts_on_terminals), "{line:?}");
        assert_eq!(serde_json::from_str::<String>(&line)?, text);
        Ok(())
    }
}
