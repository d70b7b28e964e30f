//! Whatever happened to a database, by a crash or by hand, it ends as it should be.

use sqlx::{Connection as _, Row as _};
use titan_operator::stores::StoreError;
use titan_operator::stores::postgres::{drop_database, ensure};
use titan_planner::cell::ServerCredentials;

use super::{SERVICES, connect, login, passwords, run, schemas, server};
use crate::book::Book;

/// Everything that `ensure` is responsible for, as text. Salts and the database's
/// id differ from run to run and are left out.
async fn snapshot(server: &ServerCredentials, database: &str) -> Vec<String> {
    let mut connection = connect(server, database).await.unwrap();
    let sql = "
SELECT 'role ' || rolname || ' ' || (rolcanlogin, rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls,
                                     rolconnlimit, nullif(rolvaliduntil, 'infinity'))::text
       || ' ' || split_part(shobj_description(oid, 'pg_authid'), ' verifier=', 1) AS line
  FROM pg_roles WHERE starts_with(rolname, $1 || '_')
UNION ALL SELECT 'member ' || g.rolname || ' ' || r.rolname
  FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member JOIN pg_roles g ON g.oid = m.roleid
 WHERE starts_with(r.rolname, $1 || '_')
UNION ALL SELECT 'setting ' || r.rolname || ' ' || setconfig::text
  FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = setrole JOIN pg_database d ON d.oid = s.setdatabase
 WHERE d.datname = $1
UNION ALL SELECT 'database ' || coalesce(shobj_description(d.oid, 'pg_database'), '') || ' ' || coalesce(x.acl, '') FROM pg_database d,
       LATERAL (SELECT string_agg(a::text, ' ' ORDER BY a::text) AS acl FROM unnest(d.datacl) a) x
 WHERE datname = $1
UNION ALL SELECT 'schema ' || nspname || ' ' || nspowner::regrole || ' '
       || coalesce((SELECT string_agg(a::text, ' ' ORDER BY a::text)
                      FROM unnest(coalesce(nspacl, acldefault('n', nspowner))) a), '')
       || ' ' || coalesce(regexp_replace(obj_description(oid, 'pg_namespace'), 'id=[^ ]+', 'id'), '')
  FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
UNION ALL SELECT 'function ' || oid::regprocedure || ' '
       || (SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(coalesce(proacl, acldefault('f', proowner))) a)
  FROM pg_proc WHERE pronamespace = to_regnamespace('titan')::oid
UNION ALL SELECT 'table ' || relname || ' ' || coalesce(relacl::text, '')
  FROM pg_class WHERE relnamespace = to_regnamespace('titan')::oid AND relkind = 'r'
 ORDER BY 1";
    let rows = sqlx::query(sql)
        .bind(database)
        .fetch_all(&mut connection)
        .await
        .unwrap();
    let lines = rows
        .iter()
        .map(|row| row.get::<String, _>("line"))
        .collect();
    connection.close().await.unwrap();
    lines
}

#[tokio::test]
async fn a_crash_after_any_write_leaves_no_trace() {
    let (server, database) = (server(), "cell_crash");
    let (wanted, passwords) = (schemas(database, &SERVICES), passwords(&SERVICES));
    let clean = Book::new();
    ensure(&server, database, &wanted, &passwords, &clean)
        .await
        .unwrap();
    let end = snapshot(&server, database).await;
    assert_eq!(
        clean.len(),
        7,
        "database, its name, rights of PUBLIC, schema titan, three roles with schemas"
    );

    for crash in 1..=clean.len() {
        drop_database(&server, database, &Book::new())
            .await
            .unwrap();
        let crashed = Book::crashing_after(crash);
        let interrupted = ensure(&server, database, &wanted, &passwords, &crashed).await;
        assert!(
            matches!(interrupted, Err(StoreError::Interrupted(_))),
            "after {crash}: {interrupted:?}"
        );
        let second = Book::new();
        ensure(&server, database, &wanted, &passwords, &second)
            .await
            .unwrap();
        assert_eq!(
            [crashed.writes(), second.writes()].concat(),
            clean.writes(),
            "crash after write {crash}"
        );
        assert_eq!(
            snapshot(&server, database).await,
            end,
            "crash after write {crash}"
        );
    }
}

#[tokio::test]
async fn what_was_changed_by_hand_is_put_right() {
    let (server, database) = (server(), "cell_drift");
    let (wanted, passwords) = (schemas(database, &SERVICES), passwords(&SERVICES));
    ensure(&server, database, &wanted, &passwords, &Book::new())
        .await
        .unwrap();
    let right = snapshot(&server, database).await;
    let drifts = [
        "ALTER ROLE cell_drift_order NOLOGIN",
        "ALTER ROLE cell_drift_order PASSWORD 'changed by hand'",
        "ALTER ROLE cell_drift_order PASSWORD NULL",
        "ALTER ROLE cell_drift_order SUPERUSER CREATEDB CREATEROLE REPLICATION BYPASSRLS",
        "ALTER ROLE cell_drift_order CONNECTION LIMIT 0 VALID UNTIL '2001-01-01'",
        "ALTER ROLE cell_drift_order IN DATABASE cell_drift RESET search_path",
        "ALTER ROLE cell_drift_order IN DATABASE cell_drift SET search_path = public",
        "GRANT pg_read_all_data, cell_drift_user TO cell_drift_order",
        "COMMENT ON ROLE cell_drift_order IS NULL",
        "DROP SCHEMA \"order\"; DROP OWNED BY cell_drift_order; DROP ROLE cell_drift_order",
        "REVOKE ALL ON DATABASE cell_drift FROM cell_drift_order",
        "GRANT ALL ON DATABASE cell_drift TO PUBLIC",
        "DROP SCHEMA \"order\"",
        "ALTER SCHEMA \"order\" OWNER TO postgres",
        "REVOKE ALL ON SCHEMA \"order\" FROM cell_drift_order",
        "GRANT USAGE ON SCHEMA \"order\" TO PUBLIC",
        "GRANT CREATE ON SCHEMA public TO PUBLIC",
        "COMMENT ON DATABASE cell_drift IS NULL",
        "COMMENT ON DATABASE cell_drift IS 'orders of the cell'",
        "COMMENT ON SCHEMA titan IS NULL",
        "COMMENT ON SCHEMA titan IS 'titan.dev id=older sql=older'",
        "DROP PROCEDURE titan.fence",
        "DROP FUNCTION titan.give_up",
        "DROP FUNCTION titan.begin_change",
        "DROP TABLE titan.ranges",
        "DROP SCHEMA titan CASCADE",
        "GRANT EXECUTE ON PROCEDURE titan.fence TO PUBLIC",
        "REVOKE EXECUTE ON FUNCTION titan.guard FROM PUBLIC",
        "REVOKE EXECUTE ON FUNCTION titan.reopen FROM PUBLIC",
        "GRANT EXECUTE ON FUNCTION titan.give_up TO PUBLIC",
        "GRANT CREATE ON SCHEMA titan TO PUBLIC",
        "REVOKE USAGE ON SCHEMA titan FROM PUBLIC",
        "REVOKE SELECT ON titan.ranges FROM PUBLIC",
    ];
    for drift in drifts {
        let mut connection = connect(&server, database).await.unwrap();
        run(&mut connection, drift)
            .await
            .unwrap_or_else(|code| panic!("{drift}: {code}"));
        connection.close().await.unwrap();
        let book = Book::new();
        ensure(&server, database, &wanted, &passwords, &book)
            .await
            .unwrap_or_else(|error| panic!("{drift}: {error}"));
        assert_eq!(book.len(), 1, "{drift}: {:?}", book.writes());
        assert_eq!(snapshot(&server, database).await, right, "{drift}");
        let order = connect(&login(&server, database, "order"), database).await;
        order
            .unwrap_or_else(|error| panic!("{drift}: {error}"))
            .close()
            .await
            .unwrap();
        let idle = Book::new();
        ensure(&server, database, &wanted, &passwords, &idle)
            .await
            .unwrap();
        assert_eq!(idle.writes(), Vec::<String>::new(), "{drift}");
    }
}
