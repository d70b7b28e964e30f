//! The typestates of a cell on its way through a reconcile.

use std::collections::BTreeMap;

use titan_crds::{Autoscaling, Network, Pods, ReclaimPolicy, RedisTopology, Resources, Stores};
use titan_routing::KeyRange;
use xxhash_rust::xxh3::Xxh3;

use crate::object::Object;

/// Why a spec was refused: a reason for machines and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// The condition reason, in CamelCase.
    pub reason: &'static str,
    /// What is wrong, where, and what to do.
    pub message: String,
}

/// A cell whose spec was checked against its profile and fleet, with every default and override resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedCell {
    /// The name of the cell and of its namespace.
    pub name: String,
    /// The uid of the Cell object.
    pub uid: String,
    /// The fleet.
    pub fleet: String,
    /// The keys that the cell claims at its creation; `None` for a cell that is empty capacity.
    pub claim: Option<KeyRange>,
    /// The region.
    pub region: String,
    /// Zones to run in; any when empty.
    pub zones: Vec<String>,
    /// The services, each after those that it depends on.
    pub services: Vec<ValidatedService>,
    /// The PostgreSQL of the cell.
    pub postgres: PostgresPlan,
    /// The Redis of the cell.
    pub redis: RedisPlan,
    /// Brokers of the fleet's Kafka.
    pub kafka_bootstrap: String,
    /// Ports that the brokers advertise, beyond those of the bootstrap.
    pub kafka_listener_ports: Vec<i32>,
    /// Secrets in the operator's namespace with which nodes log in to the registry of images.
    pub pull_secrets: Vec<String>,
    /// What all pods have beyond what their services need.
    pub pods: Pods,
    /// Where the cell finds what lies outside of it.
    pub network: Network,
    /// What stands before image names.
    pub image_repository: String,
    /// The full name of the image of PostgreSQL and Redis.
    pub store_image: String,
    /// `imagePullPolicy` of all containers.
    pub image_pull_policy: String,
    /// The DNS domain of the cluster.
    pub cluster_domain: String,
    /// What happens to data when the Cell goes.
    pub reclaim_policy: ReclaimPolicy,
    /// The schemas and roles that the services need.
    pub schemas: Vec<ServiceSchema>,
    /// The topics that the services need.
    pub topics: Vec<KafkaTopic>,
}

/// One service with its overrides applied.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedService {
    /// The name.
    pub name: String,
    /// The image tag.
    pub release: String,
    /// The full image name.
    pub image: String,
    /// The gRPC port.
    pub port: i32,
    /// How many pods; None where an autoscaler decides.
    pub replicas: Option<i32>,
    /// CPU and memory of each pod, canonical.
    pub resources: Resources,
    /// The services that it calls.
    pub depends_on: Vec<String>,
    /// The stores that it uses.
    pub stores: Stores,
    /// The autoscaler.
    pub autoscaling: Option<Autoscaling>,
    /// Further environment variables.
    pub env: BTreeMap<String, String>,
    /// Seconds to drain.
    pub termination_grace_period_seconds: i64,
}

/// Where a store keeps its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreStorage {
    /// In an emptyDir.
    Ephemeral {
        /// The limit of the emptyDir.
        size_limit: Option<String>,
    },
    /// On a claim a member.
    Persistent {
        /// The size of each claim.
        size: String,
        /// The StorageClass; the default one when None.
        storage_class_name: Option<String>,
    },
}

/// The PostgreSQL of a cell.
#[derive(Clone, Debug, PartialEq)]
pub enum PostgresPlan {
    /// Run by Patroni in the cell's namespace.
    Managed {
        /// 1 or 3.
        members: i32,
        /// Whether commits wait for a standby.
        synchronous: bool,
        /// Where the data lies.
        storage: StoreStorage,
        /// CPU and memory of each member.
        resources: Resources,
    },
    /// A server that exists already, named by a Secret in the operator's namespace.
    External {
        /// The Secret.
        secret_name: String,
    },
}

/// The Redis of a cell.
#[derive(Clone, Debug, PartialEq)]
pub enum RedisPlan {
    /// Run in the cell's namespace.
    Managed {
        /// One server or a cluster.
        topology: RedisTopology,
        /// Where the data lies.
        storage: StoreStorage,
        /// CPU and memory of each node.
        resources: Resources,
    },
    /// A server that exists already, named by a Secret in the operator's namespace.
    External {
        /// The Secret.
        secret_name: String,
    },
}

/// The schema and login role of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSchema {
    /// The service.
    pub service: String,
    /// The schema, the service's name with `_` for `-`.
    pub schema: String,
    /// The login role, `<database>_<schema>`.
    pub role: String,
}

/// A topic as it should be in Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaTopic {
    /// The full name, `titan.<cell>.<topic>`.
    pub name: String,
    /// How many partitions, at least.
    pub partitions: i32,
    /// Copies of each partition.
    pub replication_factor: i32,
    /// Topic configuration: `cleanup.policy`, `retention.ms`.
    pub config: BTreeMap<String, String>,
}

/// The secrets of a cell: read from its namespace where they exist, made by the shell where they do not.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Where the cell's PostgreSQL is and how its administrator logs in.
    pub postgres: ServerCredentials,
    /// Where the cell's Redis is and how to log in.
    pub redis: ServerCredentials,
    /// The PostgreSQL password of Patroni's replication role.
    pub replication_password: String,
    /// The password of Patroni's REST interface. Not the superuser's: whoever has it may restart members, and nothing in SQL.
    pub rest_password: String,
    /// The PostgreSQL password of each service, by service name.
    pub services: BTreeMap<String, String>,
    /// What checksums over Secrets begin with. They stand in pod templates, which more people may read than Secrets: without
    /// it, a password that a person chose could be guessed from its checksum.
    pub salt: String,
    /// What is in the Secrets with which nodes log in to the registry of images, by their names.
    pub pull_secrets: BTreeMap<String, String>,
}

/// Where a server is and how to log in.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerCredentials {
    /// The host name or address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The user; empty where the server knows none.
    pub username: String,
    /// The password; empty where the server wants none.
    pub password: String,
    /// libpq's sslmode.
    pub sslmode: String,
    /// Certificates in PEM that are trusted instead of the public ones, where any are.
    pub ca: String,
}

impl ServerCredentials {
    /// Whether nothing is sent to the server but over TLS.
    #[must_use]
    pub fn demands_tls(&self) -> bool {
        matches!(
            self.sslmode.as_str(),
            "require" | "verify-ca" | "verify-full"
        )
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("postgres", &self.postgres)
            .field("redis", &self.redis)
            .field("services", &self.services.keys())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ServerCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerCredentials")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Everything that a cell consists of in Kubernetes, in the order of application.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// The objects, sorted by stage and kind.
    pub objects: Vec<Object>,
}

impl Desired {
    /// The revision of the cell: a hash of its objects. It is the same for the same profile, fleet and spec on every replica of one
    /// version of the operator.
    #[must_use]
    pub fn revision(&self) -> String {
        let mut hash = Xxh3::new();
        for object in &self.objects {
            hash.update(object.hash.as_bytes());
        }
        format!("{:016x}", hash.digest())
    }
}

/// The name of the database of a cell.
pub(super) fn database_name(cell: &str) -> String {
    cell.replace('-', "_")
}

impl ValidatedCell {
    /// The name of the cell's database.
    #[must_use]
    pub fn database(&self) -> String {
        database_name(&self.name)
    }

    /// The DNS suffix under which the cell's services are found.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("{}.svc.{}", self.name, self.cluster_domain)
    }
}
