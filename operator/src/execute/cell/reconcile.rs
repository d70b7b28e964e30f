//! One pass over one Cell: dereference, validate, build, apply, update the status.
//!
//! Every pass starts from what is there now, not from what an earlier pass remembers, and may end after any write. What a pass
//! found is remembered for two things only: a look at pods in between that writes nothing but the status, and which objects of which version
//! need not be compared again.

use std::sync::Arc;
use std::time::Duration;

use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use titan_crds::{Cell, ConditionType, ReclaimPolicy, ServiceStatus};
use titan_planner::Observed;
use titan_planner::assignment::{Claim, claim as read_claim, recorded_rows, rows_of};
use titan_planner::cell::names::CELL_ENVIRONMENT;
use titan_planner::cell::{
    Credentials, Desired, NotValid, PostgresPlan, RedisPlan, ValidatedCell, build, build_namespace,
    validate,
};
use titan_planner::object::{Kind, Object, Stage};
use titan_planner::status::{Step, Steps};
use titan_routing::{Assignment, AssignmentState, Epoch};

use crate::error::ReconcileError;
use crate::execute::apply::{
    LiveObject, LiveObjects, ObjectClient, Scope, apply_stage, prune, volumes_kept,
};
use crate::execute::cell::cache;
use crate::execute::cell::credentials::read_or_generate;
use crate::execute::cell::failures::{note_error, step_of_error, store_step};
use crate::execute::cell::finalize::{FINALIZER, finalize};
use crate::execute::cell::identity::{OTHER_CLUSTER, claim, known_database};
use crate::execute::cell::migration::{Migration, migrate};
use crate::execute::cell::namespace::enter;
use crate::execute::cell::pass_cache::Found;
use crate::execute::cell::patience::{starting, unanswered, unready_for, waited};
use crate::execute::cell::pause::look;
use crate::execute::cell::postgres::{ManagedPostgres, Members};
use crate::execute::cell::pull_secrets;
use crate::execute::cell::report::{Reported, report};
use crate::execute::cell::requeue::{LATER, SHORTLY, is_waiting_for_pods, requeue};
use crate::execute::cell::services::{Deployments, Services, diagnose_pods, rollup, step_of};
use crate::execute::finalizer::hold;
use crate::ledger::System;
use crate::observe::{as_ref, dereference, open_claim};
use crate::run::attempt::{LIMIT, jitter};
use crate::run::context::Context;
use crate::run::dependencies::Dependency;
use crate::stores::data_home::DataHome;
use crate::stores::postgres::{self, Database, OwnershipRow};

/// What cannot be looked at for a while, by the names under which that is remembered.
const PASS: &str = "pass";
const DATABASES: &str = "databases";
const TOPICS: &str = "topics";
pub(super) const SERVICES: &str = "services";
const SERVING: &str = "serving";

/// What a pass found out, for the status.
#[derive(Clone)]
pub(super) struct Progress {
    pub(super) steps: Steps,
    /// The rows that the cell serves or holds.
    pub(super) ranges: Observed<Vec<Assignment>>,
    /// The id of the database, once it was reached.
    pub(super) database_id: Option<String>,
    pub(super) services: Option<Vec<ServiceStatus>>,
    /// The revision of the cell's objects, once they were built.
    pub(super) revision: Option<String>,
}

impl Progress {
    pub(super) const fn new() -> Self {
        Progress {
            steps: Steps::none(),
            ranges: Observed::Unknown,
            database_id: None,
            services: None,
            revision: None,
        }
    }
}

/// Brings one Cell a step nearer to its spec.
///
/// # Errors
/// When something did not work that may work the next time.
pub async fn reconcile(cell: Arc<Cell>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let paused = cell.spec.paused;
    if cell.metadata.deletion_timestamp.is_some() && !paused {
        return finalize(&cell, &context).await;
    }
    if paused {
        let progress = look(&cell, &context).await?;
        // Watches tell of Deployments; of a pod that is stuck they do not.
        let next = match &progress.steps.services {
            Step::Waiting { .. } | Step::Failed { .. } | Step::Unknown { .. } => {
                Action::requeue(jitter(LATER))
            }
            Step::Done(_) | Step::NotReached => Action::await_change(),
        };
        return tell(&cell, &context, progress, next).await;
    }
    if table_is_unread(&cell, &context) {
        // Whether the cell serves is not known, so nothing is done and what its status says still holds.
        return Ok(Action::requeue(jitter(SHORTLY)));
    }
    context.pass_cache.start(&cell);
    let mut progress = Progress::new();
    // From here on there may be things outside of Kubernetes.
    let cell = hold(cell, FINALIZER, &context).await?;
    let name = cell.name_any();
    // In here, so that a pass that takes too long says how far it came.
    let result = tokio::time::timeout(LIMIT, drive(&cell, &context, &mut progress))
        .await
        .unwrap_or(Err(ReconcileError::TimedOut));
    let unseen = match &result {
        Ok(_) => {
            context.unseen.seen(&name, PASS);
            Duration::ZERO
        }
        Err(_) => context.unseen.lasted(&name, PASS),
    };
    let result = match result {
        Ok(Some(services)) if is_waiting_for_pods(&progress.steps) => {
            let found = Found::new(&cell, progress.clone(), services);
            context.pass_cache.store(&cell, found);
            Ok(())
        }
        Err(error) if error.is_interruption() => return Err(error),
        Err(error) => {
            note_error(&name, &mut progress.steps, &error, unseen);
            Err(error)
        }
        Ok(_) => Ok(()),
    };
    let next = requeue(&progress.steps, waited(&cell));
    if report(&cell, &context, progress).await? == Reported::Outdated {
        return Ok(Action::requeue(SHORTLY));
    }
    match result {
        Ok(()) => Ok(next),
        Err(error) => match step_of_error(&name, &error, unseen) {
            // It is in the status, and trying at once again would change nothing.
            Step::Failed { .. } => Ok(next),
            _ => Err(error),
        },
    }
}

/// A look at a Cell of which nothing has changed since a pass found it waiting for its pods: watches tell how Deployments and
/// Jobs get on, but not of a pod that is stuck.
///
/// # Errors
/// When the pods or the status cannot be reached.
pub(super) async fn look_at_pods(
    cell: Arc<Cell>,
    context: Arc<Context>,
    found: Arc<Found>,
) -> Result<Action, ReconcileError> {
    let mut progress = found.progress.clone();
    let name = cell.name_any();
    let told = found.services.tell(&context, &name, &mut progress).await;
    if told.is_err() || !is_waiting_for_pods(&progress.steps) {
        // A pass says of an error where it was; and what a pod cannot start without may be something that is not watched and
        // that a pass mends.
        context.pass_cache.invalidate(&name);
    }
    told?;
    let next = requeue(&progress.steps, waited(&cell));
    tell(&cell, &context, progress, next).await
}

/// Writes the status; when to look again after that.
async fn tell(
    cell: &Cell,
    context: &Context,
    progress: Progress,
    next: Action,
) -> Result<Action, ReconcileError> {
    Ok(match report(cell, context, progress).await? {
        Reported::Told => next,
        Reported::Outdated => Action::requeue(SHORTLY),
    })
}

/// Brings the Cell as far as it comes. How its services are, if nothing but them is waited for.
async fn drive(
    cell: &Cell,
    context: &Context,
    progress: &mut Progress,
) -> Result<Option<Services>, ReconcileError> {
    // Whatever becomes of the spec, the cell serves what the table gives it.
    progress.ranges = context.tables.rows_of(cell);
    if let Observed::Known(rows) = &progress.ranges
        && !rows.is_empty()
    {
        progress.steps.range = held(rows);
    }
    let referred = dereference(cell, context).await;
    let valid = match validate(cell, as_ref(&referred.profile), as_ref(&referred.fleet)) {
        Ok(valid) => valid,
        Err(NotValid::Invalid(invalid)) => {
            progress.steps.accepted = Step::failed(invalid.reason, invalid.message);
            return Ok(None);
        }
        Err(NotValid::Waiting(invalid)) => {
            progress.steps.accepted = Step::waiting(invalid.reason, invalid.message);
            return Ok(None);
        }
    };
    progress.steps.accepted = Step::Done("the spec is valid".to_owned());
    let Some(rows) = hold_range(cell, &valid, context, progress) else {
        return Ok(None);
    };
    // A row is given only to a cell that was looked up at the apiserver. Without one, an old cache may show a cell that is gone,
    // and nobody would ever take apart what is made for it.
    if rows.is_empty() && !lives(cell, context).await? {
        tracing::warn!(
            cell = valid.name,
            "the cache shows a cell that is gone or another one by now"
        );
        return Ok(None);
    }

    let client = ObjectClient::new(&context.client, context.ledger.as_ref(), &valid.name)
        .recording(&context.own_writes);
    let namespace = match build_namespace(&valid) {
        Ok(namespace) => namespace,
        Err(invalid) => {
            progress.steps.accepted = Step::failed(invalid.reason, invalid.message);
            return Ok(None);
        }
    };
    let status = cell.status.as_ref();
    let live = match enter(&client, &valid, status, &namespace, &context.compared).await? {
        Ok(live) => live,
        Err(step) => {
            progress.steps.databases = step;
            return Ok(None);
        }
    };
    let credentials = match read_or_generate(&valid, &live, context).await? {
        Ok(credentials) => credentials,
        Err(step) => {
            progress.steps.databases = step;
            return Ok(None);
        }
    };
    let credentials = match pull_secrets::read(&valid, context).await? {
        Ok(pull_secrets) => Credentials {
            pull_secrets,
            ..credentials
        },
        Err(step) => {
            progress.steps.databases = step;
            return Ok(None);
        }
    };
    let desired = match build(&valid, &credentials) {
        Ok(desired) => desired,
        Err(invalid) => {
            progress.steps.accepted = Step::failed(invalid.reason, invalid.message);
            return Ok(None);
        }
    };
    progress.revision = Some(desired.revision());
    Pass {
        valid: &valid,
        credentials: &credentials,
        desired: &desired,
        live: &live,
        client: &client,
        context,
        cell,
    }
    .run(&rows, progress)
    .await
}

/// Whether the routing table has still to be read, or to be written again from what the statuses have of it.
fn table_is_unread(cell: &Cell, context: &Context) -> bool {
    match context.tables.get(&cell.spec.fleet) {
        Observed::Known(_) => false,
        Observed::Unknown => true,
        // Where the fleet is gone, too, nobody writes it again.
        Observed::Absent => {
            let fleet = context.fleets.get(&ObjectRef::new(&cell.spec.fleet));
            fleet.is_some() && !recorded_rows(cell).is_empty()
        }
    }
}

/// Whether the Cell is still there and not being deleted, asked at the source.
async fn lives(cell: &Cell, context: &Context) -> Result<bool, ReconcileError> {
    let cells = Api::<Cell>::all(context.client.clone());
    let now = cells.get_metadata_opt(&cell.name_any()).await?;
    Ok(now.is_some_and(|now| {
        now.metadata.uid == cell.metadata.uid && now.metadata.deletion_timestamp.is_none()
    }))
}

fn held(rows: &[Assignment]) -> Step {
    let row = |row: &Assignment| {
        let mut text = format!("{} at epoch {}", row.range, row.epoch);
        if row.cell != row.home {
            text.push_str(&format!(
                ", served by cell {} from home {}",
                row.cell, row.home
            ));
        }
        text
    };
    Step::Done(rows.iter().map(row).collect::<Vec<_>>().join("; "))
}

/// The cell's rows in the committed table: none where the cell is empty capacity. Nothing is created while a claim has no row.
fn hold_range(
    cell: &Cell,
    valid: &ValidatedCell,
    context: &Context,
    progress: &mut Progress,
) -> Option<Vec<Assignment>> {
    let open = open_claim(cell);
    let table = match context.tables.get(&valid.fleet) {
        Observed::Known(table) => Some(table),
        Observed::Unknown | Observed::Absent => None,
    };
    let found = match (&table, open) {
        (Some(table), open) => read_claim(table, &valid.name, open),
        (None, Some(_)) => Claim::NotYet,
        (None, None) => Claim::Empty,
    };
    match found {
        Claim::Serves | Claim::ServedElsewhere(_) => {
            let rows = table
                .map(|table| rows_of(&table, &valid.name))
                .unwrap_or_default();
            progress.steps.range = held(&rows);
            progress.ranges = Observed::Known(rows.clone());
            Some(rows)
        }
        Claim::Empty => {
            progress.steps.range = Step::Done(
                "no users: empty capacity, which a split or a move can give a range".to_owned(),
            );
            Some(Vec::new())
        }
        Claim::Overlaps(other) => {
            let claim = open.map(|it| it.to_string()).unwrap_or_default();
            progress.steps.range = Step::failed(
                "RangeOverlaps",
                format!(
                    "userRange {claim} overlaps {} of cell {}, which had it first; delete one of the two cells, or create this one with another range",
                    other.range, other.home
                ),
            );
            None
        }
        Claim::NotYet => {
            progress.steps.range = Step::waiting(
                "RangePending",
                "waiting for the routing table to take in the range",
            );
            None
        }
    }
}

/// Everything a pass works with once the cell has a namespace.
struct Pass<'a> {
    valid: &'a ValidatedCell,
    credentials: &'a Credentials,
    desired: &'a Desired,
    live: &'a LiveObjects,
    client: &'a ObjectClient<'a>,
    context: &'a Context,
    /// As it was when the pass began.
    cell: &'a Cell,
}

/// Databases that are as they should be.
struct Databases {
    /// Which PostgreSQL database it is.
    id: String,
    /// What there is, in words.
    message: String,
    /// Whether nothing is waited for in any of them.
    settled: bool,
    /// Who may write which keys in it.
    owned: Vec<OwnershipRow>,
}

impl Pass<'_> {
    async fn run(
        &self,
        rows: &[Assignment],
        progress: &mut Progress,
    ) -> Result<Option<Services>, ReconcileError> {
        let environment = self.environment();
        self.apply_foundation(&environment).await?;
        let managed = ManagedPostgres::of(
            self.valid,
            self.live,
            &self.credentials.postgres,
            self.context,
        );
        let members = match &managed {
            Some(managed) => managed.take_turns(&self.desired.objects).await?,
            None => Members::default(),
        };
        self.apply_stores(members.set.as_ref()).await?;
        // A spec may be mistaken: what holds data stays until other databases were found to be the cell's.
        self.prune(ReclaimPolicy::Retain).await?;

        let epoch = rows.iter().map(|row| row.epoch).max().unwrap_or_default();
        let databases = self.databases(managed.as_ref(), epoch);
        let databases = if managed.is_some() {
            let (databases, topics) = tokio::join!(databases, self.topics());
            progress.steps.topics = topics?;
            databases?
        } else {
            let databases = databases.await?;
            // Where the database is another cluster's, topics of these names may be, too.
            if !matches!(&databases, Err(Step::Failed { reason, .. }) if reason == OTHER_CLUSTER) {
                progress.steps.topics = self.topics().await?;
            }
            databases
        };
        let database = match databases {
            Ok(database) => database,
            Err(step) => {
                progress.steps.databases = step;
                let known = self.cell.status.as_ref().map_or(&[][..], |it| &it.services);
                let services = rollup(self.valid, &Deployments::read(self.live), known);
                progress.services = Some(services.into_iter().map(|it| it.status).collect());
                return Ok(None);
            }
        };
        progress.steps.databases = match members.step {
            Some(step) => {
                let unready_for = unready_for(self.cell, ConditionType::DatabasesReady);
                unanswered(self.cell, step, unready_for.min(members.unchanged))
            }
            None => Step::Done(database.message),
        };
        progress.database_id = Some(database.id.clone());
        self.apply_all(environment.into_iter()).await?;
        self.prune(self.valid.reclaim_policy).await?;

        let jobs = migrate(self.scope(), &self.desired.objects, &database.id).await?;
        self.apply(|stage| match stage {
            Stage::Service(service) => jobs
                .get(service)
                .is_none_or(|(_, state)| *state == Migration::Done),
            _ => false,
        })
        .await?;

        let known = self.cell.status.as_ref().map_or(&[][..], |it| &it.services);
        let services = Services::read(self.valid, self.desired, self.live, jobs, known);
        services
            .tell(self.context, &self.valid.name, progress)
            .await?;
        progress.steps.serving = self.serve(rows, &database.owned).await?;
        let inactive = rows.iter().any(|row| row.state != AssignmentState::Active);
        let calm = database.settled && (progress.steps.serving.is_done() || inactive);
        Ok(calm.then_some(services))
    }

    fn scope(&self) -> Scope<'_> {
        Scope {
            client: self.client,
            cell: &self.valid.name,
            live: self.live,
            compared: &self.context.compared,
        }
    }

    async fn prune(&self, policy: ReclaimPolicy) -> Result<(), ReconcileError> {
        prune(self.scope(), &self.desired.objects, policy).await?;
        Ok(())
    }

    /// What services are told of their databases, where it is something else than they are told now. A pod that is replaced must
    /// not be sent to other databases before those were found to be the cell's. New passwords are kept at once, for the databases
    /// are about to be told.
    fn environment(&self) -> Vec<&Object> {
        let tells_otherwise = |object: &Object| match self.live.get(object.kind, &object.name) {
            Some(live) => live.body().get("data") != object.body().get("data"),
            None => object.kind != Kind::Secret,
        };
        let is_service_secret = |object: &Object| object.kind == Kind::Secret && !object.holds_data;
        let objects = self.desired.objects.iter();
        objects
            .filter(|object| {
                object.stage == Stage::Foundation
                    && (object.name == CELL_ENVIRONMENT || is_service_secret(object))
                    && tells_otherwise(object)
            })
            .collect()
    }

    /// Applies what everything else needs, but for what services are told of other databases.
    async fn apply_foundation(&self, later: &[&Object]) -> Result<(), ReconcileError> {
        let objects = self.desired.objects.iter();
        let foundation = objects.filter(|object| {
            let waits = later.iter().any(|it| std::ptr::eq(*it, *object));
            object.stage == Stage::Foundation && !waits
        });
        self.apply_all(foundation).await
    }

    async fn apply(&self, wanted: impl Fn(&Stage) -> bool) -> Result<(), ReconcileError> {
        let objects = self
            .desired
            .objects
            .iter()
            .filter(|object| wanted(&object.stage));
        self.apply_all(objects).await
    }

    /// Applies the databases, one of them as it is to be for now.
    async fn apply_stores(&self, for_now: Option<&Object>) -> Result<(), ReconcileError> {
        let stores = self.desired.objects.iter();
        let stores = stores.filter(|object| object.stage == Stage::Stores);
        let is_other = |object: &&Object| {
            for_now.is_none_or(|it| (it.kind, &it.name) != (object.kind, &object.name))
        };
        self.apply_all(stores.filter(is_other).chain(for_now)).await
    }

    async fn apply_all<'a>(
        &'a self,
        objects: impl Iterator<Item = &'a Object>,
    ) -> Result<(), ReconcileError> {
        let applied = apply_stage(self.scope(), objects).await?;
        if applied.created + applied.repaired > 0 {
            tracing::debug!(cell = self.valid.name, ?applied, "applied");
        }
        Ok(())
    }

    /// Brings the databases to where they should be; the inner error says how far they are.
    async fn databases(
        &self,
        managed: Option<&ManagedPostgres<'_>>,
        epoch: Epoch,
    ) -> Result<Result<Databases, Step>, ReconcileError> {
        let unready_for = unready_for(self.cell, ConditionType::DatabasesReady);
        if let Some(managed) = managed
            && let Some(step) = managed.tend().await?
        {
            return Ok(Err(step));
        }
        for store in self.managed_stores() {
            let ready = self
                .live
                .get(Kind::StatefulSet, store)
                .map_or(0, LiveObject::ready_replicas);
            if ready == 0 {
                let diagnoses = diagnose_pods(self.context, &self.valid.name).await?;
                return Ok(Err(diagnoses.get(store).map_or_else(
                    || starting(&self.valid.name, store, unready_for),
                    step_of,
                )));
            }
        }
        let ledger = self.context.ledger.as_ref();
        let database = self.valid.database();
        let claim = match self.valid.postgres {
            PostgresPlan::External { .. } => Some(claim(self.cell, epoch, self.context).await?),
            // It is nobody else's.
            PostgresPlan::Managed { .. } => None,
        };
        let Credentials {
            postgres: sql_server,
            redis: cache_server,
            ..
        } = self.credentials;
        let sql = postgres::ensure(
            sql_server,
            Database {
                name: &database,
                id: known_database(self.cell, self.valid, self.live),
                claim,
            },
            &self.valid.schemas,
            &self.credentials.services,
            ledger,
        );
        let cache = cache::ensure(self.valid, self.credentials, ledger);
        let dependencies = &self.context.dependencies;
        let (sql_server, cache_server) = (
            Dependency::of(System::Postgres, sql_server),
            Dependency::of(System::Redis, cache_server),
        );
        let (sql, cache) = tokio::join!(
            dependencies.ask(&sql_server, sql),
            dependencies.ask(&cache_server, cache),
        );
        let (sql, cache) = match (sql, cache) {
            (Ok(sql), Ok(cache)) => (sql, cache),
            (Err(error), _) | (_, Err(error)) => {
                let unseen = self.context.unseen.lasted(&self.valid.name, DATABASES);
                let step = store_step(&self.valid.name, error, unseen)?;
                return Ok(Err(unanswered(self.cell, step, unready_for)));
            }
        };
        self.context.unseen.seen(&self.valid.name, DATABASES);
        let settled = cache.is_empty();
        let cache = if settled {
            "answers".to_owned()
        } else {
            format!("serves, and {}", cache.join("; "))
        };
        let mut message = vec![format!(
            "PostgreSQL has {} schemas, Redis {cache}",
            sql.schemas
        )];
        message.extend(volumes_kept(&self.desired.objects, self.live));
        Ok(Ok(Databases {
            id: sql.id,
            settled,
            owned: sql.owned,
            message: message.join("; "),
        }))
    }

    fn managed_stores(&self) -> impl Iterator<Item = &'static str> {
        let postgres =
            matches!(self.valid.postgres, PostgresPlan::Managed { .. }).then_some("postgres");
        let redis = matches!(self.valid.redis, RedisPlan::Managed { .. }).then_some("redis");
        postgres.into_iter().chain(redis)
    }

    async fn topics(&self) -> Result<Step, ReconcileError> {
        if self.valid.topics.is_empty() {
            return Ok(Step::Done("the profile names no topics".to_owned()));
        }
        let bootstrap = &self.valid.kafka_bootstrap;
        let ensure = async {
            let kafka = self.context.kafka.get(bootstrap)?;
            let ledger = self.context.ledger.as_ref();
            kafka.ensure(&self.valid.topics, ledger).await
        };
        let dependency = Dependency::new(System::Kafka, bootstrap);
        match self.context.dependencies.ask(&dependency, ensure).await {
            Ok(report) => {
                self.context.unseen.seen(&self.valid.name, TOPICS);
                let topics = format!("{} topics", self.valid.topics.len());
                let warnings = report.warnings.into_iter();
                let all: Vec<String> = std::iter::once(topics).chain(warnings).collect();
                Ok(Step::Done(all.join("; ")))
            }
            Err(error) => {
                let unseen = self.context.unseen.lasted(&self.valid.name, TOPICS);
                let step = store_step(&self.valid.name, error, unseen)?;
                let unready_for = unready_for(self.cell, ConditionType::TopicsReady);
                Ok(unanswered(self.cell, step, unready_for))
            }
        }
    }

    /// Has the databases of this cell allow what the table says: each active row whose home they are, to the cell that serves
    /// it, at the row's epoch.
    async fn serve(
        &self,
        rows: &[Assignment],
        owned: &[OwnershipRow],
    ) -> Result<Step, ReconcileError> {
        let home = DataHome::new(
            self.credentials.postgres.clone(),
            self.valid.database(),
            self.context.ledger.as_ref(),
            self.context.proof.as_ref(),
        );
        let of_this_home = rows.iter().filter(|row| row.home == self.valid.name);
        for row in of_this_home.filter(|row| row.state == AssignmentState::Active) {
            if owned.contains(&OwnershipRow::active(row.range, &row.cell, row.epoch)) {
                continue;
            }
            let activate = home.activate(row.range, &row.cell, row.epoch);
            let server = Dependency::of(System::Postgres, &self.credentials.postgres);
            let activated = self.context.dependencies.ask(&server, activate).await;
            if let Err(error) = activated {
                let unseen = self.context.unseen.lasted(&self.valid.name, SERVING);
                return store_step(&self.valid.name, error, unseen);
            }
        }
        self.context.unseen.seen(&self.valid.name, SERVING);
        Ok(
            match rows.iter().find(|row| row.state != AssignmentState::Active) {
                None => held(rows),
                Some(row) if row.state == AssignmentState::Pending => Step::waiting(
                    "RangeNotActive",
                    format!(
                        "waiting for the routing table to send the requests of {} to cell {}",
                        row.range, row.cell
                    ),
                ),
                Some(row) => Step::waiting(
                    "RangeInOperation",
                    format!(
                        "requests of {} wait for the operation that moves it",
                        row.range
                    ),
                ),
            },
        )
    }
}
