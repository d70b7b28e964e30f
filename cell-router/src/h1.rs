//! HTTP/1.1, which hyper speaks: heads and bodies to and from the form that the router has them in.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header, request, response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use titan_http2::hpack::{Block, token};

use crate::body::{Body, BoxError, Part};
use crate::head;
use crate::outgoing::Outgoing;
use crate::rejection::{Reason, Rejection};

/// The head of a request of a client.
#[must_use]
pub fn request_from(parts: &mut request::Parts) -> Block {
    strip_hop_by_hop(&mut parts.headers);
    say_length_once(&mut parts.headers);
    let mut head = Block::default();
    head.push(b":method", parts.method.as_str().as_bytes());
    head.push(
        b":scheme",
        parts.uri.scheme_str().unwrap_or("http").as_bytes(),
    );
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    match (parts.uri.authority(), hosts.next(), hosts.next()) {
        // Which one counts is for nobody to guess (RFC 9112, section 3.2): what is not of the form of a host is refused.
        (_, _, Some(_)) => head.push(b":authority", b"more than one"),
        (Some(authority), _, _) => head.push(b":authority", authority.as_str().as_bytes()),
        (None, Some(host), _) => head.push(b":authority", host.as_bytes()),
        (None, None, _) => {}
    }
    parts.headers.remove(header::HOST);
    let target = parts
        .uri
        .path_and_query()
        .map_or("/", |target| target.as_str());
    // `http://host?query` has an empty path, which is `/` to everybody else (RFC 9110, section 4.2.3).
    if target.starts_with('?') {
        head.push(b":path", format!("/{target}").as_bytes());
    } else {
        head.push(b":path", target.as_bytes());
    }
    head.extend(&parts.headers);
    head
}

/// The head of an answer of a pod.
#[must_use]
pub fn answer_from(parts: &mut response::Parts) -> Block {
    // Of a connection that is taken over, these headers are what was agreed upon.
    if parts.status != http::StatusCode::SWITCHING_PROTOCOLS {
        strip_hop_by_hop(&mut parts.headers);
        say_length_once(&mut parts.headers);
    }
    let mut head = head::own(parts.status);
    head.extend(&parts.headers);
    head
}

/// Trailers, without what has no place in them (RFC 9110, section 6.5.1): what speaks of the connection, frames the message,
/// leads it on its way, says who sent it or how to read its content. HTTP/2 forbids the first of these, and a pod that gets
/// them resets the stream as if it had failed.
#[must_use]
pub fn trailers_from(mut map: HeaderMap) -> Block {
    strip_hop_by_hop(&mut map);
    for name in [
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::COOKIE,
        header::EXPECT,
        header::HOST,
        header::MAX_FORWARDS,
        header::SET_COOKIE,
        header::TE,
        header::TRAILER,
    ] {
        map.remove(name);
    }
    map.iter().collect()
}

/// A request as a pod gets it.
///
/// # Errors
/// When HTTP/1.1 has no way to say it.
pub fn request_to<B>(outgoing: &Outgoing<'_>, body: B) -> Result<http::Request<B>, Rejection> {
    let bad = |error: http::Error| Rejection::new(Reason::BadRequest, error.to_string());
    let block = outgoing.head;
    let mut request = http::Request::new(body);
    *request.version_mut() = Version::HTTP_11;
    *request.method_mut() =
        Method::from_bytes(head::method(block).as_bytes()).map_err(|error| bad(error.into()))?;
    let target = block.get(token::PATH).unwrap_or(b"/");
    *request.uri_mut() = Uri::try_from(target).map_err(|error| bad(error.into()))?;
    let map = request.headers_mut();
    if let Some(host) = head::host(block) {
        let host = HeaderValue::from_str(host).map_err(|error| bad(error.into()))?;
        map.insert(header::HOST, host);
    }
    append_all(map, block, |name| {
        name == header::HOST || (outgoing.remaining.is_some() && name == "grpc-timeout")
    });
    outgoing.own(|name, value| {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            map.insert(HeaderName::from_static(name), value);
        }
    });
    Ok(request)
}

/// An answer as a client gets it.
#[must_use]
pub fn answer_to<B>(block: &Block, body: B) -> http::Response<B> {
    let mut response = http::Response::new(body);
    *response.status_mut() = head::status(block);
    append_all(response.headers_mut(), block, |_| false);
    response
}

/// The fields of a block that are no pseudo fields.
#[must_use]
pub fn fields_to(block: &Block) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(block.fields().len());
    append_all(&mut map, block, |_| false);
    map
}

fn append_all(map: &mut HeaderMap, block: &Block, without: impl Fn(&HeaderName) -> bool) {
    for field in block.fields() {
        let name = block.name(field);
        if name.starts_with(b":") {
            continue;
        }
        // They were looked at when they came in.
        let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name),
            HeaderValue::from_bytes(block.value(field)),
        ) else {
            continue;
        };
        if without(&name) {
            continue;
        }
        // HTTP/2 may cut it into pieces, and HTTP/1.1 has it once (RFC 9113, section 8.2.3).
        if name == header::COOKIE
            && let Some(before) = map.get(&name)
        {
            let joined = [before.as_bytes(), value.as_bytes()].join(&b"; "[..]);
            if let Ok(joined) = HeaderValue::from_bytes(&joined) {
                map.insert(name, joined);
            }
            continue;
        }
        map.append(name, value);
    }
}

/// Says the length once and without leading zeros. HTTP/1.1 may pad it, and pods take 19 digits.
fn say_length_once(headers: &mut HeaderMap) {
    let Some(said) = headers.remove(header::CONTENT_LENGTH) else {
        return;
    };
    // hyper made sure of it, but for answers without a body; what is no number there says nothing.
    let number = |text: &str| text.split(',').next()?.trim().parse::<u64>().ok();
    if let Some(length) = said.to_str().ok().and_then(number) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
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

/// The next part of a body that hyper receives.
pub fn poll_part(
    body: &mut Incoming,
    context: &mut Context<'_>,
) -> Poll<Option<Result<Part, BoxError>>> {
    let Some(frame) = ready!(http_body::Body::poll_frame(Pin::new(body), context)) else {
        return Poll::Ready(None);
    };
    let part = match frame?.into_data() {
        Ok(data) => Part::Data(data),
        Err(frame) => {
            let trailers = trailers_from(frame.into_trailers().unwrap_or_default());
            // They come last: without any, the body ends here.
            if trailers.fields().is_empty() {
                return Poll::Ready(None);
            }
            Part::Trailers(trailers)
        }
    };
    Poll::Ready(Some(Ok(part)))
}

/// A body that hyper sends.
pub struct Sent<B>(pub B);

impl<B: Body + Unpin> http_body::Body for Sent<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let part = ready!(self.get_mut().0.poll_part(context));
        Poll::Ready(part.map(|part| {
            Ok(match part? {
                Part::Data(data) => Frame::data(data),
                Part::Trailers(fields) => Frame::trailers(fields_to(&fields)),
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        self.0
            .length()
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_query_without_a_path_is_one_of_the_root() {
        for (uri, path) in [("http://a?b", "/?b"), ("http://a", "/"), ("/a?b", "/a?b")] {
            let request = http::Request::get(uri).body(()).unwrap();
            let head = request_from(&mut request.into_parts().0);
            assert_eq!(head.get(token::PATH), Some(path.as_bytes()), "{uri}");
        }
    }

    #[test]
    fn trailers_say_nothing_that_belongs_into_the_head() {
        let mut map = HeaderMap::new();
        for (name, value) in [
            ("connection", "x-mine"),
            ("x-mine", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("host", "elsewhere"),
            ("trailer", "x-sum"),
            ("authorization", "somebody"),
            ("x-sum", "3"),
        ] {
            map.insert(name, HeaderValue::from_static(value));
        }
        let trailers = trailers_from(map);
        let fields = trailers.fields().iter();
        let names: Vec<_> = fields.map(|field| trailers.name(field)).collect();
        assert_eq!(names, [b"x-sum"]);
    }

    #[test]
    fn a_length_is_said_once_and_without_leading_zeros() {
        for (said, heard) in [
            ("5", Some("5")),
            ("00000000000000000005", Some("5")),
            ("00000000000000000000", Some("0")),
            ("5, 5", Some("5")),
            ("many", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(header::CONTENT_LENGTH, HeaderValue::from_static(said));
            headers.append(header::CONTENT_LENGTH, HeaderValue::from_static(said));
            say_length_once(&mut headers);
            let all = headers.get_all(header::CONTENT_LENGTH);
            let all: Vec<_> = all.iter().filter_map(|value| value.to_str().ok()).collect();
            assert_eq!(all, heard.into_iter().collect::<Vec<_>>(), "{said}");
        }
    }

    #[test]
    fn cookies_are_joined_and_other_fields_kept_apart() {
        let mut block = head::own(http::StatusCode::OK);
        block.extend([
            ("cookie", "a=1"),
            ("set-cookie", "x"),
            ("cookie", "b=2"),
            ("set-cookie", "y"),
        ]);
        let map = fields_to(&block);
        assert_eq!(
            map.get_all("cookie").iter().collect::<Vec<_>>(),
            ["a=1; b=2"]
        );
        assert_eq!(
            map.get_all("set-cookie").iter().collect::<Vec<_>>(),
            ["x", "y"]
        );
    }
}
