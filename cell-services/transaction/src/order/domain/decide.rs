//! Commands: what may happen to an order, decided on the order alone.

use cell_kit::{Money, MoneyError};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::amounts::{Amounts, line_shares, split_by_seller};
use super::event::Event;
use super::fold::{Line, Order, State};

/// The most lines of an order.
const MAX_LINES: usize = 200;
/// The most of one SKU.
const MAX_QUANTITY: u32 = 10_000;

/// Why a command is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// The command itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The order's state does not allow it.
    #[error("{0}")]
    NotNow(String),
    /// Amounts that cannot be.
    #[error(transparent)]
    Money(#[from] MoneyError),
}

/// What a checkout saga places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The saga.
    pub saga_id: String,
    /// What was bought.
    pub lines: Vec<Line>,
    /// Sending it.
    pub shipping: Money,
    /// What is taken off.
    pub discount: Money,
    /// Whether the money was captured.
    pub paid: bool,
}

/// So many of a line came back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReturnedLine {
    /// The line.
    pub line_id: Uuid,
    /// How many.
    pub quantity: u32,
}

/// Places an order.
///
/// # Errors
/// Names what is wrong with it.
pub fn place(placement: Placement) -> Result<Vec<Event>, OrderError> {
    let invalid = |message: String| Err(OrderError::Invalid(message));
    let Placement {
        saga_id,
        lines,
        shipping,
        discount,
        paid,
    } = placement;
    if saga_id.trim().is_empty() || saga_id.len() > 128 {
        return invalid("saga_id is missing or longer than 128 bytes".to_owned());
    }
    if lines.is_empty() || lines.len() > MAX_LINES {
        return invalid(format!(
            "an order has 1 to {MAX_LINES} lines, not {}",
            lines.len()
        ));
    }
    for line in &lines {
        if line.sku.trim().is_empty() || line.sku.len() > 128 {
            return invalid("a line's sku is missing or longer than 128 bytes".to_owned());
        }
        if line.quantity == 0 || line.quantity > MAX_QUANTITY {
            return invalid(format!(
                "quantity of {} is not 1 to {MAX_QUANTITY}",
                line.sku
            ));
        }
        if line.unit_price.minor < 0 {
            return invalid(format!("unit_price of {} is negative", line.sku));
        }
    }
    if shipping.minor < 0 || discount.minor < 0 {
        return invalid("shipping and discount must not be negative".to_owned());
    }
    let amounts = Amounts::of(&lines, shipping, discount)?;
    if amounts.total.minor < 0 {
        return invalid("the discount is larger than goods and shipping".to_owned());
    }
    let mut events = vec![Event::OrderPlaced {
        saga_id,
        lines,
        shipping,
        discount,
    }];
    if paid {
        events.push(Event::OrderConfirmed {});
    }
    Ok(events)
}

/// Moves an order on.
///
/// # Errors
/// When its state does not allow it.
pub fn transition(order: &Order, to: State) -> Result<Event, OrderError> {
    let event = match to {
        State::Confirmed => Event::OrderConfirmed {},
        State::Processing => Event::OrderProcessing {},
        State::Shipped => Event::OrderShipped {},
        State::Delivered => Event::OrderDelivered {},
        State::Completed => Event::OrderCompleted {},
        State::Placed => {
            return Err(OrderError::Invalid(
                "an order is placed by CreateFromSaga".to_owned(),
            ));
        }
        State::Cancelled => {
            return Err(OrderError::Invalid(
                "an order is cancelled by Cancel".to_owned(),
            ));
        }
        State::Returned => {
            return Err(OrderError::Invalid(
                "an order is returned by Return".to_owned(),
            ));
        }
    };
    allow(order, to)?;
    Ok(event)
}

/// Cancels an order.
///
/// # Errors
/// When it was shipped, or is cancelled already.
pub fn cancel(order: &Order, reason: &str) -> Result<Event, OrderError> {
    allow(order, State::Cancelled)?;
    Ok(Event::OrderCancelled {
        reason: words(reason)?,
    })
}

/// Divides an order; no event when it is divided already.
///
/// # Errors
/// When it is not paid yet, or past that.
pub fn split(order: &Order, new_id: impl FnMut() -> Uuid) -> Result<Option<Event>, OrderError> {
    if !order.sub_orders.is_empty() {
        return Ok(None);
    }
    if !matches!(order.state, State::Confirmed | State::Processing) {
        return Err(OrderError::NotNow(format!(
            "an order is split when it is confirmed or processing; this one is {}",
            order.state.name()
        )));
    }
    let sub_orders = split_by_seller(&order.lines, &order.amounts, new_id)?;
    Ok(Some(Event::OrderSplit { sub_orders }))
}

/// Takes lines of a delivered order back.
///
/// # Errors
/// When it is not delivered, or more would come back than was bought.
pub fn return_lines(
    order: &Order,
    return_id: Uuid,
    lines: &[ReturnedLine],
    reason: &str,
) -> Result<Event, OrderError> {
    if order.state != State::Delivered {
        return Err(OrderError::NotNow(format!(
            "lines come back of a delivered order; this one is {}",
            order.state.name()
        )));
    }
    if lines.is_empty() {
        return Err(OrderError::Invalid("no lines to return".to_owned()));
    }
    let shares = line_shares(&order.lines, &order.amounts)?;
    let mut refund = Money::zero(order.amounts.total.currency);
    for (index, back) in lines.iter().enumerate() {
        if lines
            .iter()
            .take(index)
            .any(|other| other.line_id == back.line_id)
        {
            return Err(OrderError::Invalid(format!(
                "line {} is given twice",
                back.line_id
            )));
        }
        let Some((line, share)) = order
            .lines
            .iter()
            .zip(&shares)
            .find(|(line, _)| line.id == back.line_id)
        else {
            return Err(OrderError::Invalid(format!(
                "the order has no line {}",
                back.line_id
            )));
        };
        let left = line.quantity.saturating_sub(line.returned);
        if back.quantity == 0 || back.quantity > left {
            return Err(OrderError::NotNow(format!(
                "{} of line {} cannot come back: {left} of {} are left",
                back.quantity, line.id, line.quantity
            )));
        }
        refund = refund.checked_add(paid_for(
            share.paid,
            line.quantity,
            line.returned,
            back.quantity,
        )?)?;
    }
    Ok(Event::OrderReturned {
        return_id,
        lines: lines.to_vec(),
        refund,
        reason: words(reason)?,
    })
}

/// What `count` pieces after the first `before` of `quantity` cost, so that all pieces together cost `paid`.
fn paid_for(paid: Money, quantity: u32, before: u32, count: u32) -> Result<Money, MoneyError> {
    let upto =
        |pieces: u32| i128::from(paid.minor) * i128::from(pieces) / i128::from(quantity.max(1));
    let minor = upto(before.saturating_add(count)) - upto(before);
    Ok(Money {
        minor: i64::try_from(minor).map_err(|_| MoneyError::Overflow)?,
        ..paid
    })
}

fn allow(order: &Order, to: State) -> Result<(), OrderError> {
    if order.state.next().contains(&to) {
        return Ok(());
    }
    let legal: Vec<&str> = order
        .state
        .next()
        .iter()
        .map(|state| state.name())
        .collect();
    let legal = if legal.is_empty() {
        "nothing".to_owned()
    } else {
        legal.join(" or ")
    };
    Err(OrderError::NotNow(format!(
        "the order is {}, which {legal} can follow, not {}",
        order.state.name(),
        to.name()
    )))
}

fn words(reason: &str) -> Result<String, OrderError> {
    let reason = reason.trim();
    if reason.chars().count() > 500 {
        return Err(OrderError::Invalid(
            "reason is longer than 500 characters".to_owned(),
        ));
    }
    Ok(reason.to_owned())
}
