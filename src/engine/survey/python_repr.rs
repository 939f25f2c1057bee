//! Python's way to print a tuple of strings, which the statistics have as keys. Pure text, nothing of tables.

use std::fmt::Write;

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// Bytes that one byte of text can become: `\x7f` for one, `\U0010ffff` for four.
pub const REPR_BYTES_PER_BYTE: usize = 4;

/// What `repr` of Python 3 gives for a tuple of two strings or more: `('Ohio', "it's")`.
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

/// `repr` of a string (the documentation of `str.isprintable` says what is escaped).
fn push_repr(repr: &mut String, text: &str) {
    // Single quotes, unless that would escape one and double quotes would escape none.
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
        debug_assert!(written.is_ok(), "a string takes every text");
    }
    repr.push(quote);
}

/// What is neither of the categories "Other" nor, but for the space, "Separator". Which characters Unicode has assigned
/// is a matter of its version, in Python as here.
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
