//! The file of `--token-file`: one token in a line, `NAME SCOPE HASH`. Empty lines, and lines that begin with `#`, mean nothing.

use std::fmt;

use subtle::ConditionallySelectable;

use super::{
    identity::{ADMIN_TOKEN_NAME, Identity},
    scope::Scope,
    secret::{Secret, SecretHash},
};
use crate::limits::{TOKEN_NAME_BYTES_MAX, TOKENS_MAX};

/// All tokens that a server knows.
#[derive(Debug)]
pub(crate) struct Tokens(Vec<Token>);

#[derive(Debug)]
struct Token {
    identity: Identity,
    hash: SecretHash,
}

/// What is wrong with a token file, and where.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenFileError {
    #[error("line {line}: {what}")]
    Line { line: usize, what: String },
    #[error("it has no token: add the line that `tally token new NAME --scope write` prints")]
    Empty,
}

impl Tokens {
    /// Parses the text of a token file.
    pub(crate) fn parse(text: &str) -> Result<Self, TokenFileError> {
        let mut tokens: Vec<Token> = Vec::new();
        // Some editors begin each file with a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let wrong = |what: String| TokenFileError::Line { line, what };
            let token = Token::parse(text).map_err(wrong)?;
            let name = &token.identity.name;
            if **name == *ADMIN_TOKEN_NAME {
                return Err(wrong(format!("{name} is the name of the token of --admin-token-file: choose another")));
            }
            if tokens.iter().any(|other| other.identity.name == *name) {
                return Err(wrong(format!("another line has the name {name}: give each token its own")));
            }
            if tokens.iter().any(|other| bool::from(other.hash.equals(&token.hash))) {
                return Err(wrong("another line has this hash: make each token with `tally token new`".to_owned()));
            }
            if tokens.len() == TOKENS_MAX {
                return Err(wrong(format!("there are more than {TOKENS_MAX} tokens: remove those that nobody uses")));
            }
            tokens.push(token);
        }
        if tokens.is_empty() { Err(TokenFileError::Empty) } else { Ok(Self(tokens)) }
    }

    /// Keeps what the tokens of these names have used.
    pub(crate) fn keep_accounts_of(&mut self, before: &Self) {
        for Token { identity, .. } in &mut self.0 {
            if let Some(known) = before.with_name(&identity.name) {
                identity.account = known.account;
            }
        }
    }

    pub(crate) fn identities(&self) -> impl Iterator<Item = &Identity> {
        self.0.iter().map(|token| &token.identity)
    }

    /// All tokens with the hashes of their secrets.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn entries(&self) -> impl Iterator<Item = (&Identity, &SecretHash)> {
        self.0.iter().map(|token| (&token.identity, &token.hash))
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Who has this secret. All tokens are compared, whichever it is, so that the time tells nothing.
    pub(crate) fn with_secret(&self, secret: &SecretHash) -> Option<Identity> {
        let none = u32::MAX;
        let mut found = none;
        for (index, token) in (0..).zip(&self.0) {
            found.conditional_assign(&index, token.hash.equals(secret));
        }
        self.0.get(usize::try_from(found).ok()?).map(|token| token.identity.clone())
    }

    /// The token of this name, which a certificate has proved.
    pub(crate) fn with_name(&self, name: &str) -> Option<Identity> {
        self.identities().find(|identity| &*identity.name == name).cloned()
    }
}

impl Token {
    fn parse(line: &str) -> Result<Self, String> {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let &[name, scope, hash] = &words[..] else {
            return Err(format!("expected `NAME SCOPE HASH`, found {} words", words.len()));
        };
        let scope = scope.parse()?;
        let hash = SecretHash::parse(hash).ok_or("the hash must have 64 hexadecimal digits")?;
        Ok(Self { identity: Identity::new(checked_name(name)?, scope), hash })
    }
}

/// A token's name. It is in logs, metrics and certificates.
pub(crate) fn checked_name(text: &str) -> Result<&str, String> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !text.is_empty() && text.len() <= TOKEN_NAME_BYTES_MAX && text.bytes().all(is_name) {
        return Ok(text);
    }
    Err(format!("a name has 1 to {TOKEN_NAME_BYTES_MAX} letters of a-z and A-Z, digits, `-`, `_` and `.`"))
}

/// The line of a new token.
pub(crate) struct NewLine<'a> {
    pub(crate) name: &'a str,
    pub(crate) scope: Scope,
    pub(crate) secret: &'a Secret,
}

impl fmt::Display for NewLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.name, self.scope, self.secret.hash())
    }
}

/// Whether a text looks like a token file, and not like a secret: one line of it is a token.
pub(crate) fn is_token_file(text: &str) -> bool {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    text.lines().any(|line| Token::parse(line.trim()).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(secret: &str) -> String {
        SecretHash::of(secret.as_bytes()).to_string()
    }

    #[test]
    fn a_token_is_found_by_its_secret_and_by_its_name() {
        let text = format!(
            "# who may do what\n\ningest write {}\n  ops.1\tadmin   {}\r\n_view-er read {}",
            hash("one"),
            hash("two"),
            hash("three").to_uppercase()
        );
        let tokens = Tokens::parse(&text).expect("a token file");
        assert_eq!(tokens.count(), 3);
        for (secret, name, scope) in
            [("one", "ingest", Scope::Write), ("two", "ops.1", Scope::Admin), ("three", "_view-er", Scope::Read)]
        {
            let identity = tokens.with_secret(&SecretHash::of(secret.as_bytes())).expect("known");
            assert_eq!((&*identity.name, identity.scope), (name, scope));
            assert_eq!(tokens.with_name(name).expect("known").scope, scope);
        }
        assert_eq!(Tokens::parse(&format!("\u{feff}{text}")).expect("a token file").count(), 3);
        for wrong in ["", "four", "on", "one ", &hash("one")] {
            assert!(tokens.with_secret(&SecretHash::of(wrong.as_bytes())).is_none(), "{wrong:?}");
        }
        assert!(tokens.with_name("ops").is_none() && tokens.with_name("").is_none());
    }

    #[test]
    fn a_wrong_line_is_named() {
        let line = |name: &str, secret: &str| format!("{name} read {}\n", hash(secret));
        let full: String = (0..=TOKENS_MAX).map(|n| line(&format!("n{n}"), &n.to_string())).collect();
        for (text, number, what) in [
            (format!("{}a write", line("b", "x")), 2, "found 2 words"),
            (format!("a write {} more", hash("x")), 1, "found 4 words"),
            (format!("\na rite {}", hash("x")), 2, "read, write or admin"),
            ("a read abc".to_owned(), 1, "64 hexadecimal digits"),
            (format!("ä read {}", hash("x")), 1, "a name has"),
            (line(&"a".repeat(TOKEN_NAME_BYTES_MAX + 1), "x"), 1, "a name has"),
            (line("a", "x") + &line("a", "y"), 2, "has the name a"),
            (line("a", "x") + &line("b", "x"), 2, "has this hash"),
            (line(ADMIN_TOKEN_NAME, "x"), 1, "choose another"),
            (full.clone(), TOKENS_MAX + 1, "more than"),
        ] {
            match Tokens::parse(&text) {
                Err(TokenFileError::Line { line, what: found }) if line == number && found.contains(what) => {}
                other => panic!("{text:?}: {other:?}"),
            }
        }
        for text in ["", "\n", "# only a comment\n"] {
            assert_eq!(Tokens::parse(text).expect_err("no token"), TokenFileError::Empty);
        }
        let most = full.lines().take(TOKENS_MAX).collect::<Vec<_>>().join("\n");
        assert_eq!(Tokens::parse(&most).expect("as many as may be").count(), TOKENS_MAX);
    }

    #[test]
    fn the_servers_list_is_told_from_a_secret() {
        assert!(is_token_file(&line_of("a")) && is_token_file(&format!("# x\n{}", line_of("a"))));
        assert!(is_token_file(&format!("\u{feff}{}", line_of("a"))), "with a byte order mark");
        assert!(!is_token_file(&hash("x")) && !is_token_file("a b c") && !is_token_file(""));
    }

    fn line_of(name: &str) -> String {
        format!("{name} write {}\n", hash("x"))
    }
}
