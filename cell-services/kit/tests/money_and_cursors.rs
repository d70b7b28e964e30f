//! Properties of the kit's value types.

#![allow(clippy::unwrap_used, reason = "a test")]

use cell_kit::{Currency, Key, Money, cursor};
use proptest::prelude::*;

fn sgd(minor: i64) -> Money {
    Money {
        minor,
        currency: Currency::new("SGD").unwrap(),
    }
}

proptest! {
    #[test]
    fn parts_sum_to_the_whole(amount in -Money::LARGEST..=Money::LARGEST, weights in proptest::collection::vec(0..=u64::MAX, 1..20)) {
        let amount = sgd(amount);
        let Ok(parts) = amount.prorate(&weights) else {
            prop_assert!(weights.iter().all(|weight| *weight == 0));
            return Ok(());
        };
        prop_assert_eq!(parts.len(), weights.len());
        prop_assert_eq!(Money::sum(amount.currency, parts.iter().copied()).unwrap(), amount);
        for (part, weight) in parts.iter().zip(&weights) {
            prop_assert!(part.minor == 0 || *weight > 0, "a part without a weight");
            prop_assert!(part.minor.signum() * amount.minor.signum() >= 0, "a part of the other sign");
        }
    }

    #[test]
    fn a_cursor_is_read_by_its_own_list_alone(position in any::<(i64, u64)>(), flip in any::<prop::sample::Index>()) {
        let owner = Key::new(7).unwrap();
        let text = cursor::encode("orders", owner, &position).unwrap();
        prop_assert_eq!(cursor::decode::<(i64, u64)>("orders", owner, &text).unwrap(), Some(position));
        prop_assert!(cursor::decode::<(i64, u64)>("addresses", owner, &text).is_err());
        prop_assert!(cursor::decode::<(i64, u64)>("orders", Key::new(8).unwrap(), &text).is_err());
        let mut bytes = text.into_bytes();
        let at = flip.index(bytes.len() - 1);
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let forged = String::from_utf8(bytes).unwrap();
        prop_assert!(cursor::decode::<(i64, u64)>("orders", owner, &forged).is_err());
    }
}

#[test]
fn sums_that_cannot_be_are_refused() {
    let yen = Money {
        minor: 1,
        currency: Currency::new("JPY").unwrap(),
    };
    assert!(sgd(1).checked_add(yen).is_err());
    assert!(sgd(i64::MAX).checked_add(sgd(1)).is_err());
    assert!(sgd(i64::MIN).checked_sub(sgd(1)).is_err());
    assert!(sgd(i64::MAX / 2).times(3).is_err());
    // Beyond this a reader with doubles sees another amount.
    assert!(sgd(Money::LARGEST).checked_add(sgd(1)).is_err());
    assert!(sgd(-Money::LARGEST).checked_sub(sgd(1)).is_err());
    assert_eq!(sgd(Money::LARGEST).times(1).unwrap(), sgd(Money::LARGEST));
    for wrong in ["", "sgd", "SG", "SGDX", "S1D"] {
        assert!(Currency::new(wrong).is_err(), "{wrong}");
    }
    assert_eq!(
        sgd(100)
            .prorate(&[1, 1, 1])
            .unwrap()
            .iter()
            .map(|part| part.minor)
            .collect::<Vec<_>>(),
        [34, 33, 33]
    );
}
