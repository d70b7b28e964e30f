//! A Redis cluster of six real servers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use redis::{ConnectionAddr, IntoConnectionInfo as _, RedisConnectionInfo};
use titan_operator::ledger::{GatedLedger, Ledger};
use titan_operator::run::leadership::WriteGate;
use titan_operator::stores::StoreError;
use titan_operator::stores::redis::{RedisReport, ensure_cluster, ensure_single};
use titan_planner::cell::ServerCredentials;
use titan_testbed::Redis;
use titan_testbed::process::{self, Server, Spec};

use crate::book::Book;

const PASSWORD: &str = "cluster secret";

struct Node {
    server: Server,
    dir: PathBuf,
    port: u16,
}

impl Node {
    /// A node with an empty disk.
    fn fresh() -> Self {
        Self::on(&process::data_dir("redis-node", None).unwrap())
    }

    /// A node with this disk, on a port of its own.
    fn on(dir: &Path) -> Self {
        process::retrying(|| Self::start(dir)).unwrap()
    }

    fn start(dir: &Path) -> titan_testbed::Result<Self> {
        let (port, bus) = (process::free_port()?, process::free_port()?);
        let arguments = format!(
            "--bind 127.0.0.1 --port {port} --cluster-port {bus} --cluster-enabled yes \
             --cluster-announce-ip 127.0.0.1 --cluster-node-timeout 2000 --cluster-require-full-coverage no \
             --cluster-allow-replica-migration no --repl-diskless-sync-delay 0 --appendonly yes --dir {}",
            dir.display()
        );
        let arguments = arguments.split_ascii_whitespace().map(str::to_owned);
        let secret = [
            "--save",
            "",
            "--requirepass",
            PASSWORD,
            "--masterauth",
            PASSWORD,
        ];
        let mut server = Server::start(Spec {
            name: "Redis",
            program: Path::new("/usr/bin/redis-server"),
            args: arguments.chain(secret.map(str::to_owned)).collect(),
            env: Vec::new(),
            log: dir.join("log"),
            stop: Signal::SIGKILL,
            user: None,
        })?;
        let listening = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        server.wait_ready(Duration::from_secs(10), listening)?;
        let dir = dir.to_owned();
        Ok(Self { server, dir, port })
    }

    async fn connection(&self) -> redis::aio::MultiplexedConnection {
        let login = RedisConnectionInfo::default().set_password(PASSWORD);
        let address = ConnectionAddr::Tcp("127.0.0.1".to_owned(), self.port);
        let info = address
            .into_connection_info()
            .unwrap()
            .set_redis_settings(login);
        let client = redis::Client::open(info).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    async fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let mut request = redis::cmd(command[0]);
        for word in &command[1..] {
            request.arg(*word);
        }
        request
            .query_async(&mut self.connection().await)
            .await
            .unwrap()
    }
}

fn is_whole(text: &str) -> bool {
    let lines: Vec<&str> = text.lines().collect();
    let masters = lines.iter().filter(|line| line.contains("master"));
    let ids: Vec<&str> = masters.filter_map(|line| line.split(' ').next()).collect();
    let replicas = |id: &&str| {
        let wanted = format!("slave {id}");
        lines.iter().filter(|line| line.contains(&wanted)).count()
    };
    let healthy = !text.contains("fail") && !text.contains("handshake");
    healthy && (lines.len(), ids.len()) == (6, 3) && ids.iter().all(|id| replicas(id) == 1)
}

struct Cluster {
    nodes: Vec<Node>,
}

impl Cluster {
    fn start() -> Self {
        let nodes = (0..6).map(|_| Node::fresh()).collect();
        Self { nodes }
    }

    fn addresses(&self) -> Vec<(String, String)> {
        let numbered = self.nodes.iter().enumerate();
        numbered
            .map(|(number, node)| {
                (
                    format!("redis-{number}"),
                    format!("127.0.0.1:{}", node.port),
                )
            })
            .collect()
    }

    async fn ensure(&self, ledger: &dyn Ledger) -> Result<RedisReport, StoreError> {
        ensure_cluster(&self.addresses(), PASSWORD, ledger).await
    }

    /// Reconciles as the operator does, until nothing is waited for; returns how long that took.
    async fn heal(&self, book: &Book) -> Duration {
        let started = Instant::now();
        loop {
            let outcome = self.ensure(book).await;
            if outcome
                .as_ref()
                .is_ok_and(|report| report.waiting.is_empty())
            {
                return started.elapsed();
            }
            assert!(
                started.elapsed() < Duration::from_secs(40),
                "still {outcome:?}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until there are three masters with one replica each, in the eyes of every node, and nobody else.
    async fn assert_whole(&self) {
        let started = Instant::now();
        for node in &self.nodes {
            loop {
                let text: String = node.ask(&["CLUSTER", "NODES"]).await;
                if is_whole(&text) {
                    break;
                }
                assert!(started.elapsed() < Duration::from_secs(20), "{text}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        let idle = Book::new();
        let report = self.ensure(&idle).await.unwrap();
        assert_eq!(
            (idle.writes(), report),
            (Vec::new(), RedisReport::default())
        );
    }

    async fn client(&self) -> redis::cluster_async::ClusterConnection {
        let seeds = self.nodes.iter().map(|node| {
            let login = RedisConnectionInfo::default().set_password(PASSWORD);
            let address = ConnectionAddr::Tcp("127.0.0.1".to_owned(), node.port);
            address
                .into_connection_info()
                .unwrap()
                .set_redis_settings(login)
        });
        let client = redis::cluster::ClusterClient::new(seeds.collect::<Vec<_>>()).unwrap();
        client.get_async_connection().await.unwrap()
    }

    /// Writes a thousand keys, and waits until the replicas have them.
    async fn fill(&self) {
        let mut client = self.client().await;
        for key in 0..1000 {
            let name = format!("{{u:{key}}}:cart");
            redis::cmd("SET")
                .arg(name)
                .arg(key)
                .exec_async(&mut client)
                .await
                .unwrap();
        }
        let started = Instant::now();
        for node in &self.nodes {
            loop {
                let text: String = node.ask(&["INFO", "replication"]).await;
                let seen = text
                    .lines()
                    .find_map(|line| line.strip_prefix("master_repl_offset:"));
                let copied = format!("state=online,offset={},", seen.unwrap());
                if text.contains("role:slave") || text.contains(&copied) {
                    break;
                }
                assert!(started.elapsed() < Duration::from_secs(20), "{text}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    async fn assert_full(&self) {
        let mut client = self.client().await;
        for key in 0..1000 {
            let name = format!("{{u:{key}}}:cart");
            let value: Option<u64> = redis::cmd("GET")
                .arg(&name)
                .query_async(&mut client)
                .await
                .unwrap();
            assert_eq!(value, Some(key), "{name}");
        }
    }

    async fn master(&self) -> usize {
        for (number, node) in self.nodes.iter().enumerate() {
            let text: String = node.ask(&["INFO", "replication"]).await;
            if text.contains("role:master") {
                return number;
            }
        }
        panic!("no master");
    }
}

fn server(host: &str, port: u16, password: &str) -> ServerCredentials {
    ServerCredentials {
        host: host.to_owned(),
        port,
        username: String::new(),
        password: password.to_owned(),
        sslmode: "disable".to_owned(),
        ca: String::new(),
    }
}

#[tokio::test]
async fn a_single_server_is_pinged() {
    let mut redis = Redis::start().unwrap();
    let local = |password| server("127.0.0.1", redis.port(), password);
    let right = local(Redis::PASSWORD);
    ensure_single(&right).await.unwrap();
    let wrong = ensure_single(&local("wrong")).await.unwrap_err();
    assert_eq!(wrong.category(), "auth", "{wrong}");
    let none = ensure_single(&local("")).await.unwrap_err();
    assert_eq!(none.category(), "auth", "{none}");
    let nobody = server("127.0.0.1", process::free_port().unwrap(), "");
    let started = Instant::now();
    let away = ensure_single(&nobody).await.unwrap_err();
    assert_eq!(away.category(), "unreachable", "{away}");
    let nowhere = server("redis.cell-001.invalid", 6379, "");
    let nowhere = ensure_single(&nowhere).await.unwrap_err();
    assert_eq!(nowhere.category(), "unreachable", "{nowhere}");
    redis.server().signal(Signal::SIGSTOP).unwrap();
    let frozen = ensure_single(&right).await.unwrap_err();
    assert_eq!(frozen.category(), "unreachable", "{frozen}");
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn a_server_with_tls_and_users_gets_both() {
    let redis = Redis::start_with_tls().unwrap();
    let right = ServerCredentials {
        username: Redis::USER.to_owned(),
        sslmode: "verify-full".to_owned(),
        ca: redis.ca().unwrap().to_owned(),
        ..server("localhost", redis.port(), Redis::USER_PASSWORD)
    };
    ensure_single(&right).await.unwrap();

    let nobody = ServerCredentials {
        username: "nobody".to_owned(),
        ..right.clone()
    };
    let default = ServerCredentials {
        username: String::new(),
        ..right.clone()
    };
    for stranger in [nobody, default] {
        let refused = ensure_single(&stranger).await.unwrap_err();
        assert_eq!(refused.category(), "auth", "{refused}");
    }
    let untrusted = ServerCredentials {
        ca: String::new(),
        ..right.clone()
    };
    let misnamed = ServerCredentials {
        host: "127.0.0.1".to_owned(),
        ..right.clone()
    };
    for wrong in [untrusted, misnamed] {
        let refused = ensure_single(&wrong).await.unwrap_err();
        assert!(
            refused.to_string().contains("ca.crt in the Secret"),
            "{refused}"
        );
    }
    let plain = ServerCredentials {
        sslmode: "disable".to_owned(),
        ..right
    };
    ensure_single(&plain).await.unwrap_err();
}

#[tokio::test]
async fn a_crash_after_any_write_does_not_spoil_the_forming() {
    let cluster = Cluster::start();
    let clean = Book::new();
    let started = Instant::now();
    cluster.ensure(&clean).await.unwrap();
    println!("a 3x2 cluster formed in {:?}", started.elapsed());
    cluster.assert_whole().await;
    assert_eq!(clean.len(), 5 + 3 + 3, "{:?}", clean.writes());
    let mut expected = clean.writes();
    expected.sort();

    for crash in 1..=clean.len() {
        for node in &cluster.nodes {
            node.ask::<()>(&["CLUSTER", "RESET", "HARD"]).await;
        }
        let crashed = Book::crashing_after(crash);
        let interrupted = cluster.ensure(&crashed).await;
        assert!(
            matches!(interrupted, Err(StoreError::Interrupted(_))),
            "{interrupted:?}"
        );
        let rest = Book::new();
        cluster.heal(&rest).await;
        let mut all = [crashed.writes(), rest.writes()].concat();
        all.sort();
        assert_eq!(all, expected, "crash after write {crash}");
        cluster.assert_whole().await;
    }
}

#[tokio::test]
async fn a_cluster_is_not_formed_of_fewer_nodes() {
    let mut cluster = Cluster::start();
    cluster.nodes[5].server.crash().unwrap();
    let book = Book::new();
    let error = cluster.ensure(&book).await.unwrap_err();
    assert_eq!((error.category(), book.len()), ("unreachable", 0));
    assert!(
        error.to_string().contains("redis-5 does not answer"),
        "{error}"
    );
}

#[tokio::test]
async fn a_master_that_lost_its_disk_is_replaced() {
    let mut cluster = Cluster::start();
    cluster.heal(&Book::new()).await;
    cluster.fill().await;
    let number = cluster.master().await;
    cluster.nodes[number].server.crash().unwrap();
    cluster.nodes[number] = Node::fresh();
    let book = Book::new();
    let took = cluster.heal(&book).await;
    println!(
        "a master that lost its disk was replaced in {took:?}: {:?}",
        book.writes()
    );
    cluster.assert_whole().await;
    cluster.assert_full().await;
}

#[tokio::test]
async fn two_masters_that_lost_their_disks_are_replaced_without_a_vote() {
    let mut cluster = Cluster::start();
    cluster.heal(&Book::new()).await;
    cluster.fill().await;
    // One of three masters is no majority: Redis alone would wait for ever.
    let first = cluster.master().await;
    cluster.nodes[first].server.crash().unwrap();
    let second = (first + 1) % 3;
    cluster.nodes[second].server.crash().unwrap();
    let error = cluster.ensure(&Book::new()).await.unwrap_err();
    assert_eq!(
        error.category(),
        "unreachable",
        "while they may come back, nothing is taken over"
    );
    cluster.nodes[first] = Node::fresh();
    cluster.nodes[second] = Node::fresh();
    let book = Book::new();
    let took = cluster.heal(&book).await;
    println!(
        "two masters that lost their disks were replaced in {took:?}: {:?}",
        book.writes()
    );
    assert!(
        book.writes()
            .iter()
            .any(|write| write.contains("take over"))
    );
    cluster.assert_whole().await;
    cluster.assert_full().await;
}

#[tokio::test]
async fn nodes_that_come_back_elsewhere_are_found_again() {
    let mut cluster = Cluster::start();
    cluster.heal(&Book::new()).await;
    cluster.fill().await;
    let move_node = |cluster: &mut Cluster, number: usize| {
        cluster.nodes[number].server.crash().unwrap();
        cluster.nodes[number] = Node::on(&cluster.nodes[number].dir);
    };
    move_node(&mut cluster, 4);
    let took = cluster.heal(&Book::new()).await;
    println!("a replica that moved was back in {took:?}");
    cluster.assert_whole().await;

    // All at once: nobody knows where anybody is.
    for node in &mut cluster.nodes {
        node.server.crash().unwrap();
    }
    for number in 0..6 {
        move_node(&mut cluster, number);
    }
    let book = Book::new();
    let took = cluster.heal(&book).await;
    println!(
        "a cluster that moved as a whole was back in {took:?}: {:?}",
        book.writes()
    );
    cluster.assert_whole().await;
    cluster.assert_full().await;
}

#[tokio::test]
async fn who_does_not_lead_forms_no_cluster() {
    let cluster = Cluster::start();
    let book = Arc::new(Book::new());
    let gated = |gate| GatedLedger::new(book.clone(), gate);
    let refused = cluster.ensure(&gated(WriteGate::closed())).await;
    assert_eq!(refused.unwrap_err().category(), "interrupted");
    assert_eq!(book.writes(), Vec::<String>::new());
    for node in &cluster.nodes {
        let known: String = node.ask(&["CLUSTER", "NODES"]).await;
        assert_eq!(known.lines().count(), 1, "it has met nobody: {known}");
        let slots: String = node.ask(&["CLUSTER", "INFO"]).await;
        assert!(slots.contains("cluster_slots_assigned:0"), "{slots}");
    }

    // The same nodes, and who leads.
    let leader = gated(WriteGate::open());
    let formed = cluster.ensure(&leader).await.unwrap();
    assert!(formed.writes > 0 && book.len() == formed.writes);
}
