//! The operator dies right after its k-th write, for every k, and a new one goes on: what there is in the end, and how often
//! each thing was created and deleted on the way, is as in a run without a crash (Sieve, OSDI '22).
//!
//! Counted exactly: objects in Kubernetes by uid, from watches, and every write to PostgreSQL and Kafka, each of which is whole
//! or not there. Not counted: what a new operator may rightly say again, or need not say any more. Those are the status
//! writes, and the finalizer and the table, whose repetition the apiserver refuses by resourceVersion; how often a table was
//! committed shows in its epoch.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, stream};
use serde_json::Value;
use titan_crds::Cell;

use crate::book::Book;
use crate::harness::{World, condition};
use crate::observer::{Count, Observer};

/// How often each write to PostgreSQL and Kafka was made, with the cell's own name and range taken out.
fn stores(writes: &[String], world: &World) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let cell = world.cell_name(1);
    let range = world.cell(1)["spec"]["userRange"].clone();
    let range = format!("{}..={}", range["first"], range["last"]);
    let outside = ["postgres ", "kafka "];
    for write in writes {
        if outside.iter().any(|system| write.starts_with(system)) {
            let name = write
                .replace(&cell, "CELL")
                .replace(&cell.replace('-', "_"), "CELL")
                .replace(&range, "RANGE");
            *counts.entry(name).or_insert(0) += 1;
        }
    }
    counts
}

/// What a phase of a cell's life came to.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    objects: BTreeMap<String, Count>,
    stores: BTreeMap<String, usize>,
    essence: BTreeMap<String, Value>,
    outside: BTreeMap<String, Value>,
}

impl Outcome {
    /// Of the world's first cell, when nothing changes any more. `topics` is how many it has then.
    pub async fn of(world: &World, observer: &Observer, writes: &[String], topics: usize) -> Self {
        let outside = world
            .outside_once(1, |seen| {
                seen["topics"]
                    .as_object()
                    .is_some_and(|it| it.len() == topics)
            })
            .await;
        Outcome {
            objects: observer.counts(world, 1).await,
            stores: stores(writes, world),
            essence: world.essence(1).await,
            outside,
        }
    }

    /// Takes out how often the table was committed.
    pub fn forget_epochs(&mut self) {
        for what in ["row", "ownership"] {
            self.outside.insert(what.to_owned(), Value::Null);
        }
    }

    /// Says what differs, in few words.
    pub fn assert_is(&self, clean: &Outcome, when: &str) {
        assert_eq!(self.objects, clean.objects, "objects, {when}");
        assert_eq!(self.stores, clean.stores, "PostgreSQL and Kafka, {when}");
        assert_eq!(self.outside, clean.outside, "outside, {when}");
        assert_eq!(self.essence, clean.essence, "the namespace, {when}");
    }
}

/// Runs the operator to rest; the first one dies right after its `limit`-th write, and `between` happens before the next one
/// begins. Returns all writes.
pub async fn run(
    world: &World,
    limit: Option<usize>,
    between: impl AsyncFn(&Arc<Book>),
) -> Vec<String> {
    let first = Arc::new(limit.map_or_else(Book::new, Book::crashing_after));
    let result = world.settle(&first).await;
    let mut writes = first.writes();
    if result.is_err() {
        // One crash a run: what comes after is a clean life.
        world.restart_operator();
        let second = Arc::new(Book::new());
        between(&second).await;
        world.settle(&second).await.unwrap();
        writes.extend(second.writes());
    }
    writes
}

/// What a cell's life comes to when nothing goes wrong, and how many writes each half takes.
pub struct Clean {
    pub up: Outcome,
    pub down: Outcome,
    pub writes_up: usize,
    pub writes_down: usize,
}

impl Clean {
    /// Lives it.
    pub async fn life(world: &World, observer: &Observer) -> Clean {
        world.create::<Cell>(world.cell(1)).await;
        let writes_up = run(world, None, async |_| {}).await;
        let up = Outcome::of(world, observer, &writes_up, 1).await;
        world.delete_fleet().await;
        world.delete_cell(1).await;
        let writes_down = run(world, None, async |_| {}).await;
        let down = Outcome::of(world, observer, &writes_down, 0).await;
        let rows = &down.outside["row"]["rows"];
        assert_eq!(rows.as_array().map(Vec::len), Some(0), "{rows}");
        for what in ["topics", "postgres", "ownership"] {
            let left = &down.outside[what];
            let none = left.as_array().is_some_and(Vec::is_empty)
                || left.as_object().is_some_and(serde_json::Map::is_empty);
            assert!(none, "left in {what}: {left}");
        }
        assert!(down.essence.is_empty(), "{:#?}", down.essence);
        for (object, count) in &up.objects {
            let once = Count {
                created: 1,
                deleted: 0,
            };
            assert_eq!(*count, once, "{object}");
        }
        assert!(up.objects.len() > 20, "a cell is more: {:#?}", up.objects);
        Clean {
            up,
            down,
            writes_up: writes_up.len(),
            writes_down: writes_down.len(),
        }
    }

    /// The cell and its fleet are gone, as in a clean life.
    pub async fn assert_gone(
        &self,
        world: &World,
        observer: &Observer,
        writes: &[String],
        when: &str,
    ) {
        assert!(
            world.get_cell(1).await.is_none() && world.get_fleet().await.is_none(),
            "{when}"
        );
        Outcome::of(world, observer, writes, 0)
            .await
            .assert_is(&self.down, when);
    }
}

/// Creates a cell and deletes it with its fleet in a world of its own, with a crash after the k-th write of either.
async fn crash_after(k: usize, clean: &Clean, observer: &Observer) {
    let world = World::new(&format!("crash-{k:02}")).await;
    world.create::<Cell>(world.cell(1)).await;
    let writes = run(&world, Some(k), async |_| {}).await;
    let when = format!("creation, crash after write {k}");
    let ready = condition(&world.get_cell(1).await.unwrap(), "Ready");
    assert!(ready.starts_with("True/"), "{when}: {ready}");
    Outcome::of(&world, observer, &writes, 1)
        .await
        .assert_is(&clean.up, &when);

    world.delete_fleet().await;
    world.delete_cell(1).await;
    let writes = run(&world, Some(k), async |_| {}).await;
    let when = format!("deletion, crash after write {k}");
    clean.assert_gone(&world, observer, &writes, &when).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_after_any_write_changes_nothing() {
    let world = World::new("crash-00").await;
    let observer = Observer::start(&world.client);
    let clean = Clean::life(&world, &observer).await;
    let points = 1..=clean.writes_up.max(clean.writes_down);
    stream::iter(points)
        .for_each_concurrent(12, |k| crash_after(k, &clean, &observer))
        .await;
}
