//! The Redis of a cell: that it answers and, as a cluster, that it is formed.

use titan_crds::RedisTopology;
use titan_planner::cell::{Credentials, RedisPlan, ValidatedCell};

use crate::ledger::Ledger;
use crate::stores::{StoreError, redis};

/// Brings the cell's Redis to where it should be. Returns what is amiss while it serves, in phrases for people.
pub(super) async fn ensure(
    cell: &ValidatedCell,
    credentials: &Credentials,
    ledger: &dyn Ledger,
) -> Result<Vec<String>, StoreError> {
    let server = &credentials.redis;
    let topology = match &cell.redis {
        RedisPlan::Managed { topology, .. } => *topology,
        RedisPlan::External { .. } => RedisTopology::Single,
    };
    match topology {
        RedisTopology::Single => {
            redis::ensure_single(server).await?;
            Ok(Vec::new())
        }
        RedisTopology::Cluster => {
            let nodes: Vec<(String, String)> = (0..topology.count())
                .map(|number| {
                    let name = format!("redis-{number}");
                    let address = format!("{name}.redis-nodes.{}:{}", cell.endpoint(), server.port);
                    (name, address)
                })
                .collect();
            let report = redis::ensure_cluster(&nodes, &server.password, ledger).await?;
            Ok(report.waiting)
        }
    }
}
