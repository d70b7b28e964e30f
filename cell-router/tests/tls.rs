//! TLS towards clients: what is agreed upon in it, certificates that change, and peers that are trusted by theirs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use cell_router::config::{Config, Tls, TrustedPeers};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use support::{Client, config, pod, row, table, until};
use titan_routing::AssignmentState::Active;
use titan_testbed::pki::{Authority, Pair, Subject};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

const NAME: &str = "router.test";
const H2: &[&[u8]] = &[b"h2", b"http/1.1"];
const H1: &[&[u8]] = &[b"http/1.1"];

struct Pki {
    directory: tempfile::TempDir,
    authority: Authority,
}

impl Pki {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(directory.path()).unwrap();
        Pki {
            directory,
            authority,
        }
    }

    fn sign(&self, file: &str) -> Pair {
        let subject = Subject {
            name: file,
            dns: vec![NAME.into()],
            ..Subject::default()
        };
        self.authority.sign(file, &subject).unwrap()
    }

    /// A configuration with a certificate for `NAME`.
    fn config(&self, client_ca: bool) -> Config {
        let Pair { certificate, key } = self.sign("router");
        let mut config = config();
        config.tls = Some(Tls {
            certificate,
            key,
            client_ca: client_ca.then(|| self.authority.certificate()),
        });
        config
    }

    async fn connect(
        &self,
        address: SocketAddr,
        alpn: &[&[u8]],
        certificate: Option<&Pair>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(self.authority.certificate()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match certificate {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain = vec![CertificateDer::from_pem_file(&pair.certificate).unwrap()];
                let key = PrivateKeyDer::from_pem_file(&pair.key).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let stream = TcpStream::connect(address).await?;
        tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from(NAME).unwrap(), stream)
            .await
    }
}

async fn router(config: Config, pod: &support::Pod) -> cell_router::router::Router {
    let cells = [("cell-001", &*pod.endpoint())];
    let table = table(1, vec![row(0, 9, "cell-001", Active)], &cells);
    support::router(config, Some(&table)).await
}

#[tokio::test]
async fn clients_agree_on_a_protocol_in_tls() {
    let (pki, a) = (Pki::new(), pod("a").await);
    let router = router(pki.config(false), &a).await;
    let stream = pki.connect(router.listen, H2, None).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let client = Client::over(stream).await.unwrap();
    assert_eq!(client.get(5).await.pod(), "a");

    let request =
        "GET /x HTTP/1.1\r\nHost: order.test\r\nx-titan-key: 5\r\nConnection: close\r\n\r\n";
    for alpn in [H1, &[]] {
        let stream = pki.connect(router.listen, alpn, None).await.unwrap();
        assert_ne!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
        let answer = support::raw(stream, request).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("x-pod: a"), "{answer}");
    }
    let other = pki.connect(router.listen, &[b"h3"], None).await;
    assert!(other.is_err(), "nothing to agree upon");
    let clear = Client::connect(router.listen).await;
    assert!(clear.call("/titan.order.v1.Orders/Get", &[]).await.is_err());
    assert_eq!(client.get(5).await.pod(), "a", "the others go on");
}

#[tokio::test]
async fn certificates_are_taken_into_use_when_they_change() {
    let (pki, a) = (Pki::new(), pod("a").await);
    let router = router(pki.config(false), &a).await;
    let shown = async || {
        let stream = pki.connect(router.listen, H2, None).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let before = Client::over(pki.connect(router.listen, H2, None).await.unwrap())
        .await
        .unwrap();
    let first = shown().await;
    let pair = pki.sign("router");
    let metrics = router.shared.metrics.clone();
    until("the new certificate", || metrics.reloads.load(SeqCst) >= 1).await;
    let second = shown().await;
    assert_ne!(first, second);
    assert_eq!(second, der(&pair.certificate));
    assert_eq!(before.get(5).await.pod(), "a", "a connection outlives it");

    // A key that does not belong to the certificate, and then none at all.
    for (round, content) in [std::fs::read(pki.sign("other").key).unwrap(), b"x".to_vec()]
        .into_iter()
        .enumerate()
    {
        std::fs::write(&pair.key, content).unwrap();
        until("the refusal", || {
            metrics.reload_failures.load(SeqCst) > round as u64
        })
        .await;
        assert_eq!(shown().await, second, "the old one stays in use");
    }
    let third = pki.sign("router");
    let reloads = metrics.reloads.load(SeqCst);
    until("the mended one", || metrics.reloads.load(SeqCst) > reloads).await;
    assert_eq!(shown().await, der(&third.certificate));
    drop(pki.directory);
}

fn der(path: &Path) -> Vec<u8> {
    CertificateDer::from_pem_file(path).unwrap().to_vec()
}

#[tokio::test]
async fn a_certificate_of_the_client_ca_makes_a_trusted_peer() {
    let (pki, a) = (Pki::new(), pod("a").await);
    let mut config = pki.config(true);
    config.trusted_peers = TrustedPeers::Secret;
    assert_eq!(config.problems(), Vec::<String>::new());
    let router = router(config, &a).await;
    let gateway = pki.sign("gateway");
    let stream = pki.connect(router.listen, H2, Some(&gateway)).await;
    let client = Client::over(stream.unwrap()).await.unwrap();
    let reply = client.get(5).await;
    assert_eq!((reply.pod(), reply.header("x-seen-key")), ("a", "5"));

    let stream = pki.connect(router.listen, H2, None).await.unwrap();
    let reply = Client::over(stream).await.unwrap().get(5).await;
    assert_eq!(reply.header("x-titan-router-error"), "untrusted");

    // In TLS 1.3 the refusal comes after the client's side of the handshake.
    let others = Pki::new();
    let stranger = others.sign("gateway");
    let served = async {
        let stream = pki.connect(router.listen, H2, Some(&stranger)).await.ok()?;
        let client = Client::over(stream).await.ok()?;
        let key = [("x-titan-key", "5")];
        client.call("/titan.order.v1.Orders/Get", &key).await.ok()
    };
    assert!(served.await.is_none(), "a certificate of another CA");
    assert_eq!(a.requests(), 1);

    let mut nobody = pki.config(true);
    nobody.trusted_peers = TrustedPeers::None;
    let nobody = self::router(nobody, &a).await;
    let stream = pki.connect(nobody.listen, H2, Some(&gateway)).await;
    let reply = Client::over(stream.unwrap()).await.unwrap().get(5).await;
    assert_eq!(reply.header("x-titan-router-error"), "untrusted");
}
