//! From what a database looks like to the statements that bring it to where it should be. Pure.

use std::collections::BTreeMap;

use titan_planner::cell::ServiceSchema;

use super::look::{DatabaseState, RoleState};
use super::scram::{self, Mark};
use super::session::{Step, identifier, literal};

/// Schema `titan` of every data home.
pub(super) const BOOTSTRAP: &str = include_str!("../../../../cell-services/kit/sql/titan.sql");

/// PostgreSQL cuts longer names off, silently.
const LONGEST_NAME: usize = 63;

/// What cannot be done as it is wanted, in words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Impossible(pub String);

/// Makes the database.
pub(super) fn create_database(database: &str) -> Step {
    Step {
        verb: "create",
        target: format!("database {database}"),
        // Of template0, for template1 may hold what somebody else put there.
        sql: format!(
            "CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'",
            identifier(database)
        ),
    }
}

/// What schema `titan` and the rights of PUBLIC lack. `id` is what the database is, or shall be, known by, and `claim` whom
/// it is for.
pub(super) fn database(
    database: &str,
    state: &DatabaseState,
    id: &str,
    claim: Option<&str>,
) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut revokes = Vec::new();
    if state.public_on_database {
        revokes.push(format!(
            "REVOKE ALL ON DATABASE {} FROM PUBLIC",
            identifier(database)
        ));
    }
    if state.public_on_public {
        revokes.push("REVOKE ALL ON SCHEMA public FROM PUBLIC".to_owned());
    }
    if !revokes.is_empty() {
        let target = format!("rights of PUBLIC in {database}");
        steps.push(Step {
            verb: "revoke",
            target,
            sql: revokes.join(";\n"),
        });
    }
    let mark = bootstrap_mark(id, claim);
    if state.titan.as_deref() != Some(mark.as_str()) || !state.titan_intact {
        let reset = if state.titan.is_some() {
            // The file speaks of rights from where a fresh schema starts.
            "REVOKE ALL ON SCHEMA titan FROM PUBLIC;\nGRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA titan TO PUBLIC;\n"
        } else {
            ""
        };
        steps.push(Step {
            verb: if state.titan.is_some() {
                "alter"
            } else {
                "create"
            },
            target: format!("schema titan in {database}"),
            sql: format!(
                "{reset}{BOOTSTRAP};\nCOMMENT ON SCHEMA titan IS {}",
                literal(&mark)
            ),
        });
    }
    steps
}

/// The comment on schema `titan`: which database this is, whom it is for, and which version of the schema's SQL was run.
fn bootstrap_mark(id: &str, claim: Option<&str>) -> String {
    let claim = claim.map_or_else(String::new, |claim| format!(" {CLAIM}{claim}"));
    format!(
        "titan.dev {ID}{id}{claim} sql={}",
        scram::digest(BOOTSTRAP.as_bytes())
    )
}

const ID: &str = "id=";
const CLAIM: &str = "claim=";

/// Which database this is, by the comment on schema `titan`.
pub(super) fn identity(state: &DatabaseState) -> Option<&str> {
    word(state, ID)
}

/// Whom it is for, by the comment on schema `titan`: `<cluster>/<nonce>`.
pub(super) fn claim(state: &DatabaseState) -> Option<&str> {
    word(state, CLAIM)
}

fn word<'a>(state: &'a DatabaseState, name: &str) -> Option<&'a str> {
    let words = state.titan.as_deref()?.strip_prefix("titan.dev ")?;
    words
        .split(' ')
        .find_map(|word| word.strip_prefix(name))
        .filter(|value| !value.is_empty())
}

/// What the role and schema of one service lack: at most one step, so that a crash leaves nothing half made.
pub(super) fn role(
    database: &str,
    superuser: bool,
    want: &ServiceSchema,
    state: &RoleState,
    password: &str,
) -> Result<Option<Step>, Impossible> {
    let ServiceSchema {
        service,
        schema,
        role,
    } = want;
    if let Some(mark) = &state.mark
        && mark.database != database
    {
        return Err(Impossible(format!(
            "role {role} on this PostgreSQL belongs to database {}: the names of two cells and services run together; \
             rename one of the cells",
            mark.database
        )));
    }
    let mut sql = Vec::new();
    let name = identifier(role);
    let digest = scram::password_digest(role, password);
    let password_kept = state.mark.as_ref().is_some_and(|mark| {
        mark.password == digest
            && state
                .verifier
                .as_ref()
                .is_none_or(|verifier| *verifier == mark.verifier)
    });
    if !state.exists || !password_kept {
        let verifier = scram::verifier(password);
        let mark = Mark {
            database: database.to_owned(),
            password: digest,
            verifier: scram::verifier_digest(&verifier),
        };
        let verb = if state.exists { "ALTER" } else { "CREATE" };
        sql.push(format!(
            "{verb} ROLE {name} LOGIN PASSWORD {}",
            literal(&verifier)
        ));
        sql.push(format!(
            "COMMENT ON ROLE {name} IS {}",
            literal(&mark.to_string())
        ));
    } else if !state.login {
        sql.push(format!("ALTER ROLE {name} LOGIN"));
    }
    // Only what is wrong is named: to name SUPERUSER or REPLICATION at all takes a superuser.
    if !state.excess.is_empty() {
        sql.push(format!("ALTER ROLE {name} {}", state.excess.join(" ")));
    }
    sql.extend(
        state
            .memberships
            .iter()
            .map(|group| format!("REVOKE {} FROM {name}", identifier(group))),
    );
    if if state.exists {
        !state.administered
    } else {
        !superuser
    } {
        sql.push(format!("GRANT {name} TO CURRENT_USER"));
    }
    if !state.connect {
        sql.push(format!(
            "GRANT CONNECT ON DATABASE {} TO {name}",
            identifier(database)
        ));
    }
    if !state.search_path {
        let (database, schema) = (identifier(database), identifier(schema));
        sql.push(format!(
            "ALTER ROLE {name} IN DATABASE {database} SET search_path = {schema}"
        ));
    }
    let owned = identifier(schema);
    if !state.schema_exists {
        sql.push(format!("CREATE SCHEMA {owned} AUTHORIZATION {name}"));
    } else if !state.schema_owned {
        sql.push(format!("ALTER SCHEMA {owned} OWNER TO {name}"));
    } else if !state.schema_usable {
        sql.push(format!("GRANT ALL ON SCHEMA {owned} TO {name}"));
    }
    if state.schema_public {
        sql.push(format!("REVOKE ALL ON SCHEMA {owned} FROM PUBLIC"));
    }
    if sql.is_empty() {
        return Ok(None);
    }
    let verb = if state.exists && state.schema_exists {
        "alter"
    } else {
        "create"
    };
    Ok(Some(Step {
        verb,
        target: format!("role and schema of {service} in {database}"),
        sql: sql.join(";\n"),
    }))
}

/// Shuts out the role of a service that the profile no longer names. Its schema stays: it is data.
pub(super) fn retire(role: &str) -> Step {
    Step {
        verb: "retire",
        target: format!("role {role}"),
        sql: format!(
            "ALTER ROLE {} NOLOGIN;\n{}",
            identifier(role),
            terminate_sessions(&format!("usename = {}", literal(role)))
        ),
    }
}

pub(super) fn drop_database(database: &str) -> Step {
    Step {
        verb: "delete",
        target: format!("database {database}"),
        sql: format!(
            "DROP DATABASE IF EXISTS {} WITH (FORCE)",
            identifier(database)
        ),
    }
}

pub(super) fn drop_role(role: &str) -> Step {
    Step {
        verb: "delete",
        target: format!("role {role}"),
        sql: format!("DROP ROLE IF EXISTS {}", identifier(role)),
    }
}

fn terminate_sessions(condition: &str) -> String {
    format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {condition} AND pid <> pg_backend_pid()"
    )
}

/// Checks names and passwords before anything is looked at.
pub(super) fn check(
    database: &str,
    schemas: &[ServiceSchema],
    passwords: &BTreeMap<String, String>,
) -> Result<(), Impossible> {
    let names = schemas
        .iter()
        .flat_map(|schema| [&schema.schema, &schema.role]);
    for name in names.map(String::as_str).chain([database]) {
        if name.len() > LONGEST_NAME || name.contains('\0') {
            return Err(Impossible(format!(
                "{name:?} cannot be a name in PostgreSQL, which ends at {LONGEST_NAME} bytes: shorten the name of the \
                 cell or the service"
            )));
        }
    }
    for ServiceSchema { service, .. } in schemas {
        let usable = |password: &String| {
            !password.is_empty() && password.bytes().all(|byte| (b' '..=b'~').contains(&byte))
        };
        if !passwords.get(service).is_some_and(usable) {
            return Err(Impossible(format!(
                "the PostgreSQL password of {service} is missing or has other characters than printable ASCII: delete \
                 the Secret {service}-credentials, the operator makes a new one"
            )));
        }
    }
    Ok(())
}
