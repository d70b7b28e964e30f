//! The cart service against real PostgreSQL and Redis.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cell_conformance::{Cell, MINE, fresh, http, key, passes, with_key};
use cell_kit::config::RedisConfig;
use cell_kit::redis::{Redis, owner_key};
use clap::Parser;
use nix::sys::signal::Signal;
use prost::Message;
use redis::AsyncCommands;
use titan_proto::cart::v1::cart_service_client::CartServiceClient;
use titan_proto::cart::v1::{
    AddRequest, Cart, GetRequest, LineInput, MergeGuestRequest, Money, PriceRequest, RemoveRequest,
    UpdateRequest, ValidateRequest, WatchRequest,
};
use titan_testbed::Redis as TestRedis;
use titan_transaction::cart::SERVICE;
use tonic::Code;
use tonic::transport::Channel;

type Client = CartServiceClient<Channel>;

async fn start() -> anyhow::Result<(Cell, Client)> {
    let cell = Cell::start(&SERVICE).await?;
    let client = Client::new(cell.channel().await?);
    Ok((cell, client))
}

fn tea(quantity: u32) -> LineInput {
    LineInput {
        sku: "tea".to_owned(),
        seller_id: 7,
        quantity,
        unit_price: Some(Money {
            minor_units: 333,
            currency: "SGD".to_owned(),
        }),
        title: "Tea".to_owned(),
    }
}

fn add(line: LineInput) -> AddRequest {
    AddRequest {
        line: Some(line),
        expected_version: None,
    }
}

fn quantity(cart: &Cart) -> u32 {
    cart.lines.iter().map(|line| line.quantity).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_the_promises_of_the_kit() -> anyhow::Result<()> {
    passes(&SERVICE, |channel, request| {
        Box::pin(async move {
            let request = request.map(|variant| add(tea(variant + 1)));
            let answer = Client::new(channel).add(request).await?;
            Ok((answer.get_ref().encode_to_vec(), answer.metadata().clone()))
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cart_is_filled_changed_and_priced() -> anyhow::Result<()> {
    let (_cell, mut client) = start().await?;
    let owner = key(MINE);
    let empty = client.get(fresh(owner, GetRequest {})).await?.into_inner();
    assert_eq!((empty.version, empty.lines.len()), (0, 0));
    let problems = client
        .validate(fresh(owner, ValidateRequest {}))
        .await?
        .into_inner();
    assert!(!problems.ok);
    assert!(
        client
            .price(fresh(owner, PriceRequest {}))
            .await?
            .into_inner()
            .subtotal
            .is_none()
    );

    client.add(fresh(owner, add(tea(2)))).await?;
    let pot = LineInput {
        sku: "pot".to_owned(),
        seller_id: 9,
        ..tea(1)
    };
    let cart = client.add(fresh(owner, add(pot))).await?.into_inner();
    assert_eq!((cart.version, cart.lines.len()), (2, 2));
    assert_eq!(
        client.get(fresh(owner, GetRequest {})).await?.into_inner(),
        cart
    );
    let price = client
        .price(fresh(owner, PriceRequest {}))
        .await?
        .into_inner();
    assert_eq!(
        (
            price.subtotal.unwrap().minor_units,
            price.item_count,
            price.sellers.len()
        ),
        (999, 3, 2)
    );
    assert!(
        client
            .validate(fresh(owner, ValidateRequest {}))
            .await?
            .into_inner()
            .ok
    );

    let update = |quantity, expected_version| UpdateRequest {
        sku: "tea".to_owned(),
        quantity,
        expected_version,
    };
    let stale = client
        .update(fresh(owner, update(5, Some(1))))
        .await
        .unwrap_err();
    assert_eq!(stale.code(), Code::Aborted);
    assert!(stale.message().contains("version 2"), "{stale:?}");
    assert_eq!(
        quantity(
            &client
                .update(fresh(owner, update(5, Some(2))))
                .await?
                .into_inner()
        ),
        6
    );
    let same = client
        .update(fresh(owner, update(5, None)))
        .await?
        .into_inner();
    assert_eq!(same.version, 3, "no change, no version");
    let remove = RemoveRequest {
        sku: "tea".to_owned(),
        expected_version: None,
    };
    assert_eq!(
        quantity(
            &client
                .remove(fresh(owner, remove.clone()))
                .await?
                .into_inner()
        ),
        1
    );
    assert_eq!(
        client
            .remove(fresh(owner, remove))
            .await?
            .into_inner()
            .version,
        4
    );
    assert_eq!(
        client
            .update(fresh(owner, update(1, None)))
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_writers_with_one_version_one_wins() -> anyhow::Result<()> {
    let (_cell, client) = start().await?;
    let owner = key(MINE);
    for round in 0..5_u64 {
        let calls: Vec<_> = (0..10)
            .map(|_| {
                let mut client = client.clone();
                let request = AddRequest {
                    expected_version: Some(round),
                    ..add(tea(1))
                };
                tokio::spawn(async move { client.add(fresh(owner, request)).await })
            })
            .collect();
        let mut won = 0;
        for call in calls {
            match call.await? {
                Ok(answer) => {
                    assert_eq!(answer.get_ref().version, round + 1);
                    won += 1;
                }
                Err(status) => assert_eq!(status.code(), Code::Aborted, "{status:?}"),
            }
        }
        assert_eq!(won, 1, "round {round}");
    }
    // Without a version nobody loses.
    let calls: Vec<_> = (0..40)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.add(fresh(owner, add(tea(1)))).await })
        })
        .collect();
    for call in calls {
        call.await??;
    }
    let cart = client
        .clone()
        .get(fresh(owner, GetRequest {}))
        .await?
        .into_inner();
    assert_eq!((quantity(&cart), cart.version), (45, 45));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_cart_is_merged_once() -> anyhow::Result<()> {
    let (_cell, mut client) = start().await?;
    let owner = key(MINE);
    client.add(fresh(owner, add(tea(1)))).await?;
    let merge = MergeGuestRequest {
        guest_cart_id: "0190b2f0-0000-7000-8000-000000000001".to_owned(),
        lines: vec![
            tea(2),
            LineInput {
                sku: "pot".to_owned(),
                ..tea(1)
            },
        ],
    };
    let once = client
        .merge_guest(fresh(owner, merge.clone()))
        .await?
        .into_inner();
    assert_eq!(quantity(&once), 4);
    // Again, all at the same time, under new idempotency keys.
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let (mut client, merge) = (client.clone(), merge.clone());
            tokio::spawn(async move { client.merge_guest(fresh(owner, merge)).await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await??.into_inner(), once);
    }
    let other = MergeGuestRequest {
        guest_cart_id: "0190b2f0-0000-7000-8000-000000000002".to_owned(),
        ..merge
    };
    assert_eq!(
        quantity(&client.merge_guest(fresh(owner, other)).await?.into_inner()),
        7
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_may_be_emptied_hang_and_die() -> anyhow::Result<()> {
    let (mut cell, mut client) = start().await?;
    let port = cell.redis.as_ref().unwrap().port();
    let address = format!("redis://:{}@127.0.0.1:{port}", TestRedis::PASSWORD);
    let mut redis = redis::Client::open(address)?
        .get_multiplexed_async_connection()
        .await?;
    // A slow Redis is gone around, so on a slow machine it may take a few carts until one is written through.
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut owners = (MINE..).map(key);
    let (owner, entry, cart) = loop {
        let owner = owners.next().unwrap();
        let cart = client.add(fresh(owner, add(tea(2)))).await?.into_inner();
        let entry = owner_key(owner, "cart");
        let cached: Option<String> = redis.hget(&entry, "cart").await?;
        if cached.is_some_and(|text| text.contains("\"version\":1")) {
            break (owner, entry, cart);
        }
        assert!(Instant::now() < deadline, "no cart is written through");
    };

    // Emptied: rebuilt from PostgreSQL by the next read, or by the one after a slow one.
    let _: () = redis::cmd("FLUSHALL").query_async(&mut redis).await?;
    loop {
        assert_eq!(
            client.get(fresh(owner, GetRequest {})).await?.into_inner(),
            cart
        );
        let cached: Option<String> = redis.hget(&entry, "cart").await?;
        if cached.is_some() {
            break;
        }
        assert!(Instant::now() < deadline, "no read fills Redis again");
    }

    // It does not go back to an older version.
    let newer: i64 = 9;
    let _: () = redis.hset(&entry, "version", newer).await?;
    client.get(fresh(owner, GetRequest {})).await?;
    let kept: i64 = redis.hget(&entry, "version").await?;
    assert_eq!(kept, newer);

    // Hanging: each step is given up after a moment, and what was changed meanwhile is what is read afterwards.
    cell.redis
        .as_mut()
        .unwrap()
        .server()
        .signal(Signal::SIGSTOP)?;
    let started = Instant::now();
    client.add(fresh(owner, add(tea(1)))).await?;
    let cart = client.get(fresh(owner, GetRequest {})).await?.into_inner();
    assert_eq!((quantity(&cart), cart.version), (3, 2));
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "requests wait for Redis: {:?}",
        started.elapsed()
    );
    cell.redis
        .as_mut()
        .unwrap()
        .server()
        .signal(Signal::SIGCONT)?;
    assert_eq!(
        client.get(fresh(owner, GetRequest {})).await?.into_inner(),
        cart
    );

    // Dead: served from PostgreSQL, ready all the while.
    cell.redis.as_mut().unwrap().server().crash()?;
    let started = Instant::now();
    for _ in 0..5 {
        client.add(fresh(owner, add(tea(1)))).await?;
    }
    let cart = client.get(fresh(owner, GetRequest {})).await?.into_inner();
    assert_eq!((quantity(&cart), cart.version), (8, 7));
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "requests wait for Redis: {:?}",
        started.elapsed()
    );
    assert_eq!(http::get(cell.addresses.admin, "/readyz").await?.0, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_sees_every_change_until_the_drain() -> anyhow::Result<()> {
    let (mut cell, mut client) = start().await?;
    let owner = key(MINE);
    let mut stream = client
        .watch(fresh(owner, WatchRequest {}))
        .await?
        .into_inner();
    assert_eq!(stream.message().await?.unwrap().version, 0);
    for turn in 1..=3 {
        client.add(fresh(owner, add(tea(1)))).await?;
        let seen = stream.message().await?.unwrap();
        assert_eq!((seen.version, quantity(&seen)), (u64::from(turn), turn));
    }
    // A change that this process did not make.
    sqlx::raw_sql(
        "BEGIN; SELECT titan.guard(1000, 'cell-001', 10); UPDATE carts SET version = 9 WHERE owner_id = 1000; COMMIT;",
    )
    .execute(&cell.admin)
    .await?;
    let redis = Redis::new(&cell.config.redis)?;
    let _: () = redis
        .connection()
        .await?
        .del(owner_key(owner, "cart"))
        .await?;
    assert_eq!(stream.message().await?.unwrap().version, 9);
    cell.terminate();
    let end = tokio::time::timeout(Duration::from_secs(10), stream.message());
    assert!(
        end.await.expect("the stream outlives the drain")?.is_none(),
        "another cart"
    );
    cell.ended().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_answer_does_not_bring_an_old_cart_back() -> anyhow::Result<()> {
    let (_cell, mut client) = start().await?;
    let owner = key(MINE);
    let first = client
        .add(with_key(owner, "first", add(tea(1))))
        .await?
        .into_inner();
    client.add(fresh(owner, add(tea(1)))).await?;
    let replayed = client
        .add(with_key(owner, "first", add(tea(1))))
        .await?
        .into_inner();
    assert_eq!(replayed, first);
    assert_eq!(
        client
            .get(fresh(owner, GetRequest {}))
            .await?
            .into_inner()
            .version,
        2
    );
    Ok(())
}

/// Three masters of a Redis Cluster; they die with the test.
struct Cluster {
    nodes: Vec<Child>,
    ports: Vec<u16>,
    folder: PathBuf,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill();
            let _ = node.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Cluster {
    fn start() -> anyhow::Result<Self> {
        let folder =
            std::env::temp_dir().join(format!("titan-redis-cluster-{}", std::process::id()));
        let mut cluster = Cluster {
            nodes: Vec::new(),
            ports: Vec::new(),
            folder,
        };
        for _ in 0..3 {
            // The port of the cluster's bus is 10,000 higher.
            let port = loop {
                let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
                if port < 55_000 {
                    break port;
                }
            };
            let dir = cluster.folder.join(port.to_string());
            std::fs::create_dir_all(&dir)?;
            let node = Command::new("redis-server")
                .args([
                    "--port",
                    &port.to_string(),
                    "--bind",
                    "127.0.0.1",
                    "--save",
                    "",
                    "--cluster-enabled",
                    "yes",
                ])
                .args(["--requirepass", "secret", "--masterauth", "secret", "--dir"])
                .arg(&dir)
                .stdout(Stdio::null())
                .spawn()?;
            cluster.nodes.push(node);
            cluster.ports.push(port);
        }
        let addresses: Vec<String> = cluster
            .ports
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect();
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let made = Command::new("redis-cli")
                .args(["-a", "secret", "--no-auth-warning", "--cluster", "create"])
                .args(&addresses)
                .arg("--cluster-yes")
                .output()?;
            if made.status.success() {
                return Ok(cluster);
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "{}",
                String::from_utf8_lossy(&made.stdout)
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_cluster_will_do() -> anyhow::Result<()> {
    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        redis: RedisConfig,
    }
    let (mut cell, _) = start().await?;
    cell.terminate();
    cell.ended().await?;
    let cluster = tokio::task::spawn_blocking(Cluster::start).await??;
    let addresses: Vec<String> = cluster
        .ports
        .iter()
        .map(|port| format!("redis://127.0.0.1:{port}"))
        .collect();
    let arguments = [
        "test",
        "--redis-addrs",
        &addresses.join(","),
        "--redis-cluster",
        "true",
        "--redis-password",
        "secret",
    ];
    cell.config.redis = Arguments::try_parse_from(arguments)?.redis;
    cell.serve().await?;
    cell.wait_ready().await?;

    let mut client = Client::new(cell.channel().await?);
    let redis = Redis::new(&cell.config.redis)?;
    // A slow Redis is gone around, so on a slow machine it may take a few reads until a cart is in it.
    let deadline = Instant::now() + Duration::from_secs(30);
    for number in 0..20 {
        let owner = key(MINE + number);
        client.add(fresh(owner, add(tea(1)))).await?;
        loop {
            client.get(fresh(owner, GetRequest {})).await?;
            let cached: Result<Option<i64>, redis::RedisError> = async {
                let mut connection = redis.connection().await?;
                connection.hget(owner_key(owner, "cart"), "version").await
            }
            .await;
            if matches!(cached, Ok(Some(1))) {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "owner {number} is not in it: {cached:?}"
            );
        }
    }
    loop {
        let (_, metrics) = http::get(cell.addresses.admin, "/metrics").await?;
        if metrics.contains("titan_cart_cache_total{outcome=\"hit\",service=\"cart\"}") {
            break;
        }
        assert!(Instant::now() < deadline, "no cart is read from it");
        client.get(fresh(key(MINE), GetRequest {})).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cart_that_nobody_could_price_is_refused() -> anyhow::Result<()> {
    let (_cell, mut client) = start().await?;
    let owner = key(MINE);
    let priced = |sku: &str, quantity, minor_units| LineInput {
        sku: sku.to_owned(),
        unit_price: Some(Money {
            minor_units,
            currency: "SGD".to_owned(),
        }),
        ..tea(quantity)
    };
    // By one line, and by two.
    let too_much = [priced("gold", 2, i64::MAX), priced("gold", 1, i64::MAX)];
    for line in too_much {
        let status = client.add(fresh(owner, add(line))).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    }
    let half = cell_kit::Money::LARGEST / 2 + 1;
    client
        .add(fresh(owner, add(priced("gold", 1, half))))
        .await?;
    let another = fresh(owner, add(priced("silver", 1, half)));
    let status = client.add(another).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let twice = UpdateRequest {
        sku: "gold".to_owned(),
        quantity: 2,
        expected_version: None,
    };
    let status = client.update(fresh(owner, twice)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    // A login must not fail for a cart: what does not fit is left out.
    let merge = MergeGuestRequest {
        guest_cart_id: uuid::Uuid::now_v7().to_string(),
        lines: vec![priced("silver", 1, half), tea(1)],
    };
    let merged = client.merge_guest(fresh(owner, merge)).await?.into_inner();
    assert_eq!(merged.lines.len(), 2);
    let price = client.price(fresh(owner, PriceRequest {})).await?;
    assert_eq!(price.into_inner().subtotal.unwrap().minor_units, half + 333);
    Ok(())
}
