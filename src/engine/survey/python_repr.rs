//! Formats tuples of strings as Python's `repr` does. The original servers use such texts as JSON keys.

use std::fmt::Write;

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// The most bytes that `repr` makes of one byte: `\x7f` has four. (`\U0010ffff` has ten, for four bytes.)
pub const REPR_BYTES_PER_BYTE: usize = 4;

/// `repr` of a tuple of at least two strings: `('Ohio', "it's")`.
pub fn tuple_repr(texts: &[&str]) -> String {
    let mut repr = String::from("(");
    for (index, text) in texts.iter().enumerate() {
        if index > 0 {
            repr.push_str(", ");
        }
        push_repr(&mut repr, text);
    }
    repr.push(')');
    repr
}

/// Appends `repr` of a string.
fn push_repr(repr: &mut String, text: &str) {
    // Double quotes only if the text has single quotes and no double quotes.
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    repr.push(quote);
    for c in text.chars() {
        let code = u32::from(c);
        let written = match c {
            '\n' => write!(repr, "\\n"),
            '\r' => write!(repr, "\\r"),
            '\t' => write!(repr, "\\t"),
            '\\' => write!(repr, "\\\\"),
            c if c == quote => write!(repr, "\\{c}"),
            c if is_printable(c) => write!(repr, "{c}"),
            _ if code < 0x100 => write!(repr, "\\x{code:02x}"),
            _ if code < 0x1_0000 => write!(repr, "\\u{code:04x}"),
            _ => write!(repr, "\\U{code:08x}"),
        };
        debug_assert!(written.is_ok(), "writing to a string cannot fail");
    }
    repr.push(quote);
}

/// As Python's `str.isprintable`: not in the categories "Other" and "Separator", except for the space. The result for new
/// characters depends on the version of Unicode.
fn is_printable(c: char) -> bool {
    use GeneralCategory as Category;
    if c.is_ascii() {
        return (' '..='~').contains(&c);
    }
    !matches!(
        c.general_category(),
        Category::Control
            | Category::Format
            | Category::Surrogate
            | Category::PrivateUse
            | Category::Unassigned
            | Category::LineSeparator
            | Category::ParagraphSeparator
            | Category::SpaceSeparator
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected texts are what `repr` of Python 3.11 printed.
    #[test]
    fn texts_are_quoted_and_escaped_as_python_does() {
        let cases = [
            ("Ohio", "'Ohio'"),
            ("", "''"),
            ("$15,000 - $24,999", "'$15,000 - $24,999'"),
            ("it's", "\"it's\""),
            ("say \"hi\"", "'say \"hi\"'"),
            ("it's \"both\"", "'it\\'s \"both\"'"),
            ("back\\slash", "'back\\\\slash'"),
            ("a\nb\rc\td", "'a\\nb\\rc\\td'"),
            ("\u{1}\u{1f}\u{7f}", "'\\x01\\x1f\\x7f'"),
            ("\u{80}\u{a0}\u{ad}", "'\\x80\\xa0\\xad'"),
            ("é ñ 数 😀", "'é ñ 数 😀'"),
            ("e\u{301}", "'e\u{301}'"),
            ("\u{200b}\u{2028}\u{2029}\u{3000}", "'\\u200b\\u2028\\u2029\\u3000'"),
            ("\u{e000}\u{feff}\u{ffff}", "'\\ue000\\ufeff\\uffff'"),
            ("\u{e0001}\u{10ffff}", "'\\U000e0001\\U0010ffff'"),
        ];
        for (text, expected) in cases {
            assert_eq!(tuple_repr(&[text, "x"]), format!("({expected}, 'x')"), "{text:?}");
            let quotes_and_commas = 12;
            assert!(tuple_repr(&[text, "x"]).len() <= REPR_BYTES_PER_BYTE * (text.len() + 1) + quotes_and_commas);
        }
        assert_eq!(tuple_repr(&["Ohio", "Income", "$15,000 - $24,999"]), "('Ohio', 'Income', '$15,000 - $24,999')");
    }
}
