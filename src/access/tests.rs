//! Tests of who may call what.

use http::HeaderValue;

use super::*;
use crate::limits::Quotas;

fn access() -> Access {
    let line = |name: &str, scope: Scope| format!("{name} {scope} {}\n", SecretHash::of(name.as_bytes()));
    let text = line("r", Scope::Read) + &line("w", Scope::Write) + &line("a", Scope::Admin);
    Access::new(Tokens::parse(&text).ok(), Some(SecretHash::of(b"old")), Quotas::default(), None)
}

fn headers(values: &[&str]) -> HeaderMap {
    let value = |text: &&str| (AUTHORIZATION, HeaderValue::from_str(text).expect("a value"));
    values.iter().map(value).collect()
}

fn name(access: &Access, values: &[&str], certificate: Option<&str>) -> Result<String, &'static str> {
    match access.shown(&headers(values), certificate) {
        Shown::Known(identity) => Ok(format!("{} {}", identity.name, identity.scope)),
        Shown::NoToken => Err("no token"),
        Shown::Unknown(_) => Err("unknown"),
        Shown::Anyone => Err("anyone"),
    }
}

#[test]
fn a_caller_is_known_by_one_header_or_by_a_certificate() {
    let access = access();
    assert_eq!(name(&access, &["Bearer r"], None), Ok("r read".to_owned()));
    assert_eq!(name(&access, &["bearer w"], None), Ok("w write".to_owned()));
    assert_eq!(name(&access, &["Bearer old"], None), Ok("admin-token-file admin".to_owned()));
    assert_eq!(name(&access, &[], Some("a")), Ok("a admin".to_owned()));
    // The header counts, so that a proxy with a certificate can pass on the tokens of others.
    assert_eq!(name(&access, &["Bearer r"], Some("a")), Ok("r read".to_owned()));
    assert_eq!(name(&access, &[], None), Err("no token"));
    for wrong in ["", "Bearer", "Bearer ", "Bearer  r", "Bearer r ", "Basic r", "r", "Bearer R", "Bearer x"] {
        assert_eq!(name(&access, &[wrong], Some("a")), Err("unknown"), "{wrong:?}");
    }
    assert_eq!(name(&access, &["Bearer r", "Bearer r"], None), Err("unknown"), "two headers");
    assert_eq!(name(&access, &[], Some("nobody")), Err("unknown"));
    assert_eq!(name(&Access::new(None, None, Quotas::default(), None), &["Bearer r"], None), Err("anyone"));
}

#[test]
fn a_scope_includes_those_before_it() {
    let shown = |scope| Shown::Known(Identity::new("n", scope));
    let scopes = [Scope::Read, Scope::Write, Scope::Admin];
    for (has, scope) in scopes.into_iter().enumerate() {
        for (wants, needed) in scopes.into_iter().enumerate() {
            let checked = check(Some(Rule::Needs(needed)), &shown(scope));
            assert_eq!(checked.is_ok(), wants <= has, "{scope} for {needed}");
            if let Err(refusal) = checked {
                assert!(refusal.to_string().ends_with(&format!("needs {needed}")), "{refusal}");
            }
        }
    }
    for nobody in [Shown::NoToken, Shown::Unknown(Unknown::Token), Shown::Unknown(Unknown::Ticket)] {
        assert!(check(Some(Rule::Open), &nobody).is_ok());
        let refusal = check(Some(Rule::Needs(Scope::Write)), &nobody).expect_err("no token");
        assert!(refusal.to_string().contains("the scope write"), "{refusal}");
        assert!(check(None, &nobody).is_err());
    }
    assert_eq!(check(None, &shown(Scope::Admin)).expect_err("no rule"), Refusal::NoSuchCall);
    assert!(check(None, &Shown::Anyone).is_ok());
}

#[test]
fn what_only_some_requests_of_a_call_ask_for_is_checked_in_its_handler() {
    let extensions = |allowed| {
        let mut extensions = Extensions::new();
        extensions.insert(Allowed(allowed));
        extensions
    };
    let caller = |scope| Some(Identity::new("n", scope));
    assert!(Allowed::to(&extensions(None), Scope::Admin).is_ok(), "no tokens");
    assert!(Allowed::to(&extensions(caller(Scope::Admin)), Scope::Admin).is_ok());
    assert!(Allowed::to(&extensions(caller(Scope::Write)), Scope::Admin).is_err());
    assert!(Allowed::to(&Extensions::new(), Scope::Read).is_err(), "never checked");
}

#[test]
fn tokens_are_replaced_at_once() {
    let access = access();
    let other = format!("r write {}\n", SecretHash::of(b"new"));
    access.replace(Tokens::parse(&other).expect("a token"));
    assert_eq!(name(&access, &["Bearer new"], None), Ok("r write".to_owned()));
    assert_eq!(name(&access, &["Bearer r"], None), Err("unknown"));
}

#[test]
fn what_a_token_was_used_for_is_counted_by_its_name() {
    let access = access();
    let admit = |secret: &str, rule| {
        let values: &[&str] = if secret.is_empty() { &[] } else { &[secret] };
        access.admit(rule, &access.shown(&headers(values), None), None).is_ok()
    };
    let used = || {
        let used = |it: TokenUse| (it.name.map(|name| name.to_string()).unwrap_or_default(), it.calls, it.refused);
        access.token_uses().into_iter().map(used).collect::<Vec<_>>()
    };
    let [read, write] = [Scope::Read, Scope::Write].map(|scope| Some(Rule::Needs(scope)));
    assert!(admit("Bearer r", read) && !admit("Bearer r", write) && !admit("Bearer r", None));
    assert!(!admit("", read) && !admit("Bearer x", write) && admit("", Some(Rule::Open)));
    let expected = |list: &[(&str, u64, u64)]| -> Vec<_> {
        list.iter().map(|(name, calls, refused)| ((*name).to_owned(), *calls, *refused)).collect()
    };
    let others = [("admin-token-file", 0, 0), ("", 2, 2)];
    assert_eq!(used(), expected(&[&[("r", 3, 1), ("w", 0, 0), ("a", 0, 0)][..], &others].concat()));
    // Who is still there keeps its figures, also with another secret.
    let lines = format!("new read {}\nr read {}\n", SecretHash::of(b"1"), SecretHash::of(b"2"));
    access.replace(Tokens::parse(&lines).expect("tokens"));
    assert_eq!(used(), expected(&[&[("new", 0, 0), ("r", 3, 1)][..], &others].concat()));
    assert!(Access::new(None, None, Quotas::default(), None).token_uses().is_empty());
}

#[test]
fn calls_that_are_refused_or_do_not_exist_count_for_the_quota() {
    let quotas = Quotas { calls_per_s: Some(2), ..Quotas::default() };
    for rule in [None, Some(Rule::Needs(Scope::Admin))] {
        let line = format!("r read {}\n", SecretHash::of(b"r"));
        let access = Access::new(Tokens::parse(&line).ok(), None, quotas, None);
        let shown = access.shown(&headers(&["Bearer r"]), None);
        let refusals: Vec<_> = (0..9).filter_map(|_| access.admit(rule, &shown, None).err()).collect();
        let too_many = refusals.iter().filter(|refusal| matches!(refusal, Refusal::TooMany(_))).count();
        assert!(refusals.len() == 9 && (6..=7).contains(&too_many), "{refusals:?}");
        assert!(access.admit(Some(Rule::Open), &shown, None).is_ok(), "a probe");
    }
}

#[test]
fn a_refusal_says_what_was_wrong() {
    let access = access();
    let text = |shown: Shown| check(Some(Rule::Needs(Scope::Read)), &shown).expect_err("refused").to_string();
    let needs = "; the call needs a token of the scope read";
    let token = text(access.shown(&headers(&["Bearer x"]), Some("a")));
    assert_eq!(token, format!("the token is not one of this server's{needs}"));
    let named = text(access.shown(&headers(&[]), Some("x\n")));
    assert_eq!(named, format!("no token of this server has the name of the certificate, \"x\\n\"{needs}"));
    let nameless = text(access.shown(&headers(&[]), Some("")));
    assert_eq!(nameless, format!("the certificate has no DNS name, which would be that of a token{needs}"));
    let ticket = |access: &Access| access.shown_by_ticket(&mut Uri::from_static("/a?ticket=0.x&b=1"));
    assert_eq!(text(ticket(&access)), format!("the ticket was used, is too old, or is for another path{needs}"));
    assert!(matches!(ticket(&Access::new(None, None, Quotas::default(), None)), Shown::Anyone));
}
