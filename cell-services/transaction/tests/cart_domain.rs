//! Properties of carts.

#![allow(clippy::unwrap_used, reason = "a test")]

use cell_kit::{Currency, Money};
use chrono::{DateTime, Duration, Utc};
use proptest::prelude::*;
use titan_transaction::cart::domain::{Cart, Line, MAX_LINES, MAX_QUANTITY, PRICE_LASTS, Problem};

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000, 0).unwrap()
}

fn line(sku: u32, seller_id: u64, quantity: u32, price: i64) -> Line {
    Line {
        sku: format!("sku-{sku}"),
        seller_id,
        quantity,
        unit_price: Money {
            minor: price,
            currency: Currency::new("SGD").unwrap(),
        },
        title: String::new(),
        priced_at: now(),
    }
}

/// A SKU has one seller, as in a catalog.
fn any_line() -> impl Strategy<Value = Line> {
    (0..20_u32, 1..=MAX_QUANTITY, 0..100_000_i64)
        .prop_map(|(sku, quantity, price)| line(sku, u64::from(sku % 4) + 1, quantity, price))
}

#[derive(Clone, Debug)]
enum Step {
    Add(Line),
    Update(u32, u32),
    Remove(u32),
    Merge(Vec<Line>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => any_line().prop_map(Step::Add),
        1 => (0..20_u32, 0..=MAX_QUANTITY + 1).prop_map(|(sku, quantity)| Step::Update(sku, quantity)),
        1 => (0..20_u32).prop_map(Step::Remove),
        1 => proptest::collection::vec(any_line(), 0..5).prop_map(Step::Merge),
    ]
}

fn run(steps: &[Step]) -> Cart {
    let mut cart = Cart::default();
    for step in steps {
        let before = cart.clone();
        let outcome = match step {
            Step::Add(line) => cart.add(line.clone()),
            Step::Update(sku, quantity) => cart.update(&format!("sku-{sku}"), *quantity),
            Step::Remove(sku) => {
                cart.remove(&format!("sku-{sku}"));
                Ok(())
            }
            Step::Merge(lines) => cart.merge(lines),
        };
        if outcome.is_err() {
            assert_eq!(cart, before, "a refused change changed the cart");
        }
    }
    cart
}

proptest! {
    #[test]
    fn a_cart_is_always_one_that_can_be_bought(steps in proptest::collection::vec(step(), 0..60)) {
        let cart = run(&steps);
        let mut skus: Vec<&str> = cart.lines.iter().map(|line| line.sku.as_str()).collect();
        skus.sort_unstable();
        skus.dedup();
        prop_assert_eq!(skus.len(), cart.lines.len(), "a SKU has one line");
        prop_assert!(cart.lines.len() <= MAX_LINES);
        prop_assert!(cart.lines.iter().all(|line| (1..=MAX_QUANTITY).contains(&line.quantity)));
        let price = cart.price().unwrap();
        prop_assert_eq!(price.is_none(), cart.lines.is_empty());
        if let Some(price) = price {
            let lines: i64 = cart.lines.iter().map(|line| line.unit_price.minor * i64::from(line.quantity)).sum();
            prop_assert_eq!(price.subtotal.minor, lines);
            prop_assert_eq!(price.sellers.values().map(|amount| amount.minor).sum::<i64>(), lines);
        }
    }

    /// Both `add` and `update` look at the total.
    #[test]
    fn a_cart_of_any_amounts_can_be_priced(
        steps in proptest::collection::vec((0..4_u32, 0..3_u32, 1..=MAX_QUANTITY, 0..=i64::MAX), 1..20),
        shift in 0..63_u32,
    ) {
        let steps: Vec<Step> = steps
            .into_iter()
            .map(|(kind, sku, quantity, price)| match kind {
                0 => Step::Update(sku, quantity),
                1 => Step::Merge(vec![line(sku, 1, quantity, price >> shift)]),
                _ => Step::Add(line(sku, 1, quantity, price >> shift)),
            })
            .collect();
        prop_assert!(run(&steps).price().is_ok());
    }

    #[test]
    fn a_merge_adds_up_and_takes_nothing_away(
        steps in proptest::collection::vec(step(), 0..20),
        guest in proptest::collection::vec(any_line(), 0..10),
    ) {
        let before = run(&steps);
        let mut after = before.clone();
        after.merge(&guest).unwrap();
        for sku in 0..20 {
            let sku = format!("sku-{sku}");
            let count = |lines: &[Line]| -> u32 {
                lines.iter().filter(|line| line.sku == sku).map(|line| line.quantity).sum()
            };
            let expected = (count(&before.lines) + count(&guest)).min(MAX_QUANTITY);
            prop_assert_eq!(count(&after.lines), expected, "{}", sku);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut cart = Cart::default();
    cart.add(line(1, 7, 500, 100)).unwrap();
    assert!(
        cart.add(line(1, 7, 500, 100)).is_err(),
        "more than the most"
    );
    assert!(
        cart.add(line(1, 8, 1, 100)).is_err(),
        "another seller of one SKU"
    );
    assert!(cart.add(line(2, 7, 0, 100)).is_err(), "none");
    assert!(cart.add(line(2, 7, 1, -1)).is_err(), "a negative price");
    let yen = Line {
        unit_price: Money {
            minor: 1,
            currency: Currency::new("JPY").unwrap(),
        },
        ..line(2, 7, 1, 1)
    };
    assert!(cart.add(yen.clone()).is_err(), "another currency");
    assert!(cart.update("sku-9", 1).is_err(), "no such line");
    // A merge leaves out what does not fit, and takes the rest.
    cart.merge(&[yen, line(1, 8, 1, 1), line(3, 7, 2, 1)])
        .unwrap();
    assert_eq!(
        cart.lines
            .iter()
            .map(|line| (line.sku.as_str(), line.quantity))
            .collect::<Vec<_>>(),
        [("sku-1", 500), ("sku-3", 2)]
    );
}

#[test]
fn problems_are_named() {
    assert_eq!(Cart::default().problems(1, now()), [Problem::Empty]);
    let mut cart = Cart::default();
    cart.add(line(1, 7, 1, 100)).unwrap();
    assert!(cart.problems(1, now() + PRICE_LASTS).is_empty());
    assert_eq!(
        cart.problems(1, now() + PRICE_LASTS + Duration::seconds(1)),
        [Problem::StalePrice {
            sku: "sku-1".to_owned()
        }]
    );
    assert_eq!(
        cart.problems(7, now()),
        [Problem::OwnGoods {
            sku: "sku-1".to_owned()
        }]
    );
}
