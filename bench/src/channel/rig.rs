//! A CA, a channel and an echo behind its certificates, and clients with one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_identity::UnixTime;
use mesh_sessions::channel::{Credentials, Limits, Server, Tls};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::asking::Connection;
use super::serving;

/// The first and the last day on which anybody runs this, in the type of a crate that has no name here.
macro_rules! holds {
    () => {
        (date_time_ymd(2026, 1, 1), date_time_ymd(2049, 1, 1))
    };
}

/// What both servers are asked by.
const SERVER: &str = "server.mesh";

pub(crate) struct Rig {
    /// Of the servers and of the clients: one thread each.
    servers: Runtime,
    clients: Runtime,
    ca: Ca,
    server: (String, String),
    channel: Server,
    tls: Tls,
    echo: SocketAddr,
    client: Arc<ClientConfig>,
}

struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Rig {
    pub(crate) fn new() -> Result<Self> {
        let one = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let (servers, clients) = (one()?, one()?);
        let ca = Ca::new()?;
        let server = ca.issue("server", 1)?;
        let tls = Tls::new(&ca.credentials(&server, Vec::new()), Arc::new(UnixTime::now))?;
        let (channel, echo) = servers.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let (desk, directory) = (Arc::new(serving::Echo), Arc::new(serving::Everybody));
            let channel = Server::start(listener, tls.clone(), desk, directory, Limits::default())?;
            let echo = serving::bare(Arc::new(ca.server_config(&server)?)).await?;
            anyhow::Ok((channel, echo))
        })?;
        let client = Arc::new(ca.client_config(&ca.issue("client", 2)?)?);
        Ok(Self { servers, clients, ca, server, channel, tls, echo, client })
    }

    pub(crate) fn channel(&self) -> SocketAddr {
        self.channel.address()
    }

    pub(crate) fn echo(&self) -> SocketAddr {
        self.echo
    }

    pub(crate) fn connections(&self, to: SocketAddr, count: usize) -> Result<Vec<Connection>> {
        self.clients.block_on(async {
            let mut connections = Vec::new();
            for _ in 0..count {
                connections.push(Connection::open(to, SERVER, self.client.clone()).await?);
            }
            Ok(connections)
        })
    }

    /// Requests a second, and how long each took, sorted, in milliseconds.
    pub(crate) fn load(
        &self,
        connections: &mut Vec<Connection>,
        path: &'static str,
        time: Duration,
    ) -> Result<(f64, Vec<f64>)> {
        let begin = Instant::now();
        let mut times = self.clients.block_on(async {
            let mut asking = tokio::task::JoinSet::new();
            for mut connection in connections.drain(..) {
                asking.spawn(async move {
                    let mut times = Vec::new();
                    while begin.elapsed() < time {
                        let asked = Instant::now();
                        connection.delegate(path).await?;
                        times.push(asked.elapsed().as_secs_f64() * 1e3);
                    }
                    anyhow::Ok((connection, times))
                });
            }
            let mut all = Vec::new();
            while let Some(done) = asking.join_next().await {
                let (connection, times) = done??;
                connections.push(connection);
                all.extend(times);
            }
            anyhow::Ok(all)
        })?;
        let rate = times.len() as f64 / begin.elapsed().as_secs_f64();
        crate::stats::sort(&mut times);
        Ok((rate, times))
    }

    /// How long each new connection with its first answer took, in milliseconds.
    pub(crate) fn handshakes(&self, count: usize) -> Result<Vec<f64>> {
        self.clients.block_on(async {
            let mut times = Vec::new();
            for _ in 0..count {
                let begin = Instant::now();
                let mut connection = Connection::open(self.channel(), SERVER, self.client.clone()).await?;
                connection.ping().await?;
                times.push(begin.elapsed().as_secs_f64() * 1e3);
            }
            Ok(times)
        })
    }

    /// The milliseconds from a list that revokes a certificate to the end of the last of its connections.
    pub(crate) fn revocation(&self, serial: u64, open: usize) -> Result<f64> {
        let config = Arc::new(self.ca.client_config(&self.ca.issue("client", serial)?)?);
        let credentials = self.ca.credentials(&self.server, vec![self.ca.crl(serial)?]);
        self.clients.block_on(async {
            let mut connections = Vec::new();
            for _ in 0..open {
                let mut connection = Connection::open(self.channel(), SERVER, config.clone()).await?;
                connection.ping().await?;
                connections.push(connection);
            }
            let tls = self.tls.clone();
            let begin = Instant::now();
            let reload = self.servers.spawn_blocking(move || tls.reload(&credentials));
            for connection in connections {
                connection.ended().await;
            }
            let took = begin.elapsed().as_secs_f64() * 1e3;
            let closed = reload.await?.context("the list is not taken")?.closed;
            anyhow::ensure!(closed >= open, "{closed} of {open} connections were closed");
            Ok(took)
        })
    }
}

impl Ca {
    fn new() -> Result<Self> {
        let mut params = CertificateParams::new(vec![])?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "the benchmark's CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = holds!();
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { pem, issuer: Issuer::new(params, key) })
    }

    /// A certificate and its key, PEM.
    fn issue(&self, name: &str, serial: u64) -> Result<(String, String)> {
        let mut params = CertificateParams::new(vec![format!("{name}.mesh")])?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from(serial));
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = holds!();
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }

    fn crl(&self, serial: u64) -> Result<Vec<u8>> {
        let (this_update, next_update) = holds!();
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: this_update,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update,
            next_update,
            crl_number: SerialNumber::from(serial),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.pem()?.into_bytes())
    }

    fn credentials(&self, (cert, key): &(String, String), crls: Vec<Vec<u8>>) -> Credentials {
        Credentials {
            chain_pem: self.pem.clone().into_bytes(),
            cert_pem: cert.clone().into_bytes(),
            key_pem: key.clone().into_bytes(),
            crls,
        }
    }

    fn client_config(&self, (cert, key): &(String, String)) -> Result<ClientConfig> {
        client_config(&self.pem, cert, key)
    }

    /// The same demands that the channel makes, without anything of ours.
    fn server_config(&self, (cert, key): &(String, String)) -> Result<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&self.pem)?), provider.clone())
                .build()?;
        Ok(ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(cert.as_bytes())?],
                PrivateKeyDer::from_pem_slice(key.as_bytes())?,
            )?)
    }
}

/// Every certificate of a chain vouches for nodes.
fn roots(chain: &str) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(chain.as_bytes()) {
        roots.add(certificate?)?;
    }
    Ok(roots)
}

/// A caller with a certificate, who believes this chain.
pub(crate) fn client_config(chain: &str, cert: &str, key: &str) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(chain)?)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(cert.as_bytes())?],
            PrivateKeyDer::from_pem_slice(key.as_bytes())?,
        )?)
}
