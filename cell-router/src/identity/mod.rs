//! Whose key a request carries: from a trusted peer's header, from a verified token, or nobody's.

mod jwks;
mod jwt;

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use titan_http2::hpack::{Block, token};
use titan_routing::{Key, KeyspaceMode};
use tokio::sync::{Notify, watch};

pub use jwt::{KeySet, TokenError};

use crate::config::{Config, ConfigError, TrustedPeers};
use crate::head::text;
use crate::rejection::{Reason, Rejection};
use crate::upgrade;

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

/// What a request says about its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The key is known.
    Key(Key),
    /// There is none, and that is allowed.
    Anonymous,
    /// A token of a key that is not in the set; the set should be fetched again.
    UnknownKey,
}

/// Finds out whose key a request carries.
#[derive(Debug)]
pub struct Identity {
    secret: ArcSwapOption<Vec<u8>>,
    keys: ArcSwap<KeySet>,
    /// What the keys were read from.
    document: Mutex<Vec<u8>>,
    fetched: watch::Sender<Fetched>,
    wanted: Notify,
}

/// How the fetching of the key set goes.
#[derive(Clone, Debug, Default)]
pub struct Fetched {
    /// How often it was fetched.
    pub times: u64,
    /// When it was fetched last.
    pub last: Option<Instant>,
    /// Failures since then.
    pub failures: u64,
    /// The last of them.
    pub error: Option<String>,
}

impl Default for Identity {
    fn default() -> Self {
        Identity {
            secret: ArcSwapOption::empty(),
            keys: ArcSwap::default(),
            document: Mutex::default(),
            fetched: watch::Sender::default(),
            wanted: Notify::new(),
        }
    }
}

/// How long a request waits for a key set that may have the key of its token.
const KEY_SET_PATIENCE: Duration = Duration::from_secs(2);

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

    /// Whose key a request carries. A trusted peer's header comes first, then the token.
    ///
    /// # Errors
    /// When it carries a key or a token that is not to be believed, or nothing and that is not allowed.
    pub fn claim(
        &self,
        config: &Config,
        mode: KeyspaceMode,
        peer: &Peer,
        head: &Block,
    ) -> Result<Claim, Rejection> {
        let stated = head.get(token::X_TITAN_KEY);
        if let Some(value) = stated
            && self.trusts(config, peer, head)
        {
            return key_of(text(value).unwrap_or("?")).map(Claim::Key);
        }
        if let Some(jwt) = &config.jwt
            && let Some(token) = bearer(head)
        {
            return match self.keys.load().user(jwt, token) {
                Ok(user) => key_of_user(mode, &user).map(Claim::Key),
                Err(TokenError::UnknownKey) => self.may_become_known().map(|()| Claim::UnknownKey),
                Err(error) => Err(Rejection::new(Reason::BadToken, error.to_string())),
            };
        }
        if stated.is_some() {
            return Err(Rejection::new(
                Reason::Untrusted,
                "x-titan-key is taken from trusted peers only: send a token, or see `trustedPeers` in the router's configuration",
            ));
        }
        if config.anonymous {
            return Ok(Claim::Anonymous);
        }
        Err(Rejection::new(
            Reason::NoKey,
            "no key: send a token in `authorization`, or x-titan-key from a trusted peer",
        ))
    }

    /// Waits for a newer key set and looks at the token again.
    ///
    /// # Errors
    /// When the token does not verify with that one either.
    pub async fn claim_with_newer_keys(
        &self,
        config: &Config,
        mode: KeyspaceMode,
        head: &Block,
    ) -> Result<Key, Rejection> {
        let refused = |error: TokenError| match error {
            // The token may well be good: a client must not take it for a bad one and log its user out.
            TokenError::UnknownKey if self.lacks_keys() => no_keys(),
            error => Rejection::new(Reason::BadToken, error.to_string()),
        };
        let (Some(jwt), Some(token)) = (&config.jwt, bearer(head)) else {
            return Err(refused(TokenError::UnknownKey));
        };
        let mut fetched = self.fetched.subscribe();
        let times = fetched.borrow().times;
        // A set that came since the token was looked at may have its key; the next one comes a second later at the soonest.
        if matches!(
            self.keys.load().user(jwt, token),
            Err(TokenError::UnknownKey)
        ) {
            self.wanted.notify_one();
            let newer = fetched.wait_for(|newer| newer.times > times);
            let _ = tokio::time::timeout(KEY_SET_PATIENCE, newer).await;
        }
        let user = self.keys.load().user(jwt, token).map_err(refused)?;
        key_of_user(mode, &user)
    }

    /// Without any key set there is nothing to wait for once the issuer did not answer.
    fn may_become_known(&self) -> Result<(), Rejection> {
        if self.lacks_keys() && self.fetched.borrow().failures > 0 {
            return Err(no_keys());
        }
        Ok(())
    }

    /// Whether no key set was ever had.
    #[must_use]
    pub fn lacks_keys(&self) -> bool {
        self.keys.load().generation == 0
    }

    /// How the fetching of the key set goes.
    #[must_use]
    pub fn fetched(&self) -> Fetched {
        self.fetched.borrow().clone()
    }

    /// Fetches the key set soon.
    pub fn look_again(&self) {
        self.wanted.notify_one();
    }

    /// Takes a key set into use, when it is another one.
    fn take(&self, document: Vec<u8>) -> Result<(), String> {
        let mut last = self.document.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != document {
            let generation = self.keys.load().generation + 1;
            self.keys
                .store(Arc::new(KeySet::parse(&document, generation)?));
            *last = document;
        }
        self.fetched.send_modify(|fetched| {
            *fetched = Fetched {
                times: fetched.times + 1,
                last: Some(Instant::now()),
                ..Fetched::default()
            };
        });
        Ok(())
    }

    /// Fetches the key set now and then, and when a token is signed with a key that is not in it.
    pub async fn follow_keys(&self, config: Arc<ArcSwap<Config>>) {
        loop {
            let jwt = config.load().jwt.clone();
            let mut pause = Duration::from_secs(1);
            if let Some(jwt) = &jwt {
                match jwks::fetch(jwt).await.and_then(|keys| self.take(keys)) {
                    Ok(()) => pause = jwt.refresh.0,
                    Err(error) => {
                        tracing::warn!(
                            jwks = jwt.jwks,
                            error,
                            "the key set was not fetched; going on with the last one"
                        );
                        self.fetched.send_modify(|fetched| {
                            fetched.failures += 1;
                            fetched.error = Some(error);
                        });
                    }
                }
            }
            let had = !self.lacks_keys();
            let at_least = if had {
                jwt::MIN_REFRESH.min(pause)
            } else {
                Duration::ZERO
            };
            let started = tokio::time::Instant::now();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.wanted.notified(), if had => {
                    tokio::time::sleep_until(started + at_least).await;
                }
            }
        }
    }

    fn trusts(&self, config: &Config, peer: &Peer, head: &Block) -> bool {
        match config.trusted_peers {
            TrustedPeers::None => false,
            TrustedPeers::Any => true,
            TrustedPeers::Secret => {
                peer.certified
                    || head.find(TRUST.as_bytes()).is_some_and(|given| {
                        self.secret
                            .load()
                            .as_ref()
                            .is_some_and(|secret| same(secret, given))
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

/// The key of a user.
fn key_of_user(mode: KeyspaceMode, user: &str) -> Result<Key, Rejection> {
    match mode {
        KeyspaceMode::UserId => user.parse().map_err(|error: titan_routing::KeyRangeError| {
            Rejection::new(Reason::BadKey, format!("the token's subject: {error}"))
        }),
        KeyspaceMode::Hash => Ok(Key::from_user_id_hash(user)),
    }
}

fn no_keys() -> Rejection {
    Rejection::new(
        Reason::NoKeys,
        "the router has no key set of the issuer yet, so it cannot verify tokens; try again in a moment",
    )
}

/// The token of a request. A browser cannot set `authorization` on a WebSocket.
fn bearer(head: &Block) -> Option<&str> {
    let Some(value) = head.get(token::AUTHORIZATION) else {
        return upgrade::token(head);
    };
    let (scheme, token) = text(value)?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
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
