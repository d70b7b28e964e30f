//! Tokens: verified against a key set that is fetched again when it changes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;

use crate::config::Jwt;

/// A larger token is refused unread.
const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// Verified tokens that each thread remembers.
const REMEMBERED: usize = 4096;
/// Clocks may differ by so much.
const LEEWAY_SECONDS: u64 = 30;

/// The keys that tokens are signed with.
#[derive(Debug, Default)]
pub struct KeySet {
    /// Tells one set from the next.
    pub generation: u64,
    by_id: HashMap<String, VerifyingKey>,
    /// Keys without an id: tried for tokens that name none.
    nameless: Vec<VerifyingKey>,
}

#[derive(Debug)]
struct VerifyingKey {
    key: DecodingKey,
    /// What the key is for. What the token says about this is not believed.
    algorithms: Vec<Algorithm>,
}

/// Why a token was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token, or a wrong signature, issuer, audience or time.
    #[error("the token does not verify: {0}")]
    Invalid(String),
    /// Signed with a key that is not in the set: perhaps it is new.
    #[error("the token is signed with a key that is not in the key set")]
    UnknownKey,
}

#[derive(Deserialize)]
struct Claims {
    sub: Subject,
    exp: u64,
}

/// Some issuers write numeric ids as numbers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Subject {
    Text(String),
    Number(u64),
}

impl KeySet {
    /// Reads a JWKS document. Keys that cannot verify signatures are left out.
    ///
    /// # Errors
    /// When it is not a JWKS document, or holds no usable key.
    pub fn parse(document: &[u8], generation: u64) -> Result<Self, String> {
        let set: JwkSet = serde_json::from_slice(document)
            .map_err(|error| format!("it is not a JWKS document: {error}"))?;
        let mut keys = KeySet {
            generation,
            ..KeySet::default()
        };
        for jwk in &set.keys {
            let algorithms = algorithms_of(jwk);
            let Ok(key) = DecodingKey::from_jwk(jwk) else {
                continue;
            };
            if algorithms.is_empty() {
                continue;
            }
            let key = VerifyingKey { key, algorithms };
            match &jwk.common.key_id {
                Some(id) => {
                    keys.by_id.insert(id.clone(), key);
                }
                None => keys.nameless.push(key),
            }
        }
        if keys.by_id.is_empty() && keys.nameless.is_empty() {
            return Err("it holds no key that can verify tokens".to_owned());
        }
        Ok(keys)
    }

    /// The user id in a token.
    ///
    /// # Errors
    /// When it does not verify.
    pub fn user(&self, config: &Jwt, token: &str) -> Result<String, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Invalid(format!(
                "it is larger than {MAX_TOKEN_BYTES} bytes"
            )));
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        if let Some(user) = remembered(self.generation, config, token, now) {
            return Ok(user);
        }
        let invalid = |error: jsonwebtoken::errors::Error| TokenError::Invalid(error.to_string());
        let header = decode_header(token).map_err(invalid)?;
        let candidates: Vec<&VerifyingKey> = match &header.kid {
            Some(id) => vec![self.by_id.get(id).ok_or(TokenError::UnknownKey)?],
            None => self.nameless.iter().chain(self.by_id.values()).collect(),
        };
        let mut last = TokenError::UnknownKey;
        for candidate in candidates {
            match candidate.verify(config, token) {
                Ok(claims) => {
                    let user = match claims.sub {
                        Subject::Text(text) => text,
                        Subject::Number(number) => number.to_string(),
                    };
                    let until = claims.exp.saturating_add(LEEWAY_SECONDS);
                    remember(self.generation, config, token, &user, until);
                    return Ok(user);
                }
                Err(error) => last = invalid(error),
            }
        }
        Err(last)
    }
}

impl VerifyingKey {
    fn verify(&self, config: &Jwt, token: &str) -> jsonwebtoken::errors::Result<Claims> {
        let first = self.algorithms.first().copied().unwrap_or(Algorithm::RS256);
        let mut validation = Validation::new(first);
        validation.algorithms.clone_from(&self.algorithms);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        // `sub` is required by `Claims`, which takes numbers, too.
        let mut required = vec!["exp"];
        match &config.audience {
            Some(audience) => {
                validation.set_audience(&[audience]);
                required.push("aud");
            }
            None => validation.validate_aud = false,
        }
        if let Some(issuer) = &config.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        Ok(decode::<Claims>(token, &self.key, &validation)?.claims)
    }
}

/// What a key may be used for. Symmetric keys are for nothing: whoever can verify with them can also sign.
fn algorithms_of(jwk: &Jwk) -> Vec<Algorithm> {
    let all = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => vec![
            (KeyAlgorithm::RS256, Algorithm::RS256),
            (KeyAlgorithm::RS384, Algorithm::RS384),
            (KeyAlgorithm::RS512, Algorithm::RS512),
            (KeyAlgorithm::PS256, Algorithm::PS256),
            (KeyAlgorithm::PS384, Algorithm::PS384),
            (KeyAlgorithm::PS512, Algorithm::PS512),
        ],
        AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
            EllipticCurve::P256 => vec![(KeyAlgorithm::ES256, Algorithm::ES256)],
            EllipticCurve::P384 => vec![(KeyAlgorithm::ES384, Algorithm::ES384)],
            _ => Vec::new(),
        },
        AlgorithmParameters::OctetKeyPair(_) => vec![(KeyAlgorithm::EdDSA, Algorithm::EdDSA)],
        _ => Vec::new(),
    };
    let named = jwk.common.key_algorithm;
    all.into_iter()
        .filter(|(key, _)| named.is_none_or(|named| named == *key))
        .map(|(_, algorithm)| algorithm)
        .collect()
}

/// Tokens that this thread verified: whole, so that nothing but the same token is taken for it.
#[derive(Default)]
struct Remembered {
    /// What they were verified with.
    generation: u64,
    issuer: Option<String>,
    audience: Option<String>,
    users: HashMap<Box<str>, (String, u64)>,
}

impl Remembered {
    fn is_of(&self, generation: u64, config: &Jwt) -> bool {
        self.generation == generation
            && self.issuer == config.issuer
            && self.audience == config.audience
    }
}

thread_local! {
    static TOKENS: RefCell<Remembered> = RefCell::default();
}

fn remembered(generation: u64, config: &Jwt, token: &str, now: u64) -> Option<String> {
    TOKENS.with_borrow(|tokens| {
        let (user, until) = tokens
            .users
            .get(token)
            .filter(|_| tokens.is_of(generation, config))?;
        (*until > now).then(|| user.clone())
    })
}

fn remember(generation: u64, config: &Jwt, token: &str, user: &str, until: u64) {
    TOKENS.with_borrow_mut(|tokens| {
        if !tokens.is_of(generation, config) || tokens.users.len() >= REMEMBERED {
            tokens.users.clear();
            tokens.generation = generation;
            tokens.issuer.clone_from(&config.issuer);
            tokens.audience.clone_from(&config.audience);
        }
        tokens.users.insert(token.into(), (user.to_owned(), until));
    });
}

/// How long to wait between two fetches at least, however many tokens of unknown keys come.
pub const MIN_REFRESH: Duration = Duration::from_secs(1);
