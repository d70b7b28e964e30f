//! WebSocket and other upgrades: two connections become one pipe.

use http::{HeaderMap, Response, StatusCode, header};
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

/// Remembers what protocol the client wants to change to, before the header is taken out.
pub fn remember(head: &mut http::request::Parts) {
    if head.version == http::Version::HTTP_11
        && let Some(wanted) = head.headers.get(header::UPGRADE).cloned()
    {
        head.extensions.insert(Wanted(wanted));
    }
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
