//! Properties of the address book.

#![allow(clippy::unwrap_used, reason = "a test")]

use proptest::prelude::*;
use titan_social::user::address_book::{AddressBook, MAX_ADDRESSES};
use uuid::Uuid;

#[derive(Clone, Debug)]
enum Step {
    Add(bool),
    Remove(usize),
    SetDefault(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        any::<bool>().prop_map(Step::Add),
        (0..60_usize).prop_map(Step::Remove),
        (0..60_usize).prop_map(Step::SetDefault),
    ]
}

proptest! {
    #[test]
    fn one_default_as_long_as_there_is_any(steps in proptest::collection::vec(step(), 0..120)) {
        let mut book = AddressBook::default();
        for (number, step) in steps.into_iter().enumerate() {
            let pick = |index: usize, book: &AddressBook| {
                book.ids().get(index % book.ids().len().max(1)).copied().unwrap_or_else(|| Uuid::from_u128(u128::MAX))
            };
            match step {
                Step::Add(default) => {
                    let id = Uuid::from_u128(number as u128);
                    let full = book.ids().len() == MAX_ADDRESSES;
                    prop_assert_eq!(book.add(id, default).is_err(), full);
                    if default && !full {
                        prop_assert_eq!(book.default_id(), Some(id));
                    }
                }
                Step::Remove(index) => {
                    let (id, before) = (pick(index, &book), book.ids().len());
                    prop_assert_eq!(book.remove(id), before > 0);
                    prop_assert_eq!(book.ids().len(), before.saturating_sub(1));
                }
                Step::SetDefault(index) => {
                    let id = pick(index, &book);
                    if book.set_default(id) {
                        prop_assert_eq!(book.default_id(), Some(id));
                    }
                }
            }
            prop_assert_eq!(book.default_id().is_some(), !book.ids().is_empty());
            prop_assert!(book.default_id().is_none_or(|id| book.ids().contains(&id)));
            // Stored and read again, it is the same.
            let stored = AddressBook::new(book.ids().iter().map(|id| (*id, book.default_id() == Some(*id))));
            prop_assert_eq!(stored, book.clone());
        }
    }
}
