//! Bounds of the tokens.

/// Tokens of a token file.
pub const TOKENS_MAX: usize = 128;
/// Bytes of a token's name.
pub const TOKEN_NAME_BYTES_MAX: usize = 64;
/// Bytes of a token file: its lines have up to 137 bytes, and the rest is for comments.
pub const TOKEN_FILE_BYTES_MAX: usize = 32 * 1024;
/// Bytes of a token in memory: its entry, its name, and what the allocator adds.
pub const TOKEN_BYTES: usize = 192;

/// Tickets for downloads that were not used yet; a new one takes the place of the oldest.
pub const TICKETS_MAX: usize = 64;
/// Of these, those of one owner; a new one takes the place of its oldest.
pub const TICKETS_OF_ONE_MAX: usize = 16;
/// Seconds for which a ticket can be used.
pub const TICKET_S: u64 = 30;
/// Bytes of a ticket in memory.
pub const TICKET_BYTES: usize = 192;

/// Accounts for the quotas of addresses; addresses whose hashes are equal share one.
pub const QUOTA_ADDRESSES_MAX: usize = 2048;
/// Bytes of an account.
pub const QUOTA_ACCOUNT_BYTES: usize = 96;

/// What one token may use, or one address while there are no tokens. `None`: no more than the server as a whole allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Calls a second, without probes.
    pub calls_per_s: Option<u32>,
    /// Uploads at once.
    pub uploads: Option<u32>,
    /// Bytes of uploads a day.
    pub bytes_per_day: Option<u64>,
    /// Parts a day.
    pub parts_per_day: Option<u64>,
}

/// Two sets of tokens, of which one replaces the other, and the text of the file; tickets; accounts.
pub(super) const ACCESS_BYTES: usize = 2 * TOKENS_MAX * TOKEN_BYTES
    + TOKEN_FILE_BYTES_MAX
    + TICKETS_MAX * TICKET_BYTES
    + (QUOTA_ADDRESSES_MAX + 2 * TOKENS_MAX) * QUOTA_ACCOUNT_BYTES;
