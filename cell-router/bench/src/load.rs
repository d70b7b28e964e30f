//! Load as fast as answers come, by `h2load`.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use crate::cores::Place;
use crate::proxies::{PATH, Shape};

/// How hard `h2load` pushes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Push {
    /// Requests.
    pub requests: u64,
    /// Connections.
    pub connections: u64,
    /// Requests at once on each connection.
    pub streams: u64,
}

/// What `h2load` saw.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pushed {
    /// Requests answered with 2xx.
    pub ok: u64,
    /// Requests that were not.
    pub failed: u64,
    /// Requests a second.
    pub per_second: f64,
}

/// Sends as fast as answers come.
pub fn push(address: SocketAddr, shape: Shape, push: Push, place: Place) -> Result<Pushed> {
    let body = tempfile::NamedTempFile::new()?;
    std::fs::write(body.path(), [0; 105])?;
    let mut command = Command::new("taskset");
    command
        .args(["-c", &place.list(), "h2load"])
        .args(["-t", "1"])
        .args(["-n", &push.requests.to_string()])
        .args(["-c", &push.connections.to_string()])
        .arg("-d")
        .arg(body.path())
        .args(["-H", "x-titan-key: 4242"]);
    match shape {
        Shape::Grpc => command
            .args(["-m", &push.streams.to_string()])
            .args(["-H", "content-type: application/grpc", "-H", "te: trailers"])
            .arg(format!("http://{address}{PATH}")),
        Shape::Http1 => command
            .arg("--h1")
            .args(["-m", "1"])
            .arg(format!("http://{address}{PATH}")),
    };
    let output = command
        .output()
        .context("h2load (package nghttp2-client)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let number = |line: &str, before: &str| -> Option<f64> {
        let head = line.split(before).next()?;
        head.split([' ', ','])
            .rfind(|word| !word.is_empty())?
            .parse()
            .ok()
    };
    let line = |start: &str| {
        text.lines()
            .find(|line| line.starts_with(start))
            .unwrap_or("")
    };
    let ok = number(line("status codes:"), " 2xx").unwrap_or(0.0);
    let per_second = number(line("finished in"), " req/s").unwrap_or(0.0);
    if ok == 0.0 {
        bail!(
            "h2load got no answer: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count"
    )]
    let ok = ok as u64;
    Ok(Pushed {
        ok,
        failed: push.requests.saturating_sub(ok),
        per_second,
    })
}
