//! What an order costs, whole and in parts that sum to the whole.

use cell_kit::{Money, MoneyError};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::fold::Line;

/// The amounts of an order or of a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// The lines.
    pub goods: Money,
    /// Sending it.
    pub shipping: Money,
    /// What is taken off.
    pub discount: Money,
    /// goods + shipping - discount.
    pub total: Money,
}

/// A part of an order: one seller's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubOrder {
    /// Its id.
    pub id: Uuid,
    /// Whose.
    #[serde(with = "cell_kit::id_text")]
    pub seller_id: u64,
    /// Its lines.
    pub line_ids: Vec<Uuid>,
    /// Its amounts.
    pub amounts: Amounts,
}

/// What a line costs, before and after its part of the discount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineShare {
    /// Price times quantity.
    pub goods: Money,
    /// Its part of the discount on goods.
    pub discount: Money,
    /// What the buyer pays for it.
    pub paid: Money,
}

impl Amounts {
    /// The amounts of lines.
    ///
    /// # Errors
    /// When currencies differ or a sum does not fit.
    pub fn of(lines: &[Line], shipping: Money, discount: Money) -> Result<Self, MoneyError> {
        let goods = lines
            .iter()
            .try_fold(Money::zero(shipping.currency), |sum, line| {
                sum.checked_add(line.unit_price.times(line.quantity)?)
            })?;
        Amounts::from_parts(goods, shipping, discount)
    }

    fn from_parts(goods: Money, shipping: Money, discount: Money) -> Result<Self, MoneyError> {
        Ok(Amounts {
            goods,
            shipping,
            discount,
            total: goods.checked_add(shipping)?.checked_sub(discount)?,
        })
    }

    /// The discount takes off the goods first, and off the shipping what is left of it.
    fn discount_on_goods(&self) -> Money {
        Money {
            minor: self.discount.minor.min(self.goods.minor),
            ..self.discount
        }
    }
}

/// What each line costs, in the lines' order. The parts of the discount sum to the discount on goods.
///
/// # Errors
/// When an amount does not fit.
pub fn line_shares(lines: &[Line], amounts: &Amounts) -> Result<Vec<LineShare>, MoneyError> {
    let goods = lines
        .iter()
        .map(|line| line.unit_price.times(line.quantity))
        .collect::<Result<Vec<_>, MoneyError>>()?;
    let weights: Vec<u64> = goods
        .iter()
        .map(|goods| goods.minor.unsigned_abs())
        .collect();
    let discounts = amounts.discount_on_goods().prorate(&weights)?;
    goods
        .into_iter()
        .zip(discounts)
        .map(|(goods, discount)| {
            Ok(LineShare {
                goods,
                discount,
                paid: goods.checked_sub(discount)?,
            })
        })
        .collect()
}

/// Divides an order: one part a seller, in the order of the sellers' keys. Every amount of the parts sums to the
/// order's.
///
/// # Errors
/// When an amount does not fit.
pub fn split_by_seller(
    lines: &[Line],
    amounts: &Amounts,
    mut new_id: impl FnMut() -> Uuid,
) -> Result<Vec<SubOrder>, MoneyError> {
    let currency = amounts.total.currency;
    let shares = line_shares(lines, amounts)?;
    let mut sellers: Vec<u64> = lines.iter().map(|line| line.seller_id).collect();
    sellers.sort_unstable();
    sellers.dedup();

    let mut parts = Vec::with_capacity(sellers.len());
    for seller in &sellers {
        let own = || {
            lines
                .iter()
                .zip(&shares)
                .filter(|(line, _)| line.seller_id == *seller)
        };
        parts.push((
            *seller,
            own().map(|(line, _)| line.id).collect::<Vec<_>>(),
            Money::sum(currency, own().map(|(_, share)| share.goods))?,
            Money::sum(currency, own().map(|(_, share)| share.discount))?,
        ));
    }
    let weights = weights_or_equal(parts.iter().map(|(_, _, goods, _)| goods.minor));
    let shipping = amounts.shipping.prorate(&weights)?;
    let off_shipping = amounts.discount.checked_sub(amounts.discount_on_goods())?;
    let off_shipping = off_shipping.prorate(&weights_or_equal(
        shipping.iter().map(|shipping| shipping.minor),
    ))?;

    parts
        .into_iter()
        .zip(shipping.into_iter().zip(off_shipping))
        .map(
            |((seller_id, line_ids, goods, discount), (shipping, off_shipping))| {
                let amounts =
                    Amounts::from_parts(goods, shipping, discount.checked_add(off_shipping)?)?;
                Ok(SubOrder {
                    id: new_id(),
                    seller_id,
                    line_ids,
                    amounts,
                })
            },
        )
        .collect()
}

/// Weights in proportion to amounts; equal ones when there is nothing to be in proportion to.
fn weights_or_equal(amounts: impl Iterator<Item = i64>) -> Vec<u64> {
    let weights: Vec<u64> = amounts.map(i64::unsigned_abs).collect();
    if weights.iter().all(|weight| *weight == 0) {
        vec![1; weights.len()]
    } else {
        weights
    }
}
