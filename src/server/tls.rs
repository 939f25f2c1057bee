//! TLS for both ports, by rustls.
//!
//! A connection makes its handshake when it is first read or written, in its own task, within a bounded time. Until then it
//! has no call, and is one of the first that are closed for others. Sessions are not resumed, so that nothing is kept for
//! clients that are gone, and certificates that are read again count at once.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::watch,
    time::{Sleep, sleep},
};
use tokio_rustls::{
    Accept, TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring::default_provider,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::{NoServerSessionStorage, WebPkiClientVerifier},
    },
    server::TlsStream,
};
use webpki::EndEntityCert;

use crate::limits::TLS_SEND_BYTES;

/// How long a client may take for its handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// What the files of the flags hold, as PEM.
pub(super) struct Pem<'a> {
    pub(super) certificates: &'a str,
    pub(super) key: &'a str,
    pub(super) client_authorities: Option<&'a str>,
}

/// The settings for a port whose protocol has this name in ALPN (RFC 7301).
///
/// Errors: a text holds no PEM of its kind, or the key does not fit the certificate.
pub(super) fn server_config(pem: &Pem<'_>, protocol: &[u8]) -> Result<ServerConfig, String> {
    let chain = certificates(pem.certificates).map_err(|error| format!("--tls-cert: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes())
        .map_err(|error| format!("--tls-key: it must hold a private key in PEM: {error}"))?;
    let provider = Arc::new(default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match pem.client_authorities {
        Some(authorities) => {
            let wrong = |error: String| format!("--tls-client-ca: {error}");
            let mut roots = RootCertStore::empty();
            for authority in certificates(authorities).map_err(wrong)? {
                roots.add(authority).map_err(|error| wrong(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            // A client without a certificate may have a token instead, and probes need neither.
            let verifier = verifier.allow_unauthenticated().build().map_err(|error| wrong(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config =
        builder.with_single_cert(chain, key).map_err(|error| format!("--tls-cert and --tls-key: {error}"))?;
    config.alpn_protocols = vec![protocol.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err("it must hold a certificate in PEM".to_owned()),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("it must hold certificates in PEM: {error}")),
    }
}

/// Accepts the connections of one port, with TLS if it has settings.
#[derive(Clone)]
pub(super) struct Acceptor(pub(super) Option<watch::Receiver<Arc<ServerConfig>>>);

impl Acceptor {
    pub(super) fn accept(&self, stream: TcpStream) -> Transport {
        let Some(config) = &self.0 else { return Transport::Plain(stream) };
        let acceptor = TlsAcceptor::from(Arc::clone(&config.borrow()));
        let accept = acceptor.accept_with(stream, |connection| connection.set_buffer_limit(Some(TLS_SEND_BYTES)));
        Transport::Tls(Box::new(Tls {
            state: State::Handshake(accept, Box::pin(sleep(HANDSHAKE_MAX))),
            certificate: Certificate::default(),
        }))
    }
}

/// The name in the certificate that a client has shown in its handshake: the first DNS name of its subject alternative names
/// (RFC 5280, section 4.2.1.6); empty if it has none. The calls of a connection share it.
#[derive(Clone, Default)]
pub(super) struct Certificate(Arc<OnceLock<Box<str>>>);

impl Certificate {
    pub(super) fn name(&self) -> Option<&str> {
        self.0.get().map(AsRef::as_ref)
    }
}

/// A connection, with TLS or without.
pub(super) enum Transport {
    Plain(TcpStream),
    Tls(Box<Tls>),
}

impl Transport {
    /// What is known of the client once the handshake is made.
    pub(super) fn certificate(&self) -> Certificate {
        match self {
            Self::Plain(_) => Certificate::default(),
            Self::Tls(tls) => tls.certificate.clone(),
        }
    }
}

pub(super) struct Tls {
    state: State,
    certificate: Certificate,
}

enum State {
    Handshake(Accept<TcpStream>, Pin<Box<Sleep>>),
    Open(TlsStream<TcpStream>),
    /// The handshake failed.
    Broken,
}

impl Tls {
    /// The stream, after its handshake.
    fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Pin<&mut TlsStream<TcpStream>>>> {
        if let State::Handshake(accept, timeout) = &mut self.state {
            let made = match Pin::new(accept).poll(context) {
                Poll::Ready(made) => made,
                Poll::Pending => {
                    ready!(timeout.as_mut().poll(context));
                    Err(io::ErrorKind::TimedOut.into())
                }
            };
            self.state = match made {
                Ok(stream) => {
                    if let Some(shown) = stream.get_ref().1.peer_certificates().and_then(<[_]>::first) {
                        let _once = self.certificate.0.set(name_in(shown));
                    }
                    State::Open(stream)
                }
                Err(error) => {
                    self.state = State::Broken;
                    return Poll::Ready(Err(error));
                }
            };
        }
        match &mut self.state {
            State::Open(stream) => Poll::Ready(Ok(Pin::new(stream))),
            State::Handshake(..) | State::Broken => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

fn name_in(certificate: &CertificateDer<'_>) -> Box<str> {
    let parsed = EndEntityCert::try_from(certificate);
    let name = parsed.ok().and_then(|parsed| parsed.valid_dns_names().next().map(Into::into));
    name.unwrap_or_default()
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(tls) => ready!(tls.poll_open(context))?.poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(tls) => ready!(tls.poll_open(context))?.poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(tls) => ready!(tls.poll_open(context))?.poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(tls) => match &mut tls.state {
                State::Open(stream) => Pin::new(stream).poll_shutdown(context),
                // There is nobody to say goodbye to. Dropping it closes the connection.
                State::Handshake(..) | State::Broken => Poll::Ready(Ok(())),
            },
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
            Self::Tls(tls) => ready!(tls.poll_open(context))?.poll_write_vectored(context, buffers),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true // both are
    }
}
