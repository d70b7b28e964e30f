//! The order that a sequence of events makes.

use std::collections::BTreeSet;

use cell_kit::{Money, MoneyError};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::amounts::{Amounts, SubOrder};
use super::event::Event;

/// Where an order stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum State {
    /// Placed, not paid.
    Placed,
    /// Paid.
    Confirmed,
    /// Worked on.
    Processing,
    /// On its way.
    Shipped,
    /// Arrived.
    Delivered,
    /// Past returns.
    Completed,
    /// Will not be.
    Cancelled,
    /// All of it came back.
    Returned,
}

impl State {
    /// Every state.
    pub const ALL: [State; 8] = [
        State::Placed,
        State::Confirmed,
        State::Processing,
        State::Shipped,
        State::Delivered,
        State::Completed,
        State::Cancelled,
        State::Returned,
    ];

    /// Its name, as stored.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Placed => "placed",
            State::Confirmed => "confirmed",
            State::Processing => "processing",
            State::Shipped => "shipped",
            State::Delivered => "delivered",
            State::Completed => "completed",
            State::Cancelled => "cancelled",
            State::Returned => "returned",
        }
    }

    /// The states that may follow.
    #[must_use]
    pub fn next(self) -> &'static [State] {
        match self {
            State::Placed => &[State::Confirmed, State::Cancelled],
            State::Confirmed => &[State::Processing, State::Cancelled],
            State::Processing => &[State::Shipped, State::Cancelled],
            State::Shipped => &[State::Delivered],
            State::Delivered => &[State::Completed, State::Returned],
            State::Completed | State::Cancelled | State::Returned => &[],
        }
    }
}

/// A line of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// Its id.
    pub id: Uuid,
    /// What.
    pub sku: String,
    /// From whom.
    #[serde(with = "cell_kit::id_text")]
    pub seller_id: u64,
    /// How many.
    pub quantity: u32,
    /// What one costs.
    pub unit_price: Money,
    /// What the buyer read.
    pub title: String,
    /// How many came back.
    #[serde(default)]
    pub returned: u32,
}

/// An order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The checkout saga.
    pub saga_id: String,
    /// Where it stands.
    pub state: State,
    /// Whether the money was captured.
    pub paid: bool,
    /// What was bought.
    pub lines: Vec<Line>,
    /// What it costs.
    pub amounts: Amounts,
    /// Its parts, once it was divided.
    pub sub_orders: Vec<SubOrder>,
    /// What was given back for returns.
    pub refunded: Money,
    /// How many events made it.
    pub version: u64,
}

/// Events that make no order: the store was tampered with, or a newer release wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    /// The first event is not the placement, or a later one is.
    #[error("event {0} of the order is out of place")]
    OutOfPlace(u64),
    /// An event that its state does not allow.
    #[error("event {version} moves the order from {from} to {to}", from = from.name(), to = to.name())]
    Illegal {
        /// The event's number.
        version: u64,
        /// The state before it.
        from: State,
        /// The state that it asks for.
        to: State,
    },
    /// Amounts that do not add up.
    #[error(transparent)]
    Money(#[from] MoneyError),
}

impl Order {
    /// The order that events make; none for no events.
    ///
    /// # Errors
    /// When they make none.
    pub fn fold<'a>(
        events: impl IntoIterator<Item = &'a Event>,
    ) -> Result<Option<Order>, FoldError> {
        events
            .into_iter()
            .try_fold(None, |order, event| Order::after(order, event).map(Some))
    }

    /// The order after one more event.
    ///
    /// # Errors
    /// When the event cannot follow.
    pub fn after(order: Option<Order>, event: &Event) -> Result<Order, FoldError> {
        let Some(mut order) = order else {
            let Event::OrderPlaced {
                saga_id,
                lines,
                shipping,
                discount,
            } = event
            else {
                return Err(FoldError::OutOfPlace(1));
            };
            return Ok(Order {
                saga_id: saga_id.clone(),
                state: State::Placed,
                paid: false,
                amounts: Amounts::of(lines, *shipping, *discount)?,
                lines: lines.clone(),
                sub_orders: Vec::new(),
                refunded: Money::zero(shipping.currency),
                version: 1,
            });
        };
        order.version += 1;
        match event {
            Event::OrderPlaced { .. } => return Err(FoldError::OutOfPlace(order.version)),
            Event::OrderConfirmed {} => {
                order.go(State::Confirmed)?;
                order.paid = true;
            }
            Event::OrderProcessing {} => order.go(State::Processing)?,
            Event::OrderShipped {} => order.go(State::Shipped)?,
            Event::OrderDelivered {} => order.go(State::Delivered)?,
            Event::OrderCompleted {} => order.go(State::Completed)?,
            Event::OrderCancelled { .. } => order.go(State::Cancelled)?,
            Event::OrderSplit { sub_orders } => order.sub_orders.clone_from(sub_orders),
            Event::OrderReturned { lines, refund, .. } => {
                for back in lines {
                    if let Some(line) = order.lines.iter_mut().find(|line| line.id == back.line_id)
                    {
                        line.returned = line.returned.saturating_add(back.quantity);
                    }
                }
                order.refunded = order.refunded.checked_add(*refund)?;
                if order
                    .lines
                    .iter()
                    .all(|line| line.returned >= line.quantity)
                {
                    order.go(State::Returned)?;
                }
            }
        }
        Ok(order)
    }

    /// The sellers, each once, in order.
    pub fn sellers(&self) -> impl Iterator<Item = u64> {
        self.lines
            .iter()
            .map(|line| line.seller_id)
            .collect::<BTreeSet<_>>()
            .into_iter()
    }

    fn go(&mut self, to: State) -> Result<(), FoldError> {
        if !self.state.next().contains(&to) {
            return Err(FoldError::Illegal {
                version: self.version,
                from: self.state,
                to,
            });
        }
        self.state = to;
        Ok(())
    }
}
