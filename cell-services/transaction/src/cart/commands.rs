//! The mutations, in the transaction that makes them true.

use cell_kit::{Effect, Failure, Tx, parse_id};
use titan_proto::cart::v1 as proto;
use tonic::Code;

use super::domain::CartError;
use super::store::{self, Stored};
use super::wire;

pub(super) fn add<'t>(tx: &'t mut Tx, request: &'t proto::AddRequest) -> Effect<'t, proto::Cart> {
    Box::pin(async move {
        let line = wire::line(request.line.as_ref(), tx.now())?;
        let stored = expect(store::lock(tx).await?, request.expected_version)?;
        let mut cart = stored.cart();
        cart.add(line)?;
        Ok(store::save(tx, stored, cart).await?.to_wire(tx.owner()))
    })
}

pub(super) fn update<'t>(
    tx: &'t mut Tx,
    request: &'t proto::UpdateRequest,
) -> Effect<'t, proto::Cart> {
    Box::pin(async move {
        let stored = expect(store::lock(tx).await?, request.expected_version)?;
        let mut cart = stored.cart();
        cart.update(&request.sku, request.quantity)?;
        Ok(store::save(tx, stored, cart).await?.to_wire(tx.owner()))
    })
}

pub(super) fn remove<'t>(
    tx: &'t mut Tx,
    request: &'t proto::RemoveRequest,
) -> Effect<'t, proto::Cart> {
    Box::pin(async move {
        let stored = expect(store::lock(tx).await?, request.expected_version)?;
        let mut cart = stored.cart();
        cart.remove(&request.sku);
        Ok(store::save(tx, stored, cart).await?.to_wire(tx.owner()))
    })
}

pub(super) fn merge_guest<'t>(
    tx: &'t mut Tx,
    request: &'t proto::MergeGuestRequest,
) -> Effect<'t, proto::Cart> {
    Box::pin(async move {
        let guest = parse_id("guest_cart_id", &request.guest_cart_id)?;
        let now = tx.now();
        let lines = request
            .lines
            .iter()
            .map(|line| wire::line(Some(line), now))
            .collect::<Result<Vec<_>, Failure>>()?;
        let stored = store::lock(tx).await?;
        if !store::remember_merge(tx, guest).await? {
            return Ok(stored.to_wire(tx.owner()));
        }
        let mut cart = stored.cart();
        cart.merge(&lines)?;
        Ok(store::save(tx, stored, cart).await?.to_wire(tx.owner()))
    })
}

fn expect(stored: Stored, expected: Option<u64>) -> Result<Stored, Failure> {
    match expected {
        Some(expected) if expected != stored.version => Err(Failure::conflict(format!(
            "the cart is at version {}, not {expected}; read it again",
            stored.version
        ))),
        _ => Ok(stored),
    }
}

impl From<CartError> for Failure {
    fn from(error: CartError) -> Self {
        let code = match &error {
            CartError::Invalid(_) | CartError::Money(_) => Code::InvalidArgument,
            CartError::Full(_) => Code::ResourceExhausted,
            CartError::NoLine(_) => Code::NotFound,
        };
        Failure::refused(code, error.to_string())
    }
}
