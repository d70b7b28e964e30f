//! Passwords of roles: what is sent to the server, and how it is known later that it is still the same.
//!
//! The server is sent a SCRAM-SHA-256 verifier computed here, so that no password appears in a statement that it may
//! log. Each role carries a comment with two digests: of the password, and of the verifier that was sent for it.
//! The first tells whether the wanted password is the one that was set, and needs no rights but to read comments,
//! which is all that an administrator of a managed server has. The second is compared with `pg_authid` where that
//! can be read, and so finds a password that was changed by hand. Both checks cost one SHA-256, where computing the
//! verifier again would cost 4,096 rounds a role and reconcile.
//!
//! Comments on roles can be read by every role of the server. That gives nothing away: the passwords are generated
//! from 128 bits of randomness or more, out of reach for guessing.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::RngExt as _;
use ring::digest::SHA256;
use ring::hmac::{self, HMAC_SHA256};
use ring::pbkdf2::{self, PBKDF2_HMAC_SHA256};

/// PostgreSQL's own default, and the least that RFC 7677 allows. Nobody guesses a password that was generated, and each
/// role costs the server 3.6 ms for this when it is made; but drivers of other languages refuse to log in with fewer.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("not zero");

/// The start of each comment of ours.
const PREFIX: &str = "titan.dev";

/// The comment on a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// The database that the role belongs to.
    pub database: String,
    /// The digest of the password that was set.
    pub password: String,
    /// The digest of the verifier that was sent for it.
    pub verifier: String,
}

impl Mark {
    /// What the comments of all roles of a database start with.
    pub fn prefix(database: &str) -> String {
        format!("{PREFIX} database={database} ")
    }

    /// Reads a comment; None when it is not one of ours.
    pub fn parse(comment: &str) -> Option<Self> {
        let mut words = comment.split(' ');
        if words.next() != Some(PREFIX) {
            return None;
        }
        let mut value = |name: &str| {
            Some(
                words
                    .next()?
                    .strip_prefix(name)?
                    .strip_prefix('=')?
                    .to_owned(),
            )
        };
        Some(Self {
            database: value("database")?,
            password: value("password")?,
            verifier: value("verifier")?,
        })
    }
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}password={} verifier={}",
            Self::prefix(&self.database),
            self.password,
            self.verifier
        )
    }
}

/// The digest of a role's password for its comment.
pub(super) fn password_digest(role: &str, password: &str) -> String {
    digest(format!("{role}\0{password}").as_bytes())
}

/// The digest of a verifier for the comment; `pg_authid` is read through the same function in SQL.
pub(super) fn verifier_digest(verifier: &str) -> String {
    digest(verifier.as_bytes())
}

pub(super) fn digest(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// A verifier with fresh salt, in the form of `pg_authid.rolpassword`.
pub(super) fn verifier(password: &str) -> String {
    let mut salt = [0; 16];
    rand::rng().fill(&mut salt);
    verifier_with(password, &salt, ITERATIONS)
}

fn verifier_with(password: &str, salt: &[u8], iterations: NonZeroU32) -> String {
    let mut salted = [0; ring::digest::SHA256_OUTPUT_LEN];
    // `Hi` of RFC 5802.
    pbkdf2::derive(
        PBKDF2_HMAC_SHA256,
        iterations,
        salt,
        password.as_bytes(),
        &mut salted,
    );
    let key = hmac::Key::new(HMAC_SHA256, &salted);
    let client_key = hmac::sign(&key, b"Client Key");
    let stored_key = ring::digest::digest(&SHA256, client_key.as_ref());
    let server_key = hmac::sign(&key, b"Server Key");
    format!(
        "SCRAM-SHA-256${iterations}:{}${}:{}",
        STANDARD.encode(salt),
        STANDARD.encode(stored_key),
        STANDARD.encode(server_key)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifier_is_the_one_of_rfc_7677() {
        // The example exchange of RFC 7677, section 3: user "user", password "pencil".
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        assert_eq!(
            verifier_with("pencil", &salt, ITERATIONS),
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
             wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
        );
    }

    #[test]
    fn marks_are_read_back() {
        let mark = Mark {
            database: "cell_1".to_owned(),
            password: "ab".to_owned(),
            verifier: "cd".to_owned(),
        };
        assert_eq!(Mark::parse(&mark.to_string()), Some(mark.clone()));
        assert!(mark.to_string().starts_with(&Mark::prefix("cell_1")));
        assert!(!mark.to_string().starts_with(&Mark::prefix("cell")));
        assert_eq!(Mark::parse("the reporting team's role"), None);
        assert_eq!(Mark::parse("titan.dev database=cell_1"), None);
    }
}
