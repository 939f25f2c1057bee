//! What the fuzz target `tokens` checks (`fuzz/src/bin/tokens.rs`): token files, values of the header `Authorization`, and targets
//! with tickets.

use std::sync::LazyLock;

use http::{HeaderMap, HeaderValue, Uri, header::AUTHORIZATION};

use super::{
    Access, Shown, bearer,
    identity::Identity,
    scope::Scope,
    secret::SecretHash,
    tickets::Tickets,
    token_file::{Tokens, is_token_file},
    without_ticket,
};
use crate::limits::{Quotas, TOKENS_MAX};

/// The one secret that the server of [`check_authorization`] knows.
pub const SECRET: &str = "5ec7e7";

static ACCESS: LazyLock<Access> = LazyLock::new(|| {
    let text = format!("known write {}", SecretHash::of(SECRET.as_bytes()));
    Access::new(Tokens::parse(&text).ok(), None, Quotas::default(), None)
});
static TICKETS: LazyLock<Tickets> = LazyLock::new(Tickets::new);

/// A token file: what is accepted can be written again, and has no name and no hash twice.
pub fn check_token_file(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let Ok(tokens) = Tokens::parse(text) else { return };
    assert!((1..=TOKENS_MAX).contains(&tokens.count()));
    assert!(is_token_file(text), "{text:?} is taken for a secret");
    let mut written = String::new();
    for (identity, hash) in tokens.entries() {
        written += &format!("{} {} {hash}\n", identity.name, identity.scope);
        assert_eq!(tokens.with_name(&identity.name).as_ref(), Some(identity));
        assert_eq!(tokens.with_secret(hash).as_ref(), Some(identity), "another token has the same hash");
    }
    let again = Tokens::parse(&written).unwrap_or_else(|error| panic!("{error}: {written:?}"));
    let entries = |tokens: &Tokens| -> Vec<_> {
        tokens.entries().map(|(identity, hash)| (identity.clone(), hash.to_string())).collect()
    };
    assert_eq!(entries(&again), entries(&tokens));
}

/// A value of the header: it is that of the token if it is `Bearer` and its secret, and of nobody otherwise.
pub fn check_authorization(value: &[u8]) {
    let secret = bearer(value);
    if let Some(secret) = secret {
        assert!(value.ends_with(secret) && value.len() == secret.len() + "Bearer ".len());
    }
    let Ok(header) = HeaderValue::from_bytes(value) else { return };
    let is_known = value.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "))
        && &value[7..] == SECRET.as_bytes();
    let mut headers = HeaderMap::new();
    headers.append(AUTHORIZATION, header);
    let is_shown = |headers: &HeaderMap| matches!(ACCESS.shown(headers, None), Shown::Known(_));
    assert_eq!(is_shown(&headers), is_known);
    headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer 5ec7e7"));
    assert!(!is_shown(&headers), "two headers");
}

/// A target with a ticket: without it, the other parameters stay as they are and in their order; and a ticket that was not issued
/// is nobody's.
pub fn check_ticket(target: &[u8]) {
    let Ok(uri) = Uri::try_from(target) else { return };
    let Some((rest, ticket)) = without_ticket(&uri) else { return };
    assert!(TICKETS.redeem(&ticket, rest.as_str()).is_none(), "{ticket}");
    let parameters = |query: Option<&str>| -> Vec<String> {
        let all = query.unwrap_or_default().split('&').map(str::to_owned);
        all.filter(|parameter| !parameter.starts_with("ticket=") && !parameter.is_empty()).collect()
    };
    assert_eq!(rest.path(), uri.path());
    assert_eq!(parameters(rest.query()), parameters(uri.query()));
    assert!(!rest.query().unwrap_or_default().split('&').any(|parameter| parameter.starts_with("ticket=")), "{rest}");
    // An issued one is redeemed once, for the very target.
    let Ok(issued) = TICKETS.issue(Identity::new("known", Scope::Read), rest.as_str()) else { return };
    assert!(TICKETS.redeem(&ticket, rest.as_str()).is_none());
    assert!(TICKETS.redeem(&issued, rest.as_str()).is_some());
    assert!(TICKETS.redeem(&issued, rest.as_str()).is_none(), "twice");
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn the_kept_inputs_hold() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/tokens");
        let mut inputs = 0;
        for entry in fs::read_dir(folder).expect("a corpus") {
            let input = fs::read(entry.expect("an entry").path()).expect("readable");
            match input[0] {
                0 => check_token_file(&input[1..]),
                1 => check_authorization(&input[1..]),
                _ => check_ticket(&input[1..]),
            }
            inputs += 1;
        }
        assert!(inputs > 3, "{inputs} inputs");
    }
}
