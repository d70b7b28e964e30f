//! Databases, roles and schemas on a real PostgreSQL.

mod data_home;
mod foreign;
mod identity;
mod proof;
mod repair;
mod standby;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection as _};
use titan_operator::stores::postgres::{drop_database, ensure};
use titan_planner::cell::{ServerCredentials, ServiceSchema};
use titan_testbed::Postgres;

use crate::book::Book;

/// The superuser of the server that all these tests share; each has a database name of its own.
fn server() -> ServerCredentials {
    let database = titan_testbed::postgres().unwrap();
    credentials(
        &database.host,
        database.port,
        &database.user,
        &database.password,
    )
}

fn credentials(host: &str, port: u16, username: &str, password: &str) -> ServerCredentials {
    ServerCredentials {
        host: host.to_owned(),
        port,
        username: username.to_owned(),
        password: password.to_owned(),
        sslmode: String::new(),
        ca: String::new(),
    }
}

fn schemas(database: &str, services: &[&str]) -> Vec<ServiceSchema> {
    services
        .iter()
        .map(|service| {
            let schema = service.replace('-', "_");
            ServiceSchema {
                service: (*service).to_owned(),
                role: format!("{database}_{schema}"),
                schema,
            }
        })
        .collect()
}

fn passwords(services: &[&str]) -> BTreeMap<String, String> {
    services
        .iter()
        .map(|service| ((*service).to_owned(), format!("secret of {service}")))
        .collect()
}

const SERVICES: [&str; 3] = ["user", "order", "ab-testing"];

async fn connect(server: &ServerCredentials, database: &str) -> Result<PgConnection, sqlx::Error> {
    let options = PgConnectOptions::new_without_pgpass()
        .host(&server.host)
        .port(server.port)
        .username(&server.username)
        .password(&server.password)
        .database(database);
    PgConnection::connect_with(&options).await
}

async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), String> {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(connection)
        .await;
    done.map(|_| ()).map_err(|error| {
        error
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code)
            .unwrap_or_default()
            .into_owned()
    })
}

fn login(server: &ServerCredentials, database: &str, service: &str) -> ServerCredentials {
    let role = format!("{database}_{}", service.replace('-', "_"));
    credentials(
        &server.host,
        server.port,
        &role,
        &format!("secret of {service}"),
    )
}

#[tokio::test]
async fn each_service_gets_a_schema_that_only_it_can_use() {
    let (server, database) = (server(), "cell_alone");
    let book = Book::new();
    let report = ensure(
        &server,
        database,
        &schemas(database, &SERVICES),
        &passwords(&SERVICES),
        &book,
    )
    .await
    .unwrap();
    assert_eq!((report.schemas, report.writes), (3, book.len()));

    let mut order = connect(&login(&server, database, "order"), database)
        .await
        .unwrap();
    run(
        &mut order,
        "CREATE TABLE placed (owner_id bigint, id uuid, PRIMARY KEY (owner_id, id))",
    )
    .await
    .unwrap();
    run(&mut order, "SELECT FROM \"order\".placed")
        .await
        .unwrap();
    assert_eq!(
        run(&mut order, "CREATE TABLE \"user\".stolen ()").await,
        Err("42501".to_owned())
    );
    assert_eq!(
        run(&mut order, "CREATE TABLE public.litter ()").await,
        Err("42501".to_owned())
    );
    assert_eq!(
        run(&mut order, "CREATE SCHEMA more").await,
        Err("42501".to_owned())
    );
    assert_eq!(
        run(&mut order, "SELECT titan.activate(0, 9, 'mine', 1)").await,
        Err("42501".to_owned())
    );
    assert_eq!(
        run(&mut order, "CALL titan.fence(0, 9, 1, 150, 0)").await,
        Err("42501".to_owned())
    );
    assert_eq!(
        run(&mut order, "UPDATE titan.ranges SET epoch = 9").await,
        Err("42501".to_owned())
    );
    run(&mut order, "SELECT titan.protect('placed')")
        .await
        .unwrap();
    assert_eq!(
        run(
            &mut order,
            "INSERT INTO placed VALUES (7, gen_random_uuid())"
        )
        .await,
        Err("TC002".to_owned()),
        "the guard is in force"
    );
    assert_eq!(
        run(&mut order, "SELECT titan.guard(7, 'cell-alone', 1)").await,
        Err("TC001".to_owned())
    );

    let mut user = connect(&login(&server, database, "user"), database)
        .await
        .unwrap();
    assert_eq!(
        run(&mut user, "SELECT FROM \"order\".placed").await,
        Err("42501".to_owned())
    );

    let other = "cell_alone_too";
    ensure(
        &server,
        other,
        &schemas(other, &["order"]),
        &passwords(&["order"]),
        &Book::new(),
    )
    .await
    .unwrap();
    let foreign = connect(&login(&server, other, "order"), database).await;
    assert!(
        foreign.is_err_and(|error| error.to_string().contains("permission denied for database"))
    );
}

#[tokio::test]
async fn a_second_run_writes_nothing() {
    let (server, database) = (server(), "cell_idle");
    let (wanted, passwords) = (schemas(database, &SERVICES), passwords(&SERVICES));
    ensure(&server, database, &wanted, &passwords, &Book::new())
        .await
        .unwrap();
    let book = Book::new();
    let report = ensure(&server, database, &wanted, &passwords, &book)
        .await
        .unwrap();
    assert_eq!(book.writes(), Vec::<String>::new());
    assert_eq!(report.schemas, 3);
}

#[tokio::test]
async fn a_new_password_is_set_once_and_the_old_one_is_refused() {
    let (server, database) = (server(), "cell_rotate");
    let (wanted, mut passwords) = (schemas(database, &["order"]), passwords(&["order"]));
    ensure(&server, database, &wanted, &passwords, &Book::new())
        .await
        .unwrap();
    let old = login(&server, database, "order");
    connect(&old, database)
        .await
        .unwrap()
        .close()
        .await
        .unwrap();

    passwords.insert(
        "order".to_owned(),
        "another 'secret' \\ with quotes".to_owned(),
    );
    let book = Book::new();
    ensure(&server, database, &wanted, &passwords, &book)
        .await
        .unwrap();
    assert_eq!(
        book.writes(),
        ["postgres alter role and schema of order in cell_rotate"]
    );
    assert!(connect(&old, database).await.is_err());
    let new = ServerCredentials {
        password: passwords["order"].clone(),
        ..old
    };
    connect(&new, database)
        .await
        .unwrap()
        .close()
        .await
        .unwrap();

    let idle = Book::new();
    ensure(&server, database, &wanted, &passwords, &idle)
        .await
        .unwrap();
    assert_eq!(idle.len(), 0);
}

#[tokio::test]
async fn a_service_that_is_gone_is_shut_out_and_its_data_stays() {
    let (server, database) = (server(), "cell_retire");
    let (all, fewer) = (
        schemas(database, &["order", "user"]),
        schemas(database, &["user"]),
    );
    let passwords = passwords(&["order", "user"]);
    ensure(&server, database, &all, &passwords, &Book::new())
        .await
        .unwrap();
    let mut order = connect(&login(&server, database, "order"), database)
        .await
        .unwrap();
    run(&mut order, "CREATE TABLE kept AS SELECT 42 AS answer")
        .await
        .unwrap();
    let mut admin = connect(&server, database).await.unwrap();
    run(&mut admin, "CREATE ROLE cell_retire_reports LOGIN")
        .await
        .unwrap();

    let book = Book::new();
    let report = ensure(&server, database, &fewer, &passwords, &book)
        .await
        .unwrap();
    assert_eq!(
        report.retired,
        ["cell_retire_order"],
        "and not the role that somebody made for reports"
    );
    assert_eq!(book.writes(), ["postgres retire role cell_retire_order"]);
    assert!(
        run(&mut order, "SELECT 1").await.is_err(),
        "its session has ended"
    );
    assert!(
        connect(&login(&server, database, "order"), database)
            .await
            .is_err()
    );
    run(&mut admin, "SELECT FROM \"order\".kept").await.unwrap();
    let idle = Book::new();
    ensure(&server, database, &fewer, &passwords, &idle)
        .await
        .unwrap();
    assert_eq!(idle.len(), 0);

    ensure(&server, database, &all, &passwords, &Book::new())
        .await
        .unwrap();
    let mut order = connect(&login(&server, database, "order"), database)
        .await
        .unwrap();
    run(&mut order, "SELECT FROM kept").await.unwrap();
    run(&mut admin, "DROP ROLE cell_retire_reports")
        .await
        .unwrap();
}

#[tokio::test]
async fn cells_on_one_server_leave_each_other_alone() {
    let server = server();
    let passwords = passwords(&["order", "x-order", "user"]);
    ensure(
        &server,
        "cell_1",
        &schemas("cell_1", &["user"]),
        &passwords,
        &Book::new(),
    )
    .await
    .unwrap();
    ensure(
        &server,
        "cell_1_x",
        &schemas("cell_1_x", &["order"]),
        &passwords,
        &Book::new(),
    )
    .await
    .unwrap();

    // Role cell_1_x_order starts like a role of cell_1, and is none.
    let book = Book::new();
    let report = ensure(
        &server,
        "cell_1",
        &schemas("cell_1", &["user"]),
        &passwords,
        &book,
    )
    .await
    .unwrap();
    assert_eq!((report.retired, book.len()), (Vec::new(), 0));

    // Service x-order of cell_1 would have the same role: it is refused, not shared.
    let clash = ensure(
        &server,
        "cell_1",
        &schemas("cell_1", &["x-order"]),
        &passwords,
        &Book::new(),
    )
    .await;
    let error = clash.unwrap_err();
    assert_eq!(error.category(), "invalid");
    assert!(
        error
            .to_string()
            .contains("role cell_1_x_order on this PostgreSQL belongs to database cell_1_x"),
        "{error}"
    );

    drop_database(&server, "cell_1", &Book::new())
        .await
        .unwrap();
    connect(&login(&server, "cell_1_x", "order"), "cell_1_x")
        .await
        .unwrap();
}

#[tokio::test]
async fn an_administrator_of_a_managed_server_is_enough() {
    let root = server();
    let mut connection = connect(&root, "postgres").await.unwrap();
    run(
        &mut connection,
        "CREATE ROLE managed_admin LOGIN CREATEDB CREATEROLE PASSWORD 'managed'",
    )
    .await
    .unwrap();
    let admin = credentials(&root.host, root.port, "managed_admin", "managed");
    let database = "cell_managed";
    let (wanted, mut passwords) = (schemas(database, &SERVICES), passwords(&SERVICES));

    let book = Book::new();
    ensure(&admin, database, &wanted, &passwords, &book)
        .await
        .unwrap();
    assert_eq!(book.len(), 7);
    let idle = Book::new();
    ensure(&admin, database, &wanted, &passwords, &idle)
        .await
        .unwrap();
    assert_eq!(idle.writes(), Vec::<String>::new());

    passwords.insert("order".to_owned(), "next".to_owned());
    ensure(&admin, database, &wanted, &passwords, &Book::new())
        .await
        .unwrap();
    let order = credentials(&root.host, root.port, "cell_managed_order", "next");
    let session = connect(&order, database).await.unwrap();
    ensure(&admin, database, &wanted[..1], &passwords, &Book::new())
        .await
        .unwrap();
    assert!(connect(&order, database).await.is_err());
    drop(session);

    assert_eq!(
        drop_database(&admin, database, &Book::new()).await.unwrap(),
        4
    );
    run(&mut connection, "DROP ROLE managed_admin")
        .await
        .unwrap();
}

#[tokio::test]
async fn a_dropped_database_takes_its_roles_and_sessions_with_it() {
    let (server, database) = (server(), "cell_dropped");
    let (wanted, passwords) = (schemas(database, &SERVICES), passwords(&SERVICES));
    for crash in 1..=4 {
        ensure(&server, database, &wanted, &passwords, &Book::new())
            .await
            .unwrap();
        let mut busy = connect(&login(&server, database, "order"), database)
            .await
            .unwrap();
        run(&mut busy, "BEGIN; CREATE TABLE half_done ()")
            .await
            .unwrap();

        let crashed = Book::crashing_after(crash);
        assert!(drop_database(&server, database, &crashed).await.is_err());
        let rest = Book::new();
        drop_database(&server, database, &rest).await.unwrap();
        assert_eq!(crashed.len() + rest.len(), 4, "a database and three roles");
        assert_eq!(
            drop_database(&server, database, &Book::new())
                .await
                .unwrap(),
            0
        );
        assert!(connect(&server, database).await.is_err());
    }
}

#[tokio::test]
async fn trouble_is_told_apart_and_quickly() {
    let services = ["order"];
    let own = Postgres::start().unwrap();
    let maintenance = own.maintenance();
    let server = credentials(
        &maintenance.host,
        maintenance.port,
        &maintenance.user,
        &maintenance.password,
    );
    let attempt = async |server: &ServerCredentials| {
        let started = Instant::now();
        let wanted = schemas("cell_trouble", &services);
        let error = ensure(
            server,
            "cell_trouble",
            &wanted,
            &passwords(&services),
            &Book::new(),
        )
        .await
        .unwrap_err();
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "{error} took {:?}",
            started.elapsed()
        );
        (error.category(), error.to_string())
    };

    let wrong = ServerCredentials {
        password: "wrong".to_owned(),
        ..server.clone()
    };
    let (category, message) = attempt(&wrong).await;
    assert_eq!(category, "auth", "{message}");
    assert!(
        message.contains("Check user and password in the Secret"),
        "{message}"
    );

    let nobody = ServerCredentials {
        port: titan_testbed::process::free_port().unwrap(),
        ..server.clone()
    };
    assert_eq!(attempt(&nobody).await.0, "unreachable");
    let nowhere = ServerCredentials {
        host: "postgres.cell-001.invalid".to_owned(),
        ..server.clone()
    };
    assert_eq!(attempt(&nowhere).await.0, "unreachable");
    let typo = ServerCredentials {
        sslmode: "requird".to_owned(),
        ..server.clone()
    };
    assert_eq!(attempt(&typo).await.0, "invalid");
    let plain = ServerCredentials {
        sslmode: "require".to_owned(),
        ..server
    };
    assert_eq!(
        attempt(&plain).await.0,
        "unreachable",
        "this server has no TLS"
    );
}

#[tokio::test]
async fn a_server_with_tls_is_known_by_its_authority() {
    let own = Postgres::start_with_tls().unwrap();
    let database = own.maintenance();
    let right = ServerCredentials {
        sslmode: "verify-full".to_owned(),
        ca: own.ca().unwrap().to_owned(),
        ..credentials(
            "localhost",
            database.port,
            &database.user,
            &database.password,
        )
    };
    let ask = async |server: &ServerCredentials| {
        ensure(server, "cell_tls", &[], &BTreeMap::new(), &Book::new()).await
    };
    ask(&right).await.unwrap();
    let required = ServerCredentials {
        sslmode: "require".to_owned(),
        ca: String::new(),
        ..right.clone()
    };
    ask(&required).await.unwrap();
    let untrusted = ServerCredentials {
        ca: String::new(),
        ..right.clone()
    };
    let misnamed = ServerCredentials {
        host: "127.0.0.1".to_owned(),
        ..right.clone()
    };
    for wrong in [untrusted, misnamed] {
        let refused = ask(&wrong).await.unwrap_err();
        assert!(refused.to_string().contains("ca.crt"), "{refused}");
    }
    let plain = ServerCredentials {
        sslmode: "disable".to_owned(),
        ..right
    };
    let refused = ask(&plain).await.unwrap_err();
    assert_eq!(refused.category(), "auth", "{refused}");
}
