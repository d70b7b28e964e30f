//! Carts without stores.

use std::collections::BTreeMap;

use cell_kit::{Money, MoneyError};
use chrono::{DateTime, Duration, Utc};
use serde::{Deserialize, Serialize};

/// The most lines of a cart.
pub const MAX_LINES: usize = 200;
/// The most of one SKU.
pub const MAX_QUANTITY: u32 = 999;
/// How long a price is taken for fresh.
pub const PRICE_LASTS: Duration = Duration::hours(24);

/// A line: so many of a SKU, at the price that the caller saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// What.
    pub sku: String,
    /// From whom.
    #[serde(with = "cell_kit::id_text")]
    pub seller_id: u64,
    /// How many.
    pub quantity: u32,
    /// What one costs, as the caller said.
    pub unit_price: Money,
    /// What the buyer read.
    pub title: String,
    /// When the price was taken.
    pub priced_at: DateTime<Utc>,
}

/// A cart: lines in the order in which they were added, one a SKU, all in one currency.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cart {
    /// The lines.
    pub lines: Vec<Line>,
}

/// Why a change is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CartError {
    /// A line that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// Too much.
    #[error("{0}")]
    Full(String),
    /// There is no such line.
    #[error("the cart has no line {0}")]
    NoLine(String),
    /// Amounts that do not add up.
    #[error(transparent)]
    Money(#[from] MoneyError),
}

/// What a cart costs, by its snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    /// All of it.
    pub subtotal: Money,
    /// By seller.
    pub sellers: BTreeMap<u64, Money>,
}

/// What stands in the way of a checkout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// There is nothing to buy.
    Empty,
    /// The price is old.
    StalePrice {
        /// The line.
        sku: String,
    },
    /// The buyer sells it.
    OwnGoods {
        /// The line.
        sku: String,
    },
}

impl Cart {
    /// Adds a line. The one that is there grows, and takes the newer price.
    ///
    /// # Errors
    /// When the line cannot be, or the cart is full.
    pub fn add(&mut self, line: Line) -> Result<(), CartError> {
        check(&line)?;
        if let Some(other) = self.lines.first()
            && other.unit_price.currency != line.unit_price.currency
        {
            return Err(
                MoneyError::Mixed(other.unit_price.currency, line.unit_price.currency).into(),
            );
        }
        match self.lines.iter().find(|there| there.sku == line.sku) {
            Some(there) => {
                if there.seller_id != line.seller_id {
                    return Err(CartError::Invalid(format!(
                        "{} is in the cart from seller {}, not from {}",
                        line.sku, there.seller_id, line.seller_id
                    )));
                }
                let quantity = there.quantity.saturating_add(line.quantity);
                if quantity > MAX_QUANTITY {
                    return Err(CartError::Full(format!(
                        "more than {MAX_QUANTITY} of {}",
                        line.sku
                    )));
                }
                let line = Line { quantity, ..line };
                self.check_total(&line)?;
                self.put(line);
            }
            None => {
                if self.lines.len() >= MAX_LINES {
                    return Err(CartError::Full(format!(
                        "a cart has at most {MAX_LINES} lines"
                    )));
                }
                self.check_total(&line)?;
                self.lines.push(line);
            }
        }
        Ok(())
    }

    /// Replaces the line of its SKU.
    fn put(&mut self, line: Line) {
        if let Some(there) = self.lines.iter_mut().find(|there| there.sku == line.sku) {
            *there = line;
        }
    }

    /// Refuses a line that would make a cart which nobody can price.
    fn check_total(&self, line: &Line) -> Result<(), CartError> {
        let others = self.lines.iter().filter(|there| there.sku != line.sku);
        let amount = line.unit_price.times(line.quantity)?;
        others
            .map(|there| there.unit_price.times(there.quantity))
            .try_fold(amount, |sum, amount| sum.checked_add(amount?))?;
        Ok(())
    }

    /// Sets how many of a line there are; none removes it.
    ///
    /// # Errors
    /// When there is no such line, or it would be too many.
    pub fn update(&mut self, sku: &str, quantity: u32) -> Result<(), CartError> {
        if quantity > MAX_QUANTITY {
            return Err(CartError::Full(format!(
                "more than {MAX_QUANTITY} of {sku}"
            )));
        }
        let line = self
            .lines
            .iter()
            .find(|line| line.sku == sku)
            .ok_or_else(|| CartError::NoLine(sku.to_owned()))?;
        if quantity == 0 {
            self.remove(sku);
            return Ok(());
        }
        let line = Line {
            quantity,
            ..line.clone()
        };
        self.check_total(&line)?;
        self.put(line);
        Ok(())
    }

    /// Removes a line. False when there is none.
    pub fn remove(&mut self, sku: &str) -> bool {
        let before = self.lines.len();
        self.lines.retain(|line| line.sku != sku);
        self.lines.len() < before
    }

    /// Takes the lines of a guest's cart over: quantities add up, as far as there is room; the cart's own currency,
    /// sellers and the order of its lines stay. Lines that do not fit are left out: a login must not fail for a
    /// full cart.
    ///
    /// That a guest cart is merged once is its caller's to see to, by the guest cart's id.
    ///
    /// # Errors
    /// When a line cannot be.
    pub fn merge(&mut self, guest: &[Line]) -> Result<(), CartError> {
        for line in guest {
            check(line)?;
        }
        for line in guest {
            let there = self
                .lines
                .iter()
                .find(|there| there.sku == line.sku)
                .map_or(0, |there| there.quantity);
            let quantity = line.quantity.min(MAX_QUANTITY.saturating_sub(there));
            if quantity > 0 {
                match self.add(Line {
                    quantity,
                    ..line.clone()
                }) {
                    Ok(())
                    | Err(CartError::Full(_) | CartError::Invalid(_) | CartError::Money(_)) => {}
                    Err(error @ CartError::NoLine(_)) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// What it costs; none for an empty cart.
    ///
    /// # Errors
    /// When a sum does not fit.
    pub fn price(&self) -> Result<Option<Price>, CartError> {
        let Some(first) = self.lines.first() else {
            return Ok(None);
        };
        let zero = Money::zero(first.unit_price.currency);
        let mut price = Price {
            subtotal: zero,
            sellers: BTreeMap::new(),
        };
        for line in &self.lines {
            let amount = line.unit_price.times(line.quantity)?;
            price.subtotal = price.subtotal.checked_add(amount)?;
            let seller = price.sellers.entry(line.seller_id).or_insert(zero);
            *seller = seller.checked_add(amount)?;
        }
        Ok(Some(price))
    }

    /// What stands in the way of a checkout by `buyer` at `now`.
    #[must_use]
    pub fn problems(&self, buyer: u64, now: DateTime<Utc>) -> Vec<Problem> {
        if self.lines.is_empty() {
            return vec![Problem::Empty];
        }
        self.lines
            .iter()
            .flat_map(|line| {
                let stale = (now - line.priced_at > PRICE_LASTS).then(|| Problem::StalePrice {
                    sku: line.sku.clone(),
                });
                let own = (line.seller_id == buyer).then(|| Problem::OwnGoods {
                    sku: line.sku.clone(),
                });
                stale.into_iter().chain(own)
            })
            .collect()
    }

    /// How many pieces are in it.
    #[must_use]
    pub fn item_count(&self) -> u32 {
        self.lines.iter().map(|line| line.quantity).sum()
    }
}

fn check(line: &Line) -> Result<(), CartError> {
    if line.sku.trim().is_empty() || line.sku.len() > 128 {
        return Err(CartError::Invalid(
            "sku is missing or longer than 128 bytes".to_owned(),
        ));
    }
    if line.title.chars().count() > 500 {
        return Err(CartError::Invalid(
            "title is longer than 500 characters".to_owned(),
        ));
    }
    if line.quantity == 0 || line.quantity > MAX_QUANTITY {
        return Err(CartError::Invalid(format!(
            "quantity of {} is not 1 to {MAX_QUANTITY}",
            line.sku
        )));
    }
    if line.unit_price.minor < 0 {
        return Err(CartError::Invalid(format!(
            "unit_price of {} is negative",
            line.sku
        )));
    }
    Ok(())
}
