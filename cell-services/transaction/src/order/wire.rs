//! Between messages and the domain.

use cell_kit::{Currency, Failure, Money, timestamp};
use titan_proto::order::v1 as proto;
use uuid::Uuid;

use super::domain::{Amounts, Line, Order, Placement, State};
use super::store::Stored;

pub(super) fn money(money: Money) -> proto::Money {
    proto::Money {
        minor_units: money.minor,
        currency: money.currency.code().to_owned(),
    }
}

fn parse_money(field: &str, money: Option<&proto::Money>) -> Result<Money, Failure> {
    let money = money.ok_or_else(|| Failure::invalid(format!("{field} is missing")))?;
    Ok(Money {
        minor: money.minor_units,
        currency: Currency::new(&money.currency)?,
    })
}

pub(super) fn placement(
    request: &proto::CreateFromSagaRequest,
    new_id: impl Fn() -> Uuid,
) -> Result<Placement, Failure> {
    let lines = request
        .lines
        .iter()
        .map(|line| {
            cell_kit::Key::new(line.seller_id)
                .map_err(|error| Failure::invalid(format!("seller_id: {error}")))?;
            if line.title.chars().count() > 500 {
                return Err(Failure::invalid(
                    "a line's title is longer than 500 characters",
                ));
            }
            Ok(Line {
                id: new_id(),
                sku: line.sku.clone(),
                seller_id: line.seller_id,
                quantity: line.quantity,
                unit_price: parse_money("unit_price", line.unit_price.as_ref())?,
                title: line.title.clone(),
                returned: 0,
            })
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    let currency = lines
        .first()
        .map_or_else(|| Currency::new("XXX"), |line| Ok(line.unit_price.currency))?;
    let optional = |field, given: Option<&proto::Money>| match given {
        Some(given) => parse_money(field, Some(given)),
        None => Ok(Money::zero(currency)),
    };
    Ok(Placement {
        saga_id: request.saga_id.clone(),
        shipping: optional("shipping", request.shipping.as_ref())?,
        discount: optional("discount", request.discount.as_ref())?,
        paid: request.paid,
        lines,
    })
}

/// Whether an order is what a saga asks for; ids of lines are given by the order, and do not count.
pub(super) fn same_placement(order: &Order, asked: &Placement) -> bool {
    let plain = |line: &Line| Line {
        id: Uuid::nil(),
        returned: 0,
        ..line.clone()
    };
    order
        .lines
        .iter()
        .map(plain)
        .eq(asked.lines.iter().map(plain))
        && order.amounts.shipping == asked.shipping
        && order.amounts.discount == asked.discount
}

pub(super) fn state(state: proto::OrderState) -> Result<Option<State>, Failure> {
    Ok(match state {
        proto::OrderState::Unspecified => None,
        proto::OrderState::Placed => Some(State::Placed),
        proto::OrderState::Confirmed => Some(State::Confirmed),
        proto::OrderState::Processing => Some(State::Processing),
        proto::OrderState::Shipped => Some(State::Shipped),
        proto::OrderState::Delivered => Some(State::Delivered),
        proto::OrderState::Completed => Some(State::Completed),
        proto::OrderState::Cancelled => Some(State::Cancelled),
        proto::OrderState::Returned => Some(State::Returned),
    })
}

fn state_to_wire(state: State) -> proto::OrderState {
    match state {
        State::Placed => proto::OrderState::Placed,
        State::Confirmed => proto::OrderState::Confirmed,
        State::Processing => proto::OrderState::Processing,
        State::Shipped => proto::OrderState::Shipped,
        State::Delivered => proto::OrderState::Delivered,
        State::Completed => proto::OrderState::Completed,
        State::Cancelled => proto::OrderState::Cancelled,
        State::Returned => proto::OrderState::Returned,
    }
}

pub(super) fn state_from_name(name: &str) -> proto::OrderState {
    State::ALL
        .into_iter()
        .find(|state| state.name() == name)
        .map_or(proto::OrderState::Unspecified, state_to_wire)
}

fn amounts(amounts: &Amounts) -> proto::Amounts {
    proto::Amounts {
        goods: Some(money(amounts.goods)),
        shipping: Some(money(amounts.shipping)),
        discount: Some(money(amounts.discount)),
        total: Some(money(amounts.total)),
    }
}

pub(super) fn order(stored: &Stored) -> proto::Order {
    let Stored {
        id,
        buyer,
        created_at,
        updated_at,
        order,
    } = stored;
    proto::Order {
        id: id.to_string(),
        buyer_id: buyer.get(),
        saga_id: order.saga_id.clone(),
        state: state_to_wire(order.state).into(),
        lines: order
            .lines
            .iter()
            .map(|line| proto::Line {
                id: line.id.to_string(),
                sku: line.sku.clone(),
                seller_id: line.seller_id,
                quantity: line.quantity,
                unit_price: Some(money(line.unit_price)),
                title: line.title.clone(),
                returned: line.returned,
            })
            .collect(),
        amounts: Some(amounts(&order.amounts)),
        sub_orders: order
            .sub_orders
            .iter()
            .map(|part| proto::SubOrder {
                id: part.id.to_string(),
                seller_id: part.seller_id,
                line_ids: part.line_ids.iter().map(ToString::to_string).collect(),
                amounts: Some(amounts(&part.amounts)),
            })
            .collect(),
        refunded: Some(money(order.refunded)),
        version: order.version,
        created_at: Some(timestamp(*created_at)),
        updated_at: Some(timestamp(*updated_at)),
    }
}
