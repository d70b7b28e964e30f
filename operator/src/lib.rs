//! The operator of Titan Cells. A module's name says its stage: [`observe`] what is there, plan (crate `titan-planner`, pure),
//! [`commit`] the routing table, [`execute`] the rest. [`run`] wires the stages together, [`stores`] has the clients of
//! PostgreSQL, Patroni, Redis and Kafka.

pub mod commit;
pub mod error;
pub mod execute;
pub mod ledger;
pub mod metrics;
pub mod observe;
pub mod run;
pub mod stores;
