//! Keys and key ranges.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The owner of a row and the unit of routing: a number that fits a PostgreSQL `bigint`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Key(u64);

impl Key {
    /// The smallest key.
    pub const MIN: Key = Key(0);
    /// The largest key, `i64::MAX`.
    pub const MAX: Key = Key(i64::MAX as u64);

    /// A key from a number.
    ///
    /// # Errors
    /// When the number does not fit a `bigint`.
    pub const fn new(value: u64) -> Result<Self, KeyRangeError> {
        if value > Self::MAX.0 {
            return Err(KeyRangeError::KeyTooLarge(value));
        }
        Ok(Key(value))
    }

    /// The key of a string id in mode [`KeyspaceMode::Hash`]: `xxh3_64(id) >> 1`, which always fits a `bigint`.
    #[must_use]
    pub fn from_user_id_hash(user_id: &str) -> Self {
        Key(xxhash_rust::xxh3::xxh3_64(user_id.as_bytes()) >> 1)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number as PostgreSQL stores it.
    #[must_use]
    pub const fn as_i64(self) -> i64 {
        // Lossless: a key never exceeds i64::MAX.
        self.0.cast_signed()
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Key::new(u64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Key {
    type Err = KeyRangeError;

    /// Reads a key as it stands in `x-titan-key`: decimal digits alone, no sign and no space.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(KeyRangeError::NotANumber(text.to_owned()));
        }
        let value = text
            .parse()
            .map_err(|_| KeyRangeError::NotANumber(text.to_owned()))?;
        Key::new(value)
    }
}

/// How the platform turns a user id into a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyspaceMode {
    /// The key is the numeric user id.
    #[default]
    UserId,
    /// The key is `xxh3_64(user id) >> 1`.
    Hash,
}

/// An inclusive range of keys, `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawKeyRange")]
pub struct KeyRange {
    first: Key,
    last: Key,
}

#[derive(Deserialize)]
struct RawKeyRange {
    first: Key,
    last: Key,
}

impl TryFrom<RawKeyRange> for KeyRange {
    type Error = KeyRangeError;

    fn try_from(raw: RawKeyRange) -> Result<Self, Self::Error> {
        KeyRange::new(raw.first, raw.last)
    }
}

impl KeyRange {
    /// The range `first..=last`.
    ///
    /// # Errors
    /// When `first` is larger than `last`.
    pub const fn new(first: Key, last: Key) -> Result<Self, KeyRangeError> {
        if first.0 > last.0 {
            return Err(KeyRangeError::Reversed {
                first: first.0,
                last: last.0,
            });
        }
        Ok(KeyRange { first, last })
    }

    /// The first key of the range.
    #[must_use]
    pub const fn first(self) -> Key {
        self.first
    }

    /// The last key of the range, which belongs to it.
    #[must_use]
    pub const fn last(self) -> Key {
        self.last
    }

    /// Whether the key lies in the range.
    #[must_use]
    pub const fn contains(self, key: Key) -> bool {
        self.first.0 <= key.0 && key.0 <= self.last.0
    }

    /// Whether the two ranges share a key.
    #[must_use]
    pub const fn overlaps(self, other: KeyRange) -> bool {
        self.first.0 <= other.last.0 && other.first.0 <= self.last.0
    }

    /// How many keys the range holds.
    #[must_use]
    pub const fn len(self) -> u64 {
        // No overflow: last is at most i64::MAX.
        self.last.0 - self.first.0 + 1
    }

    /// Always false: an inclusive range holds at least one key.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        false
    }
}

impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}", self.first, self.last)
    }
}

/// Why a key or a range was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyRangeError {
    /// The number does not fit a PostgreSQL bigint.
    #[error("key {0} is larger than {max}, the largest bigint", max = Key::MAX)]
    KeyTooLarge(u64),
    /// The text is not a decimal number.
    #[error("`{0}` is not a key: a key is a decimal number from 0 to {max}", max = Key::MAX)]
    NotANumber(String),
    /// The ends of the range are the wrong way round.
    #[error("range {first}..={last} is reversed: first must not be larger than last")]
    Reversed {
        /// The first key given.
        first: u64,
        /// The last key given.
        last: u64,
    },
}
