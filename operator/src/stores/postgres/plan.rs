//! From what a database looks like to the statements that bring it to where it should be. Pure.

use std::collections::BTreeMap;

use titan_planner::cell::ServiceSchema;

use super::look::{DatabaseState, RoleState};
use super::scram::{self, Mark};
use super::session::{Step, identifier, literal};
use crate::stores::Foreign;

/// Schema `titan` of every data home.
pub(super) const BOOTSTRAP: &str = include_str!("../../../../cell-services/kit/sql/titan.sql");

/// PostgreSQL cuts longer names off, silently.
const LONGEST_NAME: usize = 63;

/// What cannot be done as it is wanted, in words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Impossible(pub String);

/// Something of a wanted name that is somebody else's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NotOurs {
    pub foreign: Foreign,
    /// It, by name.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// The name that a database has until it carries its mark. No cell can have it.
pub(super) fn unmarked(database: &str) -> String {
    format!("{database}.unmarked")
}

/// Makes the database, under the name that it has until it is marked: CREATE DATABASE takes no comment and no transaction,
/// and after a crash a database of the cell's name without a mark could be anybody's.
pub(super) fn create_database(database: &str) -> Step {
    Step {
        verb: "create",
        target: format!("database {database}"),
        // Of template0, for template1 may hold what somebody else put there.
        sql: format!(
            "CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'",
            identifier(&unmarked(database))
        ),
    }
}

/// Marks a new database, and gives it its name.
pub(super) fn name_database(database: &str, claim: Option<&str>) -> Step {
    let new = identifier(&unmarked(database));
    Step {
        verb: "name",
        target: format!("database {database}"),
        sql: format!(
            "COMMENT ON DATABASE {new} IS {};\nALTER DATABASE {new} RENAME TO {}",
            literal(&database_mark(database, claim)),
            identifier(database)
        ),
    }
}

/// The comment on a database: that an operator made it, for which name, and whom it is for.
fn database_mark(database: &str, claim: Option<&str>) -> String {
    let claim = claim.map_or_else(String::new, |claim| format!(" {CLAIM}{claim}"));
    format!("{MARK}database={database}{claim}")
}

/// Fails where the database is somebody else's. Ours are known by the comment on the database, or, where it came from an
/// older version or from a backup, by that on its schema `titan`.
pub(super) fn check_database(database: &str, state: &DatabaseState) -> Result<(), NotOurs> {
    let marked = state
        .mark
        .as_deref()
        .and_then(|mark| mark.strip_prefix(MARK));
    let wanted = format!("database={database}");
    let marked = marked.is_some_and(|mark| mark.split(' ').any(|word| word == wanted));
    let titan = state.titan.as_deref();
    if marked || titan.is_some_and(|comment| comment.starts_with(MARK)) {
        return Ok(());
    }
    Err(NotOurs {
        foreign: Foreign::Database,
        what: format!("a database {database}"),
        remedy: format!(
            "Give the cell another server or another name. If the database was made for this cell and has nothing in it, \
             say so there: COMMENT ON DATABASE {} IS {}",
            identifier(database),
            literal(&database_mark(database, None))
        ),
    })
}

/// Fails where a role, or the schema that it would be given, is somebody else's. `made` says that the operator has been at
/// work in this database.
pub(super) fn check_role(
    database: &str,
    made: bool,
    want: &ServiceSchema,
    state: &RoleState,
) -> Result<(), NotOurs> {
    let ServiceSchema { schema, role, .. } = want;
    if state.mark.is_some() {
        return Ok(());
    }
    // A comment that was lost is put back: nobody but the operator gives a role its schema in a database of ours.
    if state.exists && !(made && state.schema_owned) {
        return Err(NotOurs {
            foreign: Foreign::Role,
            what: format!("a role {role}"),
            remedy: format!(
                "Give the cell another server or another name. If nobody needs the role, drop it: DROP ROLE {}",
                identifier(role)
            ),
        });
    }
    if state.schema_exists && !made {
        return Err(NotOurs {
            foreign: Foreign::Schema,
            what: format!("a schema {schema} in database {database}"),
            remedy: format!(
                "Give the cell an empty database. If nobody needs the schema, drop it there: DROP SCHEMA {}",
                identifier(schema)
            ),
        });
    }
    Ok(())
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
    let comment = database_mark(database, claim);
    if state.administered && state.mark.as_deref() != Some(comment.as_str()) {
        steps.push(Step {
            verb: "mark",
            target: format!("database {database}"),
            sql: format!(
                "COMMENT ON DATABASE {} IS {}",
                identifier(database),
                literal(&comment)
            ),
        });
    }
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
            "REVOKE ALL ON SCHEMA titan FROM PUBLIC;\nGRANT EXECUTE ON ALL ROUTINES IN SCHEMA titan TO PUBLIC;\n"
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
        "{MARK}{ID}{id}{claim} sql={}",
        scram::digest(BOOTSTRAP.as_bytes())
    )
}

/// What each comment of ours starts with.
const MARK: &str = "titan.dev ";
const ID: &str = "id=";
const CLAIM: &str = "claim=";

/// Which database this is, by the comment on schema `titan`.
pub(super) fn identity(state: &DatabaseState) -> Option<&str> {
    word(state.titan.as_deref()?, ID)
}

/// Whom it is for, by the comment on schema `titan`, and before there is one by that on the database: `<cluster>/<nonce>`.
pub(super) fn claim(state: &DatabaseState) -> Option<&str> {
    let comment = state.titan.as_deref().or(state.mark.as_deref())?;
    word(comment, CLAIM)
}

fn word<'a>(comment: &'a str, name: &str) -> Option<&'a str> {
    let words = comment.strip_prefix(MARK)?;
    words
        .split(' ')
        .find_map(|word| word.strip_prefix(name))
        .filter(|value| !value.is_empty())
}

/// Fails where a role belongs to the database of another cell.
pub(super) fn check_mark(
    database: &str,
    want: &ServiceSchema,
    state: &RoleState,
) -> Result<(), Impossible> {
    let role = &want.role;
    if let Some(mark) = &state.mark
        && mark.database != database
    {
        return Err(Impossible(format!(
            "role {role} on this PostgreSQL belongs to database {}: the names of two cells and services run together; \
             rename one of the cells",
            mark.database
        )));
    }
    Ok(())
}

/// What the role and schema of one service lack: at most one step, so that a crash leaves nothing half made.
pub(super) fn role(
    database: &str,
    superuser: bool,
    want: &ServiceSchema,
    state: &RoleState,
    password: &str,
) -> Option<Step> {
    let ServiceSchema {
        service,
        schema,
        role,
    } = want;
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
        return None;
    }
    let verb = if state.exists && state.schema_exists {
        "alter"
    } else {
        "create"
    };
    Some(Step {
        verb,
        target: format!("role and schema of {service} in {database}"),
        sql: sql.join(";\n"),
    })
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
    let new = unmarked(database);
    for name in names.map(String::as_str).chain([new.as_str()]) {
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
