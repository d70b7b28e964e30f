//! WebSocket: what a client asks for, and how it says who it is.

use http::{HeaderValue, header, request};
use hyper::upgrade::OnUpgrade;
use titan_http2::hpack::Block;

use crate::head;

/// That a client wants its connection to become a WebSocket.
pub struct Upgrade {
    /// The protocol, as the client wrote it.
    protocol: HeaderValue,
    /// The client's side of the pipe to be.
    pub client: OnUpgrade,
}

/// Whether the client wants a WebSocket.
///
/// Nothing else is upgraded to: in a pipe of, say, `h2c`, the client would speak to the pod with nobody in between who takes
/// out what only the router may say.
pub fn wanted(head: &mut request::Parts) -> Option<Upgrade> {
    let client = head.extensions.remove::<OnUpgrade>()?;
    let protocol = head.headers.get(header::UPGRADE)?;
    let websocket = head.version == http::Version::HTTP_11
        && protocol.as_bytes().eq_ignore_ascii_case(b"websocket");
    websocket.then(|| Upgrade {
        protocol: protocol.clone(),
        client,
    })
}

impl Upgrade {
    /// Puts back what ends at the router otherwise.
    pub fn ask<B>(&self, request: &mut http::Request<B>) {
        let to = request.headers_mut();
        to.insert(header::UPGRADE, self.protocol.clone());
        to.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// Where a browser puts the token of a WebSocket: beside the protocols of the service, which it asks for by name.
const TOKEN: &str = "titan.bearer.";
const PROTOCOLS: &[u8] = b"sec-websocket-protocol";

fn protocols(head: &Block) -> impl Iterator<Item = &str> {
    head.fields()
        .iter()
        .filter(|field| head.name(field) == PROTOCOLS)
        .filter_map(|field| head::text(head.value(field)))
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// The token among the protocols of a WebSocket.
#[must_use]
pub fn token(head: &Block) -> Option<&str> {
    protocols(head).find_map(|protocol| protocol.strip_prefix(TOKEN))
}

/// Takes the token out: it is no protocol that a service could choose.
pub fn strip_token(head: &mut Block) {
    if token(head).is_none() {
        return;
    }
    let rest: Vec<&str> = protocols(head)
        .filter(|protocol| !protocol.starts_with(TOKEN))
        .collect();
    let rest = rest.join(", ");
    head.retain(|head, field| head.name(field) != PROTOCOLS);
    if !rest.is_empty() {
        head.push(PROTOCOLS, rest.as_bytes());
    }
}
