//! Reaches the data home of a cell, whatever else is the matter with the cell.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt};
use titan_crds::Cell;
use titan_planner::cell::{Product, ServerCredentials, external_database};
use titan_planner::status::Step;

use crate::error::ReconcileError;
use crate::execute::cell::credentials::{ADMIN, ADMIN_PASSWORD, POSTGRES_PORT, external};
use crate::observe::{as_ref, dereference};
use crate::run::context::Context;
use crate::stores::data_home::DataHome;

/// Opens the data home of a cell by its name and one Secret: that of its own PostgreSQL's administrator, or that of the
/// external server. The cell need not be valid, and nothing of it is looked at but where its database is.
///
/// The outer error is worth another try, the inner step is for a person to mend.
///
/// # Errors
/// When the apiserver does not answer.
pub async fn open<'c>(
    cell: &Cell,
    context: &'c Context,
) -> Result<Result<DataHome<'c>, Step>, ReconcileError> {
    let name = cell.name_any();
    let referred = dereference(cell, context).await;
    let server = match external_database(cell, as_ref(&referred.profile)) {
        Ok(Some(server)) => external(context, &server.secret_name, Product::Postgres)
            .await?
            .map(|external| external.server),
        // Where the profile that decides cannot be read: a cell that has an administrator's Secret has a PostgreSQL.
        Ok(None) | Err(_) => managed(&name, context).await?,
    };
    Ok(server.map(|server| {
        DataHome::new(
            server,
            name.replace('-', "_"),
            context.ledger.as_ref(),
            context.proof.as_ref(),
        )
    }))
}

async fn managed(
    cell: &str,
    context: &Context,
) -> Result<Result<ServerCredentials, Step>, ReconcileError> {
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), cell);
    let password = secrets
        .get_opt(ADMIN)
        .await?
        .and_then(|secret| secret.data?.remove(ADMIN_PASSWORD))
        .and_then(|value| String::from_utf8(value.0).ok());
    let Some(password) = password else {
        return Ok(Err(Step::failed(
            "PasswordLost",
            format!(
                "Secret {cell}/{ADMIN} has no {ADMIN_PASSWORD}, so nobody can log in to the cell's PostgreSQL as its administrator"
            ),
        )));
    };
    Ok(Ok(ServerCredentials {
        host: format!("postgres.{cell}.svc"),
        port: POSTGRES_PORT,
        username: "postgres".to_owned(),
        password,
        sslmode: "disable".to_owned(),
        ca: String::new(),
    }))
}
