//! Small conversions between messages and the types of services.

use chrono::{DateTime, Utc};
use prost_types::Timestamp;
use uuid::Uuid;

use crate::Failure;

/// A time, for a message.
#[must_use]
pub fn timestamp(time: DateTime<Utc>) -> Timestamp {
    Timestamp {
        seconds: time.timestamp(),
        nanos: time.timestamp_subsec_nanos().cast_signed(),
    }
}

/// An id from a message.
///
/// # Errors
/// When it is not a UUID.
pub fn parse_id(field: &str, text: &str) -> Result<Uuid, Failure> {
    text.parse().map_err(|_| {
        Failure::invalid(format!(
            "{field} is not an id: `{}`",
            text.chars().take(50).collect::<String>()
        ))
    })
}
