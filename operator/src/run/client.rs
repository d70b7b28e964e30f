//! Clients of the apiserver, by what they are for.
//!
//! kube's own retries are off: they sit below every layer that is added to a client, where a request sleeps for minutes with a
//! permit in its hand, and a write that was let through once is sent again after leadership was lost.

use std::time::Duration;

use kube::client::ClientBuilder;
use kube::client::retry::RetryPolicy;
use kube::{Client, Config};
use tower::buffer::BufferLayer;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::retry::RetryLayer;

use crate::run::leadership::{GateLayer, WriteGate};

/// Requests to the apiserver that are under way at once, of all passes. More make neither side faster, and each has a
/// connection of its own, which costs memory on both.
const REQUESTS_AT_ONCE: usize = 24;
/// Requests that wait for their turn.
const QUEUED: usize = 1024;
/// How often a request is sent again that the apiserver was too busy for (429, 503, 504), and the pauses before.
const RETRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long to wait for a connection. The apiserver is near.
const CONNECT: Duration = Duration::from_secs(5);

/// For the Lease alone, so that a renewal never waits behind other requests. Whoever asks bounds the time of each request.
///
/// # Errors
/// When the configuration is not one that a client can be made of.
pub fn for_lease(config: Config) -> Result<Client, kube::Error> {
    Client::try_from(plain(config))
}

/// For reading what every replica follows.
///
/// # Errors
/// As [`for_lease`].
pub fn for_reading(config: Config) -> Result<Client, kube::Error> {
    let builder = ClientBuilder::try_from(plain(config))?;
    Ok(builder.with_layer(&GateLayer(WriteGate::closed())).build())
}

/// For one term as leader. Each try of a request asks the gate, and holds one of the permits only while it is under way.
///
/// # Errors
/// As [`for_lease`].
pub fn for_term(config: Config, gate: WriteGate) -> Result<Client, kube::Error> {
    let policy = RetryPolicy::new(FIRST_PAUSE, LONGEST_PAUSE, RETRIES, true);
    // The pauses are valid ones; were they not, requests would be sent once.
    let retries = policy.ok().map(RetryLayer::new);
    let builder = ClientBuilder::try_from(plain(config))?;
    Ok(builder
        // So that each try can have a service of its own.
        .with_layer(&BufferLayer::new(QUEUED))
        .with_layer(&GlobalConcurrencyLimitLayer::new(REQUESTS_AT_ONCE))
        .with_layer(&GateLayer(gate))
        .with_layer(&tower::util::option_layer(retries))
        .build())
}

fn plain(mut config: Config) -> Config {
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT);
    config
}
