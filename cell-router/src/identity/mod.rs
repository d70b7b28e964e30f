//! Whose key a request carries: from a trusted peer's header, from a verified token, or nobody's.

use std::net::IpAddr;
use std::path::Path;

use arc_swap::ArcSwapOption;
use http::HeaderMap;
use titan_routing::{Key, KeyspaceMode};

use crate::config::{Config, ConfigError, TrustedPeers};
use crate::rejection::{Reason, Rejection};

/// The header with the key.
pub const KEY: &str = "x-titan-key";
/// The header with the epoch of the table that the router routed by.
pub const EPOCH: &str = "x-titan-epoch";
/// The header with the secret of trusted peers.
pub const TRUST: &str = "x-titan-trust";

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub ip: IpAddr,
    /// Whether it showed a certificate of the client CA.
    pub certified: bool,
}

/// Finds out whose key a request carries.
#[derive(Debug, Default)]
pub struct Identity {
    secret: ArcSwapOption<Vec<u8>>,
}

impl Identity {
    /// Nothing is known and nobody trusted.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what the configuration says.
    ///
    /// # Errors
    /// When the secret of trusted peers cannot be read or is too short.
    pub fn configure(&self, config: &Config) -> Result<(), ConfigError> {
        let secret = match &config.trust_secret_file {
            Some(path) => Some(read_secret(path)?.into()),
            None => None,
        };
        self.secret.store(secret);
        Ok(())
    }

    /// The key of a request; None when it is anonymous.
    ///
    /// # Errors
    /// When it carries a key or a token that is not to be believed, or nothing and that is not allowed.
    pub fn key(
        &self,
        config: &Config,
        mode: KeyspaceMode,
        peer: &Peer,
        headers: &HeaderMap,
    ) -> Result<Option<Key>, Rejection> {
        let _ = mode;
        if let Some(value) = headers.get(KEY) {
            if self.trusts(config, peer, headers) {
                return key_of(value.to_str().unwrap_or("?")).map(Some);
            }
            return Err(Rejection::new(
                Reason::Untrusted,
                "x-titan-key is taken from trusted peers only: send a token, or see `trustedPeers` in the router's configuration",
            ));
        }
        if config.anonymous {
            return Ok(None);
        }
        Err(Rejection::new(
            Reason::NoKey,
            "no key: send a token in `authorization`, or x-titan-key from a trusted peer",
        ))
    }

    fn trusts(&self, config: &Config, peer: &Peer, headers: &HeaderMap) -> bool {
        match config.trusted_peers {
            TrustedPeers::None => false,
            TrustedPeers::Any => true,
            TrustedPeers::Secret => {
                peer.certified
                    || headers.get(TRUST).is_some_and(|given| {
                        self.secret
                            .load()
                            .as_ref()
                            .is_some_and(|secret| same(secret, given.as_bytes()))
                    })
            }
        }
    }
}

/// A key as it is written.
fn key_of(text: &str) -> Result<Key, Rejection> {
    text.parse().map_err(|error: titan_routing::KeyRangeError| {
        Rejection::new(Reason::BadKey, format!("{KEY}: {error}"))
    })
}

/// Compares in a time that does not tell how much is right.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}

fn read_secret(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let text = std::fs::read(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let secret = text.trim_ascii().to_vec();
    if secret.len() < 16 {
        return Err(ConfigError::Invalid {
            path: path.to_owned(),
            problem: "the secret of trusted peers must have at least 16 bytes".to_owned(),
        });
    }
    Ok(secret)
}
