//! The flags of `tally serve` about who may call it.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, builder::BoolishValueParser, value_parser};

use crate::{access::arrival::is_loopback, limits::Quotas};

/// The flags.
#[derive(Args, Clone, Debug)]
pub struct AccessArgs {
    /// File with the tokens of those who may call, one in a line, as `tally token new` prints them. Each call then needs a token
    /// whose scope is large enough. It is read again at SIGHUP.
    #[arg(long, env = "TALLY_TOKEN_FILE", value_name = "PATH")]
    pub token_file: Option<PathBuf>,

    /// Start without tokens also on addresses that other machines can reach: anyone who reaches them may read and write.
    #[arg(long, env = "TALLY_INSECURE_ALLOW_ANYONE", value_parser = BoolishValueParser::new())]
    pub insecure_allow_anyone: bool,

    /// File with the server's certificate, and those that it was signed with, in PEM. Both ports then use TLS. It is read again at
    /// SIGHUP.
    #[arg(long, env = "TALLY_TLS_CERT", value_name = "PATH", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// File with the private key of that certificate, in PEM. It is read again at SIGHUP.
    #[arg(long, env = "TALLY_TLS_KEY", value_name = "PATH", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// File with the authorities, in PEM, that sign certificates of clients. A client that shows such a certificate
    /// acts as the token whose name is the certificate's first DNS name, and needs no secret. It is read again at SIGHUP.
    #[arg(long, env = "TALLY_TLS_CLIENT_CA", value_name = "PATH", requires_all = ["tls_cert", "token_file"])]
    pub tls_client_ca: Option<PathBuf>,

    /// Calls a second that one token may make, or one address while there are no tokens; probes do not count. Off by default.
    #[arg(long, env = "TALLY_QUOTA_CALLS_PER_S", value_name = "N", value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub quota_calls_per_s: Option<u32>,

    /// Uploads that one token, or address, may have at once. Off by default.
    #[arg(long, env = "TALLY_QUOTA_UPLOADS", value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub quota_uploads: Option<u32>,

    /// Bytes of uploads that one token, or address, may send in a day of UTC. Off by default.
    #[arg(long, env = "TALLY_QUOTA_BYTES_PER_DAY", value_name = "BYTES", value_parser = value_parser!(u64).range(1..))]
    pub quota_bytes_per_day: Option<u64>,

    /// Parts that one token, or address, may add in a day of UTC. Off by default.
    #[arg(long, env = "TALLY_QUOTA_PARTS_PER_DAY", value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub quota_parts_per_day: Option<u64>,

    /// File with one line, the admin token. `/api/graceful_shutdown` then needs the header `Authorization: Bearer TOKEN`, and
    /// may come from any address. Without this flag and without --token-file, the request must come from this machine, and not
    /// from a browser.
    #[arg(long, env = "TALLY_ADMIN_TOKEN_FILE", value_name = "PATH")]
    pub admin_token_file: Option<PathBuf>,
}

/// Who may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessConfig {
    /// The file of the tokens. Without one, anyone may call who reaches the server.
    pub token_file: Option<PathBuf>,
    /// The file of the admin token, if one is used.
    pub admin_token_file: Option<PathBuf>,
    /// What one caller may use.
    pub quotas: Quotas,
    /// The files of TLS, if it is used.
    pub tls: Option<TlsFiles>,
    /// Other machines can reach the server.
    pub is_beyond_loopback: bool,
}

/// The files of TLS, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificates.
    pub certificates: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// The authorities of clients, if clients may show certificates.
    pub client_authorities: Option<PathBuf>,
}

impl AccessConfig {
    /// Checks the flags for a server on these addresses.
    ///
    /// Errors: other machines could call without a token, and no flag allows it.
    pub(super) fn of(args: &AccessArgs, mut addresses: impl Iterator<Item = SocketAddr>) -> Result<Self, String> {
        let beyond = addresses.find(|address| !is_loopback(*address));
        let is_allowed = args.token_file.is_some() || args.insecure_allow_anyone;
        if let Some(address) = beyond.filter(|_| !is_allowed) {
            return Err(format!(
                "{address} can be reached from other machines: give --token-file FILE (see `tally token new --help`), or \
                 --insecure-allow-anyone if anyone who reaches it may read and write"
            ));
        }
        Ok(Self {
            token_file: args.token_file.clone(),
            admin_token_file: args.admin_token_file.clone(),
            quotas: Quotas {
                calls_per_s: args.quota_calls_per_s,
                uploads: args.quota_uploads,
                bytes_per_day: args.quota_bytes_per_day,
                parts_per_day: args.quota_parts_per_day,
            },
            tls: args.tls_cert.clone().zip(args.tls_key.clone()).map(|(certificates, key)| TlsFiles {
                certificates,
                key,
                client_authorities: args.tls_client_ca.clone(),
            }),
            is_beyond_loopback: beyond.is_some(),
        })
    }
}
