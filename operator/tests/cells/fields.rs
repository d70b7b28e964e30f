//! Every field of Cell and ServiceProfile is changed: what that leads to is what a fresh cell with the changed spec comes to, and
//! changing it back leads back (Acto, SOSP '23).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt, stream};
use kube::Api;
use kube::api::{DynamicObject, PostParams};
use kube::core::ApiResource;
use serde_json::{Value, json};
use titan_crds::{Cell, CellFleet, ServiceProfile};
use titan_planner::Observed;
use titan_planner::cell::{Credentials, Desired, NotValid, ServerCredentials, build, validate};

use crate::book::Book;
use crate::harness::{World, condition};
use crate::schema::{Mutation, forbidden, last_name, leaves, mutations, spec_schema};

/// Worlds that work through the changes side by side.
const WORLDS: usize = 8;
const RICH: i64 = 1;

/// Fields that no Cell may change.
const IMMUTABLE: [&str; 3] = ["/fleet", "/userRange/first", "/userRange/last"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Cell,
    Profile,
}

impl Target {
    fn kind(self) -> &'static str {
        match self {
            Target::Cell => "Cell",
            Target::Profile => "ServiceProfile",
        }
    }

    fn api(self, world: &World) -> Api<DynamicObject> {
        let resource = match self {
            Target::Cell => ApiResource::erase::<Cell>(&()),
            Target::Profile => ApiResource::erase::<ServiceProfile>(&()),
        };
        Api::all_with(world.client.clone(), &resource)
    }
}

/// A cell that says something of everything but its stores.
fn rich_cell(world: &World, number: i64) -> Value {
    let mut cell = world.cell(number);
    cell["spec"]["placement"] = json!({"region": "north", "zones": ["zone-b"]});
    cell["spec"]["overrides"] = json!({"user": {
        "release": "1.0.1", "replicas": 2,
        "resources": {
            "requests": {"cpu": "100m", "memory": "64Mi"},
            "limits": {"cpu": "500m", "memory": "256Mi"},
        },
    }});
    cell["spec"]["paused"] = json!(false);
    cell
}

/// A profile that says something of everything but managed stores.
fn rich_profile(world: &World) -> Value {
    let mut profile = world.profile();
    let resources = json!({
        "requests": {"cpu": "100m", "memory": "64Mi"},
        "limits": {"cpu": "500m", "memory": "256Mi"},
    });
    let order = &mut profile["spec"]["services"][1];
    order["replicas"] = json!(2);
    order["env"] = json!({"MODE": "plain"});
    order["resources"] = resources;
    order["terminationGracePeriodSeconds"] = json!(40);
    order["topics"] = json!([{
        "name": "order.events", "partitions": 2, "retentionHours": 100, "cleanupPolicy": "Delete",
    }]);
    let cart = json!({
        "name": "cart", "port": 50003, "stores": {"redis": true},
        "resources": {"requests": {"cpu": "100m"}},
        "autoscaling": {"minReplicas": 1, "maxReplicas": 3, "targetCpuPercent": 60},
    });
    profile["spec"]["services"]
        .as_array_mut()
        .unwrap()
        .push(cart);
    profile
}

/// Stores that the operator would run itself.
fn managed_stores() -> Value {
    let resources = json!({
        "requests": {"cpu": "100m", "memory": "512Mi"},
        "limits": {"cpu": "1", "memory": "1Gi"},
    });
    json!({
        "postgres": {
            "members": 3, "synchronous": true, "resources": resources,
            "storage": {"persistent": {"size": "20Gi", "storageClassName": "slow"}},
        },
        "redis": {
            "topology": "Cluster", "resources": resources,
            "storage": {"persistent": {"size": "10Gi", "storageClassName": "slow"}},
        },
    })
}

/// Whether a field is of a store that the operator runs: there are no pods here, so what becomes of those is told by what is built.
/// Two of them are tried for real all the same: the way from an external store to a managed one, and back.
fn only_built(target: Target, path: &str) -> bool {
    let tried = ["/databases/postgres/members", "/databases/redis/topology"];
    path.starts_with("/databases/")
        && !path.contains("/external")
        && !(target == Target::Cell && tried.contains(&path))
}

/// Replaces a spec; a refusal by the apiserver is the error.
async fn put(target: Target, world: &World, name: &str, spec: &Value) -> Result<(), kube::Error> {
    let api = target.api(world);
    let mut object = api.get(name).await.unwrap();
    object.data["spec"] = spec.clone();
    api.replace(name, &PostParams::default(), &object)
        .await
        .map(drop)
}

/// Whether the apiserver would take a new object with this spec.
async fn admitted(target: Target, world: &World, spec: &Value) -> Result<(), kube::Error> {
    let body = json!({
        "apiVersion": "titan.dev/v1alpha1", "kind": target.kind(),
        "metadata": {"name": format!("{}-dry", world.name)}, "spec": spec,
    });
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let object: DynamicObject = serde_json::from_value(body).unwrap();
    target.api(world).create(&dry, &object).await.map(drop)
}

/// A refusal names the field, or the one that it is part of.
fn assert_names_field(mutation: &Mutation, error: &kube::Error) {
    let kube::Error::Api(status) = error else {
        panic!("{}: {error}", mutation.what);
    };
    assert_eq!(status.code, 422, "{}: {error}", mutation.what);
    let parent = mutation.path.rsplit_once('/').map(|(parent, _)| parent);
    let parent = parent.filter(|parent| !parent.is_empty()).map(last_name);
    let named = [Some(last_name(&mutation.path)), parent];
    assert!(
        named
            .iter()
            .flatten()
            .any(|name| status.message.contains(name)),
        "{}: the refusal does not name the field: {}",
        mutation.what,
        status.message
    );
}

/// What a cell has come to.
#[derive(Debug, PartialEq)]
struct Reached {
    conditions: BTreeMap<String, String>,
    services: Vec<(String, String, i32, i32)>,
    essence: BTreeMap<String, Value>,
}

async fn reached(world: &World, number: i64) -> Reached {
    let status = world.get_cell(number).await.unwrap().status.unwrap();
    Reached {
        conditions: status
            .conditions
            .into_iter()
            .map(|one| (one.type_, format!("{}/{}", one.status, one.reason)))
            .collect(),
        services: status
            .services
            .into_iter()
            .map(|service| {
                (
                    service.name,
                    service.release,
                    service.desired,
                    service.ready,
                )
            })
            .collect(),
        essence: world.essence(number).await,
    }
}

/// What is other in one of two states, by object.
fn difference(left: &Reached, right: &Reached) -> String {
    let mut lines = Vec::new();
    if left.conditions != right.conditions {
        lines.push(format!(
            "{:?}\n  but {:?}",
            left.conditions, right.conditions
        ));
    }
    if left.services != right.services {
        lines.push(format!("{:?}\n  but {:?}", left.services, right.services));
    }
    let names: BTreeSet<_> = left.essence.keys().chain(right.essence.keys()).collect();
    for name in names {
        let (one, other) = (left.essence.get(name), right.essence.get(name));
        if one != other {
            let show =
                |value: Option<&Value>| value.map_or_else(|| "absent".to_owned(), Value::to_string);
            lines.push(format!("{name}: {}\n  but {}", show(one), show(other)));
        }
    }
    lines.join("\n")
}

/// Changes one field for real, and changes it back. Whether the apiserver took it, or what is wrong.
async fn try_out(
    target: Target,
    world: &World,
    mutation: &Mutation,
    fresh: i64,
    original: &Reached,
) -> Result<bool, String> {
    let what = &mutation.what;
    let (name, base) = match target {
        Target::Cell => (world.cell_name(RICH), rich_cell(world, RICH)),
        Target::Profile => (world.name.clone(), rich_profile(world)),
    };
    if let Err(error) = put(target, world, &name, &mutation.spec).await {
        assert_names_field(mutation, &error);
        return Ok(false);
    }
    // A cell that is paused from its first moment has nothing to be compared with.
    let compared = mutation.path != "/paused";
    if compared {
        let mut cell = rich_cell(world, fresh);
        if target == Target::Cell {
            let range = cell["spec"]["userRange"].clone();
            cell["spec"] = mutation.spec.clone();
            cell["spec"]["userRange"] = range;
        }
        world.create::<Cell>(cell).await;
    }
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();

    let cell = world.get_cell(RICH).await.unwrap();
    let ready = condition(&cell, "Ready");
    let stalled = condition(&cell, "Stalled").starts_with("True/");
    if stalled && !mutation.words.iter().any(|word| ready.contains(word)) {
        return Err(format!("{what}: names neither field nor value: {ready}"));
    }
    if compared {
        if stalled {
            let other = condition(&world.get_cell(fresh).await.unwrap(), "Ready");
            let reason = |text: &str| text.split(':').next().map(str::to_owned);
            if reason(&other) != reason(&ready) {
                return Err(format!("{what}: {ready}\n  but a fresh cell {other}"));
            }
        } else if ready.starts_with("True/") {
            let (changed, new) = (reached(world, RICH).await, reached(world, fresh).await);
            if changed != new {
                return Err(format!(
                    "{what}: not what a fresh cell comes to\n{}",
                    difference(&changed, &new)
                ));
            }
        }
        // It has done its part; a paused cell costs nothing.
        world
            .patch::<Cell>(&world.cell_name(fresh), json!({"spec": {"paused": true}}))
            .await;
    }

    put(target, world, &name, &base["spec"]).await.unwrap();
    world.settle(&book).await.unwrap();
    let back = reached(world, RICH).await;
    if back != *original {
        return Err(format!(
            "{what}: changing it back does not lead back ({ready})\n{}",
            difference(&back, original)
        ));
    }
    Ok(true)
}

/// What came of the changes that were tried.
#[derive(Default)]
struct Results {
    accepted: Mutex<BTreeSet<String>>,
    wrong: Mutex<Vec<String>>,
    tried: Mutex<usize>,
}

impl Results {
    fn note(&self, mutation: &Mutation, result: Result<bool, String>) -> bool {
        fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
            mutex.lock().unwrap_or_else(PoisonError::into_inner)
        }
        *lock(&self.tried) += 1;
        match result {
            Ok(true) => {
                lock(&self.accepted).insert(mutation.path.clone());
                true
            }
            Ok(false) => true,
            Err(wrong) => {
                lock(&self.wrong).push(wrong);
                false
            }
        }
    }
}

/// A world with a rich cell at rest.
async fn rich_world(target: Target, number: usize, life: usize) -> (World, Reached) {
    let kind = if target == Target::Cell { "c" } else { "p" };
    let world = World::new(&format!("fields-{kind}{number}-{life}")).await;
    put(
        Target::Profile,
        &world,
        &world.name,
        &rich_profile(&world)["spec"],
    )
    .await
    .unwrap();
    world.create::<Cell>(rich_cell(&world, RICH)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let ready = condition(&world.get_cell(RICH).await.unwrap(), "Ready");
    assert!(ready.starts_with("True/"), "{ready}");
    let original = reached(&world, RICH).await;
    (world, original)
}

/// Every `WORLDS`-th change.
async fn work_through(target: Target, number: usize, results: &Results) {
    let schema = spec_schema(target.kind());
    let changes = |world: &World| {
        let base = match target {
            Target::Cell => rich_cell(world, RICH),
            Target::Profile => rich_profile(world),
        };
        mutations(&schema, &base["spec"])
            .into_iter()
            .filter(|mutation| !only_built(target, &mutation.path))
            .skip(number)
            .step_by(WORLDS)
    };
    let mut life = 0;
    let (mut world, mut original) = rich_world(target, number, life).await;
    let mut fresh = RICH;
    for index in 0..changes(&world).count() {
        let mutation = changes(&world).nth(index).unwrap();
        fresh += 1;
        let result = try_out(target, &world, &mutation, fresh, &original).await;
        if !results.note(&mutation, result) {
            // What a fault left behind must not be taken for another.
            life += 1;
            (world, original) = rich_world(target, number, life).await;
        }
    }
}

/// What the planner makes of a cell and its profile, or why it does not.
fn built(cell: &Value, profile: &Value, fleet: &Value) -> Result<Desired, String> {
    let cell: Cell = serde_json::from_value(cell.clone()).unwrap();
    let profile: ServiceProfile = serde_json::from_value(profile.clone()).unwrap();
    let fleet: CellFleet = serde_json::from_value(fleet.clone()).unwrap();
    let valid = validate(&cell, Observed::Known(&profile), Observed::Known(&fleet));
    let valid = valid.map_err(|refusal| match refusal {
        NotValid::Invalid(invalid) | NotValid::Waiting(invalid) => invalid.message,
    })?;
    let server = || ServerCredentials {
        host: "server".to_owned(),
        port: 1,
        username: "admin".to_owned(),
        password: "secret".to_owned(),
        sslmode: String::new(),
        ca: String::new(),
    };
    let credentials = Credentials {
        postgres: server(),
        redis: server(),
        replication_password: "secret".to_owned(),
        salt: "salt".to_owned(),
        rest_password: "secret".to_owned(),
        pull_secrets: BTreeMap::new(),
        services: valid
            .schemas
            .iter()
            .map(|schema| (schema.service.clone(), "secret".to_owned()))
            .collect(),
    };
    build(&valid, &credentials).map_err(|invalid| invalid.message)
}

/// Changes every field of managed stores, on the Cell or on its profile, and compares what is built.
async fn build_through(target: Target, world: &World, results: &Results) {
    let mut cell = rich_cell(world, RICH);
    let mut profile = rich_profile(world);
    match target {
        Target::Cell => cell["spec"]["databases"] = managed_stores(),
        Target::Profile => profile["spec"]["databases"] = managed_stores(),
    }
    let base = match target {
        Target::Cell => cell["spec"].clone(),
        Target::Profile => profile["spec"].clone(),
    };
    let before = built(&cell, &profile, &world.fleet()).unwrap();
    let changes = mutations(&spec_schema(target.kind()), &base)
        .into_iter()
        .filter(|mutation| mutation.path.starts_with("/databases"));
    for mutation in changes {
        let what = format!("{} of managed stores: {}", target.kind(), mutation.what);
        if let Err(error) = admitted(target, world, &mutation.spec).await {
            assert_names_field(&mutation, &error);
            results.note(&mutation, Ok(false));
            continue;
        }
        let (mut cell, mut profile) = (cell.clone(), profile.clone());
        match target {
            Target::Cell => cell["spec"] = mutation.spec.clone(),
            Target::Profile => profile["spec"] = mutation.spec.clone(),
        }
        let result = match built(&cell, &profile, &world.fleet()) {
            // True is what three members have when nothing is said.
            Ok(_) if mutation.what == "no /databases/postgres/synchronous" => Ok(true),
            Ok(after) if after == before => Err(format!("{what} changes nothing that is built")),
            Ok(_) => Ok(true),
            Err(message) if mutation.words.iter().any(|word| message.contains(word)) => Ok(true),
            Err(message) => Err(format!("{what}: names neither field nor value: {message}")),
        };
        results.note(&mutation, result);
    }
}

/// Fails if anything was wrong, or a field of the schema was never changed to something that the apiserver takes.
fn assert_complete(target: Target, results: Results) {
    let wrong = results.wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    let accepted = results.accepted.into_inner().unwrap();
    let missed: Vec<String> = leaves(&spec_schema(target.kind()))
        .into_iter()
        .map(|(path, _)| path)
        .filter(|path| accepted.contains(path) == IMMUTABLE.contains(&path.as_str()))
        .collect();
    assert!(
        missed.is_empty(),
        "no change of these fields was tried that the apiserver takes, or it takes what must not change: {missed:#?}"
    );
    println!(
        "{}: {} changes, {} fields",
        target.kind(),
        results.tried.into_inner().unwrap(),
        accepted.len()
    );
}

async fn every_field_of(target: Target) {
    let results = Results::default();
    let (world, _) = rich_world(target, WORLDS, 0).await;
    build_through(target, &world, &results).await;
    stream::iter(0..WORLDS)
        .for_each_concurrent(WORLDS, |number| work_through(target, number, &results))
        .await;
    assert_complete(target, results);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_a_cell_can_be_changed_and_changed_back() {
    every_field_of(Target::Cell).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_a_profile_can_be_changed_and_changed_back() {
    every_field_of(Target::Profile).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_schema_forbids_is_refused_by_name() {
    let world = World::new("fields-forbidden").await;
    for (target, base) in [
        (Target::Cell, rich_cell(&world, RICH)),
        (Target::Profile, rich_profile(&world)),
    ] {
        let refusals = forbidden(&spec_schema(target.kind()), &base["spec"]);
        assert!(refusals.len() > 80, "{}", refusals.len());
        stream::iter(refusals)
            .for_each_concurrent(16, async |mutation| {
                match admitted(target, &world, &mutation.spec).await {
                    Err(error) => assert_names_field(&mutation, &error),
                    Ok(()) => panic!("{} {} is admitted", target.kind(), mutation.what),
                }
            })
            .await;
    }
}
