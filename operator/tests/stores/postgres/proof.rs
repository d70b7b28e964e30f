//! What a leader and its standbys show by a commit.

use nix::sys::signal::Signal;
use titan_operator::stores::StoreError;
use titan_operator::stores::postgres::{Commit, Proof};
use titan_testbed::process::{Server, Spec, data_dir};
use titan_testbed::{Postgres, cache};

use super::{Book, credentials};

/// A client that takes in the log as a standby does, and flushes all of it at once.
fn follower(name: &str, port: u16, password: &str) -> Server {
    let folder = data_dir("follower", None).unwrap();
    let connection = format!("host=127.0.0.1 port={port} user=postgres application_name={name}");
    let program = cache::postgres_executable("pg_receivewal").unwrap();
    Server::start(Spec {
        name: "pg_receivewal",
        program: &program,
        args: [
            "--synchronous",
            "--no-loop",
            "--directory",
            &folder.display().to_string(),
            "--dbname",
            &connection,
        ]
        .map(str::to_owned)
        .to_vec(),
        env: vec![("PGPASSWORD".to_owned(), password.to_owned())],
        log: folder.join("log"),
        stop: Signal::SIGKILL,
        user: None,
    })
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_lives_confirms_a_commit() {
    let mut postgres = Postgres::start().unwrap();
    let there = postgres.maintenance();
    let server = credentials(&there.host, there.port, &there.user, &there.password);
    let book = Book::new();
    let followers = async |wanted: bool| Commit.followers(&server, wanted, &book).await;
    let unconfirmed = |answer: Result<Vec<String>, StoreError>, who: &str| {
        let error = answer.unwrap_err();
        assert!(
            error.is_unreachable() && error.to_string().contains(who),
            "{error}"
        );
    };

    assert_eq!(followers(false).await.unwrap(), Vec::<String>::new());
    unconfirmed(followers(true).await, "no standby");

    let one = follower("postgres-1", there.port, &there.password);
    let mut tries = 0;
    while followers(true).await.is_err() {
        tries += 1;
        assert!(tries < 10, "the follower never followed");
    }
    assert_eq!(followers(true).await.unwrap(), ["postgres-1"]);

    // Its connection is still there, and it has all that was written until now.
    one.signal(Signal::SIGSTOP).unwrap();
    unconfirmed(followers(true).await, "no standby");
    one.signal(Signal::SIGCONT).unwrap();
    assert_eq!(followers(true).await.unwrap(), ["postgres-1"]);

    // Its socket still takes connections.
    postgres.server().signal(Signal::SIGSTOP).unwrap();
    unconfirmed(followers(false).await, "within 3 s");
    postgres.server().signal(Signal::SIGCONT).unwrap();
    followers(false).await.unwrap();
}
