//! Heads of requests and answers, as fields in the form that HTTP/2 has them: what is read, taken out and added.
//!
//! A head stays the block that it was decoded into. HTTP/1.1 is translated where it comes in and goes out ([`crate::h1`]).

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, StatusCode};
use titan_http2::hpack::{Block, ENTRY, token};
use titan_http2::message::decimal;

/// A value as text, if it is.
#[must_use]
pub fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value).ok()
}

/// Whether the client speaks gRPC.
#[must_use]
pub fn is_grpc(head: &Block) -> bool {
    head.get(token::CONTENT_TYPE)
        .is_some_and(|value| value.starts_with(b"application/grpc"))
}

/// The method of a request.
#[must_use]
pub fn method(head: &Block) -> &str {
    head.get(token::METHOD).and_then(text).unwrap_or_default()
}

/// The path of a request, without the query.
#[must_use]
pub fn path(head: &Block) -> &str {
    let target = head.get(token::PATH).and_then(text).unwrap_or_default();
    target
        .split_once(['?', '#'])
        .map_or(target, |(path, _)| path)
}

/// The host that the client named.
#[must_use]
pub fn host(head: &Block) -> Option<&str> {
    head.get(token::AUTHORITY)
        .or_else(|| head.get(token::HOST))
        .and_then(text)
}

/// Whether the method, the parts of the URI and the length are such. Pods refuse what is not, and it would look as if they
/// failed; of some of it they end the connection, which others share.
#[must_use]
pub fn is_well_formed(head: &Block) -> bool {
    let each = |token, good: fn(&[u8]) -> bool| head.get(token).is_none_or(good);
    each(token::METHOD, |it| Method::from_bytes(it).is_ok())
        && each(token::SCHEME, |it| Scheme::try_from(it).is_ok())
        && each(token::AUTHORITY, |it| Authority::try_from(it).is_ok())
        && each(token::PATH, is_target)
        && each(token::CONTENT_LENGTH, |it| decimal(it).is_some())
}

/// A path and query. `PathAndQuery` alone would not do: it forgets what is behind a `#` before it asks whether that is text,
/// and pods are sent all of it. A fragment has no place there (RFC 9113, section 8.3.1).
fn is_target(target: &[u8]) -> bool {
    !target.contains(&b'#') && text(target).is_some() && PathAndQuery::try_from(target).is_ok()
}

/// The size, in bytes as HTTP/2 reckons them.
#[must_use]
pub fn size(head: &Block) -> usize {
    let fields = head.fields().iter();
    fields
        .map(|field| head.name(field).len() + head.value(field).len() + ENTRY)
        .sum()
}

/// The status of an answer.
#[must_use]
pub fn status(head: &Block) -> StatusCode {
    head.get(token::STATUS)
        .and_then(|value| StatusCode::from_bytes(value).ok())
        .unwrap_or(StatusCode::BAD_GATEWAY)
}

/// The length that a head announces.
#[must_use]
pub fn length(head: &Block) -> Option<u64> {
    text(head.get(token::CONTENT_LENGTH)?)?.parse().ok()
}

/// The head of an answer of the router's own.
#[must_use]
pub fn own(status: StatusCode) -> Block {
    let mut head = Block::default();
    head.push(b":status", status.as_str().as_bytes());
    head
}

/// Takes out what only the router may say, of a head or of trailers.
pub fn clean_request(head: &mut Block) {
    let spoken = |token| {
        matches!(
            token,
            token::X_TITAN_KEY | token::X_TITAN_EPOCH | token::X_TITAN_OTHER
        )
    };
    // Almost always a key at most, and often not even that.
    if head.fields().iter().any(|field| spoken(field.token)) {
        head.retain(|_, field| !spoken(field.token));
    }
}

/// Makes a trace when the client brought none.
pub fn trace(head: &mut Block) {
    if head.get(token::TRACEPARENT).is_some() {
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
    head.push(b"traceparent", &text);
}

fn hex(out: &mut [u8], mut value: u128) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[usize::from((value & 0xf) as u8)];
        value >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(block: &Block) -> Vec<&str> {
        let fields = block.fields().iter();
        fields
            .map(|field| text(block.name(field)).unwrap())
            .collect()
    }

    #[test]
    fn clients_cannot_speak_for_the_router() {
        let mut head = Block::from_iter([
            ("x-titan-key", "1"),
            ("x-titan-epoch", "1"),
            ("x-other", "3"),
            ("x-titan-key", "2"),
            ("x-titan-trust", "1"),
            ("x-titan-anything", "1"),
        ]);
        clean_request(&mut head);
        assert_eq!(names(&head), ["x-other"]);
    }

    #[test]
    fn what_pods_would_refuse_is_not_well_formed() {
        let good = |name: &[u8], value: &[u8]| is_well_formed(&Block::from_iter([(name, value)]));
        for path in ["/", "*", "/a?b", "/\u{e9}?\u{e9}"] {
            assert!(good(b":path", path.as_bytes()), "{path}");
        }
        let bad: [(&[u8], &[u8]); 11] = [
            (b":path", b"/x#y"),
            (b":path", b"/x#\xff"),
            (b":path", b"/\xff"),
            (b":path", b"/x?\xff"),
            (b":path", b"/\xc3\x28"),
            (b":authority", b"a\xff"),
            (b":authority", b"a/b"),
            (b":scheme", b"h\xff"),
            (b":method", b"G\xff"),
            // 20 digits.
            (b"content-length", b"10000000000000000000"),
            (b"content-length", b"+5"),
        ];
        for (name, value) in bad {
            assert!(!good(name, value), "{}", value.escape_ascii());
        }
    }

    #[test]
    fn a_trace_is_made_and_kept() {
        let mut head = Block::default();
        trace(&mut head);
        let made = text(head.get(token::TRACEPARENT).unwrap())
            .unwrap()
            .to_owned();
        assert_eq!(
            (made.len(), &made[..3], &made[35..36], &made[52..]),
            (55, "00-", "-", "-00")
        );
        trace(&mut head);
        assert_eq!(names(&head), ["traceparent"]);
        assert_eq!(head.get(token::TRACEPARENT), Some(made.as_bytes()));
    }
}
