//! Who wrote what, by the apiserver's own account.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};

/// What the operator creates that belongs to no cell.
const NOT_OF_CELLS: [&str; 4] = ["cells", "events", "routingtables", "leases"];

/// An answered write.
#[derive(Clone, Debug)]
pub struct Write {
    /// When the apiserver had it.
    pub received: DateTime<Utc>,
    /// When it had answered.
    pub answered: DateTime<Utc>,
    /// `create`, `update`, `patch`, `delete`.
    pub verb: String,
    /// The resource, with `/subresource` where there is one.
    pub resource: String,
    /// The HTTP status.
    pub code: u16,
}

impl Write {
    /// Whether it changed anything.
    pub fn succeeded(&self) -> bool {
        (200..300).contains(&self.code)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    stage: String,
    verb: String,
    #[serde(default)]
    user_agent: String,
    #[serde(default)]
    object_ref: ObjectRef,
    #[serde(default)]
    response_status: Status,
    request_received_timestamp: DateTime<Utc>,
    stage_timestamp: DateTime<Utc>,
}

#[derive(Default, Deserialize)]
struct ObjectRef {
    #[serde(default)]
    resource: String,
    #[serde(default)]
    subresource: String,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
}

/// The audit log of an apiserver, read as it grows.
pub struct Audit {
    path: PathBuf,
    offset: u64,
    /// Up to where, and how many creations, a glance has counted.
    glanced: (u64, usize),
    /// How many writes there were of anybody else, by program.
    others: BTreeMap<String, usize>,
    writes: Vec<Write>,
}

impl Audit {
    /// Reads the log at `path` from its start.
    pub fn new(path: PathBuf) -> Self {
        Audit {
            path,
            offset: 0,
            glanced: (0, 0),
            others: BTreeMap::new(),
            writes: Vec::new(),
        }
    }

    /// How many objects of cells the operator has created, counted so cheaply that what is measured does not feel it.
    pub fn glance(&mut self) -> Result<usize> {
        let context = || format!("read {}", self.path.display());
        let (offset, mut count) = self.glanced;
        let mut file = File::open(&self.path).with_context(context)?;
        file.seek(SeekFrom::Start(offset)).with_context(context)?;
        let mut text = String::new();
        file.read_to_string(&mut text).with_context(context)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        count += text[..whole]
            .lines()
            .filter(|line| {
                line.contains("\"userAgent\":\"titan-operator/")
                    && line.contains("\"verb\":\"create\"")
                    && line.contains("\"code\":201")
                    && !NOT_OF_CELLS
                        .iter()
                        .any(|name| line.contains(&format!("\"resource\":\"{name}\"")))
            })
            .count();
        self.glanced = (offset + u64::try_from(whole)?, count);
        Ok(count)
    }

    /// Takes in what has been written since.
    pub fn follow(&mut self) -> Result<()> {
        let context = || format!("read {}", self.path.display());
        let mut file = File::open(&self.path).with_context(context)?;
        file.seek(SeekFrom::Start(self.offset))
            .with_context(context)?;
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let mut text = String::new();
        loop {
            text.clear();
            let read = reader.read_line(&mut text)?;
            if read == 0 || !text.ends_with('\n') {
                return Ok(());
            }
            self.offset += u64::try_from(read)?;
            let line: Line = serde_json::from_str(&text).context("understand the audit log")?;
            if line.stage != "ResponseComplete" {
                continue;
            }
            let program = line.user_agent.split('/').next().unwrap_or_default();
            if program != "titan-operator" {
                *self.others.entry(program.to_owned()).or_default() += 1;
                continue;
            }
            let ObjectRef {
                resource,
                subresource,
            } = line.object_ref;
            self.writes.push(Write {
                received: line.request_received_timestamp,
                answered: line.stage_timestamp,
                verb: line.verb,
                resource: if subresource.is_empty() {
                    resource
                } else {
                    format!("{resource}/{subresource}")
                },
                code: line.response_status.code,
            });
        }
    }

    /// The operator's writes, but for its Lease.
    pub fn writes(&self) -> impl Iterator<Item = &Write> {
        self.writes
            .iter()
            .filter(|write| write.resource != "leases")
    }

    /// When the first of these was received and the last was answered, in seconds between.
    pub fn span<'a>(writes: impl Iterator<Item = &'a Write>) -> f64 {
        let (mut first, mut last) = (None, None);
        for write in writes {
            first = Some(first.map_or(write.received, |first: DateTime<Utc>| {
                first.min(write.received)
            }));
            last = Some(last.map_or(write.answered, |last: DateTime<Utc>| {
                last.max(write.answered)
            }));
        }
        match (first, last) {
            (Some(first), Some(last)) => (last - first).as_seconds_f64(),
            _ => 0.0,
        }
    }

    /// The operator's writes by verb and resource, the refused ones apart, and everybody else's by program.
    pub fn summary(&self) -> Value {
        let mut by_kind: BTreeMap<String, usize> = BTreeMap::new();
        for write in &self.writes {
            let refused = if write.succeeded() {
                String::new()
            } else {
                format!(" refused with {}", write.code)
            };
            *by_kind
                .entry(format!("{} {}{refused}", write.verb, write.resource))
                .or_default() += 1;
        }
        json!({ "operator": by_kind, "others": self.others })
    }
}
