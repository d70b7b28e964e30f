//! What a cell has outside of its namespace: topics, a database with its roles, its row in the table, and what an external
//! Redis holds of it.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ConfigSource, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, Row};
use titan_operator::stores::postgres::ownership;
use titan_testbed::Redis;

use crate::harness::{World, servers};

/// Roles of a cell, with all that they may do, and its databases.
const SERVER: &str = "\
SELECT format('role %s login=%s super=%s createdb=%s createrole=%s replication=%s bypassrls=%s in %s', rolname, \
  rolcanlogin, rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls, \
  ARRAY(SELECT pg_get_userbyid(roleid) FROM pg_auth_members WHERE member = r.oid)) \
FROM pg_roles r WHERE starts_with(rolname, $1) \
UNION ALL SELECT format('database %s %s', datname, datacl) FROM pg_database WHERE starts_with(datname, $1) ORDER BY 1";

/// Schemas of a database, its tables in schema `titan`, and the settings of its roles.
const DATABASE: &str = "\
SELECT format('schema %s of %s %s', nspname, pg_get_userbyid(nspowner), nspacl) FROM pg_namespace \
  WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' \
UNION ALL SELECT format('%s %s %s', relkind, relname, relacl) FROM pg_class WHERE relnamespace = to_regnamespace('titan') \
UNION ALL SELECT format('setting of %s: %s', pg_get_userbyid(setrole), setconfig) FROM pg_db_role_setting s \
  JOIN pg_database d ON d.oid = s.setdatabase WHERE datname = current_database() ORDER BY 1";

impl World {
    /// All of it, with the names of the world taken out.
    pub async fn outside(&self, number: i64) -> BTreeMap<String, Value> {
        self.outside_of(&self.cell_name(number)).await
    }

    /// All of it of a cell of this name.
    pub async fn outside_of(&self, cell: &str) -> BTreeMap<String, Value> {
        let database = cell.replace('-', "_");
        let (postgres, rows) = self.in_postgres(&database).await;
        let all = json!({
            "topics": topics(cell).await,
            "postgres": postgres,
            "ownership": rows,
            "redis": in_redis(cell).await,
            "row": self.row(cell).await,
        });
        let text = all
            .to_string()
            .replace(cell, "CELL")
            .replace(&database, "CELL")
            .replace(&self.name, "FLEET");
        serde_json::from_str(&text).unwrap()
    }

    /// Waits until all of it is as expected, for a broker learns of its own controller's decisions a moment later. Returns
    /// what there is.
    pub async fn outside_once(
        &self,
        number: i64,
        holds: impl Fn(&BTreeMap<String, Value>) -> bool,
    ) -> BTreeMap<String, Value> {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let outside = self.outside(number).await;
            if holds(&outside) || Instant::now() > deadline {
                return outside;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn in_postgres(&self, database: &str) -> (Vec<String>, Vec<String>) {
        let mut found = self.ask("postgres", SERVER, Some(database)).await;
        if !found.iter().any(|line| line.starts_with("database ")) {
            return (found, Vec::new());
        }
        found.extend(self.ask(database, DATABASE, None).await);
        if !found.iter().any(|line| line.starts_with("schema titan ")) {
            return (found, Vec::new());
        }
        let rows = ownership(&self.postgres(), database).await.unwrap();
        let rows = rows.iter().map(|row| {
            let length = row.range.last().as_i64() - row.range.first().as_i64();
            format!("{} {:?} {} keys {length}", row.cell, row.state, row.epoch)
        });
        (found, rows.collect())
    }

    /// Does something in a database as its administrator.
    pub async fn sql(&self, database: &str, sql: &str) {
        let mut connection = self.connect(database).await;
        let statement = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()));
        statement.execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    async fn connect(&self, database: &str) -> PgConnection {
        let server = self.postgres();
        let url = format!(
            "postgres://{}:{}@{}:{}/{database}",
            server.username, server.password, server.host, server.port
        );
        PgConnection::connect(&url).await.unwrap()
    }

    async fn ask(&self, database: &str, query: &'static str, prefix: Option<&str>) -> Vec<String> {
        let mut connection = self.connect(database).await;
        let query = prefix
            .into_iter()
            .fold(sqlx::query(query), sqlx::query::Query::bind);
        let rows = query.fetch_all(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    async fn row(&self, cell: &str) -> Value {
        let Some(table) = self.table().await else {
            return Value::Null;
        };
        let rows: Vec<Value> = table
            .spec
            .assignments
            .iter()
            .filter(|row| row.cell == cell || row.home == cell)
            .map(|row| {
                json!({
                    "cell": row.cell, "home": row.home, "state": format!("{:?}", row.state),
                    "epoch": row.epoch, "keys": row.last - row.first,
                })
            })
            .collect();
        json!({"epoch": table.spec.epoch, "rows": rows})
    }
}

/// Topics of a cell, with their partitions and the keys that were set.
async fn topics(cell: &str) -> BTreeMap<String, Value> {
    static ADMIN: OnceLock<AdminClient<DefaultClientContext>> = OnceLock::new();
    let admin = ADMIN.get_or_init(|| {
        ClientConfig::new()
            .set("bootstrap.servers", servers().kafka.bootstrap())
            .create()
            .unwrap()
    });
    let metadata = tokio::task::spawn_blocking(|| {
        admin
            .inner()
            .fetch_metadata(None, Duration::from_secs(20))
            .unwrap()
    });
    let metadata = metadata.await.unwrap();
    let prefix = format!("titan.{cell}.");
    let mut topics = BTreeMap::new();
    for topic in metadata.topics() {
        let name = topic.name();
        if !name.starts_with(&prefix) || topic.partitions().is_empty() {
            continue;
        }
        let wanted = [ResourceSpecifier::Topic(name)];
        let described = admin.describe_configs(&wanted, &AdminOptions::new()).await;
        let set: BTreeMap<String, Option<String>> = described
            .unwrap()
            .into_iter()
            .flatten()
            .flat_map(|resource| resource.entries)
            .filter(|entry| entry.source == ConfigSource::DynamicTopic)
            .map(|entry| (entry.name, entry.value))
            .collect();
        let partitions = topic.partitions().len();
        topics.insert(
            name.to_owned(),
            json!({"partitions": partitions, "set": set}),
        );
    }
    topics
}

/// Users of the Redis, and keys that name the cell. An external Redis is the services' own: the operator only asks whether
/// it answers.
async fn in_redis(cell: &str) -> Value {
    let redis: &Redis = &servers().redis;
    let client = redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let (users, keys): (Vec<String>, Vec<String>) = redis::pipe()
        .cmd("ACL")
        .arg("LIST")
        .cmd("KEYS")
        .arg(format!("*{cell}*"))
        .query_async(&mut connection)
        .await
        .unwrap();
    json!({"users": users, "keys": keys})
}
