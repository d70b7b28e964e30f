//! What a leader and its standbys show by a commit.

use nix::sys::signal::Signal;
use titan_operator::stores::postgres::{Commit, Proof, Witnesses};
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
    let confirmed = async |witnesses: &Witnesses| Commit.commit(&server, witnesses, &book).await;
    let unconfirmed = async |witnesses: &Witnesses, why: &str| {
        let error = confirmed(witnesses).await.unwrap_err();
        assert!(
            error.is_unreachable() && error.to_string().contains(why),
            "{error}"
        );
    };
    let one_of =
        |names: &[&str]| Witnesses::OneOf(names.iter().map(|&name| name.to_owned()).collect());
    let first = one_of(&["postgres-1"]);

    confirmed(&Witnesses::Leader).await.unwrap();
    unconfirmed(&first, "no standby (postgres-1)").await;
    unconfirmed(&one_of(&[]), "no standby that may lead").await;

    let one = follower("postgres-1", there.port, &there.password);
    let _another = follower("postgres-2", there.port, &there.password);
    let mut tries = 0;
    for it in [&first, &one_of(&["postgres-2"])] {
        while confirmed(it).await.is_err() {
            tries += 1;
            assert!(tries < 10, "the followers never followed");
        }
    }

    // Its connection is still there, and it has all that was written until now.
    one.signal(Signal::SIGSTOP).unwrap();
    unconfirmed(&first, "no standby (postgres-1)").await;
    let either = one_of(&["postgres-1", "postgres-2"]);
    confirmed(&either).await.unwrap();
    one.signal(Signal::SIGCONT).unwrap();
    confirmed(&first).await.unwrap();

    // Its socket still takes connections.
    postgres.server().signal(Signal::SIGSTOP).unwrap();
    unconfirmed(&Witnesses::Leader, "no connection within 3 s").await;
    confirmed(&Witnesses::Nobody).await.unwrap();
    postgres.server().signal(Signal::SIGCONT).unwrap();
    confirmed(&Witnesses::Leader).await.unwrap();
}
