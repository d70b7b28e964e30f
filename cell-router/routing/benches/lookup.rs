//! What it costs to find the cell of a key, by the number of cells: keys are drawn from ten million.

#![allow(missing_docs, reason = "criterion's macros")]
#![allow(clippy::expect_used, reason = "a benchmark")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use titan_routing::{
    Assignment, AssignmentState, CellEndpoint, Epoch, Key, KeyRange, KeyspaceMode, RoutingTable,
};

const KEYS: u64 = 10_000_000;

fn key(key: u64) -> Key {
    Key::new(key).expect("a small number is a key")
}

fn table(cells: u64) -> RoutingTable {
    let each = KEYS / cells;
    let name = |index: u64| format!("cell-{index:05}");
    let rows = (0..cells)
        .map(|index| Assignment {
            range: KeyRange::new(key(index * each), key((index + 1) * each - 1)).expect("a range"),
            cell: name(index),
            home: name(index),
            state: AssignmentState::Active,
            epoch: Epoch(1),
        })
        .collect();
    let endpoints = (0..cells)
        .map(|index| CellEndpoint {
            cell: name(index),
            region: "bench".into(),
            endpoint: format!("{}.svc", name(index)),
        })
        .collect();
    RoutingTable::new(Epoch(1), KeyspaceMode::UserId, rows, endpoints, Vec::new()).expect("a table")
}

fn lookup(criterion: &mut Criterion) {
    let mut random = SmallRng::seed_from_u64(7);
    let keys: Vec<Key> = (0..1 << 16)
        .map(|_| key(random.random_range(0..KEYS)))
        .collect();
    let mut group = criterion.benchmark_group("lookup");
    for cells in [1, 50, 500, 10_000] {
        let table = table(cells);
        let mut next = keys.iter().cycle();
        group.bench_function(BenchmarkId::from_parameter(cells), |bencher| {
            bencher.iter(|| {
                let key = next.next().copied();
                black_box(key.and_then(|key| table.locate(black_box(key))))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, lookup);
criterion_main!(benches);
