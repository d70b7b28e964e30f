//! The routing table of this process, from the registry and, until that answers, from disk.

use std::sync::Arc;

use titan_routing::client::{RegistryClient, RegistryConfig};

use crate::config::Config;

/// Starts to follow the registry. The client is to be kept: the table stands still without it.
pub(crate) fn connect(config: &Config) -> RegistryClient {
    let mut settings = RegistryConfig::new(&config.fleet, &config.registry);
    settings.client = format!(
        "{}/{}",
        config.cell,
        std::env::var("HOSTNAME").unwrap_or_default()
    );
    settings.state_dir = Some(config.state_dir.clone());
    RegistryClient::start(settings, Arc::new(()))
}
