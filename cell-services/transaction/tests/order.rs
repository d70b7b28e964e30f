//! The order service against real PostgreSQL, with Kafka away.

#![allow(clippy::unwrap_used, reason = "a test")]

use cell_conformance::{Cell, MINE, fresh, http, key, passes, with_key};
use prost::Message;
use sqlx::Row;
use titan_proto::order::v1::order_service_client::OrderServiceClient;
use titan_proto::order::v1::{
    CancelRequest, CreateFromSagaRequest, GetRequest, LineInput, ListRequest, Money, Order,
    OrderState, ReturnLine, ReturnRequest, SplitBySellerRequest, TimelineRequest,
    TransitionRequest,
};
use titan_transaction::order::SERVICE;
use tonic::Code;
use tonic::transport::Channel;

type Client = OrderServiceClient<Channel>;

fn sgd(minor_units: i64) -> Option<Money> {
    Some(Money {
        minor_units,
        currency: "SGD".to_owned(),
    })
}

fn purchase(saga: &str) -> CreateFromSagaRequest {
    let line = |sku: &str, seller_id, quantity, price| LineInput {
        sku: sku.to_owned(),
        seller_id,
        quantity,
        unit_price: sgd(price),
        title: sku.to_uppercase(),
    };
    CreateFromSagaRequest {
        saga_id: saga.to_owned(),
        lines: vec![
            line("tea", 7, 3, 333),
            line("pot", 7, 1, 1999),
            line("cup", 9, 2, 500),
        ],
        shipping: sgd(301),
        discount: sgd(100),
        paid: true,
    }
}

async fn start() -> anyhow::Result<(Cell, Client)> {
    let cell = Cell::start(&SERVICE).await?;
    let client = Client::new(cell.channel().await?);
    Ok((cell, client))
}

async fn go(
    client: &mut Client,
    order: &Order,
    states: &[OrderState],
) -> Result<Order, tonic::Status> {
    let mut latest = order.clone();
    for state in states {
        let request = TransitionRequest {
            id: order.id.clone(),
            to: (*state).into(),
            expected_version: latest.version,
        };
        latest = client
            .transition(fresh(key(order.buyer_id), request))
            .await?
            .into_inner();
    }
    Ok(latest)
}

/// The event types in the outbox, in order.
async fn outbox(cell: &Cell) -> anyhow::Result<Vec<String>> {
    Ok(
        sqlx::query_scalar("SELECT payload::json ->> 'eventType' FROM outbox ORDER BY xid, seq")
            .fetch_all(&cell.admin)
            .await?,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_the_promises_of_the_kit() -> anyhow::Result<()> {
    passes(&SERVICE, |channel, request| {
        Box::pin(async move {
            let request = request.map(|variant| purchase(&format!("saga {variant}")));
            let answer = Client::new(channel).create_from_saga(request).await?;
            Ok((answer.get_ref().encode_to_vec(), answer.metadata().clone()))
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_lives_from_placement_to_return() -> anyhow::Result<()> {
    let (cell, mut client) = start().await?;
    let owner = key(MINE);
    let order = client
        .create_from_saga(fresh(owner, purchase("saga")))
        .await?
        .into_inner();
    assert_eq!((order.state(), order.version), (OrderState::Confirmed, 2));
    assert_eq!(
        order.amounts.as_ref().unwrap().total,
        sgd(3 * 333 + 1999 + 1000 + 301 - 100)
    );
    assert_eq!(
        client
            .get(fresh(
                owner,
                GetRequest {
                    id: order.id.clone()
                }
            ))
            .await?
            .into_inner(),
        order
    );

    let divided = client
        .split_by_seller(fresh(
            owner,
            SplitBySellerRequest {
                id: order.id.clone(),
            },
        ))
        .await?
        .into_inner();
    assert_eq!(
        divided
            .sub_orders
            .iter()
            .map(|part| part.seller_id)
            .collect::<Vec<_>>(),
        [7, 9]
    );
    let sum: i64 = divided
        .sub_orders
        .iter()
        .map(|part| {
            part.amounts
                .as_ref()
                .unwrap()
                .total
                .as_ref()
                .unwrap()
                .minor_units
        })
        .sum();
    assert_eq!(
        Some(sum),
        order
            .amounts
            .as_ref()
            .unwrap()
            .total
            .as_ref()
            .map(|total| total.minor_units)
    );
    let again = client
        .split_by_seller(fresh(
            owner,
            SplitBySellerRequest {
                id: order.id.clone(),
            },
        ))
        .await?
        .into_inner();
    assert_eq!(again, divided, "divided twice");

    let skipped = go(&mut client, &divided, &[OrderState::Shipped])
        .await
        .unwrap_err();
    assert_eq!(skipped.code(), Code::FailedPrecondition);
    assert!(
        skipped
            .message()
            .contains("processing or cancelled can follow"),
        "{skipped:?}"
    );
    let path = [
        OrderState::Processing,
        OrderState::Shipped,
        OrderState::Delivered,
    ];
    let delivered = go(&mut client, &divided, &path).await?;
    let stale = TransitionRequest {
        id: order.id.clone(),
        to: OrderState::Completed.into(),
        expected_version: 1,
    };
    assert_eq!(
        client
            .transition(fresh(owner, stale))
            .await
            .unwrap_err()
            .code(),
        Code::Aborted
    );
    let late = client
        .cancel(fresh(
            owner,
            CancelRequest {
                id: order.id.clone(),
                reason: String::new(),
            },
        ))
        .await;
    assert_eq!(late.unwrap_err().code(), Code::FailedPrecondition);

    let back = |line: usize, quantity| ReturnRequest {
        id: order.id.clone(),
        lines: vec![ReturnLine {
            line_id: order.lines[line].id.clone(),
            quantity,
        }],
        reason: "broken".to_owned(),
    };
    let mut refunded = 0;
    for (line, quantity) in [(0, 1), (0, 2), (1, 1), (2, 2)] {
        let answer = client
            .r#return(fresh(owner, back(line, quantity)))
            .await?
            .into_inner();
        refunded += answer.refund.unwrap().minor_units;
        let order = answer.order.unwrap();
        assert_eq!(order.refunded, sgd(refunded));
        assert_eq!(
            order.state(),
            if line == 2 {
                OrderState::Returned
            } else {
                OrderState::Delivered
            }
        );
        let more = client
            .r#return(fresh(owner, back(line, 9)))
            .await
            .unwrap_err();
        assert_eq!(more.code(), Code::FailedPrecondition);
    }
    assert_eq!(
        refunded,
        3 * 333 + 1999 + 1000 - 100,
        "all the goods, shipping not"
    );

    // The timeline has all of it, and so has the outbox, though Kafka is away.
    let mut types = Vec::new();
    let mut cursor = String::new();
    loop {
        let request = TimelineRequest {
            id: order.id.clone(),
            page_size: 4,
            page_cursor: cursor,
        };
        let page = client.timeline(fresh(owner, request)).await?.into_inner();
        types.extend(page.entries.into_iter().map(|entry| entry.event_type));
        cursor = page.next_page_cursor;
        if cursor.is_empty() {
            break;
        }
    }
    let mut expected = vec![
        "OrderPlaced",
        "OrderConfirmed",
        "OrderSplit",
        "OrderProcessing",
        "OrderShipped",
        "OrderDelivered",
    ];
    expected.extend(["OrderReturned"; 4]);
    assert_eq!(types, expected);
    let published: Vec<String> = outbox(&cell)
        .await?
        .into_iter()
        .filter(|name| name != "MoneyReleaseRequested")
        .collect();
    assert_eq!(published, expected);
    assert_eq!(
        http::get(cell.addresses.admin, "/readyz").await?.0,
        200,
        "not ready because of Kafka"
    );
    assert_eq!(delivered.version, 6);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_releases_stock_and_money_once() -> anyhow::Result<()> {
    let (cell, mut client) = start().await?;
    let owner = key(MINE);
    let order = client
        .create_from_saga(fresh(owner, purchase("saga")))
        .await?
        .into_inner();
    // Everybody at once, with a key each, and with a key shared by all.
    let calls: Vec<_> = (0..24)
        .map(|turn| {
            let (mut client, id) = (client.clone(), order.id.clone());
            let request = CancelRequest {
                id,
                reason: "changed my mind".to_owned(),
            };
            let request = if turn % 2 == 0 {
                fresh(owner, request)
            } else {
                with_key(owner, "cancel", request)
            };
            tokio::spawn(async move { client.cancel(request).await })
        })
        .collect();
    let mut executed = 0;
    for call in calls {
        match call.await? {
            Ok(answer) if answer.metadata().get("idempotency-replayed").is_none() => executed += 1,
            Ok(_) => {}
            Err(status) => assert_eq!(status.code(), Code::FailedPrecondition),
        }
    }
    assert_eq!(executed, 1);
    assert_eq!(
        outbox(&cell).await?,
        [
            "OrderPlaced",
            "OrderConfirmed",
            "OrderCancelled",
            "StockReleaseRequested",
            "StockReleaseRequested",
            "MoneyReleaseRequested"
        ]
    );
    let released: serde_json::Value = sqlx::query_scalar::<_, String>(
        "SELECT payload FROM outbox WHERE payload::json ->> 'eventType' = 'MoneyReleaseRequested'",
    )
    .fetch_one(&cell.admin)
    .await?
    .parse()?;
    assert_eq!(
        released["data"]["amount"]["minor"],
        3 * 333 + 1999 + 1000 + 301 - 100
    );
    assert_eq!(released["data"]["captured"], true);
    assert_eq!(released["aggregateId"], order.id);
    assert_eq!(released["userId"], MINE.to_string());
    assert_eq!(released["cell"], "cell-001");
    assert_eq!(released["epoch"], 10);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_places_one_order() -> anyhow::Result<()> {
    let (cell, mut client) = start().await?;
    let owner = key(MINE);
    let calls: Vec<_> = (0..12)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move {
                client
                    .create_from_saga(fresh(owner, purchase("saga")))
                    .await
            })
        })
        .collect();
    let mut ids = Vec::new();
    for call in calls {
        ids.push(call.await??.into_inner().id);
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(outbox(&cell).await?, ["OrderPlaced", "OrderConfirmed"]);
    let other = CreateFromSagaRequest {
        shipping: sgd(1),
        ..purchase("saga")
    };
    assert_eq!(
        client
            .create_from_saga(fresh(owner, other))
            .await
            .unwrap_err()
            .code(),
        Code::AlreadyExists
    );
    // Another buyer's saga may have the same name.
    client
        .create_from_saga(fresh(key(MINE + 1), purchase("saga")))
        .await?;

    let foreign = client
        .get(fresh(key(MINE + 1), GetRequest { id: ids[0].clone() }))
        .await
        .unwrap_err();
    assert_eq!(foreign.code(), Code::NotFound, "another buyer's order");
    for wrong in [
        CreateFromSagaRequest {
            lines: Vec::new(),
            ..purchase("x")
        },
        CreateFromSagaRequest {
            saga_id: String::new(),
            ..purchase("x")
        },
        CreateFromSagaRequest {
            discount: sgd(1_000_000),
            ..purchase("x")
        },
        CreateFromSagaRequest {
            shipping: Some(Money {
                minor_units: 1,
                currency: "USD".to_owned(),
            }),
            ..purchase("x")
        },
    ] {
        assert_eq!(
            client
                .create_from_saga(fresh(owner, wrong))
                .await
                .unwrap_err()
                .code(),
            Code::InvalidArgument
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_page_newest_first_by_state() -> anyhow::Result<()> {
    let (cell, mut client) = start().await?;
    let owner = key(MINE);
    let mut placed = Vec::new();
    for number in 0..7 {
        let request = CreateFromSagaRequest {
            paid: number % 2 == 0,
            ..purchase(&format!("saga {number}"))
        };
        placed.push(
            client
                .create_from_saga(fresh(owner, request))
                .await?
                .into_inner()
                .id,
        );
    }
    placed.reverse();
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let request = ListRequest {
            page_size: 3,
            page_cursor: cursor,
            state: 0,
        };
        let page = client.list(fresh(owner, request)).await?.into_inner();
        seen.extend(page.orders.into_iter().map(|order| order.id));
        cursor = page.next_page_cursor;
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!(seen, placed);
    let request = ListRequest {
        state: OrderState::Placed.into(),
        ..Default::default()
    };
    let unpaid = client
        .list(fresh(owner, request))
        .await?
        .into_inner()
        .orders;
    assert_eq!(unpaid.len(), 3);
    assert!(
        unpaid
            .iter()
            .all(|order| order.state() == OrderState::Placed && order.line_count == 3)
    );

    // The row that lists are made from says what the events say.
    for row in sqlx::query("SELECT id::text, state, version FROM orders")
        .fetch_all(&cell.admin)
        .await?
    {
        let order = client
            .get(fresh(owner, GetRequest { id: row.get("id") }))
            .await?
            .into_inner();
        assert_eq!(order.version, row.get::<i64, _>("version").cast_unsigned());
        assert_eq!(
            order.state().as_str_name(),
            format!(
                "ORDER_STATE_{}",
                row.get::<String, _>("state").to_uppercase()
            )
        );
    }
    Ok(())
}

/// Readers of JSON whose numbers are doubles read 2^53 + 1 as 2^53.
#[tokio::test(flavor = "multi_thread")]
async fn ids_are_text_wherever_an_order_is_json() -> anyhow::Result<()> {
    const SELLER: u64 = (1 << 53) + 1;
    let (cell, mut client) = start().await?;
    let owner = key(MINE);
    let mut request = purchase("saga");
    for line in &mut request.lines {
        line.seller_id = SELLER;
    }
    let order = client
        .create_from_saga(fresh(owner, request))
        .await?
        .into_inner();
    let id = order.id;
    let split = SplitBySellerRequest { id: id.clone() };
    client.split_by_seller(fresh(owner, split)).await?;
    let cancel = CancelRequest {
        id: id.clone(),
        reason: String::new(),
    };
    client.cancel(fresh(owner, cancel)).await?;
    let request = TimelineRequest {
        id,
        ..Default::default()
    };
    let timeline = client.timeline(fresh(owner, request)).await?.into_inner();
    let published: Vec<String> = sqlx::query_scalar("SELECT payload FROM outbox")
        .fetch_all(&cell.admin)
        .await?;
    let documents = timeline.entries.into_iter().map(|entry| entry.data);
    let mut found = 0;
    for document in documents.chain(published) {
        let numbers = document
            .replace(' ', "")
            .matches(&format!(":{SELLER}"))
            .count();
        assert_eq!(numbers, 0, "an id is a number in {document}");
        found += document.matches(&format!("\"{SELLER}\"")).count();
    }
    // Three lines and a part of the order, stored and published each, and a release of stock.
    assert_eq!(found, 9);
    Ok(())
}
