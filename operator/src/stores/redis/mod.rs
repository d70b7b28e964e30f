//! The Redis of a cell: that a server answers, and that a cluster is formed and stays whole.
//!
//! A pass looks at every node, [plans](plan()) and gives the commands, until nothing is left to do or the rest takes
//! longer than a reconcile should. A healthy cluster is only looked at.

mod plan;
#[cfg(test)]
mod simulation;
mod view;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::future::join_all;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, ConnectionAddr, ErrorKind, IntoConnectionInfo as _, RedisConnectionInfo,
    RedisError, RedisResult, TlsCertificates,
};
use titan_planner::cell::ServerCredentials;

pub use plan::{Action, Command, Plan, plan};
pub use view::{KnownNode, NodeState, NodeView, SLOTS, SlotRange, parse_nodes};

use crate::ledger::{Ledger, System, Write};
use crate::stores::{Result, StoreError};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(3);
/// How long a reconcile stays with a cluster that it has begun to change. Forming one takes about three seconds.
const SETTLE: Duration = Duration::from_secs(10);
/// The pause before the next look; gossip goes round several times a second.
const PAUSE: Duration = Duration::from_millis(100);

/// What was found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisReport {
    /// What is not yet as it should be while every slot is served, each in a phrase for people.
    pub waiting: Vec<String>,
    /// Writes; 0 when nothing had drifted.
    pub writes: usize,
}

/// Makes sure that a server of its own answers.
///
/// # Errors
/// It cannot be reached, or refuses the login.
pub async fn ensure_single(server: &ServerCredentials) -> Result<()> {
    let address = format!("{}:{}", server.host, server.port);
    let connected = if server.demands_tls() {
        connect_with_tls(server).await
    } else {
        let connected = connect(&address, login(&server.username, &server.password)).await;
        connected.map(|(_, connection)| connection)
    };
    let mut connection = connected.map_err(|error| classify(&address, "connect", &error))?;
    redis::cmd("PING")
        .exec_async(&mut connection)
        .await
        .map_err(|error| classify(&address, "PING", &error))
}

/// Forms a cluster of these nodes, half of them masters, or repairs it.
///
/// Nodes are names and addresses (`host:port`); the names only appear in messages. An error means that not every
/// slot is served; a cluster that serves while something is amiss, as when a replica is away, is reported as such.
///
/// # Errors
/// Too few nodes answer, one refuses the login or a command, or the cluster does not serve all slots yet.
pub async fn ensure_cluster(
    nodes: &[(String, String)],
    password: &str,
    ledger: &dyn Ledger,
) -> Result<RedisReport> {
    let address = nodes.first().map_or("", |(_, address)| address.as_str());
    let started = Instant::now();
    let mut writes = 0;
    loop {
        let looks = join_all(
            nodes
                .iter()
                .map(|(name, address)| look(name, address, password)),
        );
        let looks = looks.await.into_iter().collect::<Result<Vec<_>>>()?;
        let view: Vec<NodeView> = looks.iter().map(|look| look.view.clone()).collect();
        let plan = plan(&view, nodes.len() / 2);
        for command in &plan.commands {
            if let Some(look) = looks.iter().find(|look| look.view.name == command.on)
                && tell(look, command, ledger).await?
            {
                writes += 1;
            }
        }
        let at_work = writes > 0 && !plan.waiting.is_empty() && started.elapsed() < SETTLE;
        if at_work || !plan.commands.is_empty() && started.elapsed() < SETTLE {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        if plan.serves {
            let waiting = plan.waiting;
            return Ok(RedisReport { waiting, writes });
        }
        return Err(StoreError::Unreachable {
            system: System::Redis,
            address: address.to_owned(),
            detail: format!(
                "the cluster does not serve all slots yet: {}",
                plan.waiting.join("; ")
            ),
        });
    }
}

/// A node, and the connection to it where it answers.
struct Look {
    view: NodeView,
    address: String,
    connection: Option<MultiplexedConnection>,
}

/// Asks a node for its view. One that does not answer, or is loading its data, has none.
async fn look(name: &str, address: &str, password: &str) -> Result<Look> {
    let asked = async {
        let (address, mut connection) = connect(address, login("", password)).await?;
        let state = state(address, &mut connection).await?;
        Ok((connection, state))
    };
    let (connection, state) = match asked.await {
        Ok((connection, state)) => (Some(connection), Some(state)),
        Err(error) => match classify(address, "CLUSTER NODES", &error) {
            StoreError::Unreachable { .. } => (None, None),
            error => return Err(error),
        },
    };
    let name = name.to_owned();
    Ok(Look {
        view: NodeView { name, state },
        address: address.to_owned(),
        connection,
    })
}

async fn state(
    address: SocketAddr,
    connection: &mut MultiplexedConnection,
) -> RedisResult<NodeState> {
    let (nodes, info, keys, replication): (String, String, u64, String) = redis::pipe()
        .cmd("CLUSTER")
        .arg("NODES")
        .cmd("CLUSTER")
        .arg("INFO")
        .cmd("DBSIZE")
        .cmd("INFO")
        .arg("replication")
        .query_async(connection)
        .await?;
    let field = |text: &str, name: &str| -> Option<String> {
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = lines.find(|(key, _)| *key == name)?;
        Some(value.trim().to_owned())
    };
    let offset = field(&replication, "slave_repl_offset");
    Ok(NodeState {
        address,
        keys,
        offset: offset.and_then(|text| text.parse().ok()).unwrap_or(0),
        ok: field(&info, "cluster_state").as_deref() == Some("ok"),
        known: parse_nodes(&nodes),
    })
}

/// Gives a command and enters it in the ledger. Returns false where there was nothing to do after all.
async fn tell(look: &Look, command: &Command, ledger: &dyn Ledger) -> Result<bool> {
    let Some(mut connection) = look.connection.clone() else {
        return Ok(false);
    };
    let mut request = redis::cmd("CLUSTER");
    let (verb, target) = match &command.action {
        Action::Meet {
            name,
            address,
            bus_port,
        } => {
            let (ip, port) = (address.ip().to_string(), address.port());
            request.arg("MEET").arg(ip).arg(port).arg(bus_port);
            ("meet", format!("{name} from {}", command.on))
        }
        Action::AddSlots(slots) => {
            request.arg("ADDSLOTSRANGE");
            let mut listed = Vec::with_capacity(slots.len());
            for SlotRange { first, last } in slots {
                request.arg(*first).arg(*last);
                listed.push(format!("{first}-{last}"));
            }
            (
                "add slots",
                format!("{} to {}", listed.join(" "), command.on),
            )
        }
        Action::Replicate { name, id } => {
            request.arg("REPLICATE").arg(id);
            ("replicate", format!("{name} to {}", command.on))
        }
        Action::Takeover => {
            request.arg("FAILOVER").arg("TAKEOVER");
            ("take over", command.on.clone())
        }
        Action::Forget { id } => {
            request.arg("FORGET").arg(id);
            ("forget", format!("{id} on {}", command.on))
        }
    };
    ledger.may_write()?;
    match request.exec_async(&mut connection).await {
        Ok(()) => {}
        // Gossip was faster.
        Err(error) if verb == "forget" && error.to_string().contains("Unknown node") => {
            return Ok(false);
        }
        Err(error) => {
            let doing = format!("CLUSTER command on {}: {verb} {target}", command.on);
            return Err(classify(&look.address, &doing, &error));
        }
    }
    ledger.record(Write {
        system: System::Redis,
        verb,
        target,
    })?;
    Ok(true)
}

/// Connects, and says to which address: nodes meet by address, and only at one where the password was right.
async fn connect(
    address: &str,
    login: RedisConnectionInfo,
) -> RedisResult<(SocketAddr, MultiplexedConnection)> {
    let resolved = tokio::time::timeout(CONNECT, tokio::net::lookup_host(address)).await;
    let resolved = resolved.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    let target = resolved.into_iter().next().ok_or_else(|| {
        std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address")
    })?;
    let info = ConnectionAddr::Tcp(target.ip().to_string(), target.port())
        .into_connection_info()?
        .set_redis_settings(login);
    Ok((target, open(redis::Client::open(info)?).await?))
}

/// Connects to a server whose certificate is good for its name.
async fn connect_with_tls(server: &ServerCredentials) -> RedisResult<MultiplexedConnection> {
    let address = ConnectionAddr::TcpTls {
        host: server.host.clone(),
        port: server.port,
        insecure: false,
        tls_params: None,
    };
    let info = address
        .into_connection_info()?
        .set_redis_settings(login(&server.username, &server.password));
    let certificates = TlsCertificates {
        client_tls: None,
        root_cert: (!server.ca.is_empty()).then(|| server.ca.clone().into_bytes()),
    };
    open(redis::Client::build_with_tls(info, certificates)?).await
}

async fn open(client: redis::Client) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT))
        .set_response_timeout(Some(ANSWER));
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
}

fn login(username: &str, password: &str) -> RedisConnectionInfo {
    let mut login = RedisConnectionInfo::default().set_skip_set_lib_name();
    if !username.is_empty() {
        login = login.set_username(username);
    }
    if !password.is_empty() {
        login = login.set_password(password);
    }
    login
}

/// Sorts an error of the client or the server by what can be done about it.
fn classify(address: &str, doing: &str, error: &RedisError) -> StoreError {
    let (system, address, mut detail) = (System::Redis, address.to_owned(), error.to_string());
    if detail.contains("certificate") {
        detail.push_str(" (ca.crt in the Secret of the server says which authority to trust)");
    }
    let code = error.code().unwrap_or_default();
    let login = error.kind() == ErrorKind::AuthenticationFailed;
    if login || matches!(code, "NOAUTH" | "WRONGPASS" | "NOPERM") {
        return StoreError::Auth {
            system,
            address,
            detail,
        };
    }
    let later = matches!(
        code,
        "LOADING" | "CLUSTERDOWN" | "TRYAGAIN" | "MASTERDOWN" | "BUSY"
    );
    if later || error.is_io_error() || error.is_timeout() || error.is_connection_dropped() {
        return StoreError::Unreachable {
            system,
            address,
            detail,
        };
    }
    StoreError::Refused {
        system,
        address,
        doing: doing.to_owned(),
        detail,
    }
}
