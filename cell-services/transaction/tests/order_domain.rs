//! Properties of orders: legal transitions only, parts sum to the whole, the state is the fold of the events,
//! and what a cancellation releases is released once.

#![allow(clippy::unwrap_used, reason = "a test")]

use cell_kit::{Currency, Money};
use proptest::prelude::*;
use titan_transaction::order::domain::{
    Amounts, Event, Line, Order, Outgoing, Placement, ReturnedLine, State, cancel, line_shares,
    outgoing, place, return_lines, split, split_by_seller, transition,
};
use uuid::Uuid;

fn money(minor: i64) -> Money {
    Money {
        minor,
        currency: Currency::new("SGD").unwrap(),
    }
}

fn lines() -> impl Strategy<Value = Vec<Line>> {
    let line = (1..5_u64, 1..30_u32, 0..1_000_000_i64);
    proptest::collection::vec(line, 1..12).prop_map(|lines| {
        lines
            .into_iter()
            .enumerate()
            .map(|(index, (seller_id, quantity, price))| Line {
                id: Uuid::from_u128(index as u128 + 1),
                sku: format!("sku-{index}"),
                seller_id,
                quantity,
                unit_price: money(price),
                title: String::new(),
                returned: 0,
            })
            .collect()
    })
}

prop_compose! {
    /// The discount goes from nothing to everything.
    fn placement()(lines in lines(), shipping in 0..10_000_i64, share in 0..=100_i64, paid in any::<bool>()) -> Placement {
        let all = Amounts::of(&lines, money(shipping), money(0)).unwrap().total.minor;
        let discount = money((i128::from(all) * i128::from(share) / 100) as i64);
        Placement { saga_id: "saga".to_owned(), lines, shipping: money(shipping), discount, paid }
    }
}

#[derive(Clone, Debug)]
enum Command {
    To(usize),
    Cancel,
    Split,
    Return(Vec<(usize, u32)>),
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        // Mostly forward, so that the ends are reached.
        6 => (1..6_usize).prop_map(Command::To),
        1 => (0..8_usize).prop_map(Command::To),
        1 => Just(Command::Cancel),
        1 => Just(Command::Split),
        3 => proptest::collection::vec((0..12_usize, 0..12_u32), 0..4).prop_map(Command::Return),
    ]
}

fn apply(command: &Command, order: &Order, serial: u128) -> Option<Event> {
    match command {
        Command::To(state) => transition(order, State::ALL[*state]).ok(),
        Command::Cancel => cancel(order, "changed my mind").ok(),
        Command::Split => split(order, || Uuid::from_u128(serial)).ok().flatten(),
        Command::Return(lines) => {
            let lines: Vec<ReturnedLine> = lines
                .iter()
                .map(|(index, quantity)| ReturnedLine {
                    line_id: order.lines[index % order.lines.len()].id,
                    quantity: *quantity,
                })
                .collect();
            return_lines(order, Uuid::from_u128(serial), &lines, "broken").ok()
        }
    }
}

fn edge(event: &Event) -> Option<State> {
    match event {
        Event::OrderConfirmed {} => Some(State::Confirmed),
        Event::OrderProcessing {} => Some(State::Processing),
        Event::OrderShipped {} => Some(State::Shipped),
        Event::OrderDelivered {} => Some(State::Delivered),
        Event::OrderCompleted {} => Some(State::Completed),
        Event::OrderCancelled { .. } => Some(State::Cancelled),
        Event::OrderPlaced { .. } | Event::OrderSplit { .. } | Event::OrderReturned { .. } => None,
    }
}

proptest! {
    #[test]
    fn parts_sum_to_the_order(placement in placement()) {
        let amounts = Amounts::of(&placement.lines, placement.shipping, placement.discount).unwrap();
        let mut serial = 0;
        let parts = split_by_seller(&placement.lines, &amounts, || { serial += 1; Uuid::from_u128(serial) }).unwrap();
        let sum = |pick: fn(&Amounts) -> Money| {
            Money::sum(money(0).currency, parts.iter().map(|part| pick(&part.amounts))).unwrap()
        };
        prop_assert_eq!(sum(|part| part.goods), amounts.goods);
        prop_assert_eq!(sum(|part| part.shipping), amounts.shipping);
        prop_assert_eq!(sum(|part| part.discount), amounts.discount);
        prop_assert_eq!(sum(|part| part.total), amounts.total);
        let mut sellers: Vec<u64> = placement.lines.iter().map(|line| line.seller_id).collect();
        sellers.sort_unstable();
        sellers.dedup();
        prop_assert_eq!(parts.iter().map(|part| part.seller_id).collect::<Vec<_>>(), sellers);
        for part in &parts {
            prop_assert!(part.amounts.total.minor >= 0, "a seller who owes: {:?}", part);
            let own: Vec<Uuid> =
                placement.lines.iter().filter(|line| line.seller_id == part.seller_id).map(|line| line.id).collect();
            prop_assert_eq!(&part.line_ids, &own);
        }
    }

    #[test]
    fn a_history_of_commands_keeps_every_promise(
        placement in placement(),
        commands in proptest::collection::vec(command(), 0..40),
    ) {
        let mut events = place(placement).unwrap();
        let mut order = Order::fold(&events).unwrap().unwrap();
        let (mut stock_releases, mut money_releases, mut refunds) = (Vec::new(), 0, money(0));
        for (serial, command) in commands.iter().enumerate() {
            let Some(event) = apply(command, &order, serial as u128) else { continue };
            // Legal transitions only.
            if let Some(to) = edge(&event) {
                prop_assert!(order.state.next().contains(&to), "{:?} after {:?}", to, order.state);
            }
            for message in outgoing(Some(&order), &event) {
                match message {
                    Outgoing::StockRelease { seller_id, lines } => {
                        prop_assert_eq!(edge(&event), Some(State::Cancelled));
                        stock_releases.push((seller_id, lines));
                    }
                    Outgoing::MoneyRelease { amount, captured } => {
                        if edge(&event) == Some(State::Cancelled) {
                            money_releases += 1;
                            prop_assert_eq!((amount, captured), (order.amounts.total, order.paid));
                        } else {
                            refunds = refunds.checked_add(amount).unwrap();
                        }
                    }
                    Outgoing::Fact(fact) => prop_assert_eq!(&fact, &event),
                }
            }
            order = Order::after(Some(order), &event).unwrap();
            events.push(event);
        }

        // The state is the fold of the events, also after they were stored and read again.
        let stored: Vec<Event> = events
            .iter()
            .map(|event| serde_json::from_str(&serde_json::to_string(event).unwrap()).unwrap())
            .collect();
        prop_assert_eq!(Order::fold(&stored).unwrap().unwrap(), order.clone());
        prop_assert_eq!(order.version, events.len() as u64);

        // What a cancellation releases is released once, and completely.
        let cancelled = order.state == State::Cancelled;
        prop_assert_eq!(money_releases, usize::from(cancelled));
        let released: u32 = stock_releases.iter().flat_map(|(_, lines)| lines).map(|line| line.quantity).sum();
        let bought: u32 = order.lines.iter().map(|line| line.quantity).sum();
        prop_assert_eq!(released, if cancelled { bought } else { 0 });

        // No more comes back than was bought and paid for; all of it when all came back.
        prop_assert_eq!(refunds, order.refunded);
        let shares = line_shares(&order.lines, &order.amounts).unwrap();
        let paid = Money::sum(money(0).currency, shares.iter().map(|share| share.paid)).unwrap();
        prop_assert!(order.refunded.minor <= paid.minor);
        prop_assert!(order.lines.iter().all(|line| line.returned <= line.quantity));
        if order.state == State::Returned {
            prop_assert_eq!(order.refunded, paid);
        }
    }
}

#[test]
fn every_pair_of_states_is_legal_or_refused_by_name() {
    let legal = [
        (State::Placed, State::Confirmed),
        (State::Placed, State::Cancelled),
        (State::Confirmed, State::Processing),
        (State::Confirmed, State::Cancelled),
        (State::Processing, State::Shipped),
        (State::Processing, State::Cancelled),
        (State::Shipped, State::Delivered),
        (State::Delivered, State::Completed),
        (State::Delivered, State::Returned),
    ];
    for from in State::ALL {
        for to in State::ALL {
            assert_eq!(
                from.next().contains(&to),
                legal.contains(&(from, to)),
                "{from:?} to {to:?}"
            );
        }
    }
}

#[test]
fn events_out_of_place_are_found() {
    let confirmed = Event::OrderConfirmed {};
    assert!(Order::fold([&confirmed]).is_err());
    let placed = Event::OrderPlaced {
        saga_id: "saga".to_owned(),
        lines: Vec::new(),
        shipping: money(0),
        discount: money(0),
    };
    assert!(Order::fold([&placed, &placed]).is_err());
    assert!(Order::fold([&placed, &Event::OrderShipped {}]).is_err());
}
