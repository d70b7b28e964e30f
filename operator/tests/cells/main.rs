//! The operator against a real apiserver, a real PostgreSQL, Redis and Kafka.
//!
//! Reconciles are called one by one, not by watches, so that a test decides what the operator sees and where it dies. There
//! are no nodes: what the controller-manager and kubelets would do for Deployments and Jobs, a few lines of the harness do.
//! Real pods are the business of the scenarios in `e2e`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

#[path = "../stores/book.rs"]
mod book;
mod clusters;
mod crash;
mod data_home;
mod deletion;
mod essence;
mod fields;
mod foreign;
mod harness;
mod homes;
mod lifecycle;
mod marks;
mod observer;
mod outside;
mod patroni;
mod refusals;
mod schema;
mod stale;
mod tables;
mod volumes;
