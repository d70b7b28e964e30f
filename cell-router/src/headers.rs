//! Headers: what is stripped, what is added, what is read.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Version, header};

/// Whether the client speaks gRPC.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// The host that the client named.
#[must_use]
pub fn host(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::HOST)?.to_str().ok()
}

/// Whether the client wants to take the connection over.
#[must_use]
pub fn wants_upgrade(head: &http::request::Parts) -> bool {
    head.extensions.get::<crate::upgrade::Wanted>().is_some()
}

/// Takes out what only the router may say, and what ends at the router.
pub fn clean_request(headers: &mut HeaderMap, version: Version) {
    // Almost always none: found without an allocation.
    while let Some(name) = headers
        .keys()
        .find(|name| name.as_str().starts_with("x-titan-"))
        .cloned()
    {
        headers.remove(name);
    }
    if version < Version::HTTP_2 {
        strip_hop_by_hop(headers);
    }
}

/// Takes out the headers that speak of one connection.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ] {
        headers.remove(name);
    }
    // What gRPC says with it goes through; anything else is about this connection, and HTTP/2 knows no other.
    if let Some(te) = headers.remove(header::TE)
        && te.as_bytes().eq_ignore_ascii_case(b"trailers")
    {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Makes a trace when the client brought none.
pub fn trace(headers: &mut HeaderMap) {
    let name = HeaderName::from_static("traceparent");
    if let Some(value) = headers.get_mut(&name) {
        value.set_sensitive(true);
        return;
    }
    let trace: u128 = rand::random();
    let span: u64 = rand::random();
    let mut text = [0_u8; 55];
    text[..3].copy_from_slice(b"00-");
    hex(&mut text[3..35], trace | 1);
    text[35] = b'-';
    hex(&mut text[36..52], u128::from(span | 1));
    text[52..].copy_from_slice(b"-00");
    if let Ok(value) = HeaderValue::from_bytes(&text) {
        headers.insert(name, once(value));
    }
}

/// A value that hardly any other request has. It is kept out of the compression tables of HTTP/2, where it would
/// push out what all requests have and be searched for in vain.
pub fn once(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

fn hex(out: &mut [u8], mut value: u128) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[usize::from((value & 0xf) as u8)];
        value >>= 4;
    }
}

/// The hash that chooses the cell of an anonymous request.
#[must_use]
pub fn hash_ip(ip: IpAddr) -> u64 {
    match ip {
        IpAddr::V4(ip) => xxhash_rust::xxh3::xxh3_64(&ip.octets()),
        IpAddr::V6(ip) => xxhash_rust::xxh3::xxh3_64(&ip.octets()),
    }
}

/// One of `buckets`, so that one more bucket moves as few keys as possible (Lamping and Veach).
#[must_use]
pub fn jump_hash(mut key: u64, buckets: usize) -> Option<usize> {
    let buckets = u64::try_from(buckets).ok().filter(|count| *count > 0)?;
    let mut bucket = 0;
    let mut next = 0_u64;
    while next < buckets {
        bucket = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        next = u64::try_from((u128::from(bucket + 1) << 31) / u128::from((key >> 33) + 1))
            .unwrap_or(u64::MAX);
    }
    usize::try_from(bucket).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_cannot_speak_for_the_router() {
        let mut headers = HeaderMap::new();
        for name in [
            "x-titan-key",
            "x-titan-epoch",
            "x-titan-trust",
            "x-titan-anything",
        ] {
            headers.append(name, HeaderValue::from_static("1"));
            headers.append(name, HeaderValue::from_static("2"));
        }
        headers.insert("x-other", HeaderValue::from_static("3"));
        clean_request(&mut headers, Version::HTTP_2);
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn hop_by_hop_headers_end_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, x-mine"),
            ("x-mine", "1"),
            ("keep-alive", "5"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip"),
            ("x-yours", "2"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut headers);
        assert_eq!(
            headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(),
            ["x-yours"]
        );
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers[header::TE], "trailers", "as gRPC wants it");
    }

    #[test]
    fn a_trace_is_made_and_kept() {
        let mut headers = HeaderMap::new();
        trace(&mut headers);
        let made = headers["traceparent"].clone();
        let text = made.to_str().unwrap();
        assert_eq!(
            (text.len(), &text[..3], &text[35..36], &text[52..]),
            (55, "00-", "-", "-00")
        );
        trace(&mut headers);
        assert_eq!(headers["traceparent"], made);
    }

    #[test]
    fn jump_hash_is_even_and_stable() {
        let mut counts = [0_usize; 10];
        let mut moved = 0;
        for key in 0..10_000_u64 {
            let hash = xxhash_rust::xxh3::xxh3_64(&key.to_le_bytes());
            let ten = jump_hash(hash, 10).unwrap();
            counts[ten] += 1;
            let eleven = jump_hash(hash, 11).unwrap();
            assert!(
                eleven == ten || eleven == 10,
                "keys move to the new bucket alone"
            );
            moved += usize::from(eleven != ten);
        }
        assert!(
            counts.iter().all(|count| (850..1150).contains(count)),
            "{counts:?}"
        );
        assert!((700..1100).contains(&moved), "{moved}");
        assert_eq!(jump_hash(7, 0), None);
    }
}
