//! What happens to orders, and what others are told of it.

use cell_kit::Money;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::amounts::SubOrder;
use super::decide::ReturnedLine;
use super::fold::{Line, Order};

/// Something that happened to an order. Stored for good: variants and fields are added, never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all_fields = "camelCase")]
pub enum Event {
    /// The buyer placed it.
    OrderPlaced {
        /// The checkout saga.
        saga_id: String,
        /// What was bought.
        lines: Vec<Line>,
        /// What sending it costs.
        shipping: Money,
        /// What is taken off.
        discount: Money,
    },
    /// It was paid.
    OrderConfirmed {},
    /// The sellers work on it.
    OrderProcessing {},
    /// It was divided.
    OrderSplit {
        /// One part a seller.
        sub_orders: Vec<SubOrder>,
    },
    /// It is on its way.
    OrderShipped {},
    /// It arrived.
    OrderDelivered {},
    /// It is past returns.
    OrderCompleted {},
    /// It will not be.
    OrderCancelled {
        /// Why, in the buyer's words.
        reason: String,
    },
    /// Some of it came back.
    OrderReturned {
        /// The return.
        return_id: Uuid,
        /// What came back.
        lines: Vec<ReturnedLine>,
        /// What is given back for it.
        refund: Money,
        /// Why, in the buyer's words.
        reason: String,
    },
}

impl Event {
    /// Its name, as stored and published.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Event::OrderPlaced { .. } => "OrderPlaced",
            Event::OrderConfirmed {} => "OrderConfirmed",
            Event::OrderProcessing {} => "OrderProcessing",
            Event::OrderSplit { .. } => "OrderSplit",
            Event::OrderShipped {} => "OrderShipped",
            Event::OrderDelivered {} => "OrderDelivered",
            Event::OrderCompleted {} => "OrderCompleted",
            Event::OrderCancelled { .. } => "OrderCancelled",
            Event::OrderReturned { .. } => "OrderReturned",
        }
    }
}

/// What is published: the event itself, and what it asks of other services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
pub enum Outgoing {
    /// The event.
    Fact(Event),
    /// The seller's stock is free again.
    StockRelease {
        /// The seller, a decimal number in a text.
        seller_id: String,
        /// What is free.
        lines: Vec<StockLine>,
    },
    /// The buyer's money is free again.
    MoneyRelease {
        /// How much.
        amount: Money,
        /// Whether it was captured, and is to be paid back; otherwise the hold on it is to be lifted.
        captured: bool,
    },
}

/// So many of a SKU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StockLine {
    /// The SKU.
    pub sku: String,
    /// How many.
    pub quantity: u32,
}

impl Outgoing {
    /// The event type of the envelope.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Outgoing::Fact(event) => event.name(),
            Outgoing::StockRelease { .. } => "StockReleaseRequested",
            Outgoing::MoneyRelease { .. } => "MoneyReleaseRequested",
        }
    }
}

/// What to publish for `event`, which happened to `before`. A cancellation is legal once, so what it releases is
/// released once.
#[must_use]
pub fn outgoing(before: Option<&Order>, event: &Event) -> Vec<Outgoing> {
    let mut messages = vec![Outgoing::Fact(event.clone())];
    let Some(before) = before else {
        return messages;
    };
    match event {
        Event::OrderCancelled { .. } => {
            messages.extend(before.sellers().map(|seller| {
                Outgoing::StockRelease {
                    seller_id: seller.to_string(),
                    lines: before
                        .lines
                        .iter()
                        .filter(|line| line.seller_id == seller)
                        .map(|line| StockLine {
                            sku: line.sku.clone(),
                            quantity: line.quantity,
                        })
                        .collect(),
                }
            }));
            messages.push(Outgoing::MoneyRelease {
                amount: before.amounts.total,
                captured: before.paid,
            });
        }
        Event::OrderReturned { refund, .. } => {
            messages.push(Outgoing::MoneyRelease {
                amount: *refund,
                captured: true,
            });
        }
        Event::OrderPlaced { .. }
        | Event::OrderConfirmed {}
        | Event::OrderProcessing {}
        | Event::OrderSplit { .. }
        | Event::OrderShipped {}
        | Event::OrderDelivered {}
        | Event::OrderCompleted {} => {}
    }
    messages
}
