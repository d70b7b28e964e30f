//! Cursors of lists: opaque to clients, bound to the list that gave them out.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use titan_routing::Key;

use crate::Failure;

/// The page size when none is asked for.
pub const DEFAULT_PAGE: u32 = 20;
/// The largest page.
pub const MAX_PAGE: u32 = 100;

/// The page size for what a client asked.
#[must_use]
pub fn page_size(asked: u32) -> u32 {
    if asked == 0 {
        DEFAULT_PAGE
    } else {
        asked.min(MAX_PAGE)
    }
}

/// Writes a cursor: where the next page of `list` starts for `owner`.
///
/// A checksum over list, owner and position finds cursors that were changed, or taken from another list or
/// user. It is no secret: a forged cursor names another position in the caller's own list, nothing else.
///
/// # Errors
/// When the position cannot be written as JSON.
pub fn encode<T: Serialize>(list: &str, owner: Key, position: &T) -> Result<String, Failure> {
    let body = serde_json::to_vec(position).map_err(|error| Failure::Corrupt(error.to_string()))?;
    let mut bytes = checksum(list, owner, &body).to_be_bytes().to_vec();
    bytes.extend_from_slice(&body);
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// Divides what a query for one row more than a page has found: the page, and the position of its last row when
/// there is more.
pub fn page<T, P>(rows: &[T], size: u32, position: impl Fn(&T) -> P) -> (&[T], Option<P>) {
    match rows.get(..size as usize) {
        Some(page) if rows.len() > page.len() => (page, page.last().map(position)),
        _ => (rows, None),
    }
}

/// Writes the cursor of the next page; the empty text when there is none.
///
/// # Errors
/// When the position cannot be written as JSON.
pub fn encode_next<T: Serialize>(
    list: &str,
    owner: Key,
    next: Option<&T>,
) -> Result<String, Failure> {
    next.map_or_else(
        || Ok(String::new()),
        |position| encode(list, owner, position),
    )
}

/// Reads a cursor. The empty text is the start of the list.
///
/// # Errors
/// When it was not given out for this list and owner.
pub fn decode<T: DeserializeOwned>(
    list: &str,
    owner: Key,
    cursor: &str,
) -> Result<Option<T>, Failure> {
    if cursor.is_empty() {
        return Ok(None);
    }
    let refuse = || {
        Failure::invalid(
            "the page cursor is not one that this list gave out; start again without one",
        )
    };
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| refuse())?;
    let (sum, body) = bytes.split_first_chunk::<8>().ok_or_else(refuse)?;
    if u64::from_be_bytes(*sum) != checksum(list, owner, body) {
        return Err(refuse());
    }
    serde_json::from_slice(body).map(Some).map_err(|_| refuse())
}

fn checksum(list: &str, owner: Key, body: &[u8]) -> u64 {
    let mut bytes = list.as_bytes().to_vec();
    bytes.push(0);
    bytes.extend_from_slice(&owner.get().to_be_bytes());
    bytes.extend_from_slice(body);
    xxhash_rust::xxh3::xxh3_64_with_seed(&bytes, 0x7469_746e)
}
