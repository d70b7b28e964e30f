//! A world for one test: its own fleet, profile and cells on shared servers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::Event;
use kube::{Api, Client, Config, Resource, ResourceExt};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use titan_crds::{Cell, CellFleet, RoutingTable, ServiceProfile};
use titan_operator::error::ReconcileError;
use titan_operator::execute::apply::Compared;
use titan_operator::execute::cell::PassCache;
use titan_operator::execute::{cell, fleet};
use titan_operator::ledger::{Ledger, System};
use titan_operator::metrics::Metrics;
use titan_operator::observe::own_writes::OwnWrites;
use titan_operator::observe::tables::Tables;
use titan_operator::observe::unseen::Unseen;
use titan_operator::run::attempt::Failures;
use titan_operator::run::context::{Context, KafkaAdmins};
use titan_operator::run::dependencies::Dependencies;
use titan_operator::stores::StoreError;
use titan_operator::stores::postgres::{Proof, Witnesses};
use titan_planner::cell::ServerCredentials;
use titan_planner::object::Kind;
use titan_routing::server::{RegistryOptions, RegistryService};
use titan_testbed::{Apiserver, Kafka, Postgres, Redis};
use tokio::sync::{OnceCell, SetOnce};

use crate::book::Book;

const SYSTEM: &str = "titan-system";

pub struct Servers {
    apiserver: Apiserver,
    _namespaces: titan_testbed::process::Server,
    postgres: Postgres,
    pub redis: Redis,
    pub kafka: Kafka,
}

/// Servers that all tests of this process share: each test has names of its own in them.
pub fn servers() -> &'static Servers {
    static SERVERS: OnceLock<Servers> = OnceLock::new();
    SERVERS.get_or_init(|| {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .init();
        let apiserver = Apiserver::start().expect("apiserver");
        let manifests = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/manifests");
        apiserver.apply(&manifests).expect("CRDs");
        apiserver
            .kubectl(&["create", "namespace", SYSTEM])
            .expect("system namespace");
        let namespaces = apiserver
            .start_controllers(&["namespace-controller", "garbage-collector-controller"])
            .expect("controller-manager");
        Servers {
            apiserver,
            _namespaces: namespaces,
            postgres: Postgres::start().expect("PostgreSQL"),
            redis: Redis::start().expect("Redis"),
            kafka: Kafka::start().expect("Kafka"),
        }
    })
}

/// What one test works with.
pub struct World {
    pub client: Client,
    /// The prefix of all names of this test.
    pub name: String,
    base: i64,
    /// The routing tables that the operator of the moment has in memory.
    tables: Mutex<Arc<Tables>>,
    compared: Arc<Compared>,
    /// In which order objects are looked at.
    order: Mutex<StdRng>,
    /// Which cluster the operator takes this for, where that is not asked for.
    cluster: Mutex<Option<String>>,
    /// Which members of the PostgreSQL that Patroni would run live.
    pub living: Arc<Living>,
}

/// The members that live, the leader among them, as PostgreSQL would show. Nothing but the names of such servers is real here: see
/// the scenarios in `e2e`.
pub struct Living(pub Mutex<Vec<String>>);

impl Default for Living {
    fn default() -> Self {
        let all = (0..3).map(|number| format!("postgres-{number}"));
        Living(Mutex::new(all.collect()))
    }
}

impl Proof for Living {
    fn commit<'a>(
        &'a self,
        server: &'a ServerCredentials,
        witnesses: &'a Witnesses,
        _: &'a dyn Ledger,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let living = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = match witnesses {
            Witnesses::Nobody => true,
            Witnesses::Leader => !living.is_empty(),
            Witnesses::OneOf(standbys) => standbys.iter().any(|name| living.contains(name)),
        };
        let dead = || StoreError::Unreachable {
            system: System::Postgres,
            address: server.host.clone(),
            detail: "nobody commits".to_owned(),
        };
        std::future::ready(answer.then_some(()).ok_or_else(dead)).boxed()
    }
}

impl World {
    /// A world with a fleet and a profile of two services.
    pub async fn new(name: &str) -> World {
        let servers = tokio::task::spawn_blocking(servers).await.unwrap();
        let kubeconfig = Kubeconfig::read_from(servers.apiserver.kubeconfig()).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .unwrap();
        let client = Client::try_from(config).unwrap();
        static WORLDS: AtomicU64 = AtomicU64::new(0);
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let world = World {
            client,
            name: name.to_owned(),
            base: i64::try_from(number).unwrap() * 1_000_000,
            tables: Mutex::new(fresh_tables()),
            compared: Arc::default(),
            order: Mutex::new(order(name)),
            cluster: Mutex::default(),
            living: Arc::default(),
        };
        world
            .secret(
                "postgres",
                &json!({
                    "host": "127.0.0.1",
                    "port": servers.postgres.maintenance().port.to_string(),
                    "username": servers.postgres.maintenance().user,
                    "password": servers.postgres.maintenance().password,
                    "sslmode": "disable",
                }),
            )
            .await;
        world
            .secret(
                "redis",
                &json!({
                    "host": servers.redis.host(),
                    "port": servers.redis.port().to_string(),
                    "password": Redis::PASSWORD,
                    "sslmode": "disable",
                }),
            )
            .await;
        world.create::<CellFleet>(world.fleet()).await;
        world.create::<ServiceProfile>(world.profile()).await;
        world
    }

    /// The PostgreSQL that holds the databases of the test's cells.
    pub fn postgres(&self) -> ServerCredentials {
        let server = servers().postgres.maintenance();
        ServerCredentials {
            host: "127.0.0.1".to_owned(),
            port: server.port,
            username: server.user.clone(),
            password: server.password.clone(),
            sslmode: "disable".to_owned(),
            ca: String::new(),
        }
    }

    async fn secret(&self, suffix: &str, data: &Value) {
        let body = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {
                "name": format!("{}-{suffix}", self.name),
                "annotations": {"titan.dev/for-cells": format!("{}-*", self.name)},
            },
            "stringData": data,
        });
        let api: Api<k8s_openapi::api::core::v1::Secret> =
            Api::namespaced(self.client.clone(), SYSTEM);
        api.create(
            &PostParams::default(),
            &serde_json::from_value(body).unwrap(),
        )
        .await
        .unwrap();
    }

    /// Changes what the Secret of the PostgreSQL says.
    pub async fn set_postgres(&self, data: Value) {
        Api::<k8s_openapi::api::core::v1::Secret>::namespaced(self.client.clone(), SYSTEM)
            .patch(
                &format!("{}-postgres", self.name),
                &PatchParams::default(),
                &Patch::Merge(json!({"stringData": data})),
            )
            .await
            .unwrap();
    }

    /// Says in a Secret of the world for which cells its server is.
    pub async fn annotate_secret(&self, suffix: &str, for_cells: Option<&str>) {
        let annotations = json!({"metadata": {"annotations": {"titan.dev/for-cells": for_cells}}});
        Api::<k8s_openapi::api::core::v1::Secret>::namespaced(self.client.clone(), SYSTEM)
            .patch(
                &format!("{}-{suffix}", self.name),
                &PatchParams::default(),
                &Patch::Merge(annotations),
            )
            .await
            .unwrap();
    }

    /// Changes the status of a cell.
    pub async fn patch_cell_status(&self, number: i64, status: Value) {
        Api::<Cell>::all(self.client.clone())
            .patch_status(
                &self.cell_name(number),
                &PatchParams::default(),
                &Patch::Merge(status),
            )
            .await
            .unwrap();
    }

    pub fn fleet(&self) -> Value {
        json!({
            "apiVersion": "titan.dev/v1alpha1", "kind": "CellFleet",
            "metadata": {"name": self.name},
            "spec": {"kafka": {
                "bootstrap": servers().kafka.bootstrap(), "replicationFactor": 1,
            }},
        })
    }

    pub fn profile(&self) -> Value {
        json!({
            "apiVersion": "titan.dev/v1alpha1", "kind": "ServiceProfile",
            "metadata": {"name": self.name},
            "spec": {
                "databases": {
                    "postgres": {"external": {"secretName": format!("{}-postgres", self.name)}},
                    "redis": {"external": {"secretName": format!("{}-redis", self.name)}},
                },
                "services": [
                    {"name": "user", "port": 50020, "stores": {"postgres": true}},
                    {"name": "order", "port": 50001, "dependsOn": ["user"],
                     "stores": {"postgres": true, "kafka": true},
                     "topics": [{"name": "order.events", "partitions": 2}]},
                ],
            },
        })
    }

    /// The name of the test's n-th cell.
    pub fn cell_name(&self, number: i64) -> String {
        format!("{}-{number:03}", self.name)
    }

    /// The n-th cell, with a thousand users.
    pub fn cell(&self, number: i64) -> Value {
        let first = self.base + number * 1000;
        json!({
            "apiVersion": "titan.dev/v1alpha1", "kind": "Cell",
            "metadata": {"name": self.cell_name(number)},
            "spec": {
                "fleet": self.name, "profile": self.name, "release": "1.0.0",
                "userRange": {"first": first, "last": first + 999},
                "reclaimPolicy": "Delete",
            },
        })
    }

    pub async fn create<K>(&self, body: Value) -> K
    where
        K: Resource<DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + DeserializeOwned,
    {
        let object: K = serde_json::from_value(body).unwrap();
        Api::<K>::all(self.client.clone())
            .create(&PostParams::default(), &object)
            .await
            .unwrap()
    }

    pub async fn patch<K>(&self, name: &str, patch: Value) -> K
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
    {
        Api::<K>::all(self.client.clone())
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap()
    }

    pub async fn delete_cell(&self, number: i64) {
        Api::<Cell>::all(self.client.clone())
            .delete(&self.cell_name(number), &DeleteParams::default())
            .await
            .unwrap();
    }

    pub async fn delete_fleet(&self) {
        Api::<CellFleet>::all(self.client.clone())
            .delete(&self.name, &DeleteParams::default())
            .await
            .unwrap();
    }

    pub async fn get_fleet(&self) -> Option<CellFleet> {
        Api::<CellFleet>::all(self.client.clone())
            .get_opt(&self.name)
            .await
            .unwrap()
    }

    pub async fn get_cell(&self, number: i64) -> Option<Cell> {
        Api::<Cell>::all(self.client.clone())
            .get_opt(&self.cell_name(number))
            .await
            .unwrap()
    }

    pub async fn table(&self) -> Option<RoutingTable> {
        Api::<RoutingTable>::all(self.client.clone())
            .get_opt(&self.name)
            .await
            .unwrap()
    }

    /// Forgets what the operator had in memory, as a new process would.
    pub fn restart_operator(&self) {
        *self.tables.lock().unwrap_or_else(PoisonError::into_inner) = fresh_tables();
    }

    /// Has the operator take this for another cluster, or for the one that it is.
    pub fn be_cluster(&self, cluster: Option<&str>) {
        *self.cluster.lock().unwrap_or_else(PoisonError::into_inner) = cluster.map(str::to_owned);
    }

    fn cluster(&self) -> Option<String> {
        let cluster = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        cluster.clone()
    }

    /// What there is now, as the operator's caches would have it.
    pub async fn view(&self) -> View {
        let cells = list::<Cell>(&self.client).await;
        View {
            cells: cells
                .into_iter()
                .filter(|cell| cell.spec.fleet == self.name)
                .collect(),
            profiles: list(&self.client).await,
            fleets: list::<CellFleet>(&self.client)
                .await
                .into_iter()
                .filter(|fleet| fleet.name_any() == self.name)
                .collect(),
        }
    }

    pub fn context(&self, view: &View, ledger: Arc<dyn Ledger>) -> Context {
        Context {
            client: self.client.clone(),
            ledger,
            tables: self.tables(),
            recorder: Recorder::new(
                self.client.clone(),
                Reporter {
                    controller: "titan-operator".to_owned(),
                    instance: None,
                },
            ),
            metrics: Metrics::new().unwrap(),
            system_namespace: SYSTEM.to_owned(),
            cluster: OnceCell::new_with(self.cluster()),
            cells: store(&view.cells),
            cells_known: Arc::new(SetOnce::new_with(Some(()))),
            profiles: store(&view.profiles),
            fleets: store(&view.fleets),
            kafka: KafkaAdmins::default(),
            own_writes: Arc::new(OwnWrites::default()),
            proof: self.living.clone(),
            compared: self.compared.clone(),
            pass_cache: PassCache::default(),
            dependencies: Dependencies::new(Metrics::new().unwrap()),
            unseen: Unseen::default(),
            failures: Failures::default(),
        }
    }

    /// One round of the operator over everything in `view`, in an order of its own: no fleet waits for its cells, and no cell
    /// for its fleet.
    pub async fn round(&self, view: &View, book: &Arc<Book>) -> Result<(), ReconcileError> {
        let context = Arc::new(self.context(view, book.clone()));
        self.list_tables().await;
        let fleets = view.fleets.iter().cloned();
        let fleets = fleets.map(|one| Object::Fleet(Box::new(one)));
        let cells = view
            .cells
            .iter()
            .cloned()
            .map(|cell| Object::Cell(Arc::new(cell)));
        let mut objects: Vec<Object> = fleets.chain(cells).collect();
        self.shuffle(&mut objects);
        for object in objects {
            let context = context.clone();
            match object {
                Object::Fleet(one) => transient(fleet::reconcile(Arc::new(*one), context).await)?,
                Object::Cell(one) => transient(cell::reconcile(one, context).await)?,
            }
        }
        Ok(())
    }

    /// One pass over the cells alone, by what the operator has of the tables.
    pub async fn pass_cells(&self, view: &View, book: &Arc<Book>) {
        let context = Arc::new(self.context(view, book.clone()));
        for one in &view.cells {
            let passed = cell::reconcile(Arc::new(one.clone()), context.clone()).await;
            passed.unwrap();
        }
    }

    /// One pass over the fleet alone, with a client that may be another one than the test's.
    pub async fn pass_fleet(&self, view: &View, book: &Arc<Book>, client: Client) {
        let context = Context {
            client,
            ..self.context(view, book.clone())
        };
        let context = Arc::new(context);
        for one in &view.fleets {
            transient(fleet::reconcile(Arc::new(one.clone()), context.clone()).await).unwrap();
        }
    }

    /// The watch of RoutingTables lists what there is, as at its beginning.
    pub async fn list_tables(&self) {
        let tables = self.tables();
        tables.observe(Event::Init);
        if let Some(table) = self.table().await {
            tables.observe(Event::InitApply(table));
        }
        tables.observe(Event::InitDone);
    }

    fn tables(&self) -> Arc<Tables> {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.clone()
    }

    fn shuffle(&self, objects: &mut [Object]) {
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        objects.shuffle(&mut *order);
    }

    /// Rounds until one of them writes nothing, with a kubelet's work done in between.
    pub async fn settle(&self, book: &Arc<Book>) -> Result<(), ReconcileError> {
        self.settle_with(book, &mut Vec::new()).await
    }

    /// The same without an interruption. Returns what the caches held at each round.
    pub async fn settle_seeing(&self, book: &Arc<Book>) -> Vec<View> {
        let mut views = Vec::new();
        self.settle_with(book, &mut views).await.unwrap();
        views
    }

    async fn settle_with(
        &self,
        book: &Arc<Book>,
        views: &mut Vec<View>,
    ) -> Result<(), ReconcileError> {
        let deadline = Instant::now() + Duration::from_mins(5);
        while Instant::now() < deadline {
            let before = book.len();
            let view = self.view().await;
            self.round(&view, book).await?;
            if book.len() > before {
                views.push(view);
            }
            let moved = self.play_kubelet().await;
            if book.len() > before || moved {
                continue;
            }
            if !self.is_deleting().await {
                return Ok(());
            }
            // The namespace controller is at work, at its own pace.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!(
            "the operator did not come to rest; its last writes: {:#?}",
            book.writes().iter().rev().take(20).collect::<Vec<_>>()
        );
    }

    async fn is_deleting(&self) -> bool {
        let View { cells, fleets, .. } = self.view().await;
        cells
            .iter()
            .any(|cell| cell.metadata.deletion_timestamp.is_some() && !cell.spec.paused)
            || cells.is_empty()
                && fleets
                    .iter()
                    .any(|fleet| fleet.metadata.deletion_timestamp.is_some())
    }

    /// Completes every Job and readies every Deployment of the test's cells. Whether there was anything to do.
    async fn play_kubelet(&self) -> bool {
        let mut moved = false;
        for cell in self.view().await.cells {
            let namespace = cell.name_any();
            for job in self.objects(&namespace, Kind::Job).await {
                if job.data.pointer("/status/succeeded").is_none() {
                    let now = "2026-01-01T00:00:00Z";
                    let status = json!({"status": {
                        "succeeded": 1, "startTime": now, "completionTime": now,
                        "conditions": [
                            {"type": "SuccessCriteriaMet", "status": "True"},
                            {"type": "Complete", "status": "True"},
                        ],
                    }});
                    self.patch_status(&namespace, Kind::Job, &job.name_any(), status)
                        .await;
                    moved = true;
                }
            }
            for deployment in self.objects(&namespace, Kind::Deployment).await {
                let generation = deployment.metadata.generation;
                let wanted = deployment
                    .data
                    .pointer("/spec/replicas")
                    .and_then(Value::as_i64)
                    .unwrap_or(1);
                let status = &deployment.data["status"];
                if status["observedGeneration"].as_i64() != generation
                    || status["readyReplicas"].as_i64().unwrap_or(0) != wanted
                {
                    let status = json!({"status": {
                        "observedGeneration": generation, "replicas": wanted,
                        "updatedReplicas": wanted, "readyReplicas": wanted, "availableReplicas": wanted,
                    }});
                    self.patch_status(&namespace, Kind::Deployment, &deployment.name_any(), status)
                        .await;
                    moved = true;
                }
            }
        }
        moved
    }

    pub async fn patch_status(&self, namespace: &str, kind: Kind, name: &str, status: Value) {
        self.api(namespace, kind)
            .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await
            .unwrap();
    }

    pub fn api(&self, namespace: &str, kind: Kind) -> Api<DynamicObject> {
        let (group, version, kind_name, plural) = kind.names();
        let resource = ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk(group, version, kind_name),
            plural,
        );
        Api::namespaced_with(self.client.clone(), namespace, &resource)
    }

    pub async fn objects(&self, namespace: &str, kind: Kind) -> Vec<DynamicObject> {
        self.api(namespace, kind)
            .list(&ListParams::default())
            .await
            .map(|list| list.items)
            .unwrap_or_default()
    }
}

/// Errors that production would try again later are no end of the round; an interruption is.
fn transient<T>(result: Result<T, ReconcileError>) -> Result<(), ReconcileError> {
    match result {
        Err(error) if error.is_interruption() => Err(error),
        _ => Ok(()),
    }
}

/// What the operator's caches hold.
#[derive(Clone)]
pub struct View {
    pub cells: Vec<Cell>,
    pub profiles: Vec<ServiceProfile>,
    pub fleets: Vec<CellFleet>,
}

/// What a round looks at.
enum Object {
    Fleet(Box<CellFleet>),
    Cell(Arc<Cell>),
}

/// Another order each time, or that of `TITAN_TEST_ORDER`.
fn order(world: &str) -> StdRng {
    let seed = std::env::var("TITAN_TEST_ORDER")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random::<u64>);
    println!("{world}: TITAN_TEST_ORDER={seed} looks at its objects in this order again");
    StdRng::seed_from_u64(seed)
}

fn fresh_tables() -> Arc<Tables> {
    Arc::new(Tables::new(
        RegistryService::new(RegistryOptions::default()),
    ))
}

async fn list<K>(client: &Client) -> Vec<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    Api::<K>::all(client.clone())
        .list(&ListParams::default())
        .await
        .unwrap()
        .items
}

fn store<K>(objects: &[K]) -> kube::runtime::reflector::Store<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let mut writer = Writer::default();
    writer.apply_watcher_event(&Event::Init);
    for object in objects {
        writer.apply_watcher_event(&Event::InitApply(object.clone()));
    }
    writer.apply_watcher_event(&Event::InitDone);
    writer.as_reader()
}

/// A condition of a cell as `status/reason: message`.
pub fn condition(cell: &Cell, name: &str) -> String {
    cell.status
        .as_ref()
        .and_then(|status| {
            status
                .conditions
                .iter()
                .find(|condition| condition.type_ == name)
        })
        .map_or_else(
            || "absent".to_owned(),
            |condition| {
                format!(
                    "{}/{}: {}",
                    condition.status, condition.reason, condition.message
                )
            },
        )
}
