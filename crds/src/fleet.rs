//! The CellFleet resource.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Databases, Failover, Placement, ReclaimPolicy, ServiceOverride};

/// The cells of one platform and what they share.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "titan.dev",
    version = "v1alpha1",
    kind = "CellFleet",
    plural = "cellfleets",
    shortname = "tf",
    category = "titan",
    status = "CellFleetStatus",
    derive = "PartialEq",
    doc = "The cells of one platform and what they share: the keyspace, Kafka, images, and a template that makes cells.",
    scale(
        spec_replicas_path = ".spec.template.count",
        status_replicas_path = ".status.cells"
    ),
    printcolumn(name = "Cells", type_ = "integer", json_path = ".status.cells"),
    printcolumn(
        name = "Ready-Cells",
        type_ = "integer",
        json_path = ".status.readyCells"
    ),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.epoch"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct CellFleetSpec {
    /// How user ids become keys. Cannot be changed.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the keyspace of a fleet cannot be changed: every row is stored under its key"))]
    pub keyspace: Keyspace,
    /// The Kafka of the fleet.
    pub kafka: Kafka,
    /// Where the images of services and stores come from.
    #[serde(default)]
    pub images: Images,
    /// What the pods of all cells have beyond what their services need.
    #[serde(default)]
    pub pods: Pods,
    /// Where cells find what lies outside of them. Their NetworkPolicies let them go there.
    #[serde(default)]
    pub network: Network,
    /// The DNS domain of the cluster.
    #[serde(default = "cluster_local")]
    #[schemars(length(min = 1, max = 253))]
    pub cluster_domain: String,
    /// Make this many cells, side by side in the keyspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<CellTemplate>,
}

fn cluster_local() -> String {
    "cluster.local".to_owned()
}

/// The keyspace of a fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Keyspace {
    /// How user ids become keys.
    #[serde(default)]
    pub mode: KeyspaceMode,
}

/// How user ids become keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum KeyspaceMode {
    /// The key is the numeric user id.
    #[default]
    UserId,
    /// The key is `xxh3_64(user id) >> 1`, for string ids.
    Hash,
}

/// The Kafka of a fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Kafka {
    /// Brokers to start from, `host:port`, separated by commas.
    #[schemars(
        length(min = 1, max = 1024),
        regex(pattern = r"^[^\s,:]+:[0-9]+(,[^\s,:]+:[0-9]+)*$")
    )]
    pub bootstrap: String,
    /// Copies of each partition.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 10))]
    pub replication_factor: i32,
    /// Ports that the brokers advertise, where those are others than the ports of `bootstrap`. Services that use Kafka may connect
    /// to the ports of both.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "set"), inner(range(min = 1, max = 65535)))]
    pub listener_ports: Vec<i32>,
}

fn three() -> i32 {
    3
}

/// Where images come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Images {
    /// What stands before the name of each image: `titan` gives `titan/order:<release>`.
    #[serde(default = "titan")]
    #[schemars(length(min = 1, max = 255))]
    pub repository: String,
    /// The tag of the image that PostgreSQL and Redis run from, `<repository>/postgres:<tag>`.
    #[serde(default = "postgres_tag")]
    #[schemars(length(min = 1, max = 128))]
    pub postgres_tag: String,
    /// When nodes pull images.
    #[serde(default)]
    pub pull_policy: PullPolicy,
    /// Secrets of type `kubernetes.io/dockerconfigjson` in the operator's namespace, with which nodes log in to the registry. The
    /// operator copies them into the namespace of each cell, as `image-pull.<name>`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "set"), inner(length(min = 1, max = 240), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")))]
    pub pull_secrets: Vec<String>,
}

impl Default for Images {
    fn default() -> Self {
        Images {
            repository: titan(),
            postgres_tag: postgres_tag(),
            pull_policy: PullPolicy::default(),
            pull_secrets: Vec::new(),
        }
    }
}

fn titan() -> String {
    "titan".to_owned()
}

fn postgres_tag() -> String {
    "15".to_owned()
}

/// When a node pulls an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// When the node does not have it.
    #[default]
    IfNotPresent,
    /// At every start of a pod.
    Always,
    /// Never.
    Never,
}

/// What the pods of all cells have beyond what their services need.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pods {
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// The PriorityClass of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// Annotations of the pods, for example those that a service mesh reads. A change replaces all pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = Rule::new("self.all(name, !name.startsWith('titan.dev/'))").message("annotations that start with titan.dev/ are the operator's"))]
    pub annotations: BTreeMap<String, String>,
    /// Who chooses the user and group ids that the pods run as.
    #[serde(default)]
    pub user_ids: UserIds,
}

/// Who chooses the ids that pods run as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UserIds {
    /// The operator: each pod runs as the user that its image was made for.
    #[default]
    Image,
    /// The platform gives ids to each namespace, as OpenShift does: the operator sets no `runAsUser`, `runAsGroup` and `fsGroup`.
    Platform,
}

/// Where cells find what lies outside of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// Ports on which the apiserver listens, behind its Service and on its nodes. Patroni keeps the leader of PostgreSQL there.
    #[serde(default = "apiserver_ports")]
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "set"), inner(range(min = 1, max = 65535)))]
    pub apiserver_ports: Vec<i32>,
    /// The DNS servers of the cluster.
    #[serde(default)]
    pub dns: Dns,
}

impl Default for Network {
    fn default() -> Self {
        Network {
            apiserver_ports: apiserver_ports(),
            dns: Dns::default(),
        }
    }
}

fn apiserver_ports() -> Vec<i32> {
    vec![443, 6443]
}

/// The DNS servers of a cluster. A node-local cache at 169.254.20.10 is always allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Dns {
    /// The namespace of their pods.
    #[serde(default = "kube_system")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Labels of their pods; every pod of the namespace where none are given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub pod_labels: BTreeMap<String, String>,
    /// The ports on which their pods listen, by UDP and TCP.
    #[serde(default = "dns_ports")]
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "set"), inner(range(min = 1, max = 65535)))]
    pub ports: Vec<i32>,
}

impl Default for Dns {
    fn default() -> Self {
        Dns {
            namespace: kube_system(),
            pod_labels: BTreeMap::new(),
            ports: dns_ports(),
        }
    }
}

fn kube_system() -> String {
    "kube-system".to_owned()
}

fn dns_ports() -> Vec<i32> {
    vec![53]
}

/// A row of cells, made by the operator: `<namePrefix>-001`, `-002` and so on, each with the next `usersPerCell` keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.firstKey == oldSelf.firstKey && self.usersPerCell == oldSelf.usersPerCell && self.namePrefix == oldSelf.namePrefix").message("namePrefix, firstKey and usersPerCell cannot be changed: the cells that exist already were cut by them"))]
pub struct CellTemplate {
    /// How many cells. Raising it makes cells; lowering it deletes none: delete Cells by name.
    #[schemars(range(min = 0, max = 10000))]
    pub count: i32,
    /// What the cells' names start with.
    #[serde(default = "cell")]
    #[schemars(
        length(min = 1, max = 30),
        regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name_prefix: String,
    /// The first key of the first cell.
    #[serde(default)]
    #[schemars(range(min = 0), extend("format" = "int64"))]
    pub first_key: i64,
    /// How many keys each cell gets.
    #[serde(default = "ten_thousand")]
    #[schemars(range(min = 1), extend("format" = "int64"))]
    pub users_per_cell: i64,
    /// What each cell is.
    pub spec: CellTemplateSpec,
}

fn cell() -> String {
    "cell".to_owned()
}

fn ten_thousand() -> i64 {
    10_000
}

/// The spec of a Cell without what differs from cell to cell: its fleet and its range.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CellTemplateSpec {
    /// The ServiceProfile of the cells.
    #[schemars(length(min = 1, max = 253))]
    pub profile: String,
    /// The image tag of all services.
    #[schemars(
        length(min = 1, max = 128),
        regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    )]
    pub release: String,
    /// What the cells do differently from the profile, by service.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub overrides: BTreeMap<String, ServiceOverride>,
    /// Where the cells run.
    #[serde(default)]
    pub placement: Placement,
    /// What the cells' stores do differently from the profile.
    #[serde(default)]
    pub databases: Databases,
    /// Who serves a range when its cell's compute fails.
    #[serde(default)]
    pub failover: Failover,
    /// What happens to data when a Cell is deleted.
    #[serde(default)]
    pub reclaim_policy: ReclaimPolicy,
}

/// What the operator last saw of a fleet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CellFleetStatus {
    /// The generation of the spec that this status speaks of; -1 before the first look.
    #[serde(default)]
    pub observed_generation: i64,
    /// Ready, Reconciling, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// How many cells the fleet has.
    #[serde(default)]
    pub cells: i32,
    /// How many of them are Ready.
    #[serde(default)]
    pub ready_cells: i32,
    /// The epoch of the committed routing table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub epoch: Option<u64>,
}
