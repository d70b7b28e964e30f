//! Kafka's jars, from Maven Central.

use std::fs;

use anyhow::{Context, Result};
use titan_testbed::cache;

use crate::progress::Progress;
use crate::{paths, shell};

/// Fetches the jars that are not in the cache.
pub fn ensure(progress: &Progress) -> Result<()> {
    let target = cache::tool_dir("kafka", cache::KAFKA).join("libs");
    if target.exists() {
        return Ok(());
    }
    progress.step(&format!("fetch Kafka {}", cache::KAFKA), |_| {
        let dir = cache::root().join("build/kafka");
        let partial = dir.join("libs");
        let _ = fs::remove_dir_all(&partial);
        let pom = dir.join("pom.xml");
        shell::write_if_changed(&pom, &project())?;
        let mut command = shell::command(&["mvn", "-q", "-B"]);
        command
            .arg("-f")
            .arg(&pom)
            .arg("org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies");
        command
            .arg("-DincludeScope=runtime")
            .arg(format!("-DoutputDirectory={}", partial.display()));
        shell::logged(&mut command, &paths::build_log("maven"))?;
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        }
        fs::rename(&partial, &target)
            .with_context(|| format!("move Kafka's jars to {}", target.display()))
    })
}

fn project() -> String {
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\">\n  <modelVersion>4.0.0</modelVersion>\n  \
         <groupId>dev.titan</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>\n  \
         <dependencies>\n    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>\
         <version>{}</version></dependency>\n  </dependencies>\n</project>\n",
        cache::KAFKA
    )
}
