//! A leader of PostgreSQL that dies or hangs, under writes: nothing acknowledged is lost, nothing is done twice,
//! and writes come back with the leader.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test, and what it measures"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cell_conformance::{Cell, CellOptions, MINE, Way, fresh, http, key};
use titan_proto::user::v1::user_service_client::UserServiceClient;
use titan_proto::user::v1::{CreateProfileRequest, GetProfileRequest, UpdateProfileRequest};
use titan_social::user::SERVICE;

const WRITERS: u64 = 8;

async fn writes_come_back(way: Way, away: Duration) -> anyhow::Result<()> {
    let options = CellOptions {
        proxy: true,
        ..CellOptions::default()
    };
    let mut cell = Cell::start_with(&SERVICE, options).await?;
    cell.wait_ready().await?;
    // A request rides out what a busy machine adds, too.
    cell.restart_with(|config| config.postgres.request_budget_ms = 60_000)
        .await?;
    let client = UserServiceClient::new(cell.channel().await?);
    let (stop, acknowledged) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let (mut client, stop, acknowledged) = (client.clone(), stop.clone(), acknowledged.clone());
        writers.push(tokio::spawn(async move {
            let owner = key(MINE + writer);
            let profile = CreateProfileRequest {
                display_name: "Mei".to_owned(),
                ..Default::default()
            };
            client.create_profile(fresh(owner, profile)).await?;
            while !stop.load(Ordering::Relaxed) {
                let change = UpdateProfileRequest {
                    display_name: Some("Mei Lin".to_owned()),
                    ..Default::default()
                };
                // No retry here: a request rides out the failover.
                client.update_profile(fresh(owner, change)).await?;
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, tonic::Status>(())
        }));
    }
    let wait_for = async |more: u64| {
        let target = acknowledged.load(Ordering::Relaxed) + more;
        let deadline = Instant::now() + Duration::from_secs(30);
        while acknowledged.load(Ordering::Relaxed) < target {
            assert!(Instant::now() < deadline, "writes do not come back");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let proxy = cell.proxy.as_ref().unwrap();
    for _ in 0..2 {
        wait_for(50).await;
        proxy.set(way);
        tokio::time::sleep(away).await;
        assert_eq!(
            http::get(cell.addresses.admin, "/readyz").await?.0,
            200,
            "taken out of service"
        );
        proxy.set(Way::Open);
        let leader_back = Instant::now();
        wait_for(1).await;
        let took = leader_back.elapsed();
        println!("{way:?} for {away:?}: first write {took:?} after the leader came back");
        // In a debug build, on a busy machine, most of this is the arithmetic of SCRAM for eight connections.
        assert!(took < Duration::from_secs(20), "{way:?}: {took:?}");
    }
    wait_for(50).await;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await??;
    }
    let mut versions = 0;
    for writer in 0..WRITERS {
        let mut client = client.clone();
        let profile = client
            .get_profile(fresh(key(MINE + writer), GetProfileRequest {}))
            .await?
            .into_inner();
        versions += profile.version - 1;
    }
    assert_eq!(
        versions,
        acknowledged.load(Ordering::Relaxed),
        "lost or done twice"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies() -> anyhow::Result<()> {
    writes_come_back(Way::Closed, Duration::from_secs(2)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_hangs() -> anyhow::Result<()> {
    writes_come_back(Way::Silent, Duration::from_secs(4)).await
}
