//! Reads the tokens, certificates and keys at the start, and again at SIGHUP.

use std::{future::pending, io, path::Path, sync::Arc};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tokio_rustls::rustls::ServerConfig;
use zeroize::Zeroizing;

use super::tls::{Acceptor, Pem, server_config};
use crate::{
    access::{
        Access,
        audit::{Audit, Event, Outcome},
        secret::SecretHash,
        token_file::Tokens,
    },
    config::access::{AccessConfig, TlsFiles},
    engine::Engine,
    error::Error,
    limits::{PEM_BYTES_MAX, TOKEN_FILE_BYTES_MAX},
};

/// The names of the two protocols in ALPN.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// What the files of the flags say, which is read again at SIGHUP.
pub(super) struct AccessFiles {
    config: AccessConfig,
    engine: Engine,
    pub(super) access: Access,
    /// The settings of TLS, for gRPC and for HTTP.
    tls: Option<[watch::Sender<Arc<ServerConfig>>; 2]>,
}

impl AccessFiles {
    /// Reads all files.
    ///
    /// Errors: one cannot be read, or is wrong.
    pub(super) async fn read(config: &AccessConfig, engine: &Engine, audit: Option<Audit>) -> Result<Self, Error> {
        let admin_token = match &config.admin_token_file {
            Some(path) => Some(SecretHash::of(engine.read_secret(path).await?.as_bytes())),
            None => None,
        };
        let tokens = match &config.token_file {
            Some(path) => Some(read_tokens(path, engine).await?),
            None => None,
        };
        let tls = match &config.tls {
            Some(files) => Some(read_tls(files, engine).await?.map(|config| watch::channel(config).0)),
            None => None,
        };
        if let Some(tokens) = &tokens {
            tracing::info!(tokens = tokens.count(), "calls need a token");
        }
        let access = Access::new(tokens, admin_token, config.quotas, audit);
        let files = Self { config: config.clone(), engine: engine.clone(), access, tls };
        files.warn();
        Ok(files)
    }

    /// Logs what those who run the server should know.
    fn warn(&self) {
        match (self.config.is_beyond_loopback, self.access.has_tokens(), &self.tls) {
            (true, false, _) => tracing::warn!(
                "there are no tokens: anyone who reaches these addresses may read and write. To close it, give --token-file \
                 (TALLY_TOKEN_FILE)"
            ),
            (true, true, None) => tracing::warn!(
                "other machines send their tokens unencrypted: give --tls-cert and --tls-key, or let a proxy add TLS"
            ),
            (true, true, Some(_)) | (false, _, _) => {}
        }
    }

    /// Accept the connections of gRPC and of HTTP.
    pub(super) fn acceptors(&self) -> [Acceptor; 2] {
        match &self.tls {
            Some(configs) => configs.each_ref().map(|config| Acceptor(Some(config.subscribe()))),
            None => [Acceptor(None), Acceptor(None)],
        }
    }

    /// SIGHUP, from now on, if there is something to read again. Otherwise it ends the process.
    pub(super) fn hangups(config: &AccessConfig) -> io::Result<Option<Signal>> {
        let has_files = config.token_file.is_some() || config.tls.is_some();
        has_files.then(|| signal(SignalKind::hangup())).transpose()
    }

    /// Reads the files again at each SIGHUP, for ever. After an error what was read before stays. Calls that run go on.
    pub(super) async fn reread_at(&self, hangups: Option<Signal>) {
        let Some(mut hangups) = hangups else { return pending().await };
        while hangups.recv().await.is_some() {
            if let Some(path) = &self.config.token_file {
                self.reread_tokens(path).await;
            }
            if let (Some(files), Some(senders)) = (&self.config.tls, &self.tls) {
                self.reread_tls(files, senders).await;
            }
        }
        pending().await // no more signals come, and the server goes on
    }

    async fn reread_tokens(&self, path: &Path) {
        let event = match read_tokens(path, &self.engine).await {
            Ok(tokens) => {
                let count = tokens.count();
                tracing::info!(tokens = count, "the tokens were read again");
                self.access.replace(tokens);
                Event::TokensReread { outcome: Outcome::Ok, tokens: Some(count), error: None }
            }
            Err(error) => {
                tracing::error!(%error, "the tokens stay as they were");
                Event::TokensReread { outcome: Outcome::Error, tokens: None, error: Some(error.to_string()) }
            }
        };
        self.record(event);
    }

    async fn reread_tls(&self, files: &TlsFiles, senders: &[watch::Sender<Arc<ServerConfig>>; 2]) {
        let event = match read_tls(files, &self.engine).await {
            Ok(configs) => {
                tracing::info!("the certificates were read again");
                for (sender, config) in senders.iter().zip(configs) {
                    sender.send_replace(config);
                }
                Event::CertificatesReread { outcome: Outcome::Ok, error: None }
            }
            Err(error) => {
                tracing::error!(%error, "the certificates stay as they were");
                Event::CertificatesReread { outcome: Outcome::Error, error: Some(error.to_string()) }
            }
        };
        self.record(event);
    }

    /// Writes an event to the audit log, if there is one.
    pub(super) fn record(&self, event: Event) {
        if let Some(audit) = self.access.audit() {
            audit.event(event);
        }
    }

    /// What the audit log says of the start.
    pub(super) fn started(&self) -> Event {
        let tokens = self.access.tokens_count();
        Event::Started { version: env!("CARGO_PKG_VERSION"), tokens, tls: self.tls.is_some() }
    }
}

async fn read_tokens(path: &Path, engine: &Engine) -> Result<Tokens, Error> {
    let text = engine.read_text(path, TOKEN_FILE_BYTES_MAX, false).await?;
    Tokens::parse(&text).map_err(|error| Error::Secret(format!("{}: {error}", path.display())))
}

async fn read_tls(files: &TlsFiles, engine: &Engine) -> Result<[Arc<ServerConfig>; 2], Error> {
    let certificates = engine.read_text(&files.certificates, PEM_BYTES_MAX, false).await?;
    let key = engine.read_text(&files.key, PEM_BYTES_MAX, true).await?;
    let client_authorities: Option<Zeroizing<String>> = match &files.client_authorities {
        Some(path) => Some(engine.read_text(path, PEM_BYTES_MAX, false).await?),
        None => None,
    };
    let client_authorities = client_authorities.as_ref().map(|text| text.as_str());
    let pem = Pem { certificates: &certificates, key: &key, client_authorities };
    let [grpc, http] = PROTOCOLS.map(|protocol| server_config(&pem, protocol).map(Arc::new).map_err(Error::Secret));
    Ok([grpc?, http?])
}
