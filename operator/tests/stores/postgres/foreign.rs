//! What others have on the server is left alone, whatever it is called.

use titan_operator::stores::postgres::{Claim, Database, drop_database, ensure};
use titan_planner::cell::ServerCredentials;

use super::{connect, credentials, login, passwords, run, schemas, server};
use crate::book::Book;

/// Runs statements in a database, as its administrator.
async fn admin(server: &ServerCredentials, database: &str, sql: &[&str]) {
    let mut connection = connect(server, database).await.unwrap();
    for statement in sql {
        run(&mut connection, statement)
            .await
            .unwrap_or_else(|code| panic!("{statement}: {code}"));
    }
}

fn of_cluster(name: &str) -> Database<'_> {
    Database {
        claim: Some(Claim::of("here")),
        ..Database::from(name)
    }
}

#[tokio::test]
async fn a_database_of_somebody_else_is_neither_used_nor_dropped() {
    let (server, name) = (server(), "foreign_orders");
    let (wanted, passwords) = (schemas(name, &["user"]), passwords(&["user"]));
    admin(&server, "postgres", &["CREATE DATABASE foreign_orders"]).await;
    let theirs = [
        "CREATE TABLE orders AS SELECT generate_series(1, 1000) AS id",
        "GRANT SELECT ON orders TO PUBLIC",
        "CREATE ROLE foreign_orders_reports LOGIN PASSWORD 'reports'",
    ];
    admin(&server, name, &theirs).await;

    let book = Book::new();
    for database in [Database::from(name), of_cluster(name)] {
        let refused = ensure(&server, database, &wanted, &passwords, &book).await;
        let error = refused.unwrap_err();
        assert_eq!(error.category(), "not-ours", "{error}");
        for said in [
            "database foreign_orders",
            &server.host,
            "COMMENT ON DATABASE",
        ] {
            assert!(error.to_string().contains(said), "{said}? {error}");
        }
        let dropped = drop_database(&server, database, &book).await;
        assert_eq!(dropped.unwrap(), 0, "the cell never had it");
    }
    assert_eq!(book.writes(), Vec::<String>::new());
    let reports = credentials(
        &server.host,
        server.port,
        "foreign_orders_reports",
        "reports",
    );
    let mut reports = connect(&reports, name).await.unwrap();
    run(
        &mut reports,
        "SELECT 1 / (count(*) / 1000) FROM public.orders",
    )
    .await
    .unwrap();

    // Not even where the cell's own database was lost, and that was said to be all right.
    let known = Database {
        id: Some("0190b3a2-0000-7000-8000-000000000000"),
        ..of_cluster(name)
    };
    let other = ensure(&server, known, &wanted, &passwords, &book).await;
    assert_eq!(other.unwrap_err().category(), "other-database");
    let other = drop_database(&server, known, &book).await;
    assert_eq!(other.unwrap_err().category(), "other-database");
    assert_eq!(book.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn the_servers_own_databases_are_not_used() {
    let server = server();
    for name in ["postgres", "template1"] {
        let book = Book::new();
        let refused = ensure(&server, name, &[], &passwords(&[]), &book).await;
        assert_eq!(refused.unwrap_err().category(), "not-ours");
        assert_eq!(drop_database(&server, name, &book).await.unwrap(), 0);
        assert_eq!(book.writes(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_role_of_somebody_else_keeps_its_password() {
    let (server, name) = (server(), "foreign_roles");
    let (wanted, passwords) = (schemas(name, &["user"]), passwords(&["user"]));
    let role = "CREATE ROLE foreign_roles_user LOGIN PASSWORD 'theirs'";
    // A schema of the service's name that the role has in another database proves nothing.
    let elsewhere = "CREATE SCHEMA \"user\" AUTHORIZATION foreign_roles_user";
    admin(&server, "postgres", &[role, elsewhere]).await;

    let book = Book::new();
    let refused = ensure(&server, name, &wanted, &passwords, &book).await;
    let error = refused.unwrap_err();
    assert_eq!(error.category(), "not-ours", "{error}");
    for said in ["role foreign_roles_user", "DROP ROLE"] {
        assert!(error.to_string().contains(said), "{said}? {error}");
    }
    assert_eq!(book.writes(), Vec::<String>::new(), "no database either");

    // In a database of the cell, which another service's role is added to.
    ensure(&server, name, &[], &passwords, &Book::new())
        .await
        .unwrap();
    let refused = ensure(&server, name, &wanted, &passwords, &book).await;
    assert_eq!(refused.unwrap_err().category(), "not-ours");
    assert_eq!(book.writes(), Vec::<String>::new());
    drop_database(&server, name, &Book::new()).await.unwrap();
    let theirs = credentials(&server.host, server.port, "foreign_roles_user", "theirs");
    connect(&theirs, "postgres").await.unwrap();
    let clean = ["DROP SCHEMA \"user\"", "DROP ROLE foreign_roles_user"];
    admin(&server, "postgres", &clean).await;
}

#[tokio::test]
async fn a_database_that_was_prepared_is_used_once_it_is_marked() {
    let (server, name) = (server(), "foreign_prepared");
    let (wanted, passwords) = (schemas(name, &["user"]), passwords(&["user"]));
    let database = of_cluster(name);
    admin(&server, "postgres", &["CREATE DATABASE foreign_prepared"]).await;
    let book = Book::new();
    let refused = ensure(&server, database, &wanted, &passwords, &book).await;
    let error = refused.unwrap_err().to_string();
    // What the message says to do.
    let (_, mark) = error.split_once("say so there: ").unwrap();
    admin(&server, name, &[mark]).await;
    assert_eq!(
        drop_database(&server, database, &book).await.unwrap(),
        0,
        "the cell has not come to use it"
    );

    // It is not empty after all.
    admin(&server, name, &["CREATE SCHEMA \"user\""]).await;
    let refused = ensure(&server, database, &wanted, &passwords, &book).await;
    let error = refused.unwrap_err();
    assert_eq!(error.category(), "not-ours", "{error}");
    assert!(error.to_string().contains("schema user"), "{error}");
    assert_eq!(book.writes(), Vec::<String>::new());

    admin(&server, name, &["DROP SCHEMA \"user\""]).await;
    ensure(&server, database, &wanted, &passwords, &book)
        .await
        .unwrap();
    connect(&login(&server, name, "user"), name).await.unwrap();
    let idle = Book::new();
    ensure(&server, database, &wanted, &passwords, &idle)
        .await
        .unwrap();
    assert_eq!(idle.writes(), Vec::<String>::new());
    assert_eq!(drop_database(&server, database, &idle).await.unwrap(), 2);
}

#[tokio::test]
async fn a_database_of_an_older_version_is_known_by_its_schema() {
    let (server, name) = (server(), "foreign_older");
    let (wanted, passwords) = (schemas(name, &["user"]), passwords(&["user"]));
    let made = ensure(&server, of_cluster(name), &wanted, &passwords, &Book::new()).await;
    let id = made.unwrap().id;
    let older = ["COMMENT ON DATABASE foreign_older IS NULL"];
    admin(&server, "postgres", &older).await;
    let known = Database {
        id: Some(&id),
        ..of_cluster(name)
    };
    let book = Book::new();
    let again = ensure(&server, known, &wanted, &passwords, &book).await;
    assert_eq!(again.unwrap().id, id);
    assert_eq!(book.writes(), ["postgres mark database foreign_older"]);

    admin(&server, "postgres", &older).await;
    assert_eq!(drop_database(&server, known, &book).await.unwrap(), 2);
}

#[tokio::test]
async fn an_administrator_that_does_not_own_the_database_goes_on_without_a_mark() {
    let (root, name) = (server(), "foreign_handed_over");
    let make = "CREATE ROLE foreign_successor LOGIN CREATEDB CREATEROLE PASSWORD 'next'";
    admin(&root, "postgres", &[make]).await;
    let next = credentials(&root.host, root.port, "foreign_successor", "next");
    ensure(&root, name, &[], &passwords(&[]), &Book::new())
        .await
        .unwrap();
    let older = [
        "COMMENT ON DATABASE foreign_handed_over IS NULL",
        "GRANT CONNECT ON DATABASE foreign_handed_over TO foreign_successor",
    ];
    admin(&root, "postgres", &older).await;
    let book = Book::new();
    ensure(&next, name, &[], &passwords(&[]), &book)
        .await
        .unwrap();
    assert_eq!(book.writes(), Vec::<String>::new());
    drop_database(&root, name, &Book::new()).await.unwrap();
    admin(&root, "postgres", &["DROP ROLE foreign_successor"]).await;
}
