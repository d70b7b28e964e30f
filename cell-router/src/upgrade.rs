//! WebSocket: two connections become one pipe.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use crate::body::ResponseBody;
use crate::exchange::{Exchange, Outcome};
use crate::inbound::Inbound;

/// The client's side of the pipe to be.
#[must_use]
pub fn on_client(head: &http::request::Parts) -> Option<OnUpgrade> {
    head.extensions.get::<OnUpgrade>().cloned()
}

/// Puts back what ends at the router otherwise.
pub fn keep_headers(head: &http::request::Parts, to: &mut HeaderMap) {
    if let Some(upgrade) = head.extensions.get::<Wanted>() {
        to.insert(header::UPGRADE, upgrade.0.clone());
        to.insert(
            header::CONNECTION,
            http::HeaderValue::from_static("upgrade"),
        );
    }
}

/// Remembers that the client wants a WebSocket, before the header is taken out.
///
/// Nothing else is upgraded to: in a pipe of, say, `h2c`, the client would speak to the pod with nobody in between who takes
/// out what only the router may say.
pub fn remember(head: &mut http::request::Parts) {
    if head.version == http::Version::HTTP_11
        && let Some(wanted) = head.headers.get(header::UPGRADE).cloned()
        && wanted.as_bytes().eq_ignore_ascii_case(b"websocket")
    {
        head.extensions.insert(Wanted(wanted));
    }
}

/// Where a browser puts the token of a WebSocket: beside the protocols of the service, which it asks for by name.
const TOKEN: &str = "titan.bearer.";

fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// The token among the protocols of a WebSocket.
#[must_use]
pub fn token(headers: &HeaderMap) -> Option<&str> {
    protocols(headers).find_map(|protocol| protocol.strip_prefix(TOKEN))
}

/// Takes the token out: it is no protocol that a service could choose.
pub fn strip_token(headers: &mut HeaderMap) {
    if token(headers).is_none() {
        return;
    }
    let rest: Vec<&str> = protocols(headers)
        .filter(|protocol| !protocol.starts_with(TOKEN))
        .collect();
    match HeaderValue::from_str(&rest.join(", ")) {
        Ok(rest) if !rest.is_empty() => headers.insert(header::SEC_WEBSOCKET_PROTOCOL, rest),
        _ => headers.remove(header::SEC_WEBSOCKET_PROTOCOL),
    };
}

/// The protocol that the client wants.
#[derive(Clone, Debug)]
pub struct Wanted(pub http::HeaderValue);

/// Passes the answer on, and joins both sides when the cell agreed.
pub fn join(
    mut response: Response<Inbound>,
    client: Option<OnUpgrade>,
    mut exchange: Exchange,
) -> Response<ResponseBody> {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (head, body) = response.into_parts();
        return Response::from_parts(head, ResponseBody::cell(body, exchange, None));
    }
    let cell = hyper::upgrade::on(&mut response);
    tokio::task::spawn_local(async move {
        let Some(client) = client else { return };
        let (Ok(client), Ok(cell)) = (client.await, cell.await) else {
            exchange.finish(Outcome::Broken);
            return;
        };
        let outcome = match pipe(client, cell).await {
            Ok(()) => Outcome::Answered,
            Err(_) => Outcome::Cancelled,
        };
        exchange.finish(outcome);
    });
    let (mut head, _) = response.into_parts();
    head.extensions.clear();
    Response::from_parts(head, ResponseBody::empty())
}

async fn pipe(client: Upgraded, cell: Upgraded) -> std::io::Result<()> {
    let (mut client, mut cell) = (TokioIo::new(client), TokioIo::new(cell));
    tokio::io::copy_bidirectional(&mut client, &mut cell).await?;
    Ok(())
}
