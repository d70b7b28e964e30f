//! What is given to the operator: a profile of all 35 services, and a fleet whose template makes the cells.

use serde_json::{Value, json};

/// The name of the operator's fleet and of the profile.
pub const NAME: &str = "bench";
/// The Secrets that name the external stores.
pub const POSTGRES_SECRET: &str = "bench-postgres";
/// See [`POSTGRES_SECRET`].
pub const REDIS_SECRET: &str = "bench-redis";

/// A service: its name and port, its stores (`p`ostgres, `r`edis, `k`afka with a topic), and whom it calls.
type Entry = (&'static str, u16, &'static str, &'static [&'static str]);

const SERVICES: [Entry; 35] = [
    ("order", 50001, "pk", &["user", "inventory", "payment"]),
    ("payment", 50002, "pk", &["wallet", "fraud"]),
    ("cart", 50003, "pr", &["product", "inventory", "pricing"]),
    (
        "checkout",
        50004,
        "p",
        &[
            "cart",
            "order",
            "payment",
            "voucher",
            "coupon",
            "inventory",
            "shipping",
        ],
    ),
    ("wallet", 50005, "p", &["user"]),
    ("refund", 50006, "p", &["order", "payment", "wallet"]),
    ("voucher", 50007, "pr", &["user"]),
    ("product", 50010, "pk", &["seller", "category"]),
    ("search", 50011, "pk", &["product"]),
    ("recommendation", 50012, "p", &["product", "inventory"]),
    ("category", 50013, "p", &[]),
    ("seller", 50014, "p", &["user"]),
    ("review", 50015, "p", &["order", "user"]),
    ("ad", 50016, "pr", &["product", "wallet"]),
    ("user", 50020, "p", &[]),
    ("auth", 50021, "pr", &["user"]),
    ("social", 50022, "p", &["user"]),
    ("feed", 50023, "pr", &["social", "user"]),
    ("notification", 50024, "pr", &["user"]),
    ("chat", 50030, "p", &["user", "notification"]),
    ("livestream", 50031, "r", &["user", "product"]),
    ("videocall", 50032, "pr", &["user"]),
    ("shipping", 50040, "p", &["warehouse", "tracking"]),
    ("tracking", 50041, "p", &["notification"]),
    ("warehouse", 50042, "p", &["inventory"]),
    ("inventory", 50043, "prk", &["seller"]),
    ("driver", 50044, "p", &["user"]),
    ("flash-sale", 50050, "pr", &["inventory", "user"]),
    ("gamification", 50051, "pr", &["user"]),
    ("campaign", 50052, "p", &["notification"]),
    ("coupon", 50053, "pr", &["user"]),
    ("pricing", 50060, "p", &["product"]),
    ("fraud", 50061, "pr", &["user"]),
    ("analytics", 50062, "pk", &[]),
    ("ab-testing", 50063, "p", &[]),
];

/// How many services have a database, at most.
pub const DATABASES: usize = 34;

/// The profile. The first `databases` services that keep data in PostgreSQL do so; the others do without.
pub fn profile(databases: usize) -> Value {
    let mut left = databases;
    let services: Vec<Value> = SERVICES
        .iter()
        .map(|(name, port, stores, calls)| {
            let postgres = stores.contains('p') && left > 0;
            left -= usize::from(postgres);
            let kafka = stores.contains('k');
            let topics =
                kafka.then(|| json!({ "name": format!("{name}.events"), "partitions": 1 }));
            json!({
                "name": name, "port": port, "dependsOn": calls,
                "resources": {
                    "requests": { "cpu": "50m", "memory": "64Mi" },
                    "limits": { "cpu": "500m", "memory": "128Mi" },
                },
                "stores": { "postgres": postgres, "redis": stores.contains('r'), "kafka": kafka },
                "topics": topics.into_iter().collect::<Vec<_>>(),
                "env": { "LOG_SAMPLE": "0.01" },
            })
        })
        .collect();
    json!({
        "apiVersion": "titan.dev/v1alpha1", "kind": "ServiceProfile",
        "metadata": { "name": NAME },
        "spec": {
            "databases": {
                "postgres": { "external": { "secretName": POSTGRES_SECRET } },
                "redis": { "external": { "secretName": REDIS_SECRET } },
            },
            "services": services,
        },
    })
}

/// A fleet with `cells` cells of 10,000 users each.
pub fn fleet(name: &str, cells: usize, kafka: &str) -> Value {
    json!({
        "apiVersion": "titan.dev/v1alpha1", "kind": "CellFleet",
        "metadata": { "name": name },
        "spec": {
            "kafka": { "bootstrap": kafka, "replicationFactor": 1 },
            "template": {
                "count": cells, "namePrefix": name, "firstKey": 1, "usersPerCell": 10_000,
                "spec": { "profile": NAME, "release": "1.0.0", "reclaimPolicy": "Delete" },
            },
        },
    })
}

/// A node that kwok pretends to run, large enough for anything.
pub fn node(number: usize) -> Value {
    let name = format!("fake-{number}");
    let amounts = json!({ "cpu": "10000", "memory": "100Ti", "pods": "100000" });
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": { "kwok.x-k8s.io/node": "fake", "node.alpha.kubernetes.io/ttl": "0" },
            "labels": {
                "kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": format!("zone-{}", number % 3),
            },
        },
        "status": { "allocatable": amounts, "capacity": amounts },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalog_is_whole() {
        let names: Vec<&str> = SERVICES.iter().map(|entry| entry.0).collect();
        assert!(
            SERVICES
                .iter()
                .flat_map(|entry| entry.3)
                .all(|called| names.contains(called))
        );
        let with = SERVICES.iter().filter(|entry| entry.2.contains('p'));
        assert_eq!(with.count(), DATABASES);
        let some = profile(3);
        let services = some["spec"]["services"].as_array().map_or(&[][..], |s| s);
        let given = services.iter().filter(|s| s["stores"]["postgres"] == true);
        assert_eq!(given.count(), 3);
    }
}
