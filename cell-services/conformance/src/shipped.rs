//! What ships for a service beside its binary says of it what the service itself says.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cell_kit::{Service, Store};
use serde_yaml::Value;
use titan_crds::ServiceProfile;

const PROFILES: [&str; 2] = [
    "examples/quickstart/profile.yaml",
    "examples/profiles/standard.yaml",
];
const VALUES: &str = "charts/titan/values.yaml";

/// Compares the service with the example profiles and with the chart's list of what the router routes.
pub(crate) fn agrees(service: &Service) -> Result<()> {
    for file in PROFILES {
        let profile: ServiceProfile = serde_yaml::from_str(&read(file)?).context(file)?;
        in_profile(service, &profile).context(file)?;
    }
    let values: Value = serde_yaml::from_str(&read(VALUES)?).context(VALUES)?;
    let port = &values["router"]["services"][service.name];
    ensure!(
        port.as_u64() == Some(service.port.into()),
        "{VALUES}: router.services.{} is {port:?} instead of {}",
        service.name,
        service.port
    );
    Ok(())
}

fn in_profile(service: &Service, profile: &ServiceProfile) -> Result<()> {
    let entry = profile
        .spec
        .services
        .iter()
        .find(|entry| entry.name == service.name)
        .with_context(|| format!("{} is missing", service.name))?;
    let has = |store| service.stores.contains(&store);
    let stores = (has(Store::Postgres), has(Store::Redis), has(Store::Kafka));
    let declared = (
        entry.stores.postgres,
        entry.stores.redis,
        entry.stores.kafka,
    );
    ensure!(entry.port == i32::from(service.port), "port {}", entry.port);
    ensure!(declared == stores, "stores {:?}", entry.stores);
    let mut topics: Vec<&str> = service.topics.iter().map(|topic| topic.name).collect();
    let mut named: Vec<&str> = entry
        .topics
        .iter()
        .map(|topic| topic.name.as_str())
        .collect();
    topics.sort_unstable();
    named.sort_unstable();
    ensure!(named == topics, "topics {named:?} instead of {topics:?}");
    Ok(())
}

fn read(file: &str) -> Result<String> {
    let path = repository().join(file);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// Cargo names the folder of the crate that it tests, which is a service's, two levels down.
fn repository() -> PathBuf {
    let folder = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    Path::new(&folder).join("../..")
}
