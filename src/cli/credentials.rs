//! How a command shows who it is: the token that it sends.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use clap::Args;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::{Certificate, ClientTlsConfig, Identity},
};
use zeroize::Zeroizing;

use super::{failure::Failure, output::print_note, server_addr::ServerAddr};
use crate::{
    access::{secret::Secret, token_file::is_token_file},
    limits::PEM_BYTES_MAX,
};

/// The flags of every subcommand that is a client.
#[derive(Clone, Debug, Default, Args)]
pub struct CredentialArgs {
    /// File that holds the secret of a token, as `tally token new` printed it on standard error
    #[arg(long, value_name = "FILE", env = "TALLY_TOKEN_FILE", hide_env_values = true)]
    pub token_file: Option<PathBuf>,

    /// File with the authorities that sign the server's certificate, in PEM; with it, TLS is used [default: those of
    /// the system, if the address begins with https://]
    #[arg(long, value_name = "FILE", env = "TALLY_CA", hide_env_values = true)]
    pub ca: Option<PathBuf>,

    /// File with a certificate that shows who calls, in PEM, instead of a token; with it, TLS is used
    #[arg(long, value_name = "FILE", env = "TALLY_CLIENT_CERT", hide_env_values = true, requires = "client_key")]
    pub client_cert: Option<PathBuf>,

    /// File with the private key of that certificate, in PEM
    #[arg(long, value_name = "FILE", env = "TALLY_CLIENT_KEY", hide_env_values = true, requires = "client_cert")]
    pub client_key: Option<PathBuf>,
}

impl CredentialArgs {
    /// How the connection is encrypted; `None` if it is not.
    ///
    /// Errors: the address says that it is not, and a flag that it is; a file cannot be read.
    pub(super) fn tls(&self, server: &ServerAddr) -> Result<Option<ClientTlsConfig>, Failure> {
        let has_files = self.ca.is_some() || self.client_cert.is_some();
        match server.has_tls() {
            Some(false) if has_files => {
                let reason = "--ca and --client-cert need TLS, and the address begins with http://";
                return Err(Failure::Refused(reason.to_owned()));
            }
            Some(true) => {}
            None if has_files => {}
            Some(false) | None => return Ok(None),
        }
        let config = match &self.ca {
            Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read_pem(path)?.as_bytes())),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        let (Some(certificate), Some(key)) = (&self.client_cert, &self.client_key) else { return Ok(Some(config)) };
        let identity = Identity::from_pem(read_pem(certificate)?.as_bytes(), read_pem(key)?.as_bytes());
        protect_memory();
        Ok(Some(config.identity(identity)))
    }

    /// What each call sends. Errors: the token's file cannot be read, or holds no secret.
    pub(super) fn token(&self) -> Result<ShowToken, Failure> {
        let Some(path) = &self.token_file else { return Ok(ShowToken(None)) };
        let secret = read_secret(path)?;
        protect_memory();
        let header = Zeroizing::new(format!("Bearer {}", secret.expose()));
        let mut value: MetadataValue<Ascii> =
            header.parse().map_err(|_not_ascii| wrong(path, "it holds characters that no token has"))?;
        value.set_sensitive(true);
        Ok(ShowToken(Some(value)))
    }
}

/// From now on there is no core dump of this process, because it would have the secret.
fn protect_memory() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        print_note(format!("core dumps of this process may have its secret: {error}"));
    }
}

/// Reads a file in PEM.
fn read_pem(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let text = read_start(path, PEM_BYTES_MAX).map_err(|error| wrong(path, &format!("it cannot be read: {error}")))?;
    if text.len() > PEM_BYTES_MAX {
        return Err(wrong(path, &format!("it has more than {PEM_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// Reads one byte more than `bytes_max` of a file, if it has as many.
fn read_start(path: &Path, bytes_max: usize) -> io::Result<Zeroizing<String>> {
    // With room for all bytes, so that no copy of a shorter buffer stays behind.
    let mut text = Zeroizing::new(String::with_capacity(bytes_max + 1));
    File::open(path)?.take(bytes_max as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// Reads the one word of a file.
fn read_secret(path: &Path) -> Result<Secret, Failure> {
    const BYTES_MAX: usize = 1024;
    let failed = |error: io::Error| wrong(path, &format!("the token cannot be read: {error}"));
    let text = read_start(path, BYTES_MAX).map_err(failed)?;
    if fs::metadata(path).map_err(failed)?.permissions().mode() & 0o004 != 0 {
        print_note(format!("{} can be read by everyone on this machine: chmod 600 it", path.display()));
    }
    if is_token_file(&text) {
        return Err(wrong(path, "it is a server's list of tokens: give the file with the secret of yours"));
    }
    let secret = text.trim();
    if secret.is_empty() || text.len() > BYTES_MAX || secret.contains(char::is_whitespace) {
        return Err(wrong(path, "it must hold one word, the secret of a token"));
    }
    Ok(Secret::new(Zeroizing::new(secret.to_owned())))
}

fn wrong(path: &Path, what: &str) -> Failure {
    Failure::Refused(format!("{}: {what}", path.display()))
}

/// Adds the token to each call, if there is one.
#[derive(Clone, Debug)]
pub(super) struct ShowToken(Option<MetadataValue<Ascii>>);

impl ShowToken {
    pub(super) fn is_some(&self) -> bool {
        self.0.is_some()
    }
}

impl Interceptor for ShowToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}
