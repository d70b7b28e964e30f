//! Redis, a single node or a cluster, behind one connection type.
//!
//! Keys are `{u:<owner>}:…`, so that all of an owner's keys lie in one slot. What must survive is in
//! PostgreSQL; an empty Redis is a slow one, not a broken one.

use std::time::Duration;

use ::redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use ::redis::cluster::{ClusterClient, ClusterClientBuilder};
use ::redis::cluster_async::ClusterConnection;
use ::redis::{
    Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Pipeline, RedisError,
    RedisFuture, TlsCertificates, Value,
};
use titan_routing::Key;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::config::RedisConfig;

const CONNECT: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_millis(500);

/// The cell's Redis.
#[derive(Clone, Debug)]
pub struct Redis {
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Single(ConnectionManager),
    Cluster(std::sync::Arc<Cluster>),
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Single(_) => "Single",
            Kind::Cluster(_) => "Cluster",
        })
    }
}

/// A cluster is connected to in the background: whoever wants a connection may give up waiting, and that does not
/// start it all over again.
struct Cluster {
    connection: watch::Receiver<Option<ClusterConnection>>,
    _task: AbortOnDropHandle<()>,
}

impl Cluster {
    fn connect(client: ClusterClient) -> Self {
        let (sender, connection) = watch::channel(None);
        let task = tokio::spawn(async move {
            loop {
                match client.get_async_connection().await {
                    Ok(connection) => {
                        sender.send_replace(Some(connection));
                        // It finds its own way back from now on.
                        return sender.closed().await;
                    }
                    Err(error) => tracing::warn!(%error, "cannot connect to the Redis cluster"),
                }
                tokio::time::sleep(CONNECT).await;
            }
        });
        Cluster {
            connection,
            _task: AbortOnDropHandle::new(task),
        }
    }
}

/// A connection, cheap to clone, that finds its way back after a failure.
#[derive(Clone)]
pub enum RedisConnection {
    /// To a single node.
    Single(ConnectionManager),
    /// To a cluster.
    Cluster(ClusterConnection),
}

fn is_tls(info: &ConnectionInfo) -> bool {
    matches!(info.addr(), ConnectionAddr::TcpTls { .. })
}

impl Redis {
    /// A client that connects when it is first used, or in the background. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the addresses cannot be read.
    pub fn new(config: &RedisConfig) -> Result<Self, RedisError> {
        let password = config.password.reveal();
        let infos = config
            .addrs
            .iter()
            .map(|address| {
                let info = address.as_str().into_connection_info()?;
                let mut settings = info.redis_settings().clone();
                if !config.username.is_empty() {
                    settings = settings.set_username(&config.username);
                }
                if !password.is_empty() {
                    settings = settings.set_password(password);
                }
                Ok(info.set_redis_settings(settings))
            })
            .collect::<Result<Vec<_>, RedisError>>()?;
        let certificates = TlsCertificates {
            client_tls: None,
            root_cert: (!config.ca.is_empty()).then(|| config.ca.clone().into_bytes()),
        };
        let kind = if config.cluster {
            let tls = infos.iter().any(is_tls);
            let mut client = ClusterClientBuilder::new(infos)
                .connection_timeout(CONNECT)
                .response_timeout(ANSWER)
                .retries(3)
                .max_retry_wait(200);
            if tls {
                client = client.certs(certificates);
            }
            Kind::Cluster(std::sync::Arc::new(Cluster::connect(client.build()?)))
        } else {
            let info = infos.into_iter().next().ok_or_else(|| {
                RedisError::from((
                    ::redis::ErrorKind::InvalidClientConfig,
                    "TITAN_REDIS_ADDRS names no address",
                ))
            })?;
            let settings = ConnectionManagerConfig::new()
                .set_connection_timeout(Some(CONNECT))
                .set_response_timeout(Some(ANSWER))
                .set_number_of_retries(1)
                .set_max_delay(Duration::from_millis(200));
            let client = if is_tls(&info) {
                Client::build_with_tls(info, certificates)?
            } else {
                Client::open(info)?
            };
            Kind::Single(ConnectionManager::new_lazy_with_config(client, settings)?)
        };
        Ok(Redis { kind })
    }

    /// A connection.
    ///
    /// # Errors
    /// When no node of a cluster answers.
    pub async fn connection(&self) -> Result<RedisConnection, RedisError> {
        match &self.kind {
            Kind::Single(manager) => Ok(RedisConnection::Single(manager.clone())),
            Kind::Cluster(cluster) => {
                let mut connection = cluster.connection.clone();
                let connected = tokio::time::timeout(CONNECT, connection.wait_for(Option::is_some));
                let connected = connected.await.ok().and_then(Result::ok);
                match connected.and_then(|found| found.clone()) {
                    Some(connection) => Ok(RedisConnection::Cluster(connection)),
                    None => Err(RedisError::from((
                        ::redis::ErrorKind::Io,
                        "no node of the Redis cluster has answered yet",
                    ))),
                }
            }
        }
    }
}

/// The name of a key of `owner`.
#[must_use]
pub fn owner_key(owner: Key, name: &str) -> String {
    format!("{{u:{owner}}}:{name}")
}

impl ConnectionLike for RedisConnection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            RedisConnection::Single(connection) => connection.req_packed_command(cmd),
            RedisConnection::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            RedisConnection::Single(connection) => {
                connection.req_packed_commands(cmd, offset, count)
            }
            RedisConnection::Cluster(connection) => {
                connection.req_packed_commands(cmd, offset, count)
            }
        }
    }

    fn get_db(&self) -> i64 {
        0
    }
}
