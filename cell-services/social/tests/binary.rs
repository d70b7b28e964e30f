//! The user binary as the operator runs it: settings by environment, the routing table from a registry, migrations
//! as a Job, SIGTERM at the end, traces to a collector.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use cell_conformance::{Cell, CellOptions, MINE, fresh, http, key};
use titan_proto::user::v1::CreateProfileRequest;
use titan_proto::user::v1::user_service_client::UserServiceClient;
use titan_routing::server::RegistryService;
use titan_social::user::SERVICE;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Channel;

/// A database as the operator prepares it; the server in this process is stopped.
async fn prepared() -> anyhow::Result<Cell> {
    let options = CellOptions {
        migrate: false,
        ..CellOptions::default()
    };
    let mut cell = Cell::start_with(&SERVICE, options).await?;
    cell.terminate();
    cell.ended().await?;
    Ok(cell)
}

fn binary(cell: &Cell, state_dir: &std::path::Path, registry: &str) -> Command {
    let postgres = &cell.config.postgres;
    let mut command = Command::new(env!("CARGO_BIN_EXE_user"));
    command
        .env_clear()
        .envs([
            ("TITAN_FLEET", "test"),
            ("TITAN_CELL", &cell.config.cell),
            ("TITAN_DATA_HOME", &cell.config.cell),
            ("TITAN_REGION", "test"),
            ("TITAN_SERVICE", "user"),
            ("TITAN_RELEASE", "1"),
            ("TITAN_REGISTRY", registry),
            ("TITAN_ROUTER", "http://127.0.0.1:9"),
            ("PGHOST", &postgres.host),
            ("PGDATABASE", &postgres.database),
            ("PGUSER", &postgres.user),
            ("PGPASSWORD", "secret"),
            ("TITAN_DB_SCHEMA", "user"),
            ("PGSSLMODE", "disable"),
            ("TITAN_REDIS_ADDRS", ""),
            ("TITAN_REDIS_CLUSTER", "false"),
            ("TITAN_KAFKA_BOOTSTRAP", ""),
            ("TITAN_LOG", "json"),
            ("TITAN_DRAIN_DELAY_MS", "200"),
        ])
        .env("PGPORT", postgres.port.to_string())
        .env("TITAN_STATE_DIR", state_dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

fn free_port() -> anyhow::Result<u16> {
    Ok(titan_testbed::process::free_port()?)
}

async fn terminate(child: Child) -> anyhow::Result<std::process::Output> {
    let pid = child.id().context("it ended by itself")?;
    Command::new("kill").arg(pid.to_string()).status().await?;
    Ok(tokio::time::timeout(Duration::from_secs(20), child.wait_with_output()).await??)
}

async fn wait_ready(port: u16) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let answer = http::get(([127, 0, 0, 1], port).into(), "/readyz").await;
        if answer.as_ref().is_ok_and(|(status, _)| *status == 200) {
            return Ok(());
        }
        anyhow::ensure!(tokio::time::Instant::now() < deadline, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_runs_from_its_environment_alone() -> anyhow::Result<()> {
    let cell = prepared().await?;
    let state = tempfile::tempdir()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let registry = format!("http://{}", listener.local_addr()?);
    let service = RegistryService::for_fleet("test", cell.tables());
    let serving = tokio::spawn(
        titan_routing::server::builder()
            .add_service(service.into_server())
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let collector = TcpListener::bind("127.0.0.1:0").await?;
    let collector_address = format!("http://{}", collector.local_addr()?);

    let migrated = binary(&cell, state.path(), &registry)
        .arg("migrate")
        .output()
        .await?;
    assert!(migrated.status.success(), "{migrated:?}");

    let (grpc, admin) = (free_port()?, free_port()?);
    let serve = |trace: bool| {
        let mut command = binary(&cell, state.path(), &registry);
        command
            .env("TITAN_GRPC_PORT", grpc.to_string())
            .env("TITAN_METRICS_PORT", admin.to_string());
        if trace {
            command
                .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector_address)
                .env("OTEL_BSP_SCHEDULE_DELAY", "100");
        }
        command.spawn()
    };
    let child = serve(true)?;
    wait_ready(admin).await?;
    let address = Channel::from_shared(format!("http://127.0.0.1:{grpc}"))?;
    let mut client = UserServiceClient::new(address.connect().await?);
    let profile = CreateProfileRequest {
        display_name: "Mei".to_owned(),
        ..Default::default()
    };
    client
        .create_profile(fresh(key(MINE), profile.clone()))
        .await?;

    // The collector is spoken to, in HTTP/2.
    let (mut stream, _) =
        tokio::time::timeout(Duration::from_secs(20), collector.accept()).await??;
    let mut preface = [0; 3];
    stream.read_exact(&mut preface).await?;
    assert_eq!(&preface, b"PRI");
    drop(stream);

    let output = terminate(child).await?;
    assert!(output.status.success(), "{output:?}");
    let logs = String::from_utf8(output.stdout)?;
    for line in logs.lines() {
        serde_json::from_str::<serde_json::Value>(line)
            .with_context(|| format!("no JSON: {line}"))?;
    }
    assert!(
        logs.contains("\"ready\"") && logs.contains("\"drained\""),
        "{logs}"
    );
    assert!(!logs.contains("secret"), "a password was logged");

    // Without the registry it starts by the table on disk.
    serving.abort();
    let child = serve(false)?;
    wait_ready(admin).await?;
    let mut client = UserServiceClient::new(address.connect().await?);
    client.create_profile(fresh(key(MINE + 1), profile)).await?;
    assert!(terminate(child).await?.status.success());

    // And without either it is alive, not ready, and says why.
    std::fs::remove_dir_all(state.path())?;
    let child = serve(false)?;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let answer = http::get(([127, 0, 0, 1], admin).into(), "/readyz").await;
        if let Ok((status, body)) = &answer {
            assert_eq!(*status, 503);
            if !body.contains("database") {
                assert!(body.contains("no routing table"), "{body}");
                break;
            }
        }
        anyhow::ensure!(tokio::time::Instant::now() < deadline, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(terminate(child).await?.status.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_setting_is_named() -> anyhow::Result<()> {
    for (arguments, missing) in [(&["serve"][..], "PGHOST"), (&["migrate"][..], "PGHOST")] {
        let output = Command::new(env!("CARGO_BIN_EXE_user"))
            .env_clear()
            .args(arguments)
            .output()
            .await?;
        assert!(!output.status.success());
        let error = String::from_utf8(output.stderr)?;
        assert!(
            error.contains(missing) && error.contains("export"),
            "{error}"
        );
    }
    let output = Command::new(env!("CARGO_BIN_EXE_user"))
        .env_clear()
        .arg("describe")
        .output()
        .await?;
    let described: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(described["name"], "user");
    assert_eq!(described["tables"][0]["class"], "owned");
    Ok(())
}
