//! Mutual TLS between server, scheduler and executors: each shows a certificate of the same authority, whoever connects.
//!
//! Ballista's servers have no TLS. So they listen on an address of the loopback network that only this machine reaches, and a
//! tunnel ends TLS in front of them, on the address that others know. Ballista's clients can be given TLS.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ballista_core::extension::EndpointOverrideFn;
use clap::Args;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring::default_provider,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// Where the servers behind tunnels listen. All of 127.0.0.0/8 is this machine.
pub(crate) const BEHIND_TUNNEL: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 77, 0, 1));
/// Connections of a tunnel. More wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
/// How long a handshake, or a connection to another machine, may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// How often a connection is probed, so that one whose other side has gone ends.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long to wait after accepting has failed, for example for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The files of mutual TLS, the same flags for every role.
#[derive(Args, Clone, Debug)]
pub struct TlsArgs {
    /// File with the authority, in PEM, that signs the certificates of server, scheduler and executors. Its only use should be this:
    /// whoever has such a certificate belongs to the cluster.
    #[arg(long, env = "TALLY_CLUSTER_CA", value_name = "PATH", requires_all = ["cluster_cert", "cluster_key"])]
    pub cluster_ca: Option<PathBuf>,

    /// File with the certificate of this process, in PEM. It must have the name or address by which others reach it.
    #[arg(long, env = "TALLY_CLUSTER_CERT", value_name = "PATH", requires_all = ["cluster_ca", "cluster_key"])]
    pub cluster_cert: Option<PathBuf>,

    /// File with the private key of that certificate, in PEM.
    #[arg(long, env = "TALLY_CLUSTER_KEY", value_name = "PATH", requires_all = ["cluster_ca", "cluster_cert"])]
    pub cluster_key: Option<PathBuf>,
}

/// Both sides of mutual TLS.
#[derive(Clone)]
pub struct Tls {
    server: Arc<ServerConfig>,
    client: ClientTlsConfig,
}

impl Tls {
    /// Reads the files; `None` if there are none.
    ///
    /// Errors: one cannot be read, or is not what its flag wants.
    pub fn read(args: &TlsArgs) -> Result<Option<Self>, String> {
        let (Some(authority), Some(certificate), Some(key)) = (&args.cluster_ca, &args.cluster_cert, &args.cluster_key)
        else {
            return Ok(None);
        };
        let (authority, certificate, key) = (read(authority)?, read(certificate)?, read(key)?);
        let server = server_config(&authority, &certificate, &key)?;
        let client = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(authority))
            .identity(Identity::from_pem(certificate, key));
        Ok(Some(Self { server: Arc::new(server), client }))
    }

    /// An endpoint with the same address, and TLS.
    ///
    /// Errors: its address is not valid.
    pub fn endpoint(&self, endpoint: &Endpoint) -> Result<Endpoint, tonic::transport::Error> {
        let uri = endpoint.uri().to_string();
        let uri = uri.strip_prefix("http://").map_or_else(|| uri.clone(), |rest| format!("https://{rest}"));
        let endpoint = Endpoint::from_shared(uri)?.connect_timeout(HANDSHAKE_MAX).tcp_nodelay(true);
        endpoint.http2_keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(HANDSHAKE_MAX).tls_config(self.client.clone())
    }

    /// The same for Ballista's clients.
    pub fn endpoints(&self) -> EndpointOverrideFn {
        let tls = self.clone();
        Arc::new(move |endpoint| Ok(tls.endpoint(&endpoint)?))
    }

    /// Ends TLS for `target`, for as long as the process runs.
    pub fn tunnel(&self, listener: TcpListener, target: SocketAddr) {
        let (acceptor, permits) =
            (TlsAcceptor::from(Arc::clone(&self.server)), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
        tokio::spawn(async move {
            while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
                match listener.accept().await {
                    Ok((stream, from)) => {
                        let acceptor = acceptor.clone();
                        tokio::spawn(async move {
                            let _permit = permit;
                            if let Err(error) = connect(stream, &acceptor, target).await {
                                tracing::warn!(%from, %error, "a connection of the cluster has ended");
                            }
                        });
                    }
                    Err(error) => {
                        tracing::error!(%error, "no connection can be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
    }
}

async fn connect(stream: TcpStream, acceptor: &TlsAcceptor, target: SocketAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut outer = timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await??;
    let mut inner = TcpStream::connect(target).await?;
    inner.set_nodelay(true)?;
    match copy_bidirectional(&mut outer, &mut inner).await {
        // The other side has gone without a word, which is how processes end.
        Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => Ok(()),
        copied => copied.map(|_bytes| ()),
    }
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn server_config(authority: &str, certificate: &str, key: &str) -> Result<ServerConfig, String> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(authority).map_err(|error| format!("--cluster-ca: {error}"))? {
        roots.add(authority).map_err(|error| format!("--cluster-ca: {error}"))?;
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| format!("--cluster-key: {error}"))?;
    let chain = certificates(certificate).map_err(|error| format!("--cluster-cert: {error}"))?;
    let provider = Arc::new(default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider));
    let verifier = verifier.build().map_err(|error| format!("--cluster-ca: {error}"))?;
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?.with_client_cert_verifier(verifier);
    let config = builder.with_single_cert(chain, key);
    let mut config = config.map_err(|error| format!("--cluster-cert and --cluster-key: {error}"))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    found.map_err(|error| error.to_string()).and_then(|found| match found.is_empty() {
        true => Err("it must hold a certificate in PEM".to_owned()),
        false => Ok(found),
    })
}
