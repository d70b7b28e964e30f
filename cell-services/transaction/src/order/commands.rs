//! The mutations: read and hold the order, decide, append.

use cell_kit::{Effect, Failure, Tx, parse_id};
use titan_proto::order::v1 as proto;
use tonic::Code;

use super::domain::{Event, OrderError, ReturnedLine, cancel as decide_cancel, place, split};
use super::domain::{return_lines as decide_return, transition as decide_transition};
use super::{store, wire};

pub(super) fn create_from_saga<'t>(
    tx: &'t mut Tx,
    request: &'t proto::CreateFromSagaRequest,
) -> Effect<'t, proto::Order> {
    Box::pin(async move {
        let placement = wire::placement(request, || tx.new_id())?;
        let asked = placement.clone();
        let events = place(placement)?;
        let id = tx.new_id();
        if let Some(stored) = store::insert(tx, id, &events).await? {
            return Ok(wire::order(&stored));
        }
        let there = store::lock_by_saga(tx, &asked.saga_id)
            .await?
            .ok_or_else(|| Failure::conflict("the saga's order is being made; retry"))?;
        if !wire::same_placement(&there.order, &asked) {
            return Err(Failure::refused(
                Code::AlreadyExists,
                format!(
                    "saga {} has placed order {} with other contents",
                    asked.saga_id, there.id
                ),
            ));
        }
        Ok(wire::order(&there))
    })
}

pub(super) fn cancel<'t>(
    tx: &'t mut Tx,
    request: &'t proto::CancelRequest,
) -> Effect<'t, proto::Order> {
    Box::pin(async move {
        let stored = store::lock(tx, parse_id("id", &request.id)?).await?;
        let event = decide_cancel(&stored.order, &request.reason)?;
        Ok(wire::order(&store::append(tx, stored, event).await?))
    })
}

pub(super) fn transition<'t>(
    tx: &'t mut Tx,
    request: &'t proto::TransitionRequest,
) -> Effect<'t, proto::Order> {
    Box::pin(async move {
        let to = wire::state(request.to())?.ok_or_else(|| Failure::invalid("to is missing"))?;
        let stored = store::lock(tx, parse_id("id", &request.id)?).await?;
        let version = stored.order.version;
        if request.expected_version != 0 && request.expected_version != version {
            return Err(Failure::conflict(format!(
                "the order is at version {version}, not {}; read it again",
                request.expected_version
            )));
        }
        let event = decide_transition(&stored.order, to)?;
        Ok(wire::order(&store::append(tx, stored, event).await?))
    })
}

pub(super) fn split_by_seller<'t>(
    tx: &'t mut Tx,
    request: &'t proto::SplitBySellerRequest,
) -> Effect<'t, proto::Order> {
    Box::pin(async move {
        let stored = store::lock(tx, parse_id("id", &request.id)?).await?;
        let stored = match split(&stored.order, || tx.new_id())? {
            Some(event) => store::append(tx, stored, event).await?,
            None => stored,
        };
        Ok(wire::order(&stored))
    })
}

pub(super) fn return_lines<'t>(
    tx: &'t mut Tx,
    request: &'t proto::ReturnRequest,
) -> Effect<'t, proto::ReturnResponse> {
    Box::pin(async move {
        let lines = request
            .lines
            .iter()
            .map(|line| {
                Ok(ReturnedLine {
                    line_id: parse_id("line_id", &line.line_id)?,
                    quantity: line.quantity,
                })
            })
            .collect::<Result<Vec<_>, Failure>>()?;
        let stored = store::lock(tx, parse_id("id", &request.id)?).await?;
        let return_id = tx.new_id();
        let event = decide_return(&stored.order, return_id, &lines, &request.reason)?;
        let refund = match &event {
            Event::OrderReturned { refund, .. } => Some(wire::money(*refund)),
            _ => None,
        };
        let stored = store::append(tx, stored, event).await?;
        Ok(proto::ReturnResponse {
            order: Some(wire::order(&stored)),
            return_id: return_id.to_string(),
            refund,
        })
    })
}

impl From<OrderError> for Failure {
    fn from(error: OrderError) -> Self {
        match error {
            OrderError::Invalid(_) | OrderError::Money(_) => Failure::invalid(error.to_string()),
            OrderError::NotNow(_) => Failure::precondition(error.to_string()),
        }
    }
}
