//! What is wrong with a configuration that can be read.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Config, Span, TrustedPeers};

/// The most that `limits.headerBytes` may be. Pods whose HTTP/2 is h2 (tonic, hyper) end the connection, which everybody
/// shares, over a head of more than 64 KiB. The router adds some 300 bytes.
const MOST_HEADER_BYTES: u32 = 60 * 1024;

impl Config {
    /// What does not fit together, as sentences.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut say = |wrong: bool, what: &str| {
            if wrong {
                problems.push(what.to_owned());
            }
        };
        say(
            !self.admin.ip().is_loopback(),
            "`admin` must be a loopback address: it shows where users live",
        );
        let has_client_ca = self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        say(
            self.trusted_peers == TrustedPeers::Secret
                && self.trust_secret_file.is_none()
                && !has_client_ca,
            "`trustedPeers: secret` needs `trustSecretFile` or `tls.clientCa`",
        );
        say(
            self.trusted_peers == TrustedPeers::None && self.trust_secret_file.is_some(),
            "`trustSecretFile` has no effect with `trustedPeers: none`; set `trustedPeers: secret`",
        );
        say(
            self.limits.header_bytes < 1024,
            "`limits.headerBytes` must be at least 1024",
        );
        say(
            self.limits.header_bytes > MOST_HEADER_BYTES,
            &format!(
                "`limits.headerBytes` must not be above {MOST_HEADER_BYTES}: pods on tonic or hyper end the connection of everybody over a head of more than 65536 bytes, and the router adds to it"
            ),
        );
        say(
            self.upstream.min_ttl.0 > self.upstream.max_ttl.0,
            "`upstream.minTtl` must not be above `upstream.maxTtl`",
        );
        say(
            self.breaker.open.0 > self.breaker.max_open.0,
            "`breaker.open` must not be above `breaker.maxOpen`",
        );
        say(
            !(10..=100).contains(&self.breaker.slow_percent),
            "`breaker.slowPercent` must be from 10 to 100",
        );
        for (name, after) in &self.breaker.slow_after {
            say(
                !self.services.contains_key(name),
                &format!("`breaker.slowAfter.{name}` is not one of `services`"),
            );
            say(
                after.0.is_zero(),
                &format!("`breaker.slowAfter.{name}` must be at least 1ms"),
            );
        }
        say(
            self.retry.budget_percent > 100,
            "`retry.budgetPercent` must not be above 100",
        );
        for (name, count) in self.counts() {
            say(count == 0, &format!("`{name}` must be at least 1"));
        }
        for (name, span, least) in self.spans() {
            let wrong = span.0 < least;
            say(wrong, &format!("`{name}` must be at least {least:?}"));
        }
        if let Some(jwt) = &self.jwt {
            let known = ["http://", "https://", "file:///"];
            say(
                !known.iter().any(|scheme| jwt.jwks.starts_with(scheme)),
                "`jwt.jwks` must start with http://, https:// or file:///",
            );
            say(
                jwt.jwks.starts_with("https://") && jwt.ca.is_none(),
                "`jwt.jwks` with https:// needs `jwt.ca`, a file with the CA's certificates",
            );
        }
        let mut packages = BTreeSet::new();
        for (name, service) in &self.services {
            say(
                !is_dns_label(name),
                &format!("`services.{name}` is not a DNS label: use a-z, 0-9 and `-`"),
            );
            say(
                service.port == 0,
                &format!("`services.{name}` needs a port from 1 to 65535"),
            );
            say(
                !packages.insert(name.replace('-', "_")),
                &format!("`services.{name}` has the same gRPC package as another service"),
            );
        }
        problems
    }

    /// Numbers that cannot be nothing.
    fn counts(&self) -> [(&'static str, u64); 5] {
        let (limits, upstream) = (&self.limits, &self.upstream);
        [
            ("limits.connections", limits.connections as u64),
            (
                "limits.streamsPerConnection",
                limits.streams_per_connection.into(),
            ),
            ("limits.inFlight", limits.in_flight as u64),
            (
                "upstream.connectionsPerPod",
                upstream.connections_per_pod as u64,
            ),
            (
                "upstream.streamsPerConnection",
                upstream.streams_per_connection as u64,
            ),
        ]
    }

    /// Times that cannot be nothing, and how long they must be: with less, something would be done without a pause, or
    /// nothing would ever be in time.
    fn spans(&self) -> Vec<(&'static str, Span, Duration)> {
        let (limits, upstream) = (&self.limits, &self.upstream);
        let (moment, second) = (Duration::from_millis(1), Duration::from_secs(1));
        let mut spans = vec![
            ("limits.headerTimeout", limits.header_timeout, moment),
            ("limits.idle", limits.idle, second),
            ("limits.stalled", limits.stalled, second),
            ("upstream.connectTimeout", upstream.connect_timeout, moment),
            (
                "upstream.minTtl",
                upstream.min_ttl,
                Duration::from_millis(100),
            ),
            ("upstream.keepAlive", upstream.keep_alive, second),
            ("upstream.idle", upstream.idle, second),
            ("breaker.open", self.breaker.open, moment),
        ];
        if let Some(jwt) = &self.jwt {
            spans.push(("jwt.refresh", jwt.refresh, second));
        }
        spans
    }
}

fn is_dns_label(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 63
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}
