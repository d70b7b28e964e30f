//! `grpc-timeout`: read, cut to the limits, passed on with what is left.

use std::time::Duration;

use titan_http2::hpack::{Block, token};

use crate::config::Limits;
use crate::rejection::{Reason, Rejection};

/// The deadline that the client gave.
///
/// # Errors
/// When the header is there and is not of the form that gRPC wants.
pub fn of(head: &Block) -> Result<Option<Duration>, Rejection> {
    let Some(value) = head.get(token::GRPC_TIMEOUT) else {
        return Ok(None);
    };
    parse(value).map(Some).ok_or_else(|| {
        Rejection::new(
            Reason::BadRequest,
            "grpc-timeout must be up to 8 digits and one of H, M, S, m, u, n",
        )
    })
}

/// Up to 8 digits and a unit.
#[must_use]
pub fn parse(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let mut amount = 0_u64;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        amount = amount * 10 + u64::from(digit - b'0');
    }
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// The deadline that counts. None means none.
#[must_use]
pub fn effective(of_client: Option<Duration>, limits: &Limits) -> Option<Duration> {
    let some = |limit: Duration| (!limit.is_zero()).then_some(limit);
    match (of_client, some(limits.max_deadline.0)) {
        (Some(client), Some(limit)) => Some(client.min(limit)),
        (Some(client), None) => Some(client),
        (None, _) => some(limits.default_deadline.0),
    }
}

/// What is left, as the header has it.
#[must_use]
pub fn text(left: Duration) -> String {
    let micros = left.as_micros();
    if micros < 100_000_000 {
        format!("{micros}u")
    } else {
        format!("{}m", left.as_millis().min(99_999_999))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_and_written() {
        let cases = [
            ("1H", Some(Duration::from_hours(1))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("0n", Some(Duration::ZERO)),
            ("123456789S", None),
            ("S", None),
            ("", None),
            ("5", None),
            ("-5S", None),
            ("5 S", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(parse(text.as_bytes()), wanted, "{text}");
        }
        for micros in [0, 1, 999_999, 99_999_999, 100_000_000, 3_600_000_000] {
            let left = Duration::from_micros(micros);
            assert_eq!(parse(text(left).as_bytes()), Some(left));
        }
    }
}
