//! Signed tokens, and the keys that verify them.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

/// A signing key and the JWKS entry that verifies it.
pub struct Signer {
    pub id: &'static str,
    pub key: EncodingKey,
    pub jwk: Value,
}

/// A new key with this name.
pub fn signer(id: &'static str) -> Signer {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let point = pair.public_key_raw();
    let (x, y) = point[1..].split_at(32);
    Signer {
        id,
        key: EncodingKey::from_ec_der(&pair.serialize_der()),
        jwk: json!({
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": id,
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }),
    }
}

/// The moment in so many seconds, as tokens say it.
pub fn in_seconds(seconds: i64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs().checked_add_signed(seconds).unwrap()
}

/// Claims that are believed.
pub fn claims(subject: &str) -> Value {
    json!({ "sub": subject, "iss": "titan", "aud": "shop", "exp": in_seconds(600) })
}

impl Signer {
    pub fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.id.into());
        format!("Bearer {}", encode(&header, claims, &self.key).unwrap())
    }

    pub fn token(&self, subject: &str) -> String {
        self.sign(&claims(subject))
    }
}
