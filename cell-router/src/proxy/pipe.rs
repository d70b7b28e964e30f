//! WebSocket: two connections become one pipe.

use http::StatusCode;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;

use crate::body::answer::{Answer, ResponseBody};
use crate::exchange::{Exchange, Outcome};
use crate::head;
use crate::inbound::Response;
use crate::upgrade::Upgrade;

/// Passes the answer on, and joins both sides when the cell agreed.
pub(super) fn join(response: Response, upgrade: Upgrade, mut exchange: Exchange) -> Answer {
    let Response { head, body, taken } = response;
    let (StatusCode::SWITCHING_PROTOCOLS, Some(cell)) = (head::status(&head), taken) else {
        let body = ResponseBody::cell(body, exchange, None);
        return Answer { head, body };
    };
    tokio::task::spawn_local(async move {
        let (Ok(client), Ok(cell)) = (upgrade.client.await, cell.await) else {
            exchange.finish(Outcome::Broken);
            return;
        };
        let outcome = match pipe(client, cell).await {
            Ok(()) => Outcome::Answered,
            Err(_) => Outcome::Cancelled,
        };
        exchange.finish(outcome);
    });
    Answer {
        head,
        body: ResponseBody::empty(),
    }
}

async fn pipe(client: Upgraded, cell: Upgraded) -> std::io::Result<()> {
    let (mut client, mut cell) = (TokioIo::new(client), TokioIo::new(cell));
    tokio::io::copy_bidirectional(&mut client, &mut cell).await?;
    Ok(())
}
