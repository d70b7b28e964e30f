//! What a database looks like now, in two queries.

use sqlx::postgres::PgRow;
use titan_planner::cell::ServiceSchema;

use super::scram::Mark;
use super::session::Session;
use crate::stores::Result;

/// The database itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DatabaseState {
    /// Whether the administrator is a superuser.
    pub superuser: bool,
    /// Whether the administrator may read the verifiers of passwords.
    pub reads_verifiers: bool,
    /// Whether this is a standby.
    pub in_recovery: bool,
    /// Whether PUBLIC has rights on the database.
    pub public_on_database: bool,
    /// Whether PUBLIC has rights on schema `public`.
    pub public_on_public: bool,
    /// The comment on the database.
    pub mark: Option<String>,
    /// Whether the administrator may comment on the database.
    pub administered: bool,
    /// The comment on schema `titan`.
    pub titan: Option<String>,
    /// Whether everything that is called is in schema `titan`, for those who may call it and for nobody else.
    pub titan_intact: bool,
}

/// A role and schema that a service should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RoleState {
    pub exists: bool,
    /// The comment, where it is ours.
    pub mark: Option<Mark>,
    /// The digest of the verifier in the server, empty where there is none; None where it cannot be read.
    pub verifier: Option<String>,
    pub login: bool,
    /// What ALTER ROLE has to say to take away attributes that a service must not have.
    pub excess: Vec<String>,
    /// Roles that this one was made a member of.
    pub memberships: Vec<String>,
    /// Whether the administrator may act for the role.
    pub administered: bool,
    pub search_path: bool,
    pub connect: bool,
    pub schema_exists: bool,
    pub schema_owned: bool,
    /// Whether the role has its rights on its own schema.
    pub schema_usable: bool,
    /// Whether PUBLIC has rights on the schema.
    pub schema_public: bool,
}

const DATABASE: &str = "
SELECT r.rolsuper AS superuser,
       has_column_privilege('pg_catalog.pg_authid', 'rolpassword', 'SELECT') AS reads_verifiers,
       pg_is_in_recovery() AS in_recovery,
       EXISTS (SELECT FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a WHERE a.grantee = 0)
           AS public_on_database,
       EXISTS (SELECT FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
                WHERE n.nspname = 'public' AND a.grantee = 0) AS public_on_public,
       shobj_description(d.oid, 'pg_database') AS mark,
       pg_has_role(d.datdba, 'USAGE') AS administered,
       obj_description(to_regnamespace('titan')::oid, 'pg_namespace') AS titan,
       EXISTS (SELECT FROM pg_class c, aclexplode(c.relacl) a
                WHERE c.oid = to_regclass('titan.ranges')::oid AND a.grantee = 0 AND a.privilege_type = 'SELECT')
           AND ARRAY['USAGE'] = ARRAY(SELECT a.privilege_type FROM pg_namespace n, aclexplode(n.nspacl) a
                                       WHERE n.oid = to_regnamespace('titan')::oid AND a.grantee = 0)
           AND ARRAY['activate', 'begin_change', 'cut', 'fence', 'give_up', 'guard p', 'merge', 'old_writers', 'protect p',
                     'refuse_unguarded p', 'remove', 'reopen p', 'split', 'writers'] = ARRAY(
               SELECT p.proname || CASE WHEN EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
                                                      WHERE a.grantee = 0) THEN ' p' ELSE '' END
                 FROM pg_proc p
                WHERE p.pronamespace = to_regnamespace('titan')::oid
                ORDER BY p.proname) AS titan_intact
  FROM pg_database d, pg_roles r
 WHERE d.datname = current_database() AND r.rolname = current_user";

/// `{verifier}` stands for an expression over `pg_authid` where that can be read, and `{authid}` for its join.
const ROLES: &str = "
SELECT want.role, r.oid IS NOT NULL AS exists,
       shobj_description(r.oid, 'pg_authid') AS mark,
       {verifier} AS verifier,
       coalesce(r.rolcanlogin, false) AS login,
       array_remove(ARRAY[CASE WHEN r.rolsuper THEN 'NOSUPERUSER' END,
                          CASE WHEN r.rolcreatedb THEN 'NOCREATEDB' END,
                          CASE WHEN r.rolcreaterole THEN 'NOCREATEROLE' END,
                          CASE WHEN r.rolreplication THEN 'NOREPLICATION' END,
                          CASE WHEN r.rolbypassrls THEN 'NOBYPASSRLS' END,
                          CASE WHEN r.rolconnlimit <> -1 THEN 'CONNECTION LIMIT -1' END,
                          CASE WHEN r.rolvaliduntil < 'infinity' THEN 'VALID UNTIL ''infinity''' END], NULL) AS excess,
       ARRAY(SELECT g.rolname::text FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
              WHERE m.member = r.oid ORDER BY 1) AS memberships,
       coalesce(pg_has_role(r.oid, 'USAGE'), false) AS administered,
       EXISTS (SELECT FROM pg_db_role_setting s
                WHERE s.setdatabase = d.oid AND s.setrole = r.oid
                  AND 'search_path=' || quote_ident(want.schema) = ANY (s.setconfig)) AS search_path,
       EXISTS (SELECT FROM aclexplode(d.datacl) a WHERE a.grantee = r.oid AND a.privilege_type = 'CONNECT') AS connect,
       n.oid IS NOT NULL AS schema_exists,
       coalesce(n.nspowner = r.oid, false) AS schema_owned,
       coalesce(has_schema_privilege(r.oid, n.oid, 'USAGE') AND has_schema_privilege(r.oid, n.oid, 'CREATE'), false)
           AS schema_usable,
       EXISTS (SELECT FROM aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a WHERE a.grantee = 0)
           AS schema_public
  FROM unnest($1::text[], $2::text[]) AS want (role, schema)
  JOIN pg_database d ON d.datname = current_database()
  LEFT JOIN pg_roles r ON r.rolname = want.role
  LEFT JOIN pg_namespace n ON n.nspname = want.schema
  {authid}
 ORDER BY want.role";

const UNWANTED: &str = "
SELECT r.rolname::text AS role
  FROM pg_roles r JOIN pg_shdescription s ON s.objoid = r.oid AND s.classoid = 'pg_authid'::regclass
 WHERE starts_with(r.rolname, $1) AND starts_with(s.description, $2) AND r.rolcanlogin AND r.rolname <> ALL ($3)
 ORDER BY 1";

const OURS: &str = "
SELECT r.rolname::text AS role
  FROM pg_roles r JOIN pg_shdescription s ON s.objoid = r.oid AND s.classoid = 'pg_authid'::regclass
 WHERE starts_with(r.rolname, $1) AND starts_with(s.description, $2)
 ORDER BY 1";

/// Reads the state of the database that the session is in.
pub(super) async fn database(session: &mut Session) -> Result<DatabaseState> {
    let rows = session
        .read("read the state of the database", sqlx::query(DATABASE))
        .await?;
    let Some(row) = rows.first() else {
        return Ok(DatabaseState::default());
    };
    Ok(DatabaseState {
        superuser: session.column(row, "superuser")?,
        reads_verifiers: session.column(row, "reads_verifiers")?,
        in_recovery: session.column(row, "in_recovery")?,
        public_on_database: session.column(row, "public_on_database")?,
        public_on_public: session.column(row, "public_on_public")?,
        mark: session.column(row, "mark")?,
        administered: session.column(row, "administered")?,
        titan: session.column(row, "titan")?,
        titan_intact: session.column(row, "titan_intact")?,
    })
}

/// Which of these databases there are.
pub(super) async fn databases(session: &mut Session, names: &[String]) -> Result<Vec<String>> {
    let query =
        sqlx::query("SELECT datname::text AS name FROM pg_database WHERE datname = ANY ($1)")
            .bind(names.to_vec());
    let rows = session.read("look for the database", query).await?;
    rows.iter().map(|row| session.column(row, "name")).collect()
}

/// Reads the state of the wanted roles, in the order given.
pub(super) async fn roles(
    session: &mut Session,
    reads_verifiers: bool,
    schemas: &[ServiceSchema],
) -> Result<Vec<(ServiceSchema, RoleState)>> {
    let (verifier, authid) = if reads_verifiers {
        (
            "coalesce(encode(sha256(convert_to(p.rolpassword, 'UTF8')), 'hex'), '')",
            "LEFT JOIN pg_authid p ON p.oid = r.oid",
        )
    } else {
        ("NULL::text", "")
    };
    let sql = ROLES
        .replace("{verifier}", verifier)
        .replace("{authid}", authid);
    let (roles, names): (Vec<_>, Vec<_>) = schemas
        .iter()
        .map(|s| (s.role.clone(), s.schema.clone()))
        .unzip();
    let query = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(roles)
        .bind(names);
    let rows = session
        .read("read the state of roles and schemas", query)
        .await?;
    let mut states = Vec::with_capacity(rows.len());
    for row in &rows {
        let role: &str = session.column(row, "role")?;
        if let Some(schema) = schemas.iter().find(|schema| schema.role == role) {
            states.push((schema.clone(), role_state(session, row)?));
        }
    }
    Ok(states)
}

fn role_state(session: &Session, row: &PgRow) -> Result<RoleState> {
    let mark: Option<&str> = session.column(row, "mark")?;
    Ok(RoleState {
        exists: session.column(row, "exists")?,
        mark: mark.and_then(Mark::parse),
        verifier: session.column(row, "verifier")?,
        login: session.column(row, "login")?,
        excess: session.column(row, "excess")?,
        memberships: session.column(row, "memberships")?,
        administered: session.column(row, "administered")?,
        search_path: session.column(row, "search_path")?,
        connect: session.column(row, "connect")?,
        schema_exists: session.column(row, "schema_exists")?,
        schema_owned: session.column(row, "schema_owned")?,
        schema_usable: session.column(row, "schema_usable")?,
        schema_public: session.column(row, "schema_public")?,
    })
}

/// Roles that this operator made for the database, that can log in, and that are not wanted.
pub(super) async fn unwanted(
    session: &mut Session,
    database: &str,
    schemas: &[ServiceSchema],
) -> Result<Vec<String>> {
    let wanted: Vec<String> = schemas.iter().map(|schema| schema.role.clone()).collect();
    let query = sqlx::query(UNWANTED)
        .bind(format!("{database}_"))
        .bind(Mark::prefix(database))
        .bind(wanted);
    let rows = session
        .read("look for roles of services that are gone", query)
        .await?;
    rows.iter().map(|row| session.column(row, "role")).collect()
}

/// Roles that this operator made for the database.
pub(super) async fn ours(session: &mut Session, database: &str) -> Result<Vec<String>> {
    let query = sqlx::query(OURS)
        .bind(format!("{database}_"))
        .bind(Mark::prefix(database));
    let rows = session
        .read("look for the roles of the database", query)
        .await?;
    rows.iter().map(|row| session.column(row, "role")).collect()
}
