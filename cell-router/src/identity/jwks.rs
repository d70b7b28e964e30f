//! Fetching the key set.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::config::Jwt;

const MAX_BYTES: usize = 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(5);

/// The document at the address of the configuration.
///
/// # Errors
/// With a sentence, when it cannot be had.
pub async fn fetch(config: &Jwt) -> Result<Vec<u8>, String> {
    tokio::time::timeout(PATIENCE, fetch_from(config))
        .await
        .map_err(|_| format!("no answer within {PATIENCE:?}"))?
}

async fn fetch_from(config: &Jwt) -> Result<Vec<u8>, String> {
    if let Some(path) = config.jwks.strip_prefix("file://") {
        return tokio::fs::read(path)
            .await
            .map_err(|error| error.to_string());
    }
    let uri: Uri = config
        .jwks
        .parse()
        .map_err(|error| format!("it is not an address: {error}"))?;
    let host = uri.host().ok_or("it has no host")?.to_owned();
    let tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err("it must start with http://, https:// or file://".to_owned()),
    };
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port))
        .await
        .map_err(|error| error.to_string())?;
    if !tls {
        return get(stream, &uri).await;
    }
    let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
    let stream = tokio_rustls::TlsConnector::from(client_config(config)?)
        .connect(name, stream)
        .await
        .map_err(|error| error.to_string())?;
    get(stream, &uri).await
}

fn client_config(config: &Jwt) -> Result<Arc<rustls::ClientConfig>, String> {
    let path = config
        .ca
        .as_ref()
        .ok_or("an https address needs `jwt.ca`, a file with the CA's certificates")?;
    let mut roots = rustls::RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| format!("{}: {error}", path.display()))?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

async fn get<S>(stream: S, uri: &Uri) -> Result<Vec<u8>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::ACCEPT, "application/json")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| error.to_string())?;
    if !response.status().is_success() {
        return Err(format!("it answered {}", response.status()));
    }
    let body = Limited::new(response.into_body(), MAX_BYTES)
        .collect()
        .await
        .map_err(|error| error.to_string())?;
    Ok(body.to_bytes().to_vec())
}
