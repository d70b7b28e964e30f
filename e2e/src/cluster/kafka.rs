//! Kafka on the node's address, which pods and the host reach alike.

use anyhow::Result;
use titan_testbed::kafka::Broker;

use super::part::Part;
use super::{KAFKA_PORT, NODE_IP, apply as apply_manifest};
use crate::paths;

/// The broker.
pub fn part() -> Result<Part> {
    let dir = paths::state("kafka");
    let (program, args) = {
        let broker = broker(&dir)?;
        broker.prepare()?;
        broker.command()?
    };
    Ok(Part {
        name: "kafka",
        program,
        args,
        config: vec![dir.join("server.properties")],
        port: Some(KAFKA_PORT),
        ready: Box::new(move || broker(&dir).is_ok_and(|broker| broker.accepts())),
    })
}

fn broker(dir: &std::path::Path) -> Result<Broker<'_>> {
    Ok(Broker {
        dir,
        address: NODE_IP.parse()?,
        port: KAFKA_PORT,
        controller_port: 9093,
        heap: 384,
    })
}

/// The name under which pods find it: `kafka.titan-system.svc`.
pub fn apply() -> Result<()> {
    apply_manifest(
        "kafka",
        &format!(
            "apiVersion: v1
kind: Namespace
metadata:
  name: titan-system
---
apiVersion: v1
kind: Service
metadata:
  name: kafka
  namespace: titan-system
spec:
  ports:
  - {{ name: kafka, port: {KAFKA_PORT} }}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: kafka-host
  namespace: titan-system
  labels: {{ kubernetes.io/service-name: kafka }}
addressType: IPv4
ports:
- {{ name: kafka, port: {KAFKA_PORT} }}
endpoints:
- addresses: [{NODE_IP}]
  conditions: {{ ready: true }}
"
        ),
    )
}
