//! Installing the chart, on the local cluster or on another one.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use titan_testbed::cache;

use crate::images;
use crate::{paths, shell};

/// A cluster to install on.
pub enum Target {
    /// The one that `up` starts.
    Local,
    /// A context of the user's kubeconfig.
    Context(String),
}

impl Target {
    /// kubectl against it.
    pub fn kubectl(&self, args: &[&str]) -> Command {
        match self {
            Target::Local => shell::kubectl(args),
            Target::Context(context) => {
                let mut command = Command::new(client("kubectl"));
                command.args(["--context", context]).args(args);
                command
            }
        }
    }

    fn helm(&self, args: &[&str]) -> Command {
        let mut command = match self {
            Target::Local => {
                let mut helm = Command::new(cache::executable("helm"));
                helm.env("KUBECONFIG", paths::kubeconfig());
                helm
            }
            Target::Context(context) => {
                let mut helm = Command::new(client("helm"));
                helm.args(["--kube-context", context]);
                helm
            }
        };
        command.args(args);
        command
    }
}

fn client(program: &str) -> PathBuf {
    shell::client(program).unwrap_or_else(|| program.into())
}

/// The values that an installation chooses.
pub struct Install<'a> {
    /// What stands before the images' names.
    pub repository: &'a str,
    /// The images' tag.
    pub tag: &'a str,
    /// Kafka's brokers.
    pub kafka: &'a str,
    /// Whether the router believes every `x-titan-key`.
    pub trust_everybody: bool,
    /// A name for the content of the images: pods are replaced when it is another one.
    pub run: String,
}

impl Install<'_> {
    /// `helm upgrade --install`.
    pub fn chart(&self, target: &Target) -> Result<()> {
        let chart = paths::repository().join("charts/titan");
        let chart = chart.display().to_string();
        let mut helm = target.helm(&["upgrade", "--install", "titan", &chart]);
        helm.args(["--namespace", "titan-system", "--create-namespace"]);
        for (name, value) in [
            ("images.repository", self.repository),
            ("images.tag", self.tag),
            ("kafka.bootstrap", self.kafka),
            ("operator.podAnnotations.titan\\.dev/images", &self.run),
            ("router.podAnnotations.titan\\.dev/images", &self.run),
        ] {
            helm.arg("--set-string")
                .arg(format!("{name}={}", value.replace(',', "\\,")));
        }
        if self.trust_everybody {
            helm.args(["--set", "router.trustedPeers=any"]);
        }
        shell::output(&mut helm)?;
        Ok(())
    }

    /// Waits until a Deployment of the chart is rolled out. The router is not before its fleet has a routing table.
    pub fn wait_available(&self, target: &Target, deployment: &str) -> Result<()> {
        let mut status = target.kubectl(&[
            "rollout",
            "status",
            deployment,
            "-n",
            "titan-system",
            "--timeout=180s",
        ]);
        shell::output(&mut status).map_err(|error| error.context(explain(target)))?;
        Ok(())
    }
}

/// A name for the content behind a tag, on this machine.
pub fn fingerprint(tag: &str) -> String {
    images::fingerprint().unwrap_or_else(|| tag.to_owned())
}

/// What a person would look at first when something does not become ready.
pub fn explain(target: &Target) -> String {
    let commands: [&[&str]; 3] = [
        &["get", "cells", "-o", "wide"],
        &["get", "pods", "--all-namespaces", "-o", "wide"],
        &[
            "get",
            "events",
            "--all-namespaces",
            "--field-selector=type=Warning",
            "--sort-by=.lastTimestamp",
        ],
    ];
    let mut text = String::new();
    for args in commands {
        let output =
            shell::output(&mut target.kubectl(args)).unwrap_or_else(|error| format!("{error:#}\n"));
        let lines: Vec<&str> = output.lines().collect();
        let last = lines[lines.len().saturating_sub(25)..].join("\n");
        text += &format!("$ kubectl {}\n{last}\n", args.join(" "));
    }
    text
}
