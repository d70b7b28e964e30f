//! The topics of cells in the fleet's Kafka.
//!
//! Topics are looked up by name, one small request each, so that the cost of a reconcile grows with the cell and not
//! with the fleet. Partitions only ever grow. Of a topic's configuration only the keys that the profile sets are
//! ours; others, set by hand, stay.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigSource, NewPartitions, NewTopic,
    OwnedResourceSpecifier, ResourceSpecifier, TopicReplication, TopicResult,
};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::metadata::MetadataTopic;
use titan_planner::cell::KafkaTopic;

use crate::ledger::{Ledger, System, Write};
use crate::stores::{Result, StoreError};

/// How long a look may take in all: a Kafka that is there answers in milliseconds.
const LOOK: Duration = Duration::from_secs(4);
/// How long an admin request may take.
const REQUEST: Duration = Duration::from_secs(5);

/// The administrator of one Kafka. It holds connections and threads, so one is shared by all cells.
pub struct KafkaAdmin {
    client: Arc<AdminClient<Quiet>>,
    bootstrap: String,
}

/// What was found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicReport {
    /// Topics that were made.
    pub created: Vec<String>,
    /// Topics that differ in a way that cannot be changed in place, each in a sentence for people.
    pub warnings: Vec<String>,
    /// Writes; 0 when nothing had drifted.
    pub writes: usize,
}

/// librdkafka repeats itself while a broker is away; what matters comes back as an error of the call.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, "{reason}");
    }
}

impl KafkaAdmin {
    /// A client; it connects when it is first used.
    ///
    /// # Errors
    /// The address cannot be one.
    pub fn new(bootstrap: &str) -> Result<Self> {
        let client = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("client.id", "titan-operator")
            // A look at a topic must not make it.
            .set("allow.auto.create.topics", "false")
            // Back within a second once the broker is.
            .set("reconnect.backoff.ms", "100")
            .set("reconnect.backoff.max.ms", "1000")
            .set("socket.connection.setup.timeout.ms", "3000")
            .create_with_context(Quiet)
            .map_err(|error: KafkaError| StoreError::Invalid {
                system: System::Kafka,
                message: format!(
                    "Kafka bootstrap {bootstrap:?} cannot be used: {error}. It is a list of host:port, separated by \
                     commas"
                ),
            })?;
        Ok(Self {
            client: Arc::new(client),
            bootstrap: bootstrap.to_owned(),
        })
    }

    /// Brings topics to where they should be: makes, grows and configures them.
    ///
    /// # Errors
    /// Kafka cannot be reached, refuses, or has fewer brokers than a new topic needs. In the last case nothing has
    /// been written.
    pub async fn ensure(&self, topics: &[KafkaTopic], ledger: &dyn Ledger) -> Result<TopicReport> {
        if topics.is_empty() {
            return Ok(TopicReport::default());
        }
        let (brokers, found) = self.look(topics).await?;
        let plan = plan(topics, brokers, &found).map_err(|message| StoreError::Invalid {
            system: System::Kafka,
            message: format!("Kafka at {}: {message}", self.bootstrap),
        })?;
        let mut report = TopicReport {
            warnings: plan.warnings,
            ..TopicReport::default()
        };
        if !plan.create.is_empty() {
            report.created = self.create(&plan.create, ledger).await?;
            report.writes += usize::from(!report.created.is_empty());
        }
        if !plan.grow.is_empty() {
            self.grow(&plan.grow, ledger).await?;
            report.writes += 1;
        }
        if !plan.alter.is_empty() {
            self.alter(&plan.alter, ledger).await?;
            report.writes += 1;
        }
        Ok(report)
    }

    /// The topics of a cell, whoever made them.
    ///
    /// # Errors
    /// Kafka cannot be reached.
    pub async fn existing(&self, cell: &str) -> Result<Vec<String>> {
        let prefix = format!("titan.{cell}.");
        let client = Arc::clone(&self.client);
        let all = self
            .blocking(move || {
                let metadata = client.inner().fetch_metadata(None, LOOK)?;
                let names = metadata.topics().iter().map(MetadataTopic::name);
                Ok(names
                    .filter(|name| name.starts_with(&prefix))
                    .map(str::to_owned)
                    .collect::<Vec<_>>())
            })
            .await;
        let mut names = all?;
        names.sort();
        Ok(names)
    }

    /// Deletes topics with all their events. Those that are gone already are no error. Returns those that it deleted.
    ///
    /// # Errors
    /// Kafka cannot be reached or refuses.
    pub async fn delete(&self, topics: &[String], ledger: &dyn Ledger) -> Result<Vec<String>> {
        if topics.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        ledger.may_write()?;
        let outcome = self.client.delete_topics(&names, &options()).await;
        let gone = [
            RDKafkaErrorCode::UnknownTopicOrPartition,
            RDKafkaErrorCode::UnknownTopic,
        ];
        self.settle("delete", "delete topics", outcome, &gone, ledger)
    }

    /// Looks at each topic: how many brokers there are, and what is there of the topics.
    async fn look(&self, topics: &[KafkaTopic]) -> Result<(usize, BTreeMap<String, Found>)> {
        let client = Arc::clone(&self.client);
        let names: Vec<String> = topics.iter().map(|topic| topic.name.clone()).collect();
        let (brokers, mut found) = self
            .blocking(move || {
                let deadline = Instant::now() + LOOK;
                let mut brokers = 0;
                let mut found = BTreeMap::new();
                for name in names {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let metadata = client.inner().fetch_metadata(Some(&name), left)?;
                    brokers = metadata.brokers().len();
                    let topic = metadata.topics().iter().find(|topic| topic.name() == name);
                    if let Some(topic) = topic
                        && let Some(state) = state(topic)?
                    {
                        found.insert(name, state);
                    }
                }
                Ok((brokers, found))
            })
            .await?;
        let names: Vec<String> = found.keys().cloned().collect();
        let wanted: Vec<_> = names.iter().map(|n| ResourceSpecifier::Topic(n)).collect();
        if wanted.is_empty() {
            return Ok((brokers, found));
        }
        let described = self.client.describe_configs(&wanted, &options()).await;
        let described =
            described.map_err(|error| self.classify("read topic configurations", &error))?;
        for resource in described.into_iter().flatten() {
            let OwnedResourceSpecifier::Topic(name) = &resource.specifier else {
                continue;
            };
            let Some(topic) = found.get_mut(name) else {
                continue;
            };
            for entry in resource.entries {
                let Some(value) = entry.value else { continue };
                if entry.source == ConfigSource::DynamicTopic {
                    topic.set.insert(entry.name.clone(), value.clone());
                }
                topic.config.insert(entry.name, value);
            }
        }
        Ok((brokers, found))
    }

    async fn create(&self, topics: &[&KafkaTopic], ledger: &dyn Ledger) -> Result<Vec<String>> {
        let new: Vec<NewTopic<'_>> = topics
            .iter()
            .map(|topic| {
                let replication = TopicReplication::Fixed(topic.replication_factor);
                let new = NewTopic::new(&topic.name, topic.partitions, replication);
                topic
                    .config
                    .iter()
                    .fold(new, |new, (key, value)| new.set(key, value))
            })
            .collect();
        ledger.may_write()?;
        let outcome = self.client.create_topics(&new, &options()).await;
        let there = [RDKafkaErrorCode::TopicAlreadyExists];
        self.settle("create", "create topics", outcome, &there, ledger)
    }

    async fn grow(&self, topics: &[(&str, usize)], ledger: &dyn Ledger) -> Result<()> {
        let new: Vec<_> = topics
            .iter()
            .map(|(name, count)| NewPartitions::new(name, *count))
            .collect();
        ledger.may_write()?;
        let outcome = self.client.create_partitions(&new, &options()).await;
        self.settle("grow", "grow partitions", outcome, &[], ledger)?;
        Ok(())
    }

    /// Sets configurations. This request replaces all of a topic's keys, so they come merged.
    async fn alter(
        &self,
        topics: &[(&str, BTreeMap<String, String>)],
        ledger: &dyn Ledger,
    ) -> Result<()> {
        let new: Vec<AlterConfig<'_>> = topics
            .iter()
            .map(|(name, config)| {
                let alter = AlterConfig::new(ResourceSpecifier::Topic(name));
                config
                    .iter()
                    .fold(alter, |alter, (key, value)| alter.set(key, value))
            })
            .collect();
        ledger.may_write()?;
        let outcome = self.client.alter_configs(&new, &options()).await;
        let named = |specifier| match specifier {
            OwnedResourceSpecifier::Topic(name) | OwnedResourceSpecifier::Group(name) => name,
            OwnedResourceSpecifier::Broker(id) => format!("broker {id}"),
        };
        let outcome = outcome.map(|results| {
            let results = results.into_iter();
            results
                .map(|result| match result {
                    Ok(specifier) => Ok(named(specifier)),
                    Err((specifier, code)) => Err((named(specifier), code)),
                })
                .collect()
        });
        self.settle("configure", "configure topics", outcome, &[], ledger)?;
        Ok(())
    }

    /// Enters what a request did in the ledger, as one write, and reports the first topic that it failed for.
    fn settle(
        &self,
        verb: &'static str,
        doing: &str,
        outcome: KafkaResult<Vec<TopicResult>>,
        accepted: &[RDKafkaErrorCode],
        ledger: &dyn Ledger,
    ) -> Result<Vec<String>> {
        let results = outcome.map_err(|error| self.classify(doing, &error))?;
        let mut done = Vec::new();
        let mut failed = None;
        for result in results {
            match result {
                Ok(name) => done.push(name),
                Err((_, code)) if accepted.contains(&code) => {}
                Err((name, code)) => failed = failed.or(Some((name, code))),
            }
        }
        if !done.is_empty() {
            let target = format!("topics {}", done.join(", "));
            let system = System::Kafka;
            ledger.record(Write {
                system,
                verb,
                target,
            })?;
        }
        match failed {
            None => Ok(done),
            Some((name, code)) => {
                Err(self.classify(&format!("{verb} topic {name}"), &KafkaError::AdminOp(code)))
            }
        }
    }

    /// Runs a call that waits on its own thread.
    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> KafkaResult<T> + Send + 'static,
    ) -> Result<T> {
        match tokio::task::spawn_blocking(call).await {
            Ok(outcome) => outcome.map_err(|error| self.classify("list topics", &error)),
            Err(error) => Err(self.unreachable(format!("the call was cut off: {error}"))),
        }
    }

    fn classify(&self, doing: &str, error: &KafkaError) -> StoreError {
        use RDKafkaErrorCode as Code;
        let code = match error {
            KafkaError::AdminOp(code) => Some(*code),
            error => error.rdkafka_error_code(),
        };
        let address = self.bootstrap.clone();
        match code {
            None | Some(Code::BrokerTransportFailure | Code::AllBrokersDown | Code::Resolve) => {
                self.unreachable(format!("no broker answered ({error})"))
            }
            Some(
                Code::OperationTimedOut
                | Code::RequestTimedOut
                | Code::NotController
                | Code::LeaderNotAvailable
                | Code::BrokerNotAvailable
                | Code::NetworkException
                | Code::ThrottlingQuotaExceeded,
            ) => self.unreachable(format!("not now ({error})")),
            Some(
                Code::Authentication
                | Code::SaslAuthenticationFailed
                | Code::TopicAuthorizationFailed
                | Code::ClusterAuthorizationFailed,
            ) => StoreError::Auth {
                system: System::Kafka,
                address,
                detail: format!("to {doing}: {error}"),
            },
            Some(_) => StoreError::Refused {
                system: System::Kafka,
                address,
                doing: doing.to_owned(),
                detail: error.to_string(),
            },
        }
    }

    fn unreachable(&self, detail: String) -> StoreError {
        StoreError::Unreachable {
            system: System::Kafka,
            address: self.bootstrap.clone(),
            detail,
        }
    }
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(REQUEST))
        .operation_timeout(Some(REQUEST))
}

/// A topic as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    partitions: usize,
    replicas: usize,
    /// All configuration that is in force.
    config: BTreeMap<String, String>,
    /// What of it was set for this topic.
    set: BTreeMap<String, String>,
}

/// What the metadata say of a topic; None where it does not exist.
fn state(topic: &MetadataTopic) -> KafkaResult<Option<Found>> {
    use rdkafka::types::RDKafkaRespErr as Answer;
    match topic.error() {
        // A leader being elected is no reason to think less of the topic.
        None | Some(Answer::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE) => {}
        Some(
            Answer::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
            | Answer::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC,
        ) => return Ok(None),
        Some(error) => return Err(KafkaError::MetadataFetch(error.into())),
    }
    let partitions = topic.partitions();
    if partitions.is_empty() {
        return Ok(None);
    }
    Ok(Some(Found {
        partitions: partitions.len(),
        replicas: partitions.first().map_or(0, |first| first.replicas().len()),
        ..Found::default()
    }))
}

/// What has to be done.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan<'a> {
    create: Vec<&'a KafkaTopic>,
    grow: Vec<(&'a str, usize)>,
    alter: Vec<(&'a str, BTreeMap<String, String>)>,
    warnings: Vec<String>,
}

fn plan<'a>(
    topics: &'a [KafkaTopic],
    brokers: usize,
    found: &BTreeMap<String, Found>,
) -> Result<Plan<'a>, String> {
    let mut plan = Plan::default();
    for topic in topics {
        let KafkaTopic {
            name,
            partitions,
            replication_factor,
            config,
        } = topic;
        let (wanted, replicas) = (count(*partitions), count(*replication_factor));
        let Some(found) = found.get(name) else {
            if replicas > brokers {
                return Err(format!(
                    "topic {name} is to have {replicas} copies of each partition and there are {brokers} brokers: \
                     add brokers, or set a replication factor of {brokers} or less in the CellFleet"
                ));
            }
            plan.create.push(topic);
            continue;
        };
        if found.partitions < wanted {
            plan.grow.push((name, wanted));
        } else if found.partitions > wanted {
            plan.warnings.push(format!(
                "topic {name} has {} partitions and should have {wanted}: partitions are never taken away, for that \
                 would move keys and lose events; set {} in the profile, or make a topic of another name",
                found.partitions, found.partitions
            ));
        }
        if found.replicas != replicas {
            plan.warnings.push(format!(
                "topic {name} has {} copies of each partition and should have {replicas}: reassign its partitions \
                 with Kafka's own tools",
                found.replicas
            ));
        }
        let differs = |(key, value): (&String, &String)| found.config.get(key) != Some(value);
        // Nothing known of it means that it is too young to be described, not that nothing is set.
        if !found.config.is_empty() && config.iter().any(differs) {
            let mut merged = found.set.clone();
            merged.extend(config.clone());
            plan.alter.push((name, merged));
        }
    }
    Ok(plan)
}

fn count(value: i32) -> usize {
    usize::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    fn topic(partitions: i32, replication_factor: i32) -> KafkaTopic {
        KafkaTopic {
            name: "titan.cell-001.order.events".to_owned(),
            partitions,
            replication_factor,
            config: config(&[("retention.ms", "1000")]),
        }
    }

    fn found(partitions: usize, set: &[(&str, &str)]) -> BTreeMap<String, Found> {
        let state = Found {
            partitions,
            replicas: 1,
            config: [config(&[("segment.bytes", "7")]), config(set)]
                .into_iter()
                .flatten()
                .collect(),
            set: config(set),
        };
        BTreeMap::from([("titan.cell-001.order.events".to_owned(), state)])
    }

    #[test]
    fn a_topic_as_it_should_be_needs_nothing() {
        let topics = [topic(3, 1)];
        let found = found(3, &[("retention.ms", "1000")]);
        assert_eq!(plan(&topics, 1, &found).unwrap(), Plan::default());
    }

    #[test]
    fn keys_that_are_not_ours_survive_a_change() {
        let topics = [topic(3, 1)];
        let found = found(3, &[("retention.ms", "5"), ("max.message.bytes", "99")]);
        let merged = config(&[("max.message.bytes", "99"), ("retention.ms", "1000")]);
        let plan = plan(&topics, 1, &found).unwrap();
        assert_eq!(plan.alter, [("titan.cell-001.order.events", merged)]);
    }

    #[test]
    fn partitions_grow_and_never_shrink() {
        let (more, fewer) = ([topic(6, 1)], [topic(2, 1)]);
        let found = found(3, &[("retention.ms", "1000")]);
        let grown = plan(&more, 1, &found).unwrap();
        assert_eq!(grown.grow, [("titan.cell-001.order.events", 6)]);
        let kept = plan(&fewer, 1, &found).unwrap();
        assert_eq!(kept.grow, []);
        assert!(kept.warnings[0].contains("never taken away"));
    }

    #[test]
    fn more_copies_than_brokers_is_refused_for_new_topics_and_noted_for_old_ones() {
        let topics = [topic(3, 3)];
        let refused = plan(&topics, 1, &BTreeMap::new()).unwrap_err();
        assert!(
            refused.contains("3 copies of each partition and there are 1 brokers"),
            "{refused}"
        );
        let found = found(3, &[("retention.ms", "1000")]);
        assert_eq!(plan(&topics, 1, &found).unwrap().warnings.len(), 1);
    }
}
