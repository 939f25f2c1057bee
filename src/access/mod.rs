//! Who may do what, for both ports: tokens and their scopes, the rule of each call, and requests that a browser sends for
//! pages of other sites.
//!
//! `rules` is the only list of what a call needs. The layers in `api/grpc/access_layer.rs` and `api/http/access_layer.rs` ask
//! here before anything of a request's body is read. Invariant: a call without a rule is refused while there are tokens.

pub(crate) mod arrival;
pub(crate) mod audit;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub(crate) mod identity;
pub(crate) mod pages;
pub(crate) mod quotas;
pub(crate) mod rules;
pub mod scope;
pub(crate) mod secret;
pub(crate) mod tickets;
pub(crate) mod token_file;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http::{Extensions, HeaderMap, Uri, header::AUTHORIZATION, uri::PathAndQuery};
use tokio::sync::watch;

use self::{
    audit::{Added, Audit, AuditedCall, shortened},
    identity::{ADMIN_TOKEN_NAME, Identity, Name},
    quotas::{Ledger, Meter},
    rules::Rule,
    scope::Scope,
    secret::SecretHash,
    tickets::Tickets,
    token_file::Tokens,
};
use crate::limits::Quotas;

/// What a request shows of its caller.
#[derive(Clone, Debug)]
pub(crate) enum Shown {
    /// The server has no tokens: anyone may call.
    Anyone,
    /// No token, where the server has some.
    NoToken,
    /// What the server does not take for a token's.
    Unknown(Unknown),
    /// A token that it has.
    Known(Identity),
}

/// What a caller has shown that is no token's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// A header `Authorization` without the secret of a token.
    Token,
    /// A certificate whose name is no token's; `None` if it has no name.
    Certificate(Option<Box<str>>),
    /// A ticket that is old, was used, or is for another target.
    Ticket,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token => f.write_str("the token is not one of this server's"),
            Self::Certificate(Some(name)) => {
                write!(f, "no token of this server has the name of the certificate, {:?}", shortened(name))
            }
            Self::Certificate(None) => f.write_str("the certificate has no DNS name, which would be that of a token"),
            Self::Ticket => f.write_str("the ticket was used, is too old, or is for another path"),
        }
    }
}

impl Shown {
    /// Whether the server knows whose call it is, or serves anyone.
    pub(crate) fn is_stranger(&self) -> bool {
        matches!(self, Self::NoToken | Self::Unknown(_))
    }

    /// The name of the token, if the server knows it.
    pub(crate) fn token(&self) -> Option<Name> {
        if let Self::Known(identity) = self { Some(Arc::clone(&identity.name)) } else { None }
    }
}

/// A call that is allowed, in the extensions of its request; with the caller if the server has tokens.
#[derive(Clone, Debug)]
pub(crate) struct Allowed(pub(crate) Option<Identity>);

impl Allowed {
    /// An upload of a request was stored: it counts for its token, and has a line in the audit log.
    pub(crate) fn added(request: &Extensions, added: Added) {
        if let Some(Self(Some(identity))) = request.get()
            && !added.replayed
        {
            identity.account.count_bytes(added.bytes);
        }
        audit::added(request, added);
    }

    /// Checks that a call may also do what only some of its requests ask for.
    ///
    /// Errors: its caller may not; or the request was never checked.
    pub(crate) fn to(extensions: &Extensions, needed: Scope) -> Result<(), Refusal> {
        match extensions.get() {
            Some(Self(None)) => Ok(()),
            Some(Self(Some(identity))) if identity.scope >= needed => Ok(()),
            Some(Self(Some(identity))) => {
                identity.account.count_refusal();
                Err(Refusal::TooSmall { identity: identity.clone(), needed })
            }
            None => Err(Refusal::NoToken { needed }),
        }
    }
}

/// Why a call is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// It shows no token.
    #[error(
        "this call needs a token of the scope {needed}: send it as `authorization: Bearer TOKEN` (--token-file FILE)"
    )]
    NoToken {
        /// The scope that the call needs.
        needed: Scope,
    },
    /// What it shows is no token's.
    #[error("{what}; the call needs a token of the scope {needed}")]
    Unknown {
        /// What it shows.
        what: Unknown,
        /// The scope that the call needs.
        needed: Scope,
    },
    /// The token's scope is too small.
    #[error("the token {} has the scope {}, and this call needs {needed}", .identity.name, .identity.scope)]
    TooSmall {
        /// Whose call it is.
        identity: Identity,
        /// The scope that the call needs.
        needed: Scope,
    },
    /// Its caller has used up a quota; it may come again in a second.
    #[error("{0}")]
    TooMany(String),
    /// There is no such call.
    #[error("there is no such call")]
    NoSuchCall,
}

/// The tokens of one server; clones refer to the same.
#[derive(Clone)]
pub(crate) struct Access(Arc<Inner>);

struct Inner {
    /// `None`: anyone may call. A server that has tokens always has some.
    tokens: watch::Sender<Option<Arc<Tokens>>>,
    /// That of `--admin-token-file`.
    admin_token: Option<SecretHash>,
    tickets: Tickets,
    ledger: Ledger,
    /// What the token of `--admin-token-file` has used.
    admin: Identity,
    /// Calls that were refused because they had no token of this server.
    refused_strangers: AtomicU64,
    /// `None` without `--audit-log`.
    audit: Option<Audit>,
}

/// What the calls of one token have done since the start; without a name, those that had no token of this server.
pub(crate) struct TokenUse {
    pub(crate) name: Option<Name>,
    /// All of its calls.
    pub(crate) calls: u64,
    pub(crate) refused: u64,
    /// Bytes of CSV that it has added to the table.
    pub(crate) bytes: u64,
}

impl Access {
    pub(crate) fn new(
        tokens: Option<Tokens>,
        admin_token: Option<SecretHash>,
        quotas: Quotas,
        audit: Option<Audit>,
    ) -> Self {
        let (ledger, admin) = (Ledger::new(quotas), Identity::new(ADMIN_TOKEN_NAME, Scope::Admin));
        let (tokens, _) = watch::channel(tokens.map(Arc::new));
        let (tickets, refused_strangers) = (Tickets::new(), AtomicU64::new(0));
        Self(Arc::new(Inner { tokens, admin_token, tickets, ledger, admin, refused_strangers, audit }))
    }

    /// From now on calls are compared with these tokens. Calls that run go on.
    pub(crate) fn replace(&self, mut tokens: Tokens) {
        if let Some(before) = &*self.0.tokens.borrow() {
            tokens.keep_accounts_of(before);
        }
        self.0.tokens.send_replace(Some(Arc::new(tokens)));
    }

    /// A call that will have a line in the audit log, if there is one. `shown`: what its request shows of its caller.
    pub(crate) fn audited(
        &self,
        call: impl fmt::Display,
        shown: Option<&Shown>,
        peer: Option<SocketAddr>,
    ) -> Option<AuditedCall> {
        let token = shown.and_then(Shown::token);
        let is_stranger = token.is_none() && self.has_tokens();
        Some(self.audit()?.call(call, token, peer, is_stranger))
    }

    pub(crate) fn has_tokens(&self) -> bool {
        self.tokens_count().is_some()
    }

    /// `None`: anyone may call.
    pub(crate) fn tokens_count(&self) -> Option<usize> {
        self.0.tokens.borrow().as_ref().map(|tokens| tokens.count())
    }

    /// Who a request comes from, by its header `Authorization` (RFC 6750, section 2.1) or else by the name that the
    /// connection's certificate has proved.
    pub(crate) fn shown(&self, headers: &HeaderMap, certificate: Option<&str>) -> Shown {
        let tokens = self.0.tokens.borrow().clone();
        let Some(tokens) = tokens else { return Shown::Anyone };
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (identity, what) = match (values.next(), values.next(), certificate) {
            (None, _, None) => return Shown::NoToken,
            (None, _, Some(name)) => {
                (tokens.with_name(name), Unknown::Certificate(Some(name.into()).filter(|_| !name.is_empty())))
            }
            (Some(value), None, _) => {
                (bearer(value.as_bytes()).and_then(|secret| self.owner(&tokens, secret)), Unknown::Token)
            }
            (Some(_), Some(_), _) => (None, Unknown::Token),
        };
        identity.map_or(Shown::Unknown(what), Shown::Known)
    }

    fn owner(&self, tokens: &Tokens, secret: &[u8]) -> Option<Identity> {
        let hash = SecretHash::of(secret);
        let is_admin = self.0.admin_token.as_ref().is_some_and(|admin| bool::from(admin.equals(&hash)));
        tokens.with_secret(&hash).or_else(|| is_admin.then(|| self.0.admin.clone()))
    }

    /// Where calls are recorded, with `--audit-log`.
    pub(crate) fn audit(&self) -> Option<&Audit> {
        self.0.audit.as_ref()
    }

    /// What each token was used for. Empty if there are no tokens.
    pub(crate) fn token_uses(&self) -> Vec<TokenUse> {
        let Some(tokens) = self.0.tokens.borrow().clone() else { return Vec::new() };
        let admin = self.0.admin_token.map(|_| &self.0.admin);
        let of = |identity: &Identity| {
            let totals = identity.account.totals();
            let name = Some(Arc::clone(&identity.name));
            TokenUse { name, calls: totals.calls(), refused: totals.refused(), bytes: totals.bytes() }
        };
        let refused = self.0.refused_strangers.load(Ordering::Relaxed);
        let strangers = TokenUse { name: None, calls: refused, refused, bytes: 0 };
        tokens.identities().chain(admin).map(of).chain([strangers]).collect()
    }

    /// Decides about a call with this rule, and counts it. The second answer is what measures the call, if there are quotas.
    pub(crate) fn admit(
        &self,
        rule: Option<Rule>,
        shown: &Shown,
        peer: Option<IpAddr>,
    ) -> Result<(Allowed, Option<Meter>), Refusal> {
        let admitted = self.decide(rule, shown, peer);
        let is_refused = matches!(&admitted, Err(refusal) if !matches!(refusal, Refusal::NoSuchCall));
        match shown {
            Shown::Anyone => {}
            Shown::Known(identity) => {
                identity.account.count_call();
                if is_refused {
                    identity.account.count_refusal();
                }
            }
            Shown::NoToken | Shown::Unknown(_) if is_refused => {
                self.0.refused_strangers.fetch_add(1, Ordering::Relaxed);
            }
            Shown::NoToken | Shown::Unknown(_) => {} // a probe, or a file of a page
        }
        admitted
    }

    fn decide(
        &self,
        rule: Option<Rule>,
        shown: &Shown,
        peer: Option<IpAddr>,
    ) -> Result<(Allowed, Option<Meter>), Refusal> {
        let ledger = &self.0.ledger;
        let is_free = !ledger.has_quotas() || matches!(rule, Some(Rule::Open));
        let account = match shown {
            Shown::Known(identity) if !is_free => Some(Arc::clone(&identity.account)),
            Shown::Anyone if !is_free => peer.and_then(|peer| ledger.of_address(peer)),
            Shown::Known(_) | Shown::Anyone | Shown::NoToken | Shown::Unknown(_) => None,
        };
        // Before anything else, so that calls that do not exist, or that the scope does not allow, count as well.
        if let Some(account) = &account {
            ledger.call(account).map_err(|error| Refusal::TooMany(error.to_string()))?;
        }
        let allowed = check(rule, shown)?;
        Ok((allowed, account.map(|account| Meter::new(account, ledger))))
    }

    pub(crate) fn tickets(&self) -> &Tickets {
        &self.0.tickets
    }

    /// Who a GET without a token comes from, if its query has a ticket. The ticket is taken out of the query.
    pub(crate) fn shown_by_ticket(&self, uri: &mut Uri) -> Shown {
        let Some((target, ticket)) = without_ticket(uri) else { return Shown::NoToken };
        let owner = self.0.tickets.redeem(&ticket, target.as_str());
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(target);
        if let Ok(stripped) = Uri::from_parts(parts) {
            *uri = stripped;
        }
        // The token may be gone meanwhile, or have another scope.
        let tokens = self.0.tokens.borrow().clone();
        let is_there = |owner: Identity| match &tokens {
            Some(tokens) if *owner.name != *ADMIN_TOKEN_NAME => tokens.with_name(&owner.name),
            Some(_) | None => Some(owner),
        };
        match (owner.and_then(is_there), &tokens) {
            (Some(owner), _) => Shown::Known(owner),
            (None, Some(_)) => Shown::Unknown(Unknown::Ticket),
            (None, None) => Shown::Anyone,
        }
    }

    /// Whether a request has the token of `--admin-token-file`; `None` if there is no such file.
    pub(crate) fn has_admin_token(&self, headers: &HeaderMap) -> Option<bool> {
        let secret = headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        let admin = self.0.admin_token.as_ref()?;
        Some(secret.is_some_and(|secret| bool::from(admin.equals(&SecretHash::of(secret)))))
    }
}

/// Whether a call with this rule is allowed to this caller. `None`: the call has no rule.
pub(crate) fn check(rule: Option<Rule>, shown: &Shown) -> Result<Allowed, Refusal> {
    let needed = match (shown, rule) {
        (Shown::Anyone, _) | (_, Some(Rule::Open)) => {
            return Ok(Allowed(if let Shown::Known(identity) = shown { Some(identity.clone()) } else { None }));
        }
        (_, Some(Rule::Needs(needed))) => Some(needed),
        (_, None) => None,
    };
    match (shown, needed) {
        (Shown::Known(identity), Some(needed)) if identity.scope >= needed => Ok(Allowed(Some(identity.clone()))),
        (Shown::Known(identity), Some(needed)) => Err(Refusal::TooSmall { identity: identity.clone(), needed }),
        (Shown::Known(_), None) => Err(Refusal::NoSuchCall),
        (Shown::Unknown(what), needed) => {
            Err(Refusal::Unknown { what: what.clone(), needed: needed.unwrap_or(Scope::Read) })
        }
        (Shown::NoToken | Shown::Anyone, needed) => Err(Refusal::NoToken { needed: needed.unwrap_or(Scope::Read) }),
    }
}

/// The name of the query parameter of a ticket.
const TICKET: &str = "ticket=";

/// Path and query without the ticket, and the ticket.
fn without_ticket(uri: &Uri) -> Option<(PathAndQuery, String)> {
    let mut ticket = None;
    let mut target = uri.path().to_owned();
    let mut separator = '?';
    for parameter in uri.query()?.split('&') {
        match parameter.strip_prefix(TICKET) {
            Some(value) => ticket = Some(value.to_owned()),
            None => {
                target.push(separator);
                target.push_str(parameter);
                separator = '&';
            }
        }
    }
    Some((target.parse().ok()?, ticket?))
}

/// The secret of `Bearer SECRET`.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, secret) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(secret)
}

#[cfg(test)]
mod tests;
