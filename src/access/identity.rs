//! Who calls.

use std::sync::Arc;

use super::{quotas::Account, scope::Scope};

/// The name of the token of `--admin-token-file`, which no token of `--token-file` may have.
pub(super) const ADMIN_TOKEN_NAME: &str = "admin-token-file";

/// A token's name. Calls share it.
pub(crate) type Name = Arc<str>;

/// Who calls, if there are tokens.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The token's name.
    pub(crate) name: Name,
    pub(crate) scope: Scope,
    /// What it has used.
    pub(crate) account: Arc<Account>,
}

impl Identity {
    pub(crate) fn new(name: &str, scope: Scope) -> Self {
        Self { name: name.into(), scope, account: Arc::default() }
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, self.scope) == (&other.name, other.scope)
    }
}

impl Eq for Identity {}
