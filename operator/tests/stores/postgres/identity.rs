//! Which database it is, and whom it is for.

use titan_operator::stores::postgres::{Change, Claim, Database, change, drop_database, ensure};
use titan_planner::cell::ServerCredentials;
use titan_routing::{Epoch, Key, KeyRange};
use uuid::Uuid;

use super::{SERVICES, connect, passwords, schemas, server};
use crate::book::Book;

#[tokio::test]
async fn another_database_is_not_taken_for_the_one_that_is_known() {
    let (server, name) = (server(), "cell_other");
    let wanted = schemas(name, &SERVICES);
    let passwords = passwords(&SERVICES);
    let known = Uuid::now_v7().to_string();
    let known = Database {
        id: Some(&known),
        ..Database::from(name)
    };
    let book = Book::new();
    let missing = ensure(&server, known, &wanted, &passwords, &book).await;
    let error = missing.unwrap_err();
    assert_eq!(error.category(), "other-database", "{error}");
    assert_eq!(drop_database(&server, known, &book).await.unwrap(), 0);

    let made = ensure(&server, name, &wanted, &passwords, &Book::new()).await;
    let id = made.unwrap().id;
    for error in [
        ensure(&server, known, &[], &passwords, &book).await.err(),
        drop_database(&server, known, &book).await.err(),
    ] {
        let error = error.unwrap();
        assert_eq!(error.category(), "other-database", "{error}");
        assert!(error.to_string().contains(&id), "{error}");
    }
    assert_eq!(book.len(), 0, "nothing was written");

    let known = Database {
        id: Some(&id),
        ..Database::from(name)
    };
    let again = ensure(&server, known, &wanted, &passwords, &book).await;
    assert_eq!((again.unwrap().id, book.len()), (id.clone(), 0));
    assert!(drop_database(&server, known, &book).await.unwrap() > 0);
}

#[tokio::test]
async fn a_database_is_for_the_cells_of_one_cluster() {
    let (server, name) = (server(), "cell_claimed");
    let wanted = schemas(name, &SERVICES);
    let passwords = passwords(&SERVICES);
    let book = Book::new();
    let claimed = |claim| Database {
        claim: Some(claim),
        ..Database::from(name)
    };
    let ask = |claim| ensure(&server, claimed(claim), &wanted, &passwords, &book);
    let drop = |claim| drop_database(&server, claimed(claim), &book);
    let [a, b] = ["a", "b"].map(Claim::of);

    // One from before there were claims: it is taken by the first that asks, and not dropped by one that never had it.
    let unclaimed = ensure(&server, name, &wanted, &passwords, &book).await;
    let id = unclaimed.unwrap().id;
    assert_eq!(drop(b).await.unwrap_err().category(), "invalid");
    assert_eq!(ask(a).await.unwrap().id, id);
    let settled = book.len();
    assert_eq!(ask(a).await.unwrap().writes, 0);
    let of_a = claim(&server, name).await;
    assert!(of_a.starts_with("a/"), "{of_a}");

    let mistaken = Claim {
        instead_of: Some("a/another"),
        ..b
    };
    for stranger in [b, mistaken] {
        for error in [ask(stranger).await.err(), drop(stranger).await.err()] {
            let error = error.unwrap();
            assert_eq!(error.category(), "other-cluster", "{error}");
            assert!(error.to_string().contains(&of_a), "{error}");
        }
    }
    assert_eq!(book.len(), settled, "nothing was written");

    // Taken over once, and not by a routing table that is older than the data.
    let keys = KeyRange::new(Key::new(0).unwrap(), Key::new(9).unwrap()).unwrap();
    change(
        &server,
        name,
        Change::Activate(keys, "cell", Epoch(5)),
        &book,
    )
    .await
    .unwrap();
    let heir = |epoch| Claim {
        instead_of: Some(&of_a),
        epoch: Epoch(epoch),
        ..b
    };
    let settled = book.len();
    assert_eq!(ask(heir(4)).await.unwrap_err().category(), "invalid");
    assert_eq!(book.len(), settled, "nothing was written");
    assert!(
        drop(heir(5)).await.is_err(),
        "it is dropped only by its own"
    );
    assert_eq!(ask(heir(5)).await.unwrap().id, id);
    assert_eq!(ask(heir(5)).await.unwrap().writes, 0);
    assert_eq!(ask(a).await.unwrap_err().category(), "other-cluster");
    let of_b = claim(&server, name).await;
    let back = Claim {
        instead_of: Some(&of_b),
        epoch: Epoch(5),
        ..a
    };
    ask(back).await.unwrap();
    assert_eq!(ask(heir(5)).await.unwrap_err().category(), "other-cluster");

    assert!(drop(a).await.unwrap() > 0);
}

/// The claim that a database has.
async fn claim(server: &ServerCredentials, database: &str) -> String {
    let mut connection = connect(server, database).await.unwrap();
    let comment: String =
        sqlx::query_scalar("SELECT obj_description('titan'::regnamespace, 'pg_namespace')")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    let claim = comment
        .split(' ')
        .find_map(|word| word.strip_prefix("claim="));
    claim.unwrap().to_owned()
}
