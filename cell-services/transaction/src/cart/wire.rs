//! Between messages and the domain.

use cell_kit::{Currency, Failure, Key, Money, timestamp};
use chrono::{DateTime, Utc};
use titan_proto::cart::v1 as proto;
use titan_proto::cart::v1::problem::Kind;

use super::domain::{Line, Problem};
use super::store::Stored;

pub(super) fn line(line: Option<&proto::LineInput>, now: DateTime<Utc>) -> Result<Line, Failure> {
    let line = line.ok_or_else(|| Failure::invalid("line is missing"))?;
    let price = line
        .unit_price
        .as_ref()
        .ok_or_else(|| Failure::invalid("unit_price is missing"))?;
    Key::new(line.seller_id).map_err(|error| Failure::invalid(format!("seller_id: {error}")))?;
    Ok(Line {
        sku: line.sku.clone(),
        seller_id: line.seller_id,
        quantity: line.quantity,
        unit_price: Money {
            minor: price.minor_units,
            currency: Currency::new(&price.currency)?,
        },
        title: line.title.clone(),
        priced_at: now,
    })
}

fn money(money: Money) -> proto::Money {
    proto::Money {
        minor_units: money.minor,
        currency: money.currency.code().to_owned(),
    }
}

impl Stored {
    pub(super) fn to_wire(&self, owner: Key) -> proto::Cart {
        proto::Cart {
            buyer_id: owner.get(),
            lines: self
                .lines
                .iter()
                .map(|line| proto::Line {
                    sku: line.sku.clone(),
                    seller_id: line.seller_id,
                    quantity: line.quantity,
                    unit_price: Some(money(line.unit_price)),
                    title: line.title.clone(),
                    priced_at: Some(timestamp(line.priced_at)),
                })
                .collect(),
            version: self.version,
            updated_at: self.updated_at.map(timestamp),
        }
    }

    pub(super) fn from_wire(cart: &proto::Cart) -> Result<Self, Failure> {
        let time = |time: &prost_types::Timestamp| {
            DateTime::from_timestamp(time.seconds, time.nanos.unsigned_abs())
        };
        let lines = cart
            .lines
            .iter()
            .map(|line| {
                let price = line.unit_price.clone().unwrap_or_default();
                Ok(Line {
                    sku: line.sku.clone(),
                    seller_id: line.seller_id,
                    quantity: line.quantity,
                    unit_price: Money {
                        minor: price.minor_units,
                        currency: Currency::new(&price.currency)?,
                    },
                    title: line.title.clone(),
                    priced_at: line.priced_at.as_ref().and_then(time).unwrap_or_default(),
                })
            })
            .collect::<Result<_, Failure>>()?;
        Ok(Stored {
            version: cart.version,
            lines,
            updated_at: cart.updated_at.as_ref().and_then(time),
        })
    }
}

pub(super) fn price(stored: &Stored) -> Result<proto::PriceResponse, Failure> {
    let cart = stored.cart();
    let price = cart.price()?;
    Ok(proto::PriceResponse {
        subtotal: price.as_ref().map(|price| money(price.subtotal)),
        sellers: price
            .into_iter()
            .flat_map(|price| price.sellers)
            .map(|(seller_id, subtotal)| proto::SellerSubtotal {
                seller_id,
                subtotal: Some(money(subtotal)),
            })
            .collect(),
        item_count: cart.item_count(),
        version: stored.version,
    })
}

pub(super) fn validation(stored: &Stored, buyer: Key) -> proto::ValidateResponse {
    let problems: Vec<proto::Problem> = stored
        .cart()
        .problems(buyer.get(), Utc::now())
        .into_iter()
        .map(|problem| {
            let (kind, sku, message) = match problem {
                Problem::Empty => (Kind::Empty, String::new(), "there is nothing in the cart".to_owned()),
                Problem::StalePrice { sku } => {
                    let message = format!("the price of {sku} is older than a day; add it again with the price of today");
                    (Kind::StalePrice, sku, message)
                }
                Problem::OwnGoods { sku } => {
                    let message = format!("{sku} is sold by the buyer; remove it");
                    (Kind::OwnGoods, sku, message)
                }
            };
            proto::Problem { kind: kind.into(), sku, message }
        })
        .collect();
    proto::ValidateResponse {
        ok: problems.is_empty(),
        problems,
        version: stored.version,
    }
}
