//! What a service is given to build itself from.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::database::Database;
use crate::metrics::Metrics;
use crate::redis::Redis;

/// The settings, stores and signals of a process.
#[derive(Clone, Debug)]
pub struct Context {
    /// The settings.
    pub config: Arc<Config>,
    /// PostgreSQL.
    pub database: Database,
    /// Redis, for services that declare it.
    pub redis: Option<Redis>,
    /// The metrics.
    pub metrics: Metrics,
    /// Cancelled when the process drains: streams end then.
    pub draining: CancellationToken,
}
